"""`logitcache stats`: what a cache holds, how good its teacher is, what was lost in storing it. Without torch; block by block."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.progress import OnProgress, Progress, silent
from logitcache.store import Cache, decode_rows, open_cache

__all__ = ["CacheStats", "ProbeLoss", "ViewStats", "cache_stats"]

_VALUES_AT_ONCE = 16_000_000  # logits in memory, as float64


@dataclass(frozen=True, slots=True)
class ViewStats:
    """The teacher on one view.

    Attributes:
        view: Its index.
        recipe: How it was made.
        accuracy: Share of rows whose largest logit is the label's.
        top5_accuracy: Share of rows whose label is among the five largest.
        mis_instruction_rate: Share of rows whose largest logit is not the label's: those that label-aware methods act
            on.
        confidence: Mean of the largest probability at temperature 1.
        entropy_nats: Mean entropy at temperature 1.
        constant_rows: Rows whose logits are all equal.
    """

    view: int
    recipe: str
    accuracy: float
    top5_accuracy: float
    mis_instruction_rate: float
    confidence: float
    entropy_nats: float
    constant_rows: int


@dataclass(frozen=True, slots=True)
class ProbeLoss:
    """What storing has changed, measured against rows kept in full.

    Attributes:
        rows: Rows looked at.
        largest_gap: Largest difference of a logit.
        kl_nats: Mean KL(exact || stored) at temperatures 1 and 4.
        top1_changed: Rows whose largest class is another.
    """

    rows: int
    largest_gap: float
    kl_nats: dict[str, float]
    top1_changed: int


@dataclass(frozen=True, slots=True)
class CacheStats:
    """Everything `logitcache stats` prints.

    Attributes:
        path: Of the cache.
        fingerprint: Of its content.
        manifest: Its manifest.
        bytes_by_array: On disk, by array.
        bytes_total: On disk.
        bytes_per_row: Of a row (one sample in one view), all arrays.
        ratio_to_float32: bytes_per_row against the C logits in raw float32.
        views: The teacher on each view.
        probe: What storing has changed.
    """

    path: str
    fingerprint: str
    manifest: dict[str, Any]
    bytes_by_array: dict[str, int]
    bytes_total: int
    bytes_per_row: float
    ratio_to_float32: float
    views: list[ViewStats]
    probe: ProbeLoss

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain objects."""
        return asdict(self)


def cache_stats(
    cache: str | Path | Cache, *, teacher: str | None = None, on_progress: OnProgress = silent
) -> CacheStats:
    """Describe a cache, of several teachers' one of them by its slug; reads every row once, one block in memory.

    Raises:
        LogitCacheError: The cache cannot be opened, or a block is damaged.
    """
    opened = open_cache(cache).of(teacher)
    manifest, teacher = opened.manifest, opened.teacher
    labels = opened.labels()
    views = [_view_stats(opened, view, teacher, labels, on_progress) for view in range(len(manifest.views))]
    files = opened.place.sizes()
    sizes = {
        key: sum(size for name, size in files.items() if name.startswith(f"{key}/"))
        for key in ("labels", "digests", f"teachers/{teacher}", "probe", ".logitcache")
    }
    total = sum(files.values())
    rows = manifest.samples * len(manifest.views)
    return CacheStats(
        path=str(opened.place),
        fingerprint=opened.fingerprint,
        manifest=manifest.to_json(),
        bytes_by_array=sizes,
        bytes_total=total,
        bytes_per_row=total / rows,
        ratio_to_float32=total / rows / (4 * len(manifest.classes)),
        views=views,
        probe=_probe_loss(opened, teacher),
    )


def _view_stats(cache: Cache, view: int, teacher: str, labels: NDArray[np.int32], on_progress: OnProgress) -> ViewStats:
    manifest = cache.manifest
    sums = np.zeros(5)  # right, among five, confidence, entropy, constant
    for first, last, columns in cache.blocks(view, teacher):
        step = max(_VALUES_AT_ONCE // len(manifest.classes), 1)
        for start in range(0, last - first, step):
            part = slice(start, min(start + step, last - first))
            logits = decode_rows(
                manifest.encoding, {name: column[part] for name, column in columns.items()}, len(manifest.classes)
            ).astype(np.float64)
            true = labels[first:last][part]
            own = logits[np.arange(len(true)), true]
            log_p = _log_softmax(logits)
            p = np.exp(log_p)
            sums += (
                (logits.argmax(1) == true).sum(),
                ((logits > own[:, None]).sum(1) < 5).sum(),
                p.max(1).sum(),
                -(p * log_p).sum(),
                (np.ptp(logits, 1) == 0).sum(),
            )
        done = view * manifest.samples + last
        on_progress(Progress("reading", done, len(manifest.views) * manifest.samples, "rows"))
    right, five, confidence, entropy = (float(x) for x in sums[:4] / manifest.samples)
    return ViewStats(view, manifest.views[view]["recipe"], right, five, 1 - right, confidence, entropy, int(sums[4]))


def _probe_loss(cache: Cache, teacher: str) -> ProbeLoss:
    samples, exact = cache.probe(teacher)
    stored = decode_rows(cache.manifest.encoding, cache.rows(0, teacher, samples), len(cache.manifest.classes))
    divergence = {}
    for temperature in (1, 4):
        log_p, log_q = (_log_softmax(x.astype(np.float64) / temperature) for x in (exact, stored))
        divergence[f"T={temperature}"] = float((np.exp(log_p) * (log_p - log_q)).sum(1).mean())
    changed = int((exact.argmax(1) != stored.argmax(1)).sum())
    return ProbeLoss(len(samples), float(np.abs(exact - stored).max()), divergence, changed)


def _log_softmax(logits: NDArray[Any]) -> NDArray[Any]:
    shifted = logits - logits.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))
