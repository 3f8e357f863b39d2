"""Sampling order and views of epochs, as functions of (seed, epoch)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from logitcache.errors import InputError
from logitcache.store import Ids, with_rows

__all__ = [
    "Windows",
    "epoch_number",
    "epoch_views",
    "mixed_seed",
    "most_spills",
    "only",
    "sampled",
    "shares",
    "shuffled",
]

_MOST_EPOCHS = 2**63  # epoch numbers are shared with workers as 64-bit integers
_CHECKED_ROWS = 64  # samples to render again and compare with their digests before each epoch


def mixed_seed(seed: int, epoch: int) -> int:
    """Return the seed of an epoch. Different small seeds and epochs never give the same value."""
    return (seed * 1_000_003 + epoch) % 2**63


def shuffled(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the sampling order of an epoch, a permutation of 0 to count - 1."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(mixed_seed(seed, epoch))).numpy()


def epoch_number(epoch: Any) -> int:
    """Validate an epoch number and return it as an integer.

    Raises:
        InputError: If it is not a non-negative integer.
    """
    try:
        good = 0 <= epoch == int(epoch) < _MOST_EPOCHS
    except (TypeError, ValueError, OverflowError):
        good = False
    if not good:
        raise InputError(f"epoch must be a non-negative integer, not {epoch!r}")
    return int(epoch)


def only(order: Ids, kept: Ids) -> Ids:
    """Return the samples of an order that are in `kept`. Their relative order does not depend on which others are left out."""
    return order[np.isin(order, kept)]


def shares(order: Ids, batch_size: int, rank: int, world: int, *, drop_last: bool = False) -> Iterator[Ids]:
    """Yield one process's batches of an epoch. In each step, all processes together take the next samples of the order.

    All processes have the same number of batches of the same size. If samples do not divide evenly, the first ones are repeated.

    Args:
        order: Sample ids of the epoch, [N].
        batch_size: Number of samples per batch in each process.
        rank: Rank of the process.
        world: Number of processes.
        drop_last: Whether to leave out a smaller last batch.
    """
    order = np.resize(order, -(-len(order) // world) * world)
    step = batch_size * world
    for start in range(0, len(order), step):
        taken = order[start : start + step]
        if len(taken) == step or not drop_last:
            share = len(taken) // world
            yield taken[rank * share : (rank + 1) * share]


def epoch_views(views: Sequence[Any], *, paired: bool) -> list[tuple[Any, ...]]:
    """Return the views of each epoch: one view, or all views of a group if `paired`. Epoch e uses entry e mod their number."""
    if not paired:
        return [(view,) for view in views]
    groups: dict[int, list[Any]] = {}
    for view in views:
        groups.setdefault(view.group, []).append(view)
    return [tuple(group) for group in groups.values()]


@dataclass(frozen=True, slots=True)
class Windows:
    """Sampling order if memory is bounded: blocks are drawn at random, a few at a time, and their samples are shuffled together.

    Attributes:
        rows: Number of rows in a view.
        block_rows: Number of rows in a block.
        blocks: Number of blocks in a window.
        seed: Seed of the sampling order.
        offsets: First row of each sample, and the number of rows, [N + 1]; None if each sample is one row.
        kept: Samples that are not excluded, ascending; None for all.
        least: Minimum number of samples in a window; smaller windows are skipped.
    """

    rows: int
    block_rows: int
    blocks: int
    seed: int
    offsets: Ids | None = None
    kept: Ids | None = None
    least: int = 1

    def epoch(self, epoch: int) -> list[tuple[tuple[int, ...], Ids]]:
        """Return the windows of an epoch (from 0).

        Returns:
            For each window, the blocks that hold its rows and its sample ids, which are those that begin in a drawn block. If a sample
            continues in another block, that block is included.
        """
        random = self._generator(epoch)
        windows = []
        for chosen in self._drawn(random):
            held = np.concatenate([self._begun(block) for block in chosen])
            order = held[torch.randperm(len(held), generator=random).numpy()]
            if len(order) >= self.least:  # a long sample may fill all drawn blocks
                windows.append((self._with_spills(chosen), order))
        return windows

    def first(self, epoch: int) -> tuple[int, ...]:
        """Return the blocks of the first window of an epoch."""
        return self._with_spills(next(chosen for chosen, length in self.lengths(epoch) if length >= self.least))

    def lengths(self, epoch: int) -> Iterator[tuple[tuple[int, ...], int]]:
        """Yield the drawn blocks of each window of an epoch and the number of samples that begin in them, including small windows."""
        for chosen in self._drawn(self._generator(epoch)):
            yield chosen, sum(len(self._begun(block)) for block in chosen)

    def _generator(self, epoch: int) -> torch.Generator:
        return torch.Generator().manual_seed(mixed_seed(self.seed, epoch))

    def _drawn(self, random: torch.Generator) -> list[tuple[int, ...]]:
        drawn = torch.randperm(-(-self.rows // self.block_rows), generator=random).tolist()
        return [tuple(drawn[start : start + self.blocks]) for start in range(0, len(drawn), self.blocks)]

    def _begun(self, block: int) -> Ids:
        return _begun(block, self.rows, self.block_rows, self.offsets, self.kept)

    def _with_spills(self, chosen: tuple[int, ...]) -> tuple[int, ...]:
        return _with_spills(chosen, self.rows, self.block_rows, self.offsets)


def most_spills(rows: int, block_rows: int, offsets: Ids | None) -> int:
    """Return the maximum number of further blocks that the last sample of a block continues in."""
    every = range(-(-rows // block_rows))
    return max(len(_with_spills((block,), rows, block_rows, offsets)) - 1 for block in every)


def _begun(block: int, rows: int, block_rows: int, offsets: Ids | None, kept: Ids | None = None) -> Ids:
    """Return the samples whose first row is in a block, without excluded samples and samples without rows."""
    span = block * block_rows, min((block + 1) * block_rows, rows)
    begins = span if offsets is None else np.searchsorted(offsets[:-1], span)
    found = np.arange(*begins) if kept is None else kept[slice(*np.searchsorted(kept, begins))]
    return with_rows(offsets, found)


def _with_spills(chosen: tuple[int, ...], rows: int, block_rows: int, offsets: Ids | None) -> tuple[int, ...]:
    """Return the chosen blocks and those in which their last samples continue."""
    if offsets is None:
        return chosen
    found = list(chosen)
    for block in chosen:
        begun = _begun(block, rows, block_rows, offsets)
        end = (int(offsets[begun[-1] + 1]) - 1) // block_rows if len(begun) else block
        found += [one for one in range(block + 1, end + 1) if one not in found]
    return tuple(found)


def sampled(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Draw the samples to compare with their digests before an epoch, ascending, at most 64."""
    generator = np.random.Generator(np.random.Philox(key=mixed_seed(seed, epoch)))
    return np.unique(generator.integers(0, count, _CHECKED_ROWS))
