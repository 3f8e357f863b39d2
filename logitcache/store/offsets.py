"""Conversion between samples and rows, by `offsets`: the first row of each sample, or None if each sample is one row."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Ids", "count_rows", "is_among", "kept_mask", "rows_of", "samples_of", "with_rows"]

Ids = NDArray[np.int64]


def rows_of(offsets: Ids | None, ids: Ids) -> Ids:
    """Return the row ids of the given samples, in the same order, [R]."""
    if offsets is None:
        return ids
    begins, lengths = offsets[ids], offsets[ids + 1] - offsets[ids]
    ends = np.cumsum(lengths)
    return np.repeat(begins - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)


def count_rows(offsets: Ids | None, ids: Ids) -> int:
    """Return the total number of rows of the given samples."""
    return len(ids) if offsets is None else int((offsets[ids + 1] - offsets[ids]).sum())


def samples_of(offsets: Ids | None, rows: Ids) -> Ids:
    """Return the sample of each given row, [R]."""
    return rows if offsets is None else np.searchsorted(offsets, rows, side="right") - 1


def with_rows(offsets: Ids | None, ids: Ids) -> Ids:
    """Return the given samples that have rows, in the same order."""
    return ids if offsets is None else ids[offsets[ids + 1] > offsets[ids]]


def is_among(ids: Ids, others: Ids) -> NDArray[np.bool_]:
    """Return which ids are in `others`, [N] bool. Faster than `np.isin` for few ids and many others.

    Args:
        ids: Ids to look up, [N].
        others: Ids to search, ascending, [M].
    """
    if not len(others):
        return np.zeros(len(ids), np.bool_)
    found: NDArray[np.bool_] = others[np.minimum(np.searchsorted(others, ids), len(others) - 1)] == ids
    return found


def kept_mask(samples: int, first: int, excluded: Sequence[int] | Ids) -> NDArray[np.bool_]:
    """Return which samples of a range are not excluded, [N] bool.

    Args:
        samples: Number of samples in the range, N.
        first: Id of the range's first sample in the data set.
        excluded: Ids of excluded samples in the data set; those outside the range are ignored.
    """
    kept = np.ones(samples, np.bool_)
    gone = np.asarray(excluded, np.int64) - first
    kept[gone[(gone >= 0) & (gone < samples)]] = False
    return kept
