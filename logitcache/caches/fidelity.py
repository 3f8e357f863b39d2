"""`logitcache fidelity`: measure how the encoding of a cache changes the loss and gradient of each method.

The probe holds a few hundred exact rows, so the teacher is not needed. Gradients need a student, for which there are two surrogates: an
untrained one (logits near 0), and a trained one (the teacher's logits plus noise of half their standard deviation).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from logitcache.encoding import (
    AnyRows,
    DrawnRows,
    Encoding,
    FullEncoding,
    SampledEncoding,
    TopKEncoding,
    TopKRows,
    dense,
    encode_rows,
    read_encoding,
)
from logitcache.errors import InputError
from logitcache.methods import METHODS, Distillation, get_loss, language_settings
from logitcache.runtime.wording import encoding_words
from logitcache.store import Cache, Ids, Manifest, compressed_bytes, disk_use, open_cache, row_uniforms

__all__ = ["Fidelity", "MethodError", "advice", "cache_fidelity", "sweep_encodings"]

_TEMPERATURES = (1.0, 2.0, 4.0)
_SERVED = (19, 63, 255)  # plus the label's: 20, which vLLM allows by default, 64 and 256
_USUAL = ("kd", "dkd", "loca", "sld", "rld")
_TEXT = "text"
_VALUES = 1 << 20  # values of exact rows that `advice` uses: all rows for up to 4,096 classes, 22 rows for 49,152
_POOR = 0.1  # relative gradient error above which `advice` reports a method
_DRAWS = (12, 50, 200)
_GOOD = 0.05  # relative gradient error up to which `advice` recommends an encoding


@dataclass(frozen=True, slots=True)
class MethodError:
    """Errors of one method, for each surrogate student, `fresh` and `trained`.

    Attributes:
        method: Name of the method.
        loss: Relative error of the mean loss.
        gradient: Norm of the gradient's error, relative to the norm of the gradient.
        angle_degrees: Angle between the exact gradient and that from stored rows.
        refused: Reason why the method cannot use these rows, or None. If there is one, the errors are empty.
    """

    method: str
    loss: dict[str, float]
    gradient: dict[str, float]
    angle_degrees: dict[str, float]
    refused: str | None


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Error caused by an encoding.

    Attributes:
        encoding: Entry of the encoding, as in the manifest.
        bytes_per_row: Bytes per row in storage, as defined by `logitcache.store.bytes_per_row`. For an encoding other than the stored one,
            an estimate: its columns as compressed for the probe, and everything else unchanged.
        rows: Number of rows measured.
        kl_nats: Mean KL(exact || stored) at temperatures 1, 2 and 4; empty for sampled rows, which give most classes no mass.
        unranked: Fraction of rows whose label is not among the largest; 0 if every class is kept, and for sampled rows.
        methods: Errors of each method.
        unknown_nats: For rows of log-probabilities, an upper bound on what the unknown shape of the rest adds to the mean
            KL(teacher || stored) at temperature 1. None if the teacher's full rows were measured.
    """

    encoding: dict[str, Any]
    bytes_per_row: float
    rows: int
    kl_nats: dict[str, float]
    unranked: float
    methods: list[MethodError]
    unknown_nats: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain objects."""
        return asdict(self)


def cache_fidelity(
    cache: str | Path | Cache,
    *,
    methods: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    teacher: str | None = None,
) -> Fidelity:
    """Compare the stored rows with the probe.

    Args:
        cache: Path of the cache, or an open cache.
        methods: Names of methods, or one name. Defaults to every method.
        settings: Pieces and parameters for all of them, as keyword arguments of `get_loss`. Defaults to each paper's settings; for
            text, to `language_settings`.
        teacher: Slug of the teacher, if there are several.

    Raises:
        LogitCacheError: If the cache cannot be opened or a method cannot be built.
    """
    opened = open_cache(cache).of(teacher)
    return _of_stored(opened, _losses(methods, settings or {}, opened.manifest), _exact(opened))


def advice(cache: str | Path | Cache, *, teacher: str | None = None, measured: Fidelity | None = None) -> list[str]:
    """Return advice for the common methods whose gradient suffers from the encoding, at their usual settings.

    There is a sentence for each such method, with the cheapest encoding of `sweep_encodings` that has a small error. The list is empty if
    the stored rows are accurate, and for sampled rows. Methods that cannot use the rows are skipped, because they raise an error anyway.

    Args:
        cache: Path of the cache, or an open cache.
        teacher: Slug of the teacher, if there are several.
        measured: Result of `cache_fidelity` for every method, if it is known.

    Raises:
        LogitCacheError: If the cache cannot be opened.
    """
    opened = open_cache(cache).of(teacher)
    if _is_given(opened.manifest) or opened.manifest.encoding["kind"] == "sampled":
        return []  # another dump's content is unknown, and the error of sampled rows averages out over rows
    losses, exact = _losses(_USUAL, {}, opened.manifest), _exact(opened, _VALUES)
    stored = measured or _of_stored(opened, losses, exact)
    errors = {one.method: one for one in stored.methods}
    usual = [errors[name] for name in _USUAL]
    poor = [one for one in usual if not one.refused and one.gradient["trained"] > _POOR]
    if not poor:
        return []
    better = _cheapest(exact, {one.method: losses[one.method] for one in poor}, stored.encoding.get("k", 0))
    # Rows of a full vocabulary are rarely an option for text.
    or_full = "" if opened.manifest.modality == _TEXT else " or --encoding full"
    return [_sentence(stored, one, losses[one.method], better[one.method], or_full) for one in poor]


def _cheapest(exact: "_Exact", losses: Mapping[str, Distillation], least: int) -> dict[str, Fidelity]:
    """Return the smallest encoding with a small error for each loss; top-k encodings must keep at least `least` logits."""
    found: dict[str, Fidelity] = {}
    for encoding, columns in _encoded(exact):
        left = {name: loss for name, loss in losses.items() if name not in found}
        if not left:
            break
        if isinstance(encoding, TopKEncoding) and encoding.k < least:
            continue
        measured = _measured(encoding, columns, exact, left)
        good = [one for one in measured.methods if not one.refused and one.gradient["trained"] <= _GOOD]
        found |= {one.method: measured for one in good}
    return found


def _sentence(
    stored: Fidelity,
    error: MethodError,
    loss: Distillation,
    better: Fidelity,
    or_full: str,
) -> str:
    numbers = [one for one in loss.temperatures if not callable(one)]
    at = f" at T={numbers[0]:g}" + (f" to {numbers[-1]:g}" if len(numbers) > 1 else "") if numbers else ""
    lost = error.gradient["trained"]
    where = f"k={stored.encoding['k']}" if "k" in stored.encoding else encoding_words(stored.encoding)
    kept = f"--top-k {better.encoding['k']}" if "k" in better.encoding else "--encoding full"
    return (
        f"{error.method}{at} loses {'all' if lost >= 1 else f'{lost:.0%}'} of its gradient at {where}: dump with {kept} --precision "
        f"{better.encoding['dtype']} ({better.bytes_per_row:.0f} bytes per row instead of {stored.bytes_per_row:.0f})"
        + (or_full if "k" in better.encoding else "")
    )


def sweep_encodings(
    cache: str | Path | Cache,
    *,
    methods: Sequence[str] | None = None,
    settings: Mapping[str, Any] | None = None,
    teacher: str | None = None,
) -> list[Fidelity]:
    """Measure all encodings that could have been chosen on the probe, and return them in order of size."""
    opened = open_cache(cache).of(teacher)
    losses, exact = _losses(methods, settings or {}, opened.manifest), _exact(opened)
    if _is_given(opened.manifest):
        most = opened.manifest.encoding["k"]
        given = [TopKEncoding(k, dtype, mass_only=True) for k in _powers(most + 1) for dtype in ("f16", "u8")]
        return [_measured(one, one.encode(exact.logits, exact.labels), exact, losses) for one in given]
    found = _encoded(exact)
    if opened.manifest.modality == _TEXT:  # what a server would return
        given = [TopKEncoding(k, "f16", mass_only=True) for k in _SERVED if k + 2 <= len(opened.manifest.classes)]
        found += [(one, encode_rows(one, exact.logits, exact.labels)) for one in given]
    if any(not one.not_drawn for one in losses.values()):
        found += [(one, _drawn(one, opened, exact)) for one in map(SampledEncoding, _DRAWS)]
    measured = [_measured(encoding, columns, exact, losses) for encoding, columns in found]
    return sorted(measured, key=lambda one: one.bytes_per_row)


def _drawn(encoding: SampledEncoding, cache: Cache, exact: "_Exact") -> dict[str, Tensor]:
    """Encode rows with the same samples as in a dump."""
    offsets, first = cache.offsets(), int(cache.manifest.data["first"])
    random = row_uniforms(encoding.to_json(), 0, exact.ids, offsets, first)
    return encode_rows(encoding, exact.logits, exact.labels, random)


class _Exact(NamedTuple):
    """Rows stored in full, and the size of the cache.

    Attributes:
        ids: Row ids, [R].
        logits: Exact logits, [R, C].
        labels: Class of each row, [R].
        stored: Encoding of the cache, as in the manifest.
        per_row: Bytes per row of the cache in storage.
        payload: Bytes per row of the encoding's columns.
    """

    ids: Ids
    logits: Tensor
    labels: Tensor
    stored: Mapping[str, Any]
    per_row: float
    payload: float

    def bytes_per_row(self, encoding: Encoding, columns: Mapping[str, Tensor]) -> float:
        """Return the bytes a row of the cache, or what they would be with other columns."""
        if encoding.to_json() == self.stored:
            return self.per_row
        return self.per_row - self.payload + _payload(encoding, columns, self.logits.shape[1]) / len(self.logits)


def _exact(cache: Cache, most: int | None = None) -> _Exact:
    """Read the probe of a cache.

    Args:
        cache: Cache to read.
        most: Maximum number of values to read, which limits the rows if there are many classes. None reads all.

    Raises:
        InputError: If the probe is empty.
    """
    ids, logits = cache.probe(cache.teacher)
    if not len(ids):
        raise InputError(
            f"all probe rows of {cache.place} are excluded, so nothing can be measured; exclude fewer samples"
        )
    every = 1 if most is None else max(-(-logits.size // most), 1)
    ids, logits = ids[::every], np.ascontiguousarray(logits[::every])
    use, labels = disk_use(cache), torch.from_numpy(cache.labels()[ids]).long()
    return _Exact(
        ids, torch.from_numpy(logits), labels, cache.manifest.encoding, use.per_row, use.payload(cache.teacher)
    )


def _of_stored(cache: Cache, losses: Mapping[str, Distillation], exact: _Exact) -> Fidelity:
    """Measure the stored rows."""
    stored = cache.rows(0, cache.teacher, exact.ids)
    columns = {name: torch.from_numpy(column) for name, column in stored.items()}
    encoding = read_encoding(cache.manifest.encoding)
    found = _measured(encoding, columns, exact, losses)
    if not _is_given(cache.manifest):
        return found
    rows = encoding.decode(columns, exact.labels, len(cache.manifest.classes))
    assert isinstance(rows, TopKRows)
    return replace(found, unknown_nats=_most_unknown(rows))


def _is_given(manifest: Manifest) -> bool:
    """Return whether the probe holds a teacher's largest log-probabilities with the rest completed, instead of full rows."""
    return bool(manifest.encoding["kind"] == "topk-mass")


def _most_unknown(rows: TopKRows) -> float:
    """Return an upper bound on the mean KL(teacher || rows) at temperature 1, if only the mass m of the rest is known.

    The divergence is m (log n - H), with n the number of classes in the rest and H the entropy of its normalized distribution. None of
    these classes exceeds the smallest of the k largest, p, so H >= log(m / p) and the bound is m log(n p / m).
    """
    label_is_least = rows.unranked[:, None] & (rows.values == rows.values.amin(1, keepdim=True))
    smallest = rows.values.masked_fill(label_is_least, torch.inf).amin(1).double()
    mass, count = rows.rest[:, 2].double(), rows.classes - rows.ids.shape[1]
    return float((mass.exp() * (math.log(count) + smallest - mass).clamp(min=0)).mean())


def _encoded(exact: _Exact) -> list[tuple[Encoding, dict[str, Tensor]]]:
    """Encode rows with every available encoding, and return them in order of size."""
    classes = exact.logits.shape[1]
    largest = [k for k in _powers(4097) if k + 2 <= classes]
    candidates: list[Encoding] = [FullEncoding(dtype) for dtype in ("f32", "f16", "u8")]
    candidates += [TopKEncoding(k, dtype) for k in largest for dtype in ("f16", "u8")]
    found = [(one, encode_rows(one, exact.logits, exact.labels)) for one in candidates]
    return sorted(found, key=lambda one: _payload(one[0], one[1], classes))


def _powers(end: int) -> list[int]:
    """Return the powers of 2 from 2 up to, but not including, `end`."""
    return [1 << n for n in range(1, end.bit_length()) if 1 << n < end]


def _payload(encoding: Encoding, columns: Mapping[str, Tensor], classes: int) -> int:
    """Return the compressed size of encoded rows in bytes."""
    specs = encoding.columns(classes)
    return sum(compressed_bytes(specs[name], column.numpy()) for name, column in columns.items())


def _losses(methods: Sequence[str] | None, settings: Mapping[str, Any], manifest: Manifest) -> dict[str, Distillation]:
    """Build losses by name, with the given settings and the defaults for the cache's kind of data."""
    if isinstance(methods, str):
        methods = [methods]
    names: Iterable[str] = methods or [name for name, method in METHODS.items() if method.divergence]
    if manifest.modality != _TEXT:
        return {name: get_loss(name, **settings) for name in names}
    return {name: get_loss(name, **language_settings(name, largest_alone=True) | dict(settings)) for name in names}


def _measured(
    encoding: Encoding, columns: Mapping[str, Tensor], rows_in_full: _Exact, losses: Mapping[str, Distillation]
) -> Fidelity:
    exact, labels = rows_in_full.logits, rows_in_full.labels
    classes, students = exact.shape[1], _students(exact)
    rows = encoding.decode(columns, labels, classes)
    return Fidelity(
        encoding.to_json(),
        rows_in_full.bytes_per_row(encoding, columns),
        len(exact),
        {
            f"T={temperature:g}": _kl(exact, dense(rows, temperature), temperature)
            for temperature in _temperatures(rows)
        },
        0.0 if isinstance(rows, Tensor | DrawnRows) else float(rows.unranked.float().mean()),
        [_method_error(name, loss, rows, exact, labels, students) for name, loss in losses.items()],
    )


def _temperatures(rows: AnyRows) -> tuple[float, ...]:
    """Return the temperatures at which rows can be completed to logits."""
    if isinstance(rows, DrawnRows):
        return ()
    return _TEMPERATURES[:1] if isinstance(rows, TopKRows) and rows.mass_only else _TEMPERATURES


def _kl(exact: Tensor, stored: Tensor, temperature: float) -> float:
    log_p, log_q = (F.log_softmax(scores.double() / temperature, 1) for scores in (exact, stored))
    return float((log_p.exp() * (log_p - log_q)).sum(1).mean())


def _students(exact: Tensor) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(exact.shape, generator=random)
    return {"fresh": 0.1 * noise, "trained": exact + 0.5 * exact.std(1, keepdim=True) * noise}


def _method_error(
    name: str,
    loss: Distillation,
    rows: AnyRows,
    exact: Tensor,
    labels: Tensor,
    students: Mapping[str, Tensor],
) -> MethodError:
    reason = loss.not_drawn if isinstance(rows, DrawnRows) else loss.every_class
    if isinstance(rows, TopKRows) and rows.mass_only and (temperature := loss.other_temperature) is not None:
        reason = (
            f"only the mass of the dropped classes at T=1 is known, and the method uses temperature {temperature:g}"
        )
    if reason and not isinstance(rows, Tensor):
        return MethodError(name, {}, {}, {}, reason)
    found: dict[str, tuple[float, float, float]] = {}
    for stage, student in students.items():
        (one, g_one), (other, g_other) = (_value(loss, student, teacher, labels) for teacher in (exact, rows))
        size = max(float(g_one.norm()), 1e-30)
        cosine = float((g_one * g_other).sum()) / max(size * float(g_other.norm()), 1e-30)
        found[stage] = (
            abs(other - one) / max(abs(one), 1e-30),
            float((g_other - g_one).norm()) / size,
            float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))),
        )
    error, norm, angle = ({stage: numbers[i] for stage, numbers in found.items()} for i in range(3))
    return MethodError(name, error, norm, angle, None)


def _value(loss: Distillation, student: Tensor, teacher: AnyRows, labels: Tensor) -> tuple[float, Tensor]:
    student = student.clone().requires_grad_()
    value = loss(student, teacher, labels).mean()
    (gradient,) = torch.autograd.grad(value, student)
    return float(value.detach()), gradient.double()
