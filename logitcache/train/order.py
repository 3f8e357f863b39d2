"""Which samples come when: functions of (seed, epoch) alone."""

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["first_window", "mixed_seed", "sampled", "shuffled", "windowed"]

_CHECKED_ROWS = 64  # rendered again and compared with their digests before each epoch


def mixed_seed(seed: int, epoch: int) -> int:
    """Derive the seed of an epoch: neighbouring seeds and epochs never meet."""
    return (seed * 1_000_003 + epoch) % 2**63


def shuffled(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of an epoch, a permutation of 0 to count - 1."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(mixed_seed(seed, epoch))).numpy()


def windowed(
    count: int, block_rows: int, blocks: int, seed: int, epoch: int
) -> list[tuple[tuple[int, ...], NDArray[np.int64]]]:
    """Return the order of an epoch where memory is bounded: blocks drawn at random, a few at a time, and shuffled together.

    Args:
        count: Samples.
        block_rows: Of a block.
        blocks: Of a window.
        seed: Of the order.
        epoch: 0, 1, ...

    Returns:
        For each window its blocks and its sample ids.
    """
    random = torch.Generator().manual_seed(mixed_seed(seed, epoch))
    windows = []
    for chosen in _drawn(count, block_rows, blocks, random):
        held = np.concatenate([np.arange(b * block_rows, min((b + 1) * block_rows, count)) for b in chosen])
        windows.append((chosen, held[torch.randperm(len(held), generator=random).numpy()]))
    return windows


def first_window(count: int, block_rows: int, blocks: int, seed: int, epoch: int) -> tuple[int, ...]:
    """Return the blocks that `windowed` begins an epoch with."""
    return _drawn(count, block_rows, blocks, torch.Generator().manual_seed(mixed_seed(seed, epoch)))[0]


def _drawn(count: int, block_rows: int, blocks: int, random: torch.Generator) -> list[tuple[int, ...]]:
    drawn = torch.randperm(-(-count // block_rows), generator=random).tolist()
    return [tuple(drawn[start : start + blocks]) for start in range(0, len(drawn), blocks)]


def sampled(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Draw the samples whose pixels are looked at before an epoch, ascending, at most 64."""
    generator = np.random.Generator(np.random.Philox(key=mixed_seed(seed, epoch)))
    return np.unique(generator.integers(0, count, _CHECKED_ROWS))
