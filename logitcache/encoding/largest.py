"""Which classes of a row are the largest: of equal ones the first, on every device.

On the CPU `torch.topk` makes a pair of every class: 150 to 190 us for 65 of 49,152. Here a long row is cut into blocks of 32. The blocks
with the largest maxima, as many as classes are wanted, hold all of the largest: if a block is left out, as many others have a maximum that
is larger, or equal and earlier. Blocks, and then classes in them, are found by the value that partitions a row: 33 us, and up to 90 where
other processes share the cache.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["largest"]

_BLOCK = 32
_PAYS = 4  # a row that is so many times as long as what would be left of it is cut into blocks


def largest(values: Tensor, width: int) -> Tensor:
    """Return the columns of the largest of each row, ascending, [B, width] int64. Of equal ones the first columns are taken.

    Args:
        values: [B, C] float32, contiguous; without gradient.
        width: Number of columns to return, at most C.
    """
    if values.device.type == "cpu":
        return torch.from_numpy(_largest(values.numpy(), width))
    return _on_device(values, width)


def _largest(values: NDArray[np.float32], width: int) -> NDArray[np.int64]:
    """Return the columns of the largest of each row, [B, width], by way of the blocks that hold them where a row is long."""
    columns = values.shape[1]
    if columns < _PAYS * width * _BLOCK:
        return _partitioned(values, width)
    count, rest = divmod(columns, _BLOCK)
    blocks = values[:, : count * _BLOCK].reshape(len(values), count, _BLOCK)
    chosen = _largest(torch.from_numpy(blocks).amax(2).numpy(), width)
    held = blocks[np.arange(len(values))[:, None], chosen].reshape(len(values), -1)
    if rest:  # what is left over of a row belongs to no block
        held = np.concatenate([held, values[:, -rest:]], 1)
        chosen = np.concatenate([chosen, np.full((len(chosen), 1), count)], 1)
    places = _partitioned(held, width)
    return np.take_along_axis(chosen, places // _BLOCK, 1) * _BLOCK + places % _BLOCK


def _partitioned(values: NDArray[np.float32], width: int) -> NDArray[np.int64]:
    """Return the columns of the largest of each row, [B, width], by the least of them."""
    count, columns = values.shape
    least = np.partition(values, columns - width, axis=1)[:, columns - width, None]
    found = np.flatnonzero(values >= least)
    if len(found) != count * width:
        found = _first_found(np.nan_to_num(values, nan=np.inf, posinf=np.inf, neginf=-np.inf), width)
    return found.reshape(count, width) - np.arange(0, count * columns, columns)[:, None]


def _first_found(values: NDArray[np.float32], width: int) -> NDArray[np.int64]:
    """Return the places of the largest in the rows laid end to end, ascending, [B * width], where some are equal."""
    count, columns = values.shape
    least = np.partition(values, columns - width, axis=1)[:, columns - width, None]
    found = np.flatnonzero(values >= least)
    row = found // columns
    equal = values.reshape(-1)[found] == least[row, 0]
    equals = np.bincount(row[equal], minlength=count)
    wanted = width - (np.bincount(row, minlength=count) - equals)
    number = np.cumsum(equal) - (np.cumsum(equals) - equals)[row]  # of each among the equal ones of its row, from 1
    first: NDArray[np.int64] = found[~equal | (number <= wanted[row])]
    return first


def _on_device(values: Tensor, width: int) -> Tensor:
    """Return the same as `largest` without asking whether any are equal, for which a GPU would be waited for."""
    least = values.topk(width, 1).values[:, -1:]
    above, equal = values > least, values == least
    wanted = width - above.sum(1, keepdim=True)
    chosen = above | (equal & (equal.cumsum(1, dtype=torch.int32) <= wanted))
    return chosen.to(torch.uint8).topk(width, 1).indices.sort(1).values
