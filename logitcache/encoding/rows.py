"""What decoded rows of which not every class was kept have in common: they move and are indexed as tensors, and are none."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from logitcache.errors import InputError

__all__ = ["PartialRows"]


class PartialRows:
    """Rows that a loss of logitcache takes where it takes logits; a frozen dataclass of tensors [B, ...] and plain values.

    They are no tensor, so that nothing takes them for logits by accident.
    """

    __slots__ = ()
    ids: Tensor

    def __len__(self) -> int:
        """Return the number of rows, B."""
        return len(self.ids)

    def __getitem__(self, index: Any) -> Self:
        """Return some of the rows: `index` is what a tensor's first dimension takes. A single row has no dimension for B."""
        return self._each(lambda one: one[index])

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> Self:
        """Return the rows on a device: frameworks that move batches call it."""
        return self._each(lambda one: one.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Return the rows in page-locked memory: a DataLoader with `pin_memory=True` calls it."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, **{name: change(getattr(self, name)) for name in _tensors(self)})  # type: ignore[type-var]

    @property
    def device(self) -> torch.device:
        """Device of the rows."""
        return self.ids.device

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Put batches of rows one after another, as `torch.cat`."""
        joined = {name: torch.cat([getattr(one, name) for one in parts]) for name in _tensors(parts[0])}
        return replace(parts[0], **joined)  # type: ignore[type-var]

    @classmethod
    def stack(cls, rows: Sequence[Self]) -> Self:
        """Put single rows together, as `torch.stack`."""
        stacked = {name: torch.stack([getattr(one, name) for one in rows]) for name in _tensors(rows[0])}
        return replace(rows[0], **stacked)  # type: ignore[type-var]

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{type(self).__name__} has no {name!r}: {self.are_no_logits()}")

    @classmethod
    def __torch_function__(
        cls, function: Any, _: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = next((one for one in [*args, *(kwargs or {}).values()] if isinstance(one, cls)), None)
        reason = "rows of which not every class was kept are none" if found is None else found.are_no_logits()
        raise InputError(f"torch's {getattr(function, '__name__', function)} takes tensors: {reason}")

    def are_no_logits(self) -> str:
        """Return why they are no logits, for an error message."""
        raise NotImplementedError


def _tensors(rows: Any) -> list[str]:
    return [one.name for one in fields(rows) if isinstance(getattr(rows, one.name), Tensor)]
