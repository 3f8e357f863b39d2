"""Where a cache comes from, and what storing has changed."""

import numpy as np
from numpy.typing import NDArray

from logitcache.stats.records import ProbeLoss
from logitcache.store import Cache, decode_rows, history, kept_values

__all__ = ["NO_PROBE", "divergences", "divergences_over", "made", "preprocessing_from", "probe_loss"]

Logits = NDArray[np.floating]

_TEXT = "text"
_TEMPERATURES = (1, 4)
_LEAST = 1e-30  # probability
NO_PROBE = ProbeLoss(0, 0.0, {f"T={temperature}": 0.0 for temperature in _TEMPERATURES}, 0)


def made(cache: Cache) -> dict[str, str]:
    """Say when and on what a cache was made: `begun`, `continued` (where it was), `host`, `device`, `command`."""
    events = [entry for entry in history(cache.place) if "time" in entry]
    if not events:
        return {}
    found = {"begun": events[0]["time"], "host": events[0].get("host"), "device": cache.manifest.device}
    found["continued"] = events[-1]["time"] if len(events) > 1 else None
    found["command"] = cache.command
    return {name: str(value) for name, value in found.items() if value}


def preprocessing_from(cache: Cache) -> dict[str, str]:
    """Return where the teacher's preprocessing came from at the dump: name of a setting to "option", "weights" or "data".

    Empty where the history does not say.
    """
    slug = cache.manifest.teachers[0]["slug"]
    found = [entry["preprocessing_from"] for entry in history(cache.place) if "preprocessing_from" in entry]
    return dict(found[0].get(slug, {})) if found and not cache.manifest.derived else {}


def probe_loss(cache: Cache, teacher: str) -> ProbeLoss:
    """Compare what is stored with rows that are kept in full.

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
    # Of some caches the rest is known at temperature 1 alone.
    known = {t: rows.astype(np.float64) for t, rows in stored.items() if np.isfinite(rows).all()}
    compared: dict[int, tuple[Logits, Logits]] = {t: (precise, rows) for t, rows in known.items()}
    if ids is not None:
        compared = {t: (_merged(one, ids, t), _merged(other, ids, t)) for t, (one, other) in compared.items()}
    one, other = compared[1]
    gaps = np.abs(one - other) if ids is None else np.abs(one - other)[:, :-1]
    nats = {f"T={t}": float(divergences(*pair, t)[0].mean()) for t, pair in compared.items()}
    return ProbeLoss(len(exact), float(gaps.max()), nats, changed, merged)


def _merged(logits: Logits, ids: NDArray[np.int64], temperature: float) -> Logits:
    """Return the logits of some classes and, as a last column, one that weighs at a temperature what all others do, [B, K + 1]."""
    kept = np.take_along_axis(logits, ids, 1)
    rest = logits.copy()
    np.put_along_axis(rest, ids, -np.inf, 1)
    top = rest.max(1, keepdims=True)
    total = top + temperature * np.log(np.exp((rest - top) / temperature).sum(1, keepdims=True))
    return np.concatenate([kept, total], 1)


def divergences(one: Logits, other: Logits, temperature: float) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """KL(one || other) and KL(other || one) of the softmax at a temperature, row by row in nats, [B] each.

    Args:
        one: Logits, [B, C]; their precision is computed in.
        other: Logits, [B, C].
        temperature: Of both.
    """
    (log_p, p), (log_q, q) = (_softmax(logits / temperature) for logits in (one, other))
    gap = log_p - log_q
    return np.einsum("ij,ij->i", p, gap), -np.einsum("ij,ij->i", q, gap)


def divergences_over(
    one: Logits, other: Logits, kept: NDArray[np.bool_], temperature: float
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Return the same with some classes of each row counted as one, [B] each: a lower bound, and no estimate of what was not kept.

    Args:
        one: Logits, [B, C].
        other: Logits, [B, C].
        kept: Classes that count one by one, [B, C].
        temperature: Of both.
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
