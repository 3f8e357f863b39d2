"""The order of samples and views: functions of (seed, epoch) alone."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from logitcache.errors import InputError
from logitcache.store import Ids, with_rows

__all__ = [
    "epoch_number",
    "epoch_views",
    "first_window",
    "micro_batches",
    "mixed_seed",
    "most_spills",
    "only",
    "sampled",
    "shares",
    "shuffled",
    "whole_batches",
    "window_lengths",
    "windowed",
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


def whole_batches(order: Ids, batch_size: int) -> Ids:
    """Return an order of samples without those of a last batch that is smaller than the others."""
    return order[: len(order) - len(order) % batch_size]


def micro_batches(batch: Ids, batch_size: int, parts: int) -> list[Ids]:
    """Divide a batch into the parts whose gradients are accumulated.

    Args:
        batch: Sample ids, at most `batch_size` of them.
        batch_size: Samples of a whole batch.
        parts: Number of parts of a whole batch; a smaller one has as many as it needs for none to be larger.
    """
    size = -(-batch_size // parts)
    return np.array_split(batch, -(-len(batch) // size))


def windowed(
    rows: int,
    block_rows: int,
    blocks: int,
    seed: int,
    epoch: int,
    offsets: Ids | None = None,
    kept: Ids | None = None,
    *,
    least: int = 1,
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
        least: Windows of fewer samples are left out.

    Returns:
        For each window the blocks that hold its rows, and its sample ids: those that begin in a block that was drawn. A sample
        that goes on in another block brings that block along.
    """
    random = torch.Generator().manual_seed(mixed_seed(seed, epoch))
    windows = []
    for chosen in _drawn(rows, block_rows, blocks, random):
        held = np.concatenate([_begun(block, rows, block_rows, offsets, kept) for block in chosen])
        order = held[torch.randperm(len(held), generator=random).numpy()]
        if len(order) >= least:  # one long sample may fill all that was drawn
            windows.append((_with_spills(chosen, rows, block_rows, offsets), order))
    return windows


def first_window(
    rows: int,
    block_rows: int,
    blocks: int,
    seed: int,
    epoch: int,
    offsets: Ids | None = None,
    kept: Ids | None = None,
    *,
    least: int = 1,
) -> tuple[int, ...]:
    """Return the blocks that `windowed` begins an epoch with."""
    lengths = window_lengths(rows, block_rows, blocks, seed, epoch, offsets, kept)
    chosen = next(one for one, length in lengths if length >= least)
    return _with_spills(chosen, rows, block_rows, offsets)


def window_lengths(
    rows: int, block_rows: int, blocks: int, seed: int, epoch: int, offsets: Ids | None = None, kept: Ids | None = None
) -> Iterator[tuple[tuple[int, ...], int]]:
    """Yield the blocks that `windowed` draws for each window, and how many samples begin in them."""
    random = torch.Generator().manual_seed(mixed_seed(seed, epoch))
    for chosen in _drawn(rows, block_rows, blocks, random):
        yield chosen, sum(len(_begun(block, rows, block_rows, offsets, kept)) for block in chosen)


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
