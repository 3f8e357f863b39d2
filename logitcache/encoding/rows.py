"""Base class of decoded rows that do not hold every class. They can be moved and indexed like tensors, but are not tensors."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from logitcache.errors import InputError

__all__ = ["PartialRows"]


class PartialRows:
    """Rows that logitcache's losses accept in place of logits: a frozen dataclass of tensors [B, ...] and plain values.

    They are deliberately not tensors, so that they cannot be mistaken for logits.
    """

    __slots__ = ()
    ids: Tensor
    classes: int

    def in_one_line(self, values: Tensor, **more: Any) -> str:
        """Return the shape that logits of these rows would have, further facts, and dtype and device of `values`, for `repr`."""
        facts = {
            "shape": [*self.ids.shape[:-1], self.classes],
            **more,
            "dtype": values.dtype,
            "device": f"{values.device}",
        }
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in facts.items())})"

    def __len__(self) -> int:
        """Return the number of rows, B."""
        return len(self.ids)

    def __getitem__(self, index: Any) -> Self:
        """Return the indexed rows; `index` may be anything that indexes a tensor's first dimension. A single row has no batch dimension."""
        return self._each(lambda one: one[index])

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> Self:
        """Return the rows on a device. Called by frameworks that move batches."""
        return self._each(lambda one: one.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Return the rows in page-locked memory. Called by a DataLoader with `pin_memory=True`."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(self, **{name: change(getattr(self, name)) for name in _tensors(self)})  # type: ignore[type-var]

    @property
    def device(self) -> torch.device:
        """Device of the rows."""
        return self.ids.device

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """Concatenate batches of rows, like `torch.cat`."""
        joined = {name: torch.cat([getattr(one, name) for one in parts]) for name in _tensors(parts[0])}
        return replace(parts[0], **joined)  # type: ignore[type-var]

    @classmethod
    def stack(cls, rows: Sequence[Self]) -> Self:
        """Stack single rows to a batch, like `torch.stack`."""
        stacked = {name: torch.stack([getattr(one, name) for one in rows]) for name in _tensors(rows[0])}
        return replace(rows[0], **stacked)  # type: ignore[type-var]

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{type(self).__name__} has no {name!r}: {self.why_not_logits()}")

    @classmethod
    def __torch_function__(
        cls, function: Any, _: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = next((one for one in [*args, *(kwargs or {}).values()] if isinstance(one, cls)), None)
        reason = "rows that do not hold every class are not tensors" if found is None else found.why_not_logits()
        raise InputError(f"torch.{getattr(function, '__name__', function)} takes tensors: {reason}")

    def why_not_logits(self) -> str:
        """Return why these rows are not logits, for an error message."""
        raise NotImplementedError


def _tensors(rows: Any) -> list[str]:
    return [one.name for one in fields(rows) if isinstance(getattr(rows, one.name), Tensor)]
