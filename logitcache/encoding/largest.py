"""Deterministic top-k: ties are broken by the lower index on every device.

On the CPU, `torch.topk` builds a (value, index) pair for every class, which takes 150 to 190 us for 65 of 49,152. Here long rows are split
into blocks of 32. The k blocks with the largest maxima contain the k largest classes, because k blocks with a larger maximum, or an equal
and earlier one, come before any other block. The blocks, and then the classes in them, are found by partitioning: 33 us, or up to 90 us if
other processes share the CPU cache.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["largest"]

_BLOCK = 32
_PAYS = 4  # rows are split into blocks if they are at least this many times as long as the selected blocks


def largest(values: Tensor, width: int) -> Tensor:
    """Return the columns of the largest values of each row, ascending, [B, width] int64. Ties are broken by the lower column.

    Args:
        values: Values, [B, C] float32, contiguous and detached.
        width: Number of columns to return, at most C.
    """
    if values.device.type == "cpu":
        return torch.from_numpy(_largest(values.numpy(), width))
    return _on_device(values, width)


def _largest(values: NDArray[np.float32], width: int) -> NDArray[np.int64]:
    """Return the columns of the largest values of each row, [B, width]; long rows are searched by blocks."""
    columns = values.shape[1]
    if columns < _PAYS * width * _BLOCK:
        return _partitioned(values, width)
    count, rest = divmod(columns, _BLOCK)
    blocks = values[:, : count * _BLOCK].reshape(len(values), count, _BLOCK)
    chosen = _largest(torch.from_numpy(blocks).amax(2).numpy(), width)
    held = blocks[np.arange(len(values))[:, None], chosen].reshape(len(values), -1)
    if rest:  # the end of a row that does not fill a block
        held = np.concatenate([held, values[:, -rest:]], 1)
        chosen = np.concatenate([chosen, np.full((len(chosen), 1), count)], 1)
    places = _partitioned(held, width)
    return np.take_along_axis(chosen, places // _BLOCK, 1) * _BLOCK + places % _BLOCK


def _partitioned(values: NDArray[np.float32], width: int) -> NDArray[np.int64]:
    """Return the columns of the largest values of each row, [B, width], by comparing with the smallest of these."""
    count, columns = values.shape
    least = np.partition(values, columns - width, axis=1)[:, columns - width, None]
    found = np.flatnonzero(values >= least)
    if len(found) != count * width:
        found = _first_found(np.nan_to_num(values, nan=np.inf, posinf=np.inf, neginf=-np.inf), width)
    return found.reshape(count, width) - np.arange(0, count * columns, columns)[:, None]


def _first_found(values: NDArray[np.float32], width: int) -> NDArray[np.int64]:
    """Return flat indices of the largest values of each row, ascending, [B * width], for rows with ties."""
    count, columns = values.shape
    least = np.partition(values, columns - width, axis=1)[:, columns - width, None]
    found = np.flatnonzero(values >= least)
    row = found // columns
    equal = values.reshape(-1)[found] == least[row, 0]
    equals = np.bincount(row[equal], minlength=count)
    wanted = width - (np.bincount(row, minlength=count) - equals)
    number = np.cumsum(equal) - (np.cumsum(equals) - equals)[row]  # rank of each tied value in its row, from 1
    first: NDArray[np.int64] = found[~equal | (number <= wanted[row])]
    return first


def _on_device(values: Tensor, width: int) -> Tensor:
    """Return the same as `largest` without checking for ties, which would synchronize a GPU."""
    least = values.topk(width, 1).values[:, -1:]
    above, equal = values > least, values == least
    wanted = width - above.sum(1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(1, dtype=torch.int32) <= wanted))
    return chosen.to(torch.uint8).topk(width, 1).indices.sort(1).values
