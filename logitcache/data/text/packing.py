"""Packing contexts into sequences of a fixed length.

An epoch is packed by best fit: each context goes into the sequence where it leaves the least room. A batch then lists its contexts sequence
by sequence, and `next_fit` recovers the same sequences from the list alone. This works because best fit starts a new sequence only with a
context that fits into none of the earlier ones.
"""

from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from logitcache.store import Ids

__all__ = ["best_fit", "next_fit"]


def best_fit(lengths: Ids, length: int) -> list[list[int]]:
    """Pack contexts, in order, each into the sequence where it leaves the least room; ties go to the oldest sequence.

    Args:
        lengths: Number of tokens in each context, in the order of the epoch, [N]; from 1 to `length`.
        length: Length of a sequence, in tokens.

    Returns:
        Positions in `lengths` of the contexts of each sequence, ascending; sequences in the order in which they were started.
    """
    found: list[list[int]] = []
    by_room: list[deque[int]] = [deque() for _ in range(length + 1)]  # sequences with room for r tokens, by r
    rooms = 0  # bit r is set if a sequence has room for r tokens
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
    """Return the sequence number of each context, [N]; a new sequence starts when a context does not fit into the current one.

    Args:
        lengths: Number of tokens in each context, [N]; from 1 to `length`.
        length: Length of a sequence, in tokens.
    """
    return np.fromiter(_numbered(lengths.tolist(), length), np.int64, len(lengths))


def _numbered(lengths: Sequence[int], length: int) -> Iterator[int]:
    sequence, room = -1, 0
    for needed in lengths:
        if needed > room or sequence < 0:
            sequence, room = sequence + 1, length
        room -= needed
        yield sequence
