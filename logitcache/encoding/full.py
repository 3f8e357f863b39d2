"""Encoding of all logits: float32 (lossless), float16 (relative error up to 2**-11, rarely 2**-10) or 8 bits (uniform grid per row)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcache.encoding.columns import Column
from logitcache.encoding.quantize import dequantize, half, quantize
from logitcache.errors import unknown_name

__all__ = ["PRECISIONS", "FullEncoding"]

PRECISIONS: dict[str, tuple[torch.dtype, str]] = {
    "f16": (torch.float16, "<f2"),
    "f32": (torch.float32, "<f4"),
    "u8": (torch.uint8, "|u1"),
}


@dataclass(frozen=True, slots=True)
class FullEncoding:
    """Encoding that stores all C logits of a row.

    Attributes:
        dtype: Key of `PRECISIONS`.
    """

    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in PRECISIONS:
            raise unknown_name("precision", self.dtype, PRECISIONS)

    def columns(self, classes: int) -> dict[str, Column]:
        """Return the columns that are stored for each row."""
        found = {"logits": Column((classes,), PRECISIONS[self.dtype][1], ("class",))}
        if self.dtype == "u8":
            found["scale"] = Column((2,), "<f4", ("statistic",), compression=1)
        return found

    def encode(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Encode logits, [B, C] float32, as columns. Logits outside the range of float16 become infinite, which `dump` refuses."""
        if self.dtype == "f32":
            return {"logits": logits}
        if self.dtype == "f16":
            return {"logits": half(logits, labels)}
        codes, scale = quantize(logits, labels, 255)
        return {"logits": codes, "scale": scale}

    def top_classes(self, columns: Mapping[str, Tensor]) -> Tensor:
        """Return the class with the largest logit of each row, [B] int64; rounding preserves it."""
        return columns["logits"].argmin(1) if self.dtype == "u8" else columns["logits"].argmax(1)

    def decode(self, columns: Mapping[str, Tensor], labels: Tensor, classes: int) -> Tensor:
        """Decode columns to logits, [B, C] float32, on the columns' device."""
        del labels, classes
        if self.dtype == "u8":
            return dequantize(columns["logits"], columns["scale"])
        return columns["logits"].float()

    def check(self, columns: Mapping[str, NDArray[Any]], classes: int) -> str | None:
        """Return None: any content is valid."""
        del columns, classes
        return None

    def to_json(self) -> dict[str, Any]:
        """Return the manifest entry."""
        return {"kind": "full", "dtype": self.dtype}
