"""Random numbers of sampled rows, and comparison of sampled rows with exact logits, with numpy only.

The counter is (view, sample in the whole data set, position of the row in its sample), so the result does not depend on batches, processes,
slices or merges.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.runtime.philox import uniforms, words
from logitcache.store.offsets import Ids, samples_of

__all__ = ["draw_gaps", "drawn_targets", "row_uniforms"]

_DOMAIN = 1 << 31  # above the counters of all augmentations, which begin at 0
_SPACING = 2.0**-9  # relative rounding error of facts in float16, twice its resolution
_ROWS = 256


def row_uniforms(
    encoding: Mapping[str, Any], view: int, rows: Ids, offsets: Ids | None, first: int
) -> NDArray[np.float64] | None:
    """Return the random numbers of the given rows, ascending in each row, [R, N], or None if the encoding does not sample.

    Args:
        encoding: Encoding entry of the manifest.
        view: Index of the view.
        rows: Row ids, [R].
        offsets: First row of each sample, or None if each sample is one row.
        first: Id of the cache's first sample in the whole data set.
    """
    if encoding["kind"] != "sampled":
        return None
    samples = samples_of(offsets, rows)
    places = np.zeros_like(rows) if offsets is None else rows - offsets[samples]
    ids, count = (samples + first) << 32 | places, int(encoding["draws"])
    found = [words(int(encoding["seed"]), view, ids, _DOMAIN + draw) for draw in range(-(-count // 4))]
    return np.sort(uniforms(np.concatenate(found, 1)[:, :count]), 1)


def drawn_targets(
    encoding: Mapping[str, Any], columns: Mapping[str, NDArray[Any]]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the sampled classes of each row, ascending, and the contribution of each to its class's target, [B, N] each."""
    ids = columns["draws"].astype(np.int64).cumsum(1)
    targets = np.full(ids.shape, 1 / int(encoding["draws"]), np.float32)
    return ids, targets * columns["ratios"].astype(np.float32) if "ratios" in columns else targets


def draw_gaps(
    encoding: Mapping[str, Any],
    columns: Mapping[str, NDArray[Any]],
    random: NDArray[np.float64],
    exact: NDArray[np.float32],
    labels: NDArray[np.int32],
) -> NDArray[np.float32]:
    """Return the gap between each stored row and the row sampled from exact logits with the same random numbers, [B].

    The gap of a sample is the probability between its random number and the interval in [0, 1) of its class; another device moves the
    interval by 1e-7. The gap of the facts is their relative error beyond rounding. The gap of a row with NaN or infinity is infinite.

    Args:
        encoding: Encoding entry of the manifest.
        columns: Stored columns by name.
        random: Random numbers, [B, N].
        exact: Exact logits, [B, C].
        labels: Class of each row, [B].
    """
    parts = [slice(start, start + _ROWS) for start in range(0, len(exact), _ROWS)]
    with np.errstate(invalid="ignore", over="ignore"):
        found = [
            _gaps(encoding, {name: x[here] for name, x in columns.items()}, random[here], exact[here], labels[here])
            for here in parts
        ]
    return np.concatenate([np.zeros(0, np.float32), *found])


def _gaps(
    encoding: Mapping[str, Any],
    columns: Mapping[str, NDArray[Any]],
    random: NDArray[np.float64],
    exact: NDArray[np.float32],
    labels: NDArray[np.int32],
) -> NDArray[np.float32]:
    ids, every = drawn_targets(encoding, columns)[0], np.arange(len(exact))
    inside = (ids < exact.shape[1]).all(1) & (columns["first"] < exact.shape[1]) & np.isfinite(exact).all(1)
    ids = np.minimum(ids, exact.shape[1] - 1)
    shifted = exact.astype(np.float64) - exact.max(1, keepdims=True)
    ends = np.exp(shifted / encoding["proposal_temperature"]).cumsum(1)
    ends /= ends[:, -1:]
    end = np.take_along_axis(ends, ids, 1)
    begin = np.where(ids > 0, np.take_along_axis(ends, np.maximum(ids - 1, 0), 1), 0)
    of_draws = np.maximum(np.maximum(random - end, begin - random), 0).max(1)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    entropy = -(np.exp(log_p) * np.maximum(log_p, -1e5)).sum(1)
    facts = np.stack([log_p.max(1), log_p[every, labels], entropy], 1)
    beyond = np.abs(columns["facts"].astype(np.float64) - facts) - _SPACING * np.abs(facts) - 2.0**-13
    of_first = log_p.max(1) - log_p[every, np.minimum(columns["first"], exact.shape[1] - 1)]
    of_facts = np.maximum(beyond.max(1).clip(0), of_first) / np.maximum(np.abs(facts).max(1), 1)
    return np.where(inside, np.maximum(of_draws, of_facts), np.inf).astype(np.float32)
