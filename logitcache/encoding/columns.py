"""What an encoding stores of a row, in words that the store understands."""

import math
from typing import NamedTuple

import numpy as np

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

    @property
    def nbytes(self) -> int:
        """Bytes of one row, in memory."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize
