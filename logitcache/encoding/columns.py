"""What an encoding stores of a row, in words that the store understands."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

__all__ = ["Column", "widest_bytes"]


class Column(NamedTuple):
    """One array of a teacher.

    Attributes:
        shape: Of one row.
        dtype: numpy's name, little-endian.
        dimensions: Names of the row's dimensions.
        compression: How hard it is compressed, 1 to 9; 0 where that does not pay.
        by_column: Whether a compressed array of rows is laid out column after column, else row after row.
    """

    shape: tuple[int, ...]
    dtype: str
    dimensions: tuple[str, ...]
    compression: int = 0
    by_column: bool = True

    @property
    def nbytes(self) -> int:
        """Bytes of one row, in memory."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def widest_bytes(columns: Mapping[str, Column]) -> int:
    """Return the bytes of a row in the widest column: what decides how many rows make a block."""
    return max(column.nbytes for column in columns.values())
