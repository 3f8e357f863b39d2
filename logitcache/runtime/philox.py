"""Philox4x32-10: random numbers as a pure function of (seed, view, sample, draw).

The generator is counter-based and has no state, so results do not depend on batch, order, worker, rank or epoch, and no
global generator is touched. Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3. SC 2011.
Tests check it against the authors' published vectors.
"""

import numpy as np
from numpy.typing import NDArray

__all__ = ["integers", "philox4x32", "uniforms", "words"]

_MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], np.uint64)
_WEYL = (0x9E3779B9, 0xBB67AE85)  # added to the key before each round except the first
_MASK = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


def philox4x32(counter: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Return random words for counters, [..., 4], under a key of two 32-bit words, with ten rounds.

    Returns:
        Random words with the shape of `counter`.
    """
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    for turn in range(10):
        k0 = np.uint64((key[0] + turn * _WEYL[0]) & 0xFFFFFFFF)
        k1 = np.uint64((key[1] + turn * _WEYL[1]) & 0xFFFFFFFF)
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # 32 x 32 bits fit in 64
        c0, c1, c2, c3 = (product1 >> _32) ^ c1 ^ k0, product1 & _MASK, (product0 >> _32) ^ c3 ^ k1, product0 & _MASK
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def words(seed: int, view: int, samples: NDArray[np.int64], draw: int) -> NDArray[np.uint32]:
    """Return four random words for each sample, [B, 4].

    Args:
        seed: Seed, used as the key, 0 <= seed < 2**64.
        view: Index of the view, 0 <= view < 2**32.
        samples: Sample ids, [B].
        draw: Index of the call for a sample: 0, 1, ... for as many words as a recipe needs.
    """
    ids = np.asarray(samples, np.uint64)
    counter = np.empty((len(ids), 4), np.uint32)
    counter[:, 0] = view
    counter[:, 1] = ids & _MASK
    counter[:, 2] = ids >> _32
    counter[:, 3] = draw
    return philox4x32(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))


def integers(random: NDArray[np.uint32], bound: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """Map words to integers in [0, bound) by multiply and shift (bias below bound / 2**32)."""
    scaled = random.astype(np.uint64) * np.asarray(bound, np.uint64)
    return (scaled >> _32).astype(np.int64)


def uniforms(random: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Map words to doubles in (0, 1), the midpoints of 2**32 equal intervals."""
    return (random.astype(np.float64) + 0.5) / 2.0**32
