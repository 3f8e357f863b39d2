"""Packing contexts into sequences of a fixed length.

The order of an epoch is packed by best fit: each context goes where the least room is left over. A batch then lists its contexts
sequence by sequence, and `next_fit` finds the same sequences again from the list alone. That holds because best fit begins a sequence
only with a context that fits into none of those before it.
"""

from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from logitcache.store import Ids

__all__ = ["best_fit", "next_fit"]


def best_fit(lengths: Ids, length: int) -> list[list[int]]:
    """Put contexts into sequences: each, in order, where it leaves the least room; among equals, into the oldest.

    Args:
        lengths: Tokens of each context, in the order of the epoch, [N]; from 1 to `length`.
        length: Tokens of a sequence.

    Returns:
        For each sequence the positions of its contexts in `lengths`, ascending; sequences in the order in which they were begun.
    """
    found: list[list[int]] = []
    by_room: list[deque[int]] = [deque() for _ in range(length + 1)]  # room to the sequences that have it
    rooms = 0  # bit r is set where a sequence has room for r tokens
    for position, needed in enumerate(lengths.tolist()):
        fitting = rooms >> needed
        if fitting:
            room = needed + (fitting & -fitting).bit_length() - 1
            sequence = by_room[room].popleft()
            if not by_room[room]:
                rooms &= ~(1 << room)
            found[sequence].append(position)
        else:
            room, sequence = length, len(found)
            found.append([position])
        if left := room - needed:
            by_room[left].append(sequence)
            rooms |= 1 << left
    return found


def next_fit(lengths: Ids, length: int) -> NDArray[np.int64]:
    """Return the sequence of each context, where one begins as soon as a context does not fit into the one before, [N].

    Args:
        lengths: Tokens of each context, [N]; from 1 to `length`.
        length: Tokens of a sequence.
    """
    return np.fromiter(_numbered(lengths.tolist(), length), np.int64, len(lengths))


def _numbered(lengths: Sequence[int], length: int) -> Iterator[int]:
    sequence, room = -1, 0
    for needed in lengths:
        if needed > room or sequence < 0:
            sequence, room = sequence + 1, length
        room -= needed
        yield sequence
