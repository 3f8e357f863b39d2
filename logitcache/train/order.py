"""The order of samples and views: functions of (seed, epoch) alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from logitcache.store import Ids, with_rows

__all__ = ["epoch_views", "first_window", "mixed_seed", "most_spills", "only", "sampled", "shuffled", "windowed"]

_CHECKED_ROWS = 64  # rendered again and compared with their digests before each epoch


def mixed_seed(seed: int, epoch: int) -> int:
    """Derive the seed of an epoch: neighbouring seeds and epochs never meet."""
    return (seed * 1_000_003 + epoch) % 2**63


def shuffled(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of an epoch, a permutation of 0 to count - 1."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(mixed_seed(seed, epoch))).numpy()


def only(order: Ids, kept: Ids) -> Ids:
    """Return those samples of an order that are kept, in its order: the same one whatever else is left out."""
    return order[np.isin(order, kept)]


def epoch_views(views: Sequence[Any], *, paired: bool) -> list[tuple[Any, ...]]:
    """Return the views of each epoch: one view, or where `paired` all views of a group. Epoch e takes entry e mod their number."""
    if not paired:
        return [(view,) for view in views]
    groups: dict[int, list[Any]] = {}
    for view in views:
        groups.setdefault(view.group, []).append(view)
    return [tuple(group) for group in groups.values()]


def windowed(
    rows: int, block_rows: int, blocks: int, seed: int, epoch: int, offsets: Ids | None = None, kept: Ids | None = None
) -> list[tuple[tuple[int, ...], Ids]]:
    """Return the order of an epoch where memory is bounded: blocks drawn at random, a few at a time, and shuffled together.

    Args:
        rows: Rows of a view.
        block_rows: Rows of a block.
        blocks: Blocks of a window.
        seed: Seed of the order.
        epoch: Number of the epoch, from 0.
        offsets: Row at which each sample begins, [N + 1]; None where each sample is one row.
        kept: Samples that are not left out; None: all.

    Returns:
        For each window the blocks that hold its rows, and its sample ids: those that begin in a block that was drawn. A sample
        that goes on in another block brings that block along.
    """
    random = torch.Generator().manual_seed(mixed_seed(seed, epoch))
    windows = []
    for chosen in _drawn(rows, block_rows, blocks, random):
        held = np.concatenate([_begun(block, rows, block_rows, offsets, kept) for block in chosen])
        order = held[torch.randperm(len(held), generator=random).numpy()]
        if len(order):  # one long sample may fill all that was drawn
            windows.append((_with_spills(chosen, rows, block_rows, offsets), order))
    return windows


def first_window(
    rows: int, block_rows: int, blocks: int, seed: int, epoch: int, offsets: Ids | None = None, kept: Ids | None = None
) -> tuple[int, ...]:
    """Return the blocks that `windowed` begins an epoch with."""
    random = torch.Generator().manual_seed(mixed_seed(seed, epoch))
    drawn = _drawn(rows, block_rows, blocks, random)
    chosen = next(one for one in drawn if any(len(_begun(block, rows, block_rows, offsets, kept)) for block in one))
    return _with_spills(chosen, rows, block_rows, offsets)


def most_spills(rows: int, block_rows: int, offsets: Ids | None) -> int:
    """Return how many blocks, at most, the last sample of a block goes on in."""
    every = range(-(-rows // block_rows))
    return max(len(_with_spills((block,), rows, block_rows, offsets)) - 1 for block in every)


def _drawn(rows: int, block_rows: int, blocks: int, random: torch.Generator) -> list[tuple[int, ...]]:
    drawn = torch.randperm(-(-rows // block_rows), generator=random).tolist()
    return [tuple(drawn[start : start + blocks]) for start in range(0, len(drawn), blocks)]


def _begun(block: int, rows: int, block_rows: int, offsets: Ids | None, kept: Ids | None = None) -> Ids:
    """Return the samples whose first row is in a block; those without rows, and those that are left out, are nowhere."""
    span = block * block_rows, min((block + 1) * block_rows, rows)
    begins = span if offsets is None else np.searchsorted(offsets[:-1], span)
    found = with_rows(offsets, np.arange(*begins))
    return found if kept is None else only(found, kept)


def _with_spills(chosen: tuple[int, ...], rows: int, block_rows: int, offsets: Ids | None) -> tuple[int, ...]:
    """Add the blocks in which the last sample of a chosen block goes on."""
    if offsets is None:
        return chosen
    found = list(chosen)
    for block in chosen:
        begun = _begun(block, rows, block_rows, offsets)
        end = (int(offsets[begun[-1] + 1]) - 1) // block_rows if len(begun) else block
        found += [one for one in range(block + 1, end + 1) if one not in found]
    return tuple(found)


def sampled(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Draw the samples that are rendered and compared with their digests before an epoch, ascending, at most 64."""
    generator = np.random.Generator(np.random.Philox(key=mixed_seed(seed, epoch)))
    return np.unique(generator.integers(0, count, _CHECKED_ROWS))
