"""Compare two caches of one data set row by row: agreement of the teachers, KL divergence of the stored rows, and advice."""

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
_LOGITS = 200_000_000  # maximum number of logits to read from each cache
_BYTES_AT_ONCE = 32_000_000
_VALUES_AT_ONCE = 1 << 18  # logits that stay in a processor's cache
_TEMPERATURES = (1.0, 4.0)
_CLEAR = 2.0  # minimum difference of accuracy to report, in standard errors
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
    """Compare two caches over the rows that both contain.

    Views with the same recipe, seed and key are compared sample by sample, except for rows whose pixels differ. If there are no such
    views, view 0 of one cache is compared with view 0 of the other. For text, the target tokens with a row in both caches and the same
    preceding tokens are compared. At most 200,000 rows or 200 million logits are read, evenly spaced, a few tens of MB at a time. The
    tail of top-k rows is filled in evenly for each temperature; for text, all classes that either cache leaves out count as one.

    Args:
        first: First cache, or its path or address.
        second: Second cache, or its path or address.
        teachers: Slug of the teacher to read from each cache; None if it has only one.
        on_progress: Called after every part of a view.

    Raises:
        CacheMismatchError: The caches have different classes or data, or no samples in common.
        LogitCacheError: A cache cannot be opened, or a block is damaged.
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
            f"cannot compare {both[0].place} and {both[1].place}: their views are the same, but the pixels differ in every row, so the "
            "images changed between the two dumps. `logitcache verify` shows which cache matches the data."
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
                f"{cache.place} holds draws, which cannot be compared; compare caches dumped with --encoding full or topk."
            )
    for cache in (first, second):
        if not (cache.manifest.of_images or _is_text(cache)):
            raise CacheMismatchError(
                f"{cache.place} is a cache of {cache.manifest.modality}; only caches of images or text can be compared."
            )
    if one.modality != other.modality:
        raise CacheMismatchError(
            f"{first.place} is a cache of {one.modality} and {second.place} of {other.modality}; compare caches of one data set."
        )
    if len(one.classes) != len(other.classes):
        raise CacheMismatchError(
            f"{first.place} has {len(one.classes)} classes and {second.place} {len(other.classes)}; compare caches of one data set."
        )
    if _is_text(first):  # whose targets may differ; the tokens are compared later
        return
    for key in ("digest", "length"):
        if one.data[key] != other.data[key]:
            raise CacheMismatchError(
                f"{first.place} was dumped from {one.data['spec'] or 'a data set object'} ({key} {one.data[key]}) and {second.place} from "
                f"{other.data['spec'] or 'a data set object'} ({key} {other.data[key]}); compare caches of one data set."
            )


def _kept(cache: Cache) -> int:
    """Return the number of logits stored per row."""
    encoding = cache.manifest.encoding
    return len(cache.manifest.classes) if encoding["kind"] == "full" else int(encoding["k"]) + 1


class _Sums:
    """Sums over the rows of both caches.

    Attributes:
        rows: Number of rows compared.
        other_pixels: Number of rows left out because the teachers saw different pixels.
        agree: Number of rows with the same top class.
        right: Number of rows by whether the first and the second teacher are correct, [2, 2].
        class_rows, class_agree: Number of rows, and of rows with the same top class, by label, [C].
        entropy, surprise: Summed entropy and surprisal of each side in nats, [2].
        tokens: Sums by position in the text; None for images.
        calibration: Reliability diagram of each side.
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
        """Read rows of a view of each cache and add them; rows with different pixels are only counted."""
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
        """Return KL(first || second) and KL(second || first) of each row in nats, [B] each.

        For text, all classes that either cache leaves out count as one, as in training, which gives a lower bound. For images, the tail
        is filled in.
        """
        both = list(zip(encodings, columns, strict=True))
        one, other = (decode_rows(encoding, rows, len(self.class_rows), temperature) for encoding, rows in both)
        if self.tokens is None:
            return divergences(one, other, temperature)
        return divergences_over(one, other, kept_by_both(both, one.shape), temperature)

    def divergence(self, direction: int) -> dict[str, float]:
        """Return the mean KL in nats by temperature, KL(first || second) for direction 0 and KL(second || first) for 1."""
        means = np.maximum(self._divergence[:, direction] / self.rows, 0).tolist()
        return {
            f"T={temperature:g}": mean
            for temperature, mean in zip(_TEMPERATURES, means, strict=True)
            if np.isfinite(mean)  # some caches know the rest only at temperature 1
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
    """Return descriptions of what is the same in both caches and what differs."""
    one, other = (cache.manifest for cache in both)
    first, second = one.teachers[0], other.teachers[0]
    weights = first["weights_sha256"]
    same_teacher = weights is not None and weights == second["weights_sha256"] and first["name"] == second["name"]
    span = f"samples {samples[0]:,} to {samples[1] - 1:,}"
    whole = one.samples == other.samples == samples[1] - samples[0]
    if isinstance(pairing, TextRows):
        seen = "text without augmentation, the same preceding tokens"
    elif not pairing.alike:
        shown = [f"view 0 ({m.views[0]['recipe']}, seed {m.views[0]['seed']})" for m in (one, other)]
        seen = f"different: {shown[0]} and {shown[1]}"
    else:
        seen = f"{len(pairing.views)} in common" + (
            f"; {changed:.1%} of their rows have different pixels and are left out" if changed else ""
        )
    return {
        "teacher": f"the same: {first['name']}" if same_teacher else f"different: {first['name']} and {second['name']}",
        "views": seen,
        "encoding": f"the same: {encoding_words(one.encoding)}"
        if one.encoding == other.encoding
        else f"different: {encoding_words(one.encoding)} and {encoding_words(other.encoding)}",
        "data": f"the same: {span}" if whole else f"the same, with {span} in both",
    }


def _advice(both: tuple[Cache, Cache], sides: tuple[Side, Side], sums: _Sums) -> list[str]:
    """Return advice on which cache to prefer, for numbers that clearly differ."""
    found: list[str] = []
    alone = [int(sums.right[1, 0]), int(sums.right[0, 1])]  # rows that only one teacher classifies correctly
    if abs(alone[0] - alone[1]) > _CLEAR * np.sqrt(sum(alone)):  # McNemar's test
        better, worse = _ordered(sides, [-share for share in alone])
        found.append(
            f"{better.path} is more accurate ({better.accuracy:.1%} instead of {worse.accuracy:.1%}): prefer it for methods that do not "
            "correct the teacher"
        )
    if abs(sides[0].calibration_error - sides[1].calibration_error) > _CALIBRATION:
        better, worse = _ordered(sides, [side.calibration_error for side in sides])
        found.append(
            f"{better.path} is better calibrated (error {better.calibration_error:.1%} instead of {worse.calibration_error:.1%}): prefer "
            "it for methods that rely on the confidence, such as rld"
        )
    softer, harder = _ordered(sides, [-side.entropy_nats for side in sides])
    if softer.entropy_nats > _SOFTER * harder.entropy_nats:
        found.append(
            f"{softer.path} is softer (entropy {softer.entropy_nats:.3f} nats instead of {harder.entropy_nats:.3f}): at the same "
            "temperature, it has more information about the other classes"
        )
    cheaper, dearer = _ordered(sides, [side.bytes_per_row for side in sides])
    # With different numbers of rows, the fixed overhead would distort the comparison.
    rows = {cache.manifest.view_rows * len(cache.manifest.views) for cache in both}
    if len(rows) == 1 and dearer.bytes_per_row > _CHEAPER * cheaper.bytes_per_row:
        found.append(
            f"{cheaper.path} is smaller ({cheaper.bytes_per_row:.1f} bytes per row instead of {dearer.bytes_per_row:.1f})"
        )
    return found + _finer(both, sides)


def _finer(both: tuple[Cache, Cache], sides: tuple[Side, Side]) -> list[str]:
    kept = [one.manifest.encoding.get("k", np.inf) for one in both]
    bits = [_BITS[one.manifest.encoding["dtype"]] for one in both]
    if kept[0] != kept[1]:
        more, fewer = _ordered(sides, [-k for k in kept])
        if max(kept) == np.inf:
            all_of_them = ", ".join(sorted(EVERY_CLASS))
            return [
                f"{more.path} keeps every class: the methods that need all of them ({all_of_them}) cannot use {fewer.path}"
            ]
        return [f"{more.path} keeps more classes per row ({more.encoding} instead of {fewer.encoding})"]
    if bits[0] != bits[1]:
        finer, coarser = _ordered(sides, [-b for b in bits])
        return [f"{finer.path} has higher precision ({finer.encoding} instead of {coarser.encoding})"]
    return []


def _ordered(sides: tuple[Side, Side], values: Sequence[float]) -> tuple[Side, Side]:
    """Return the sides in ascending order of their values."""
    return sides if values[0] <= values[1] else (sides[1], sides[0])
