"""Description of the columns that an encoding stores for each row."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

__all__ = ["Column", "widest_bytes"]


class Column(NamedTuple):
    """One array of a teacher.

    Attributes:
        shape: Shape of one row.
        dtype: Name of the numpy dtype, little-endian.
        dimensions: Names of the row's dimensions.
        compression: Compression level, 1 to 9, or 0 for no compression.
        by_column: Whether to compress the array in column-major order; row-major if False.
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
    """Return the bytes of one row in the widest column, which determines the number of rows in a block."""
    return max(column.nbytes for column in columns.values())
