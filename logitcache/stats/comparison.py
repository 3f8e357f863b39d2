"""Two caches of one data set, row by row: where their teachers agree, how far what is stored lies apart, which to prefer for what."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import CacheMismatchError
from logitcache.runtime.progress import OnProgress, Progress, silent
from logitcache.runtime.wording import encoding_words
from logitcache.stats.contents import divergences, divergences_over
from logitcache.stats.pairing import ImageRows, Part, TextRows, common_samples
from logitcache.stats.records import Comparison, Side
from logitcache.stats.rows import Columns, Ints, answers, read_rows
from logitcache.stats.serves import EVERY_CLASS
from logitcache.stats.teacher import Calibration
from logitcache.stats.token_comparison import TokenSums, kept_by_both, surprise_of
from logitcache.store import Cache, decode_rows, disk_use, open_cache

__all__ = ["compare_caches"]

_ROWS = 200_000
_LOGITS = 200_000_000  # of each, at most
_BYTES_AT_ONCE = 32_000_000
_VALUES_AT_ONCE = 1 << 18  # logits that stay in a processor's cache
_TEMPERATURES = (1.0, 4.0)
_CLEAR = 2.0  # standard errors: a smaller difference of accuracy is not spoken of
_CALIBRATION = 0.01
_SOFTER, _CHEAPER = 1.1, 1.1  # ratios
_BITS = {"f32": 32, "f16": 16, "u8": 8}
_TEXT = "text"


def compare_caches(
    first: str | Path | Cache,
    second: str | Path | Cache,
    *,
    teachers: tuple[str | None, str | None] = (None, None),
    on_progress: OnProgress = silent,
) -> Comparison:
    """Compare two caches over rows that both hold.

    Where both have views of one recipe, seed and key, these are compared, sample by sample, as far as their pixels are the same;
    else view 0 of one with view 0 of the other. Of text, target tokens that both have a row of, after the same tokens. At most 200,000
    rows, or 200 million logits, spread evenly; a few tens of MB at a time. Rows of which the largest were kept are completed evenly for
    each temperature; of text, classes that either does not keep count as one.

    Args:
        first: One.
        second: The other.
        teachers: Slug of one of several teachers, of each.
        on_progress: Called after every part of a view.

    Raises:
        CacheMismatchError: They hold other classes, other data, or other samples of it.
        LogitCacheError: One cannot be opened, or a block is damaged.
    """
    both = (open_cache(first).of(teachers[0]), open_cache(second).of(teachers[1]))
    _refuse_strangers(*both)
    pairing = TextRows(*both) if _is_text(both[0]) else ImageRows.of(*both)
    samples = common_samples(*both)
    classes, total = len(both[0].manifest.classes), both[0].manifest.view_rows * len(pairing.views)
    at_once = max(_BYTES_AT_ONCE // (4 * max(_kept(cache) for cache in both)), 1)
    sums = _Sums(both, TokenSums() if isinstance(pairing, TextRows) else None)
    for part in pairing.parts(min(_ROWS, max(_LOGITS // classes, 1)), at_once):
        sums.add(part, pixels_count=pairing.alike)
        on_progress(Progress("comparing", round(part.done * total), total, "rows"))
    if not sums.rows:
        raise CacheMismatchError(
            f"{both[0].place} and {both[1].place} have the same views and other pixels in every row: the images have changed between "
            "the two dumps. `logitcache verify` says which cache fits the data."
        )
    sides = (_side(both[0], sums, 0), _side(both[1], sums, 1))
    return Comparison(
        sides=sides,
        same=_same(both, samples, pairing, sums.other_pixels / (sums.rows + sums.other_pixels)),
        rows=sums.rows,
        top1_agreement=sums.agree / sums.rows,
        both_right=sums.right[1, 1] / sums.rows,
        first_right=sums.right[1, 0] / sums.rows,
        second_right=sums.right[0, 1] / sums.rows,
        both_wrong=sums.right[0, 0] / sums.rows,
        kl_nats=sums.divergence(0),
        kl_back_nats=sums.divergence(1),
        class_agreement=[]
        if sums.tokens
        else [
            agree / rows if rows else None
            for agree, rows in zip(sums.class_agree.tolist(), sums.class_rows.tolist(), strict=True)
        ],
        advice=_advice(both, sides, sums),
        tokens=sums.tokens.stats(pairing) if sums.tokens and isinstance(pairing, TextRows) else None,
    )


def _is_text(cache: Cache) -> bool:
    return cache.manifest.modality == _TEXT


def _refuse_strangers(first: Cache, second: Cache) -> None:
    one, other = first.manifest, second.manifest
    for cache in (first, second):
        if cache.manifest.encoding["kind"] == "sampled":
            raise CacheMismatchError(
                f"{cache.place} holds draws, of which no logits can be made to compare: compare caches dumped with --encoding full or topk."
            )
    for cache in (first, second):
        if not (cache.manifest.of_images or _is_text(cache)):
            raise CacheMismatchError(
                f"{cache.place} is a cache of {cache.manifest.modality}: only caches of images and of text can be compared side by side."
            )
    if one.modality != other.modality:
        raise CacheMismatchError(
            f"{first.place} is of {one.modality} and {second.place} of {other.modality}: compare caches of one data set."
        )
    if len(one.classes) != len(other.classes):
        raise CacheMismatchError(
            f"{first.place} has {len(one.classes)} classes and {second.place} {len(other.classes)}: compare caches of one data set."
        )
    if _is_text(first):  # of which targets may differ; its tokens are compared
        return
    for key in ("digest", "length"):
        if one.data[key] != other.data[key]:
            raise CacheMismatchError(
                f"{first.place} is of {one.data['spec'] or 'an object'} ({key} {one.data[key]}) and {second.place} of "
                f"{other.data['spec'] or 'an object'} ({key} {other.data[key]}): compare caches of one data set."
            )


def _kept(cache: Cache) -> int:
    """How many logits of a row are stored."""
    encoding = cache.manifest.encoding
    return len(cache.manifest.classes) if encoding["kind"] == "full" else int(encoding["k"]) + 1


class _Sums:
    """What is summed over the rows of both caches.

    Attributes:
        rows: Rows compared.
        other_pixels: Rows left out, because the teachers were shown other pixels.
        agree: Rows with the same largest class.
        right: Rows by whether the first and the second teacher are right, [2, 2].
        class_rows, class_agree: By label, [C].
        entropy, surprise: Of each side, [2].
        tokens: Sums over positions of text; None of images.
        calibration: Of each side.
    """

    def __init__(self, both: tuple[Cache, Cache], tokens: TokenSums | None) -> None:
        self._both, self.tokens = both, tokens
        classes = len(both[0].manifest.classes)
        self.rows = self.other_pixels = self.agree = 0
        self.right = np.zeros((2, 2), np.int64)
        self.class_rows, self.class_agree = np.zeros((2, classes), np.int64)
        self.entropy, self.surprise = np.zeros(2), np.zeros(2)
        self.calibration = (Calibration(), Calibration())
        self._divergence = np.zeros((len(_TEMPERATURES), 2))

    def add(self, part: Part, *, pixels_count: bool) -> None:
        """Read some rows of a view of each, and count them in; those with other pixels only as such."""
        with ThreadPoolExecutor(len(self._both)) as executor:
            columns = list(
                executor.map(lambda c, view, mine: c.rows(view, c.teacher, mine), self._both, part.views, part.rows)
            )
        keep = np.ones(len(part.labels), np.bool_)
        if pixels_count:
            hashed_by = {
                cache.manifest.views[view].get("digest") for cache, view in zip(self._both, part.views, strict=True)
            }
            one, other = (
                cache.shown_of(view, mine) for cache, view, mine in zip(self._both, part.views, part.rows, strict=True)
            )
            names = (one.keys() & other.keys()) - ({"digests"} if len(hashed_by) > 1 else set())
            same = [(one[name] == other[name]).reshape(len(keep), -1).all(1) for name in names]
            keep = np.logical_and.reduce([keep, *same])
        self.other_pixels += int((~keep).sum())
        step = max(_VALUES_AT_ONCE // len(self.class_rows), 1)
        for chosen in np.split(np.flatnonzero(keep), np.arange(step, keep.sum(), step)):
            here = [{name: column[chosen] for name, column in one.items()} for one in columns]
            self._add_piece(part, chosen, [cache.manifest.encoding for cache in self._both], here)

    def _add_piece(self, part: Part, chosen: Ints, encodings: list[dict[str, Any]], columns: Sequence[Columns]) -> None:
        labels, classes = part.labels[chosen], len(self.class_rows)
        found = [
            answers(read_rows(encoding, one, labels, classes)) for encoding, one in zip(encodings, columns, strict=True)
        ]
        right, agree = [one.says == labels for one in found], found[0].says == found[1].says
        self.rows += len(labels)
        self.agree += int(agree.sum())
        self.right += np.bincount(2 * right[0] + right[1], minlength=4).reshape(2, 2)
        self.class_rows += np.bincount(labels, minlength=classes)
        self.class_agree += np.bincount(labels[agree], minlength=classes)
        for side, said in enumerate(found):
            self.entropy[side] += said.entropy.sum(dtype=np.float64)
            self.surprise[side] += surprise_of(said).sum(dtype=np.float64)
            self.calibration[side].add(said.confidence, right[side])
        divergences = [self._divergences(encodings, columns, temperature) for temperature in _TEMPERATURES]
        self._divergence += [[values.sum(dtype=np.float64) for values in both] for both in divergences]
        if self.tokens is not None:
            self.tokens.add(part, chosen, found, divergences[0][0])

    def _divergences(
        self, encodings: list[dict[str, Any]], columns: Sequence[Columns], temperature: float
    ) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
        """Return the KL of each row from the first to the second, and back, in nats, [B] each.

        Of text, classes that either does not keep count as one, as in training: a lower bound. Of images what was not kept is completed.
        """
        both = list(zip(encodings, columns, strict=True))
        one, other = (decode_rows(encoding, rows, len(self.class_rows), temperature) for encoding, rows in both)
        if self.tokens is None:
            return divergences(one, other, temperature)
        return divergences_over(one, other, kept_by_both(both, one.shape), temperature)

    def divergence(self, direction: int) -> dict[str, float]:
        """Return the mean KL in nats by temperature: 0 from the first to the second, 1 back."""
        means = np.maximum(self._divergence[:, direction] / self.rows, 0).tolist()
        return {
            f"T={temperature:g}": mean
            for temperature, mean in zip(_TEMPERATURES, means, strict=True)
            if np.isfinite(mean)  # of some caches the rest is known at temperature 1 alone
        }


def _side(cache: Cache, sums: _Sums, side: int) -> Side:
    manifest = cache.manifest
    return Side(
        path=str(cache.place),
        fingerprint=cache.fingerprint,
        teacher=manifest.teachers[0]["name"],
        encoding=encoding_words(manifest.encoding),
        bytes_per_row=disk_use(cache).per_row,
        accuracy=int(sums.right.sum(1 - side)[1]) / sums.rows,
        entropy_nats=float(sums.entropy[side]) / sums.rows,
        surprise_nats=float(sums.surprise[side]) / sums.rows,
        calibration_error=sums.calibration[side].error(),
    )


def _same(
    both: tuple[Cache, Cache], samples: tuple[int, int], pairing: ImageRows | TextRows, changed: float
) -> dict[str, str]:
    """Say what is the same in both."""
    one, other = (cache.manifest for cache in both)
    first, second = one.teachers[0], other.teachers[0]
    weights = first["weights_sha256"]
    same_teacher = weights is not None and weights == second["weights_sha256"] and first["name"] == second["name"]
    span = f"samples {samples[0]:,} to {samples[1] - 1:,}"
    whole = one.samples == other.samples == samples[1] - samples[0]
    if isinstance(pairing, TextRows):
        seen = "text as it is: the same tokens before each"
    elif not pairing.alike:
        shown = [f"view 0 ({m.views[0]['recipe']}, seed {m.views[0]['seed']})" for m in (one, other)]
        seen = f"differ: {shown[0]} beside {shown[1]}"
    else:
        seen = f"{len(pairing.views)} the same" + (
            f"; {changed:.1%} of their rows show other pixels and are left out" if changed else ""
        )
    return {
        "teacher": f"the same: {first['name']}"
        if same_teacher
        else f"differs: {first['name']} beside {second['name']}",
        "views": seen,
        "encoding": f"the same: {encoding_words(one.encoding)}"
        if one.encoding == other.encoding
        else f"differs: {encoding_words(one.encoding)} beside {encoding_words(other.encoding)}",
        "data": f"the same: {span}" if whole else f"{span} of the same data are in both",
    }


def _advice(both: tuple[Cache, Cache], sides: tuple[Side, Side], sums: _Sums) -> list[str]:
    """Say which to prefer for what, where the numbers differ enough to say it."""
    found: list[str] = []
    alone = [int(sums.right[1, 0]), int(sums.right[0, 1])]  # rows that only one of them gets right
    if abs(alone[0] - alone[1]) > _CLEAR * np.sqrt(sum(alone)):  # McNemar's test
        better, worse = _ordered(sides, [-share for share in alone])
        found.append(
            f"{better.path} is right more often ({better.accuracy:.1%} of rows against {worse.accuracy:.1%}): prefer it where nothing "
            "corrects the teacher"
        )
    if abs(sides[0].calibration_error - sides[1].calibration_error) > _CALIBRATION:
        better, worse = _ordered(sides, [side.calibration_error for side in sides])
        found.append(
            f"{better.path} is better calibrated (error {better.calibration_error:.1%} against {worse.calibration_error:.1%}): its "
            "confidence can be taken at its word, as rld does"
        )
    softer, harder = _ordered(sides, [-side.entropy_nats for side in sides])
    if softer.entropy_nats > _SOFTER * harder.entropy_nats:
        found.append(
            f"{softer.path} is softer ({softer.entropy_nats:.3f} nats against {harder.entropy_nats:.3f}): at equal temperature it says "
            "more about the other classes"
        )
    cheaper, dearer = _ordered(sides, [side.bytes_per_row for side in sides])
    rows = {cache.manifest.view_rows * len(cache.manifest.views) for cache in both}  # of few, what is fixed weighs more
    if len(rows) == 1 and dearer.bytes_per_row > _CHEAPER * cheaper.bytes_per_row:
        found.append(
            f"{cheaper.path} is smaller ({cheaper.bytes_per_row:.1f} B a row against {dearer.bytes_per_row:.1f})"
        )
    return found + _finer(both, sides)


def _finer(both: tuple[Cache, Cache], sides: tuple[Side, Side]) -> list[str]:
    kept = [one.manifest.encoding.get("k", np.inf) for one in both]
    bits = [_BITS[one.manifest.encoding["dtype"]] for one in both]
    if kept[0] != kept[1]:
        more, fewer = _ordered(sides, [-k for k in kept])
        if max(kept) == np.inf:
            all_of_them = ", ".join(sorted(EVERY_CLASS))
            return [f"{more.path} keeps every class: methods that need all of them ({all_of_them}) refuse {fewer.path}"]
        return [f"{more.path} keeps more classes of a row ({more.encoding} against {fewer.encoding})"]
    if bits[0] != bits[1]:
        finer, coarser = _ordered(sides, [-b for b in bits])
        return [f"{finer.path} is finer ({finer.encoding} against {coarser.encoding})"]
    return []


def _ordered(sides: tuple[Side, Side], values: Sequence[float]) -> tuple[Side, Side]:
    """Return the sides, the one with the smaller value first."""
    return sides if values[0] <= values[1] else (sides[1], sides[0])
