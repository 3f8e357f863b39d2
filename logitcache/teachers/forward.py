"""The teacher's forward pass, bit-identical in `dump` and with a live teacher.

The last bits of a logit depend on the shape of the batch and on the number of threads, but not on the other rows. Batches are therefore
always full: the last one is padded, and the padding is discarded.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from logitcache.data import Inputs, Modality, Rendition, RowLabels
from logitcache.encoding import TopKRows, dense, joined_rows, mean_of
from logitcache.errors import InputError
from logitcache.models import Network, evaluating, explain_forward_errors, float_dtype
from logitcache.runtime.determinism import deterministic_algorithms
from logitcache.runtime.device import compile_function, cpu_threads, explain_oom, float32_precision
from logitcache.runtime.tensors import call_network, channels_last, in_dtype, padded, sample_count, split_samples
from logitcache.runtime.wording import counted

__all__ = ["Teacher", "Teachers", "largest_fitting"]


class Teacher:
    """A frozen teacher in evaluation mode. `close()` restores the original training and evaluation modes."""

    def __init__(
        self,
        network: Network,
        preprocessing: Inputs,
        modality: Modality,
        *,
        classes: int,
        batch_size: int,
        threads: int,
        device: torch.device,
        class_map: Sequence[int] | None = None,
        autocast: str | None = None,
        channels_last: bool = False,
        compiled: bool = False,
        test_time_views: str = "none",
        deterministic: bool = False,
        matmul_precision: str | None = None,
        cudnn_tf32: bool | None = None,
    ) -> None:
        """Prepare a network.

        Args:
            network: Network with its weights.
            preprocessing: Preprocessing of the network.
            modality: Kind of data, which defines which of the network's outputs are rows.
            classes: Number of logits per row that the network returns.
            batch_size: Samples per forward pass.
            threads: CPU threads per forward pass.
            device: Device to run on.
            class_map: Network's class for each class of the data. Defaults to the same classes.
            autocast: Dtype of torch's autocast, e.g. `bfloat16`. None disables autocast.
            channels_last: Whether to use channels-last memory format.
            compiled: Whether to wrap the network with torch.compile.
            test_time_views: Test-time augmentation: `none`, or `flip` to average the logits of an image and its mirror image.
            deterministic: Whether to use torch's deterministic algorithms during the forward pass.
            matmul_precision: torch's float32 matmul precision during the forward pass. Defaults to the process's own.
            cudnn_tf32: Whether cuDNN may use TF32 during the forward pass. Defaults to the process's own setting.
        """
        self._autocast = None if autocast is None else getattr(torch, autocast)
        self._channels_last = channels_last
        self._picked = None if class_map is None else torch.tensor(class_map, device=device)
        self.name, self.preprocessing, self._modality = network.name, preprocessing, modality
        self._module, self._dtype = network.module.to(device), float_dtype(network.module)
        self._mode = contextlib.ExitStack()
        self._mode.enter_context(evaluating(self._module))
        if channels_last:
            self._module.to(memory_format=torch.channels_last)
        translated = compile_function(self._module, f"teacher {network.name}") if compiled else None
        self._run: Callable[..., Any] = translated or self._module
        self._test_time_views, self._deterministic = test_time_views, deterministic
        self._precision = (matmul_precision, cudnn_tf32)
        self._classes, self._batch_size, self._threads, self._device = classes, batch_size, threads, device

    def rows(self, rendered: Any, keep: Tensor | None = None) -> Iterator[Tensor]:
        """Yield the raw logits of a batch's rows in order, [r, C] float32 on the teacher's device, a chunk at a time.

        Args:
            rendered: Teacher's entry in `Rendition.inputs`, with any number of samples.
            keep: Mask of the outputs that are rows (`Rendition.kept`).

        Raises:
            InputError: If the network's output has another shape.
        """
        done = 0
        for part in split_samples(rendered, self._batch_size):
            count = sample_count(part)
            yield from self._stepwise(
                self._full_batch(part, count, None if keep is None else keep[done : done + count])
            )
            done += count

    def _stepwise(self, chunks: Iterator[Tensor]) -> Iterator[Tensor]:
        """Compute each chunk under the recorded settings, and restore the caller's torch settings between chunks."""
        while True:
            with (
                torch.inference_mode(),
                torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None),
                cpu_threads(self._threads),
                float32_precision(*self._precision),
                deterministic_algorithms(f"teacher {self.name}", enabled=self._deterministic),
                explain_oom(self._batch_size),
            ):
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    def close(self) -> None:
        """Restore the mode, training or evaluation, of every module."""
        self._mode.close()

    def _full_batch(self, part: Any, count: int, keep: Tensor | None) -> Iterator[Tensor]:
        inputs = self.preprocessing.on(padded(part, self._batch_size), self._device)
        if keep is not None:
            keep = keep.to(self._device)
            keep = torch.cat([keep, keep.new_zeros(self._batch_size - count, *keep.shape[1:])])
        variants = self.preprocessing.variants(inputs, self._test_time_views)
        for answers in zip(*(self._chunks(one, keep) for one in variants), strict=True):
            logits = answers[0] if len(answers) == 1 else functools.reduce(torch.add, answers) / len(answers)
            yield logits if keep is not None else logits[:count]

    def _chunks(self, inputs: Any, keep: Tensor | None) -> Iterator[Tensor]:
        inputs = in_dtype(inputs, self._dtype)
        with explain_forward_errors(f"teacher {self.name}", inputs):
            output = call_network(self._run, channels_last(inputs) if self._channels_last else inputs)
        for logits in self._modality.rows(output, keep, classes=self._classes, label=f"teacher {self.name}"):
            if logits.shape[1] != self._classes:
                raise InputError(
                    f"teacher {self.name} returns logits for {counted(logits.shape[1], 'class')}, not {self._classes}. "
                    + (
                        "Use a teacher trained on the data's classes, or map them to its classes with --class-map."
                        if self._picked is None
                        else "Set its number of classes with --teacher-classes."
                    )
                )
            yield logits.float() if self._picked is None else logits.float()[:, self._picked]


class Member(Protocol):
    """Member of an ensemble: a `Teacher` that runs here, or one whose rows are given.

    Attributes:
        name: Name of the teacher, for messages.
        preprocessing: Preprocessing of its input.
    """

    name: str
    preprocessing: Inputs

    def rows(self, rendered: Any, keep: Tensor | None = None) -> Iterator[Tensor] | Iterator[TopKRows]:
        """Yield a batch's rows in order, a chunk at a time."""

    def close(self) -> None:
        """Release all resources."""


class Teachers:
    """An ensemble of teachers whose mean logits are stored; usually a single teacher.

    Attributes:
        name: Names of the members, for messages.
        preprocessing: Preprocessing of each member.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = members
        self.name = ", ".join(member.name for member in members)
        self.preprocessing = tuple(member.preprocessing for member in members)

    def rows(self, rendered: Sequence[Any], keeps: Sequence[Tensor | None]) -> Iterator[Tensor | TopKRows]:
        """Yield the raw logits of a batch's rows in order, [r, C] float32, or top-k rows, a chunk at a time.

        Args:
            rendered: Entry of `Rendition.inputs` for each member.
            keeps: Mask of the outputs that are rows, for each member (`Rendition.kept`).

        Raises:
            InputError: If a network's output has another shape.
        """
        streams = [member.rows(*one) for member, *one in zip(self._members, rendered, keeps, strict=True)]
        for answers in zip(*streams, strict=True):
            yield answers[0] if len(answers) == 1 else mean_of([dense(one, 1.0) for one in answers])

    def logits(self, batch: Rendition, rows: RowLabels, first: int = 0) -> Tensor:
        """Return the raw logits of a batch's rows, [R, C] float32, as an ordinary tensor that autograd treats as a constant.

        Top-k rows are completed for temperature 1.

        Args:
            batch: Batch with an input for each member.
            rows: Labels of the batch's rows.
            first: Index of the first member's input.
        """
        networks = range(first, first + len(self._members))
        keeps = [batch.kept(rows, network) for network in networks]
        return dense(joined_rows(list(self.rows([batch.inputs[network] for network in networks], keeps))), 1.0)

    def close(self) -> None:
        """Restore the mode of every network."""
        for member in self._members:
            member.close()


def largest_fitting(attempt: Callable[[int], object], most: int, first: int = 64) -> int:
    """Return the largest batch size that fits in memory, by doubling.

    Args:
        attempt: Function that runs a batch of the given size, and raises InputError if memory runs out.
        most: Maximum batch size.
        first: Batch size to start with, limited to `most`.

    Raises:
        InputError: If even the first size does not fit.
    """
    size = min(first, most)
    attempt(size)
    while 2 * size <= most:
        try:
            attempt(2 * size)
        except InputError:
            break
        size *= 2
    return size
