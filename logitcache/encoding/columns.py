"""What an encoding stores of a row, in words that the store understands."""

from typing import NamedTuple

__all__ = ["Column"]


class Column(NamedTuple):
    """One array of a teacher.

    Attributes:
        shape: Of one row.
        dtype: numpy's name, little-endian.
        dimensions: Names of the row's dimensions.
        compressed: Whether compression pays.
    """

    shape: tuple[int, ...]
    dtype: str
    dimensions: tuple[str, ...]
    compressed: bool = False
