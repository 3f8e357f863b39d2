"""The order of samples and views: functions of (seed, epoch) alone."""

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

_MOST_EPOCHS = 2**63  # numbers of epochs are shared with workers as 64-bit integers
_CHECKED_ROWS = 64  # rendered again and compared with their digests before each epoch


def mixed_seed(seed: int, epoch: int) -> int:
    """Derive the seed of an epoch: neighbouring seeds and epochs never meet."""
    return (seed * 1_000_003 + epoch) % 2**63


def shuffled(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of an epoch, a permutation of 0 to count - 1."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(mixed_seed(seed, epoch))).numpy()


def epoch_number(epoch: Any) -> int:
    """Return the number of an epoch as somebody gave it.

    Raises:
        InputError: It is not a whole number from 0.
    """
    try:
        good = 0 <= epoch == int(epoch) < _MOST_EPOCHS
    except (TypeError, ValueError, OverflowError):
        good = False
    if not good:
        raise InputError(f"an epoch is a whole number from 0, not {epoch!r}")
    return int(epoch)


def only(order: Ids, kept: Ids) -> Ids:
    """Return those samples of an order that are kept, in its order: the same one whatever else is left out."""
    return order[np.isin(order, kept)]


def shares(order: Ids, batch_size: int, rank: int, world: int, *, drop_last: bool = False) -> Iterator[Ids]:
    """Yield the batches that one of several processes takes of an epoch; together they take it in order, step by step.

    All processes make equally many and equally large batches: where samples do not divide evenly, the first ones are shown again.

    Args:
        order: Sample ids of the epoch, [N].
        batch_size: Samples of a batch of one process.
        rank: Number of the process, from 0.
        world: Number of processes.
        drop_last: Whether to leave out a last batch that is smaller.
    """
    order = np.resize(order, -(-len(order) // world) * world)
    step = batch_size * world
    for start in range(0, len(order), step):
        taken = order[start : start + step]
        if len(taken) == step or not drop_last:
            share = len(taken) // world
            yield taken[rank * share : (rank + 1) * share]


def epoch_views(views: Sequence[Any], *, paired: bool) -> list[tuple[Any, ...]]:
    """Return the views of each epoch: one view, or where `paired` all views of a group. Epoch e takes entry e mod their number."""
    if not paired:
        return [(view,) for view in views]
    groups: dict[int, list[Any]] = {}
    for view in views:
        groups.setdefault(view.group, []).append(view)
    return [tuple(group) for group in groups.values()]


@dataclass(frozen=True, slots=True)
class Windows:
    """The order of epochs where memory is bounded: blocks drawn at random, a few at a time, and shuffled together.

    Attributes:
        rows: Rows of a view.
        block_rows: Rows of a block.
        blocks: Blocks of a window.
        seed: Seed of the order.
        offsets: Row at which each sample begins, [N + 1]; None where each sample is one row.
        kept: Samples that are not left out, ascending; None: all.
        least: Number of samples of the smallest window that is used.
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
            For each window the blocks that hold its rows, and its sample ids: those that begin in a block that was drawn. A sample
            that goes on in another block brings that block along.
        """
        random = self._generator(epoch)
        windows = []
        for chosen in self._drawn(random):
            held = np.concatenate([self._begun(block) for block in chosen])
            order = held[torch.randperm(len(held), generator=random).numpy()]
            if len(order) >= self.least:  # one long sample may fill all that was drawn
                windows.append((self._with_spills(chosen), order))
        return windows

    def first(self, epoch: int) -> tuple[int, ...]:
        """Return the blocks of the first window of an epoch."""
        return self._with_spills(next(chosen for chosen, length in self.lengths(epoch) if length >= self.least))

    def lengths(self, epoch: int) -> Iterator[tuple[tuple[int, ...], int]]:
        """Yield the blocks drawn for each window of an epoch, and how many samples begin in them, also below `least`."""
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
    """Return how many blocks, at most, the last sample of a block goes on in."""
    every = range(-(-rows // block_rows))
    return max(len(_with_spills((block,), rows, block_rows, offsets)) - 1 for block in every)


def _begun(block: int, rows: int, block_rows: int, offsets: Ids | None, kept: Ids | None = None) -> Ids:
    """Return the samples whose first row is in a block; those without rows, and those that are left out, are nowhere."""
    span = block * block_rows, min((block + 1) * block_rows, rows)
    begins = span if offsets is None else np.searchsorted(offsets[:-1], span)
    found = np.arange(*begins) if kept is None else kept[slice(*np.searchsorted(kept, begins))]
    return with_rows(offsets, found)


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
