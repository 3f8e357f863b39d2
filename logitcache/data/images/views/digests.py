"""Digests of the pixels that a network was shown.

`multilinear` uses integer arithmetic that torch computes identically on every device, for a whole batch at once. `blake2b`, used by older
caches, hashes one image at a time on the host; it is kept to verify and resume those caches. Neither is secure against deliberate
collisions.
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
_HEAD = 3  # number of keys for the shape
_AT_ONCE_ON_CPU = 1 << 16  # words per step; their products fit into the cache of a core
_AT_ONCE = 1 << 24


def digests(pixels: Tensor | Sequence[Tensor], kind: str) -> NDArray[np.uint64] | Tensor:
    """Hash every rendition of a batch, [C, h, w] uint8 each.

    Args:
        pixels: Renditions, as one tensor or one per image.
        kind: Hash function, `multilinear` or `blake2b`.

    Returns:
        Digests, [B] uint64. For pixels on a GPU, the same bits as a tensor on it, [B] int64, to avoid a synchronization.
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

    A row is read as signed 32-bit words, padded with zeros. The products of the words, and of C, H and W, with fixed odd 64-bit keys are
    summed modulo 2**64, and the bits of the sum are mixed. A change of a single word always changes the digest, because its key is odd.
    Any other two images collide with probability 2**-64, or 2**-33 at worst, if they differ only in the highest bits of words.

    Returns:
        Digests, [B] int64, to be reinterpreted as uint64.
    """
    rows = pixels.flatten(1)
    rows = F.pad(rows, (0, -rows.shape[1] % 4)).contiguous()
    words = rows.view(torch.int32)
    keys = _keys(_HEAD + words.shape[1], pixels.device)
    at_once = max((_AT_ONCE_ON_CPU if pixels.device.type == "cpu" else _AT_ONCE) // max(words.shape[1], 1), 1)
    shape = sum(size * _key(number) for number, size in enumerate(pixels.shape[1:]))
    sums = [_sum_products(some.long(), keys[_HEAD:]) for some in torch.split(words, at_once)]
    return _mix_bits(torch.cat(sums) + _signed(shape))


def _sum_products(words: Tensor, keys: Tensor) -> Tensor:
    """Return the sum over columns of words, [B, N] int64, times keys, [N], modulo 2**64; words may be overwritten."""
    if words.device.type == "cpu":
        return words @ keys  # CUDA has no product of integer matrices
    return words.mul_(keys).sum(1)


def _mix_bits(sums: Tensor) -> Tensor:
    """Mix the bits of int64 sums with the finalizer of MurmurHash3, which is a bijection."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        sums = (sums ^ _shift_right(sums)) * _signed(factor)
    return sums ^ _shift_right(sums)


def _shift_right(values: Tensor) -> Tensor:
    """Return values shifted right by 33 bits, as unsigned integers."""
    return (values >> 33) & (2**31 - 1)


def _key(number: int) -> int:
    """Return key `number`: output `number` of SplitMix64 with seed 0 (Steele, Lea, Flood 2014), with the lowest bit set."""
    word = (number + 1) * 0x9E3779B97F4A7C15 % 2**64
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
    return (word ^ word >> 31) | 1


def _keys(count: int, device: torch.device) -> Tensor:
    """Return the first keys on a device, [count] int64."""
    return _many_keys(1 << (count - 1).bit_length(), device)[:count]


@functools.cache
def _many_keys(count: int, device: torch.device) -> Tensor:
    """Return `_key` of all numbers below a power of two, [count] int64."""
    with np.errstate(over="ignore"):
        words = (np.arange(count, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        words = (words ^ (words >> np.uint64(31))) | np.uint64(1)
    with torch.inference_mode(mode=False):
        return torch.from_numpy(words.view(np.int64)).to(device)


def _signed(value: int) -> int:
    """Return the signed 64-bit integer with the same bits as an unsigned one."""
    return (value + 2**63) % 2**64 - 2**63
