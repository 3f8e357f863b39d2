"""Many strings in one array that worker processes share.

A list of 1.28 million paths takes 132 MiB, and each forked worker that reads it gets its own copy, because reading changes reference
counts. An array avoids this, and spawned workers receive it in shared memory.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
import torch
from torch import Tensor

__all__ = ["PackedStrings"]

_AT_ONCE = 1 << 12  # strings to decode at a time


class PackedStrings(Sequence[str]):
    """Strings without NUL characters. Bytes that are not UTF-8 are preserved (`surrogateescape`)."""

    def __init__(self, text: Tensor, ends: Tensor) -> None:
        """Wrap packed arrays.

        Args:
            text: Strings in UTF-8, each followed by a NUL, uint8.
            ends: Positions of the NULs, [N] int64.
        """
        self._text, self._ends = text, ends

    @classmethod
    def of(cls, parts: Iterable[Sequence[str]]) -> "PackedStrings":
        """Pack the strings of several sequences, in order."""
        text = bytearray()
        for part in parts:
            text += "".join(f"{one}\0" for one in part).encode("utf-8", "surrogateescape")
        array = np.frombuffer(text, np.uint8)
        return cls(torch.from_numpy(array), torch.from_numpy(np.flatnonzero(array == 0)))

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Return one string, or a list of them."""
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(len(self)))]
        ends, position = self._ends.numpy(), index + len(self) * (index < 0)
        if not 0 <= position < len(ends):
            raise IndexError(index)
        begin = int(ends[position - 1]) + 1 if position else 0
        return self._text.numpy()[begin : int(ends[position])].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        for packed in self.encoded():
            yield from (one.decode("utf-8", "surrogateescape") for one in packed)

    def encoded(self) -> Iterator[list[bytes]]:
        """Yield the strings as UTF-8 bytes, in lists of a few thousand."""
        text, ends = self._text.numpy(), self._ends.numpy()
        for first in range(0, len(ends), _AT_ONCE):
            begin = int(ends[first - 1]) + 1 if first else 0
            last = min(first + _AT_ONCE, len(ends)) - 1
            yield text[begin : int(ends[last])].tobytes().split(b"\0")
