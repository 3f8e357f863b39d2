"""Which rows a sample has: from `offsets`, the row at which each sample begins; None where each sample is one row."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ids", "count_rows", "is_among", "kept_mask", "rows_of", "samples_of", "with_rows"]

Ids = NDArray[np.int64]


def rows_of(offsets: Ids | None, ids: Ids) -> Ids:
    """Return the row ids of some samples, in their order, [R]."""
    if offsets is None:
        return ids
    begins, lengths = offsets[ids], offsets[ids + 1] - offsets[ids]
    ends = np.cumsum(lengths)
    return np.repeat(begins - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)


def count_rows(offsets: Ids | None, ids: Ids) -> int:
    """Return how many rows some samples have."""
    return len(ids) if offsets is None else int((offsets[ids + 1] - offsets[ids]).sum())


def samples_of(offsets: Ids | None, rows: Ids) -> Ids:
    """Return the sample of each row, in their order, [R]."""
    return rows if offsets is None else np.searchsorted(offsets, rows, side="right") - 1


def with_rows(offsets: Ids | None, ids: Ids) -> Ids:
    """Return those of some samples that have rows, in their order."""
    return ids if offsets is None else ids[offsets[ids + 1] > offsets[ids]]


def is_among(ids: Ids, others: Ids) -> NDArray[np.bool_]:
    """Return which of some ids are among others, [N]. Unlike `np.isin`, it costs next to nothing for few ids and many others.

    Args:
        ids: Ids, [N].
        others: The others, ascending, [M].
    """
    if not len(others):
        return np.zeros(len(ids), np.bool_)
    found: NDArray[np.bool_] = others[np.minimum(np.searchsorted(others, ids), len(others) - 1)] == ids
    return found


def kept_mask(samples: int, first: int, excluded: Sequence[int] | Ids) -> NDArray[np.bool_]:
    """Return which samples of a stretch are not left out, [N].

    Args:
        samples: Number of samples, N.
        first: Id in the data set of the first.
        excluded: Ids in the data set of samples that are left out; those outside of the stretch do not matter.
    """
    kept = np.ones(samples, np.bool_)
    gone = np.asarray(excluded, np.int64) - first
    kept[gone[(gone >= 0) & (gone < samples)]] = False
    return kept
