"""Origin of a cache, and the error of its encoding measured on the probe."""

import numpy as np
from numpy.typing import NDArray

from logitcache.stats.records import ProbeLoss
from logitcache.store import Cache, decode_rows, history, kept_values

__all__ = ["NO_PROBE", "divergences", "divergences_over", "made", "preprocessing_from", "probe_loss"]

Logits = NDArray[np.floating]

_TEXT = "text"
_TEMPERATURES = (1, 4)
_LEAST = 1e-30  # smallest probability
NO_PROBE = ProbeLoss(0, 0.0, {f"T={temperature}": 0.0 for temperature in _TEMPERATURES}, 0)


def made(cache: Cache) -> dict[str, str]:
    """Return when and where a cache was made: `begun`, `continued` (if it was resumed), `host`, `device` and `command`."""
    events = [entry for entry in history(cache.place) if "time" in entry]
    if not events:
        return {}
    found = {"begun": events[0]["time"], "host": events[0].get("host"), "device": cache.manifest.device}
    found["continued"] = events[-1]["time"] if len(events) > 1 else None
    found["command"] = cache.command
    return {name: str(value) for name, value in found.items() if value}


def preprocessing_from(cache: Cache) -> dict[str, str]:
    """Return the origin of each preprocessing setting at the dump, as in `CacheInfo.preprocessing_from`.

    Empty if the history does not record it.
    """
    slug = cache.manifest.teachers[0]["slug"]
    found = [entry["preprocessing_from"] for entry in history(cache.place) if "preprocessing_from" in entry]
    return dict(found[0].get(slug, {})) if found and not cache.manifest.derived else {}


def probe_loss(cache: Cache, teacher: str) -> ProbeLoss:
    """Compare the stored rows with the probe.

    Raises:
        CorruptCacheError: A chunk is missing or damaged.
    """
    samples, exact = cache.probe(teacher)
    if not len(samples) or cache.manifest.encoding["kind"] == "sampled":
        return NO_PROBE
    encoding, classes = cache.manifest.encoding, len(cache.manifest.classes)
    columns = cache.rows(0, teacher, samples)
    stored = {temperature: decode_rows(encoding, columns, classes, temperature) for temperature in _TEMPERATURES}
    keep = np.isfinite(exact).all(1) & np.isfinite(stored[1]).all(1)
    if not keep.any():
        return NO_PROBE
    exact, stored = exact[keep], {temperature: rows[keep] for temperature, rows in stored.items()}
    changed = int((exact.argmax(1) != stored[1].argmax(1)).sum())
    merged = encoding["kind"] != "full" and cache.manifest.modality == _TEXT
    ids = None
    if merged:
        ids, _ = kept_values(encoding, {name: column[keep] for name, column in columns.items()})
    precise: Logits = exact.astype(np.float64)
    # Some caches know the rest only at temperature 1.
    known = {t: rows.astype(np.float64) for t, rows in stored.items() if np.isfinite(rows).all()}
    compared: dict[int, tuple[Logits, Logits]] = {t: (precise, rows) for t, rows in known.items()}
    if ids is not None:
        compared = {t: (_merged(one, ids, t), _merged(other, ids, t)) for t, (one, other) in compared.items()}
    one, other = compared[1]
    gaps = np.abs(one - other) if ids is None else np.abs(one - other)[:, :-1]
    nats = {f"T={t}": float(divergences(*pair, t)[0].mean()) for t, pair in compared.items()}
    return ProbeLoss(len(exact), float(gaps.max()), nats, changed, merged)


def _merged(logits: Logits, ids: NDArray[np.int64], temperature: float) -> Logits:
    """Return the logits of the given classes, and a last column with the mass of all others at a temperature, [B, K + 1]."""
    kept = np.take_along_axis(logits, ids, 1)
    rest = logits.copy()
    np.put_along_axis(rest, ids, -np.inf, 1)
    top = rest.max(1, keepdims=True)
    total = top + temperature * np.log(np.exp((rest - top) / temperature).sum(1, keepdims=True))
    return np.concatenate([kept, total], 1)


def divergences(one: Logits, other: Logits, temperature: float) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Return KL(one || other) and KL(other || one) of the softmax at a temperature, in nats, [B] each.

    Args:
        one: Logits, [B, C]; computed in their precision.
        other: Logits, [B, C].
        temperature: Temperature of both.
    """
    (log_p, p), (log_q, q) = (_softmax(logits / temperature) for logits in (one, other))
    gap = log_p - log_q
    return np.einsum("ij,ij->i", p, gap), -np.einsum("ij,ij->i", q, gap)


def divergences_over(
    one: Logits, other: Logits, kept: NDArray[np.bool_], temperature: float
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Return `divergences` with all classes that are not kept merged into one, [B] each; a lower bound of the KL over all classes.

    Args:
        one: Logits, [B, C].
        other: Logits, [B, C].
        kept: Whether a class counts separately, [B, C].
        temperature: Temperature of both.
    """
    (log_p, p), (log_q, q) = (_softmax(logits.astype(np.float64) / temperature) for logits in (one, other))
    gap = np.where(kept, log_p - log_q, 0.0)
    rest = [np.where(kept, 0.0, x).sum(1) for x in (p, q)]
    ratio = np.log(np.maximum(rest[0], _LEAST)) - np.log(np.maximum(rest[1], _LEAST))
    return np.einsum("ij,ij->i", p, gap) + rest[0] * ratio, -np.einsum("ij,ij->i", q, gap) - rest[1] * ratio


def _softmax(logits: Logits) -> tuple[Logits, Logits]:
    """Return log probabilities and probabilities."""
    shifted = logits - logits.max(1, keepdims=True)
    weights = np.exp(shifted)
    total = weights.sum(1, keepdims=True)
    return shifted - np.log(total), weights / total
