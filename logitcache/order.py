"""Which samples come when: functions of (seed, epoch) alone."""

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["mixed_seed", "sampled", "shuffled"]

_CHECKED_ROWS = 64  # rendered again and compared with their digests before each epoch


def mixed_seed(seed: int, epoch: int) -> int:
    """Derive the seed of an epoch: neighbouring seeds and epochs never meet."""
    return (seed * 1_000_003 + epoch) % 2**63


def shuffled(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of an epoch, a permutation of 0 to count - 1."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(mixed_seed(seed, epoch))).numpy()


def sampled(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Draw the samples whose pixels are looked at before an epoch, ascending, at most 64."""
    generator = np.random.Generator(np.random.Philox(key=mixed_seed(seed, epoch)))
    return np.unique(generator.integers(0, count, _CHECKED_ROWS))
