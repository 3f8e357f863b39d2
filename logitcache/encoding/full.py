"""Every class is kept, as float32 (lossless) or float16 (relative error up to 2**-11, half the space)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from logitcache.errors import UnknownNameError, unknown_name

__all__ = ["PRECISIONS", "FullEncoding"]

PRECISIONS: dict[str, tuple[torch.dtype, str]] = {"f16": (torch.float16, "<f2"), "f32": (torch.float32, "<f4")}


@dataclass(frozen=True, slots=True)
class FullEncoding:
    """All C logits of a row.

    Attributes:
        dtype: `f32` or `f16`.
    """

    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in PRECISIONS:
            raise unknown_name("precision", self.dtype, PRECISIONS)

    def columns(self, classes: int) -> dict[str, tuple[tuple[int, ...], str]]:
        """Return name to (shape of one row, numpy dtype) of what is stored."""
        return {"logits": ((classes,), PRECISIONS[self.dtype][1])}

    def encode(self, logits: Tensor) -> dict[str, Tensor]:
        """Turn logits, [B, C] float32, into columns. A logit that float16 cannot hold becomes infinite; the dump refuses it."""
        return {"logits": logits.to(PRECISIONS[self.dtype][0])}

    def decode(self, columns: Mapping[str, Tensor]) -> Tensor:
        """Turn columns into logits, [B, C] float32, on the columns' device."""
        return columns["logits"].float()

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the manifest."""
        return {"kind": "full", "dtype": self.dtype}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "FullEncoding":
        """Read the entry of the manifest.

        Raises:
            UnknownNameError: Another encoding.
        """
        if entry.get("kind") != "full":
            raise UnknownNameError(f"unknown encoding {entry.get('kind')!r}; this logitcache reads: full. Upgrade it.")
        return cls(entry["dtype"])
