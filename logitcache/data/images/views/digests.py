"""The digest that proves which pixels a network was shown.

`multilinear` is arithmetic that torch does alike on every device, for a whole batch at once. `blake2b`, which caches had before, takes one
image after another on the host; it is kept to verify and continue them. Neither resists somebody who wants two images to have one digest.
"""

import functools
import struct
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

__all__ = ["BLAKE2B", "MULTILINEAR", "blake2b_digest", "digests", "multilinear_digests"]

BLAKE2B, MULTILINEAR = "blake2b", "multilinear"
_HEAD = 3  # keys of the shape
_AT_ONCE_ON_CPU = 1 << 16  # words: their products stay in the cache of a core
_AT_ONCE = 1 << 24


def digests(pixels: Tensor | Sequence[Tensor], kind: str) -> NDArray[np.uint64] | Tensor:
    """Hash every rendition of a batch, [C, h, w] uint8 each.

    Args:
        pixels: The renditions, in one tensor or several.
        kind: `multilinear` or `blake2b`.

    Returns:
        [B] uint64; from pixels on a GPU the same bits as a tensor there, [B] int64, so that nobody waits for it.
    """
    if kind == BLAKE2B:
        rows = pixels.cpu().numpy() if isinstance(pixels, Tensor) else [row.numpy() for row in pixels]
        return np.array([blake2b_digest(row) for row in rows], np.uint64)
    batches = [pixels] if isinstance(pixels, Tensor) else [row[None] for row in pixels]
    found = torch.cat([multilinear_digests(batch) for batch in batches])
    return found.numpy().view(np.uint64) if found.device.type == "cpu" else found


def blake2b_digest(pixels: NDArray[np.uint8]) -> int:
    """Hash one rendition, [C, H, W] uint8: BLAKE2b-64 of its shape (three little-endian uint32) and its bytes."""
    hasher = blake2b(struct.pack("<3I", *pixels.shape), digest_size=8)
    hasher.update(np.ascontiguousarray(pixels).data)
    return int.from_bytes(hasher.digest(), "little")


def multilinear_digests(pixels: Tensor) -> Tensor:
    """Hash renditions of one shape, [B, C, H, W] uint8, on their device; docs/format.md specifies it.

    A row is read as signed words of 32 bits, padded with zeros. Their products with fixed odd keys of 64 bits are summed modulo 2**64,
    those of C, H and W besides, and the bits of the sum are mixed. A change of one word always shows, because its key is odd. Any other two
    images have the same digest with a chance of 2**-64, and of 2**-33 at worst, if they differ in the highest bits of words alone.

    Returns:
        [B] int64, to be read as uint64.
    """
    rows = pixels.flatten(1)
    rows = F.pad(rows, (0, -rows.shape[1] % 4)).contiguous()
    words = rows.view(torch.int32)
    keys = _keys(_HEAD + words.shape[1], pixels.device)
    at_once = max((_AT_ONCE_ON_CPU if pixels.device.type == "cpu" else _AT_ONCE) // max(words.shape[1], 1), 1)
    shape = sum(size * _key(number) for number, size in enumerate(pixels.shape[1:]))
    sums = [some.long().mul_(keys[_HEAD:]).sum(1) for some in torch.split(words, at_once)]
    return _mixed(torch.cat(sums) + _signed(shape))


def _mixed(sums: Tensor) -> Tensor:
    """Let every bit of the sums, int64, depend on all lower and higher ones: the finalizer of MurmurHash3, which loses nothing."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        sums = (sums ^ _shifted(sums)) * _signed(factor)
    return sums ^ _shifted(sums)


def _shifted(values: Tensor) -> Tensor:
    """Shift to the right by 33 bits, as unsigned numbers."""
    return (values >> 33) & (2**31 - 1)


def _key(number: int) -> int:
    """Return key `number`: output `number` of SplitMix64 from seed 0 (Steele, Lea, Flood 2014), made odd."""
    word = (number + 1) * 0x9E3779B97F4A7C15 % 2**64
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
    return (word ^ word >> 31) | 1


def _keys(count: int, device: torch.device) -> Tensor:
    """Return the first keys on a device, [count] int64."""
    return _many_keys(1 << (count - 1).bit_length(), device)[:count]


@functools.cache
def _many_keys(count: int, device: torch.device) -> Tensor:
    """As `_key`, for all numbers below a power of two."""
    with np.errstate(over="ignore"):
        words = (np.arange(count, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        words = (words ^ (words >> np.uint64(31))) | np.uint64(1)
    with torch.inference_mode(mode=False):
        return torch.from_numpy(words.view(np.int64)).to(device)


def _signed(value: int) -> int:
    """Return the number of 64 bits that torch takes for an unsigned one."""
    return (value + 2**63) % 2**64 - 2**63
