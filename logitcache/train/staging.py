"""Batches that the host renders, for steps on static tensors: copied to the device one batch ahead, into memory that stays the same."""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from logitcache.data import Ids, Inputs, View
from logitcache.data.protocol import Renderer

__all__ = ["Staging"]


class Staging:
    """The current batch of an epoch, on the device. Batches of the same shapes are copied into the same memory."""

    def __init__(self, inputs: Inputs, device: torch.device) -> None:
        """Store the arguments; memory is allocated for the first batch.

        Args:
            inputs: Preprocessing of the network.
            device: Device to copy to.
        """
        self._inputs, self._device = inputs, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        # Rendered samples of each micro-batch in each view, in this order: memory that stays, and the current batch.
        self._static: list[Tensor] = []
        self._current: list[Tensor] = []

    def batches(
        self, views: Sequence[View], shares: Sequence[Sequence[Ids]], renderers: Sequence[Renderer]
    ) -> Iterator[bool]:
        """Copy each batch to the device, and yield whether it is in the memory that stays.

        Args:
            views: One view, or the views of a pair.
            shares: For each batch, the sample ids of each micro-batch.
            renderers: Renderer of each view.
        """
        flat = [ids for parts in shares for ids in parts]
        streams = [renderer.batches(view, flat) for renderer, view in zip(renderers, views, strict=True)]
        rendered = (batch.inputs[0] for part in zip(*streams, strict=True) for batch in part)
        batches = (list(itertools.islice(rendered, len(parts) * len(views))) for parts in shares)
        for batch in self._copied_ahead(batches):
            self._static = self._static or [torch.empty_like(one) for one in batch]
            stays = [one.shape for one in batch] == [one.shape for one in self._static]
            if stays:
                torch._foreach_copy_(self._static, batch)
            self._current = self._static if stays else batch
            yield stays

    def inputs(self, number: int) -> Tensor:
        """Return an input of the network in the current batch, without synchronizing with the host.

        Args:
            number: Number of the micro-batch times the number of views, plus the position of the view.
        """
        found: Tensor = self._inputs.on(self._current[number], self._device)
        return found

    def _copied_ahead(self, batches: Iterable[list[Tensor]]) -> Iterator[list[Tensor]]:
        """Yield batches on the device. On a GPU, the next batch is copied while the step on the current one runs."""
        if self._stream is None:
            yield from batches
            return
        ahead = itertools.chain(map(self._copy, batches), [None])
        ready = next(ahead)
        for following in ahead:
            assert ready is not None
            batch, copied = ready
            here = torch.cuda.current_stream(self._device)
            here.wait_event(copied)
            for one in batch:
                one.record_stream(here)
            yield batch
            ready = following

    def _copy(self, batch: Sequence[Tensor]) -> tuple[list[Tensor], torch.cuda.Event]:
        """Start to copy a batch to the device."""
        assert self._stream is not None
        with torch.cuda.stream(self._stream):
            return [one.to(self._device, non_blocking=True) for one in batch], self._stream.record_event()
