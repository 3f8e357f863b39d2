"""The teacher's forward pass, the same in `dump` and with a live teacher, down to the last bit.

A logit's last bits depend on the shape of the batch and on the number of threads, not on a row's neighbours. So
batches are always full: the last one is padded, and padding is thrown away.
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
            network: The network with its weights.
            preprocessing: The network's preprocessing.
            modality: The kind of data; says which of the network's outputs are rows.
            classes: Number of logits that the network returns for a row.
            batch_size: Samples of every forward pass.
            threads: CPU threads of every forward pass.
            device: Device to run on.
            class_map: For each class of the data, the network's class. Defaults to the same classes.
            autocast: Dtype of torch's autocast, `bfloat16`. Defaults to float32 without autocast.
            channels_last: Whether to use channels-last memory format.
            compiled: Whether to wrap the network with torch.compile.
            test_time_views: `flip` averages the logits of an image and of its mirror image.
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
            rendered: The teacher's entry in `Rendition.inputs`, of any number of samples.
            keep: Mask of the outputs that are rows (`Rendition.kept`).

        Raises:
            InputError: The network returns something else.
        """
        done = 0
        for part in split_samples(rendered, self._batch_size):
            count = sample_count(part)
            yield from self._stepwise(
                self._full_batch(part, count, None if keep is None else keep[done : done + count])
            )
            done += count

    def _stepwise(self, chunks: Iterator[Tensor]) -> Iterator[Tensor]:
        """Compute each chunk as it was recorded, and leave torch's modes to the caller in between."""
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
                    f"teacher {self.name} answers for {counted(logits.shape[1], 'class')}, not {self._classes}. "
                    + (
                        "Use a teacher of the data's classes, or say with --class-map which of its classes they are."
                        if self._picked is None
                        else "Say with --teacher-classes how many it has."
                    )
                )
            yield logits.float() if self._picked is None else logits.float()[:, self._picked]


class Member(Protocol):
    """What `Teachers` asks: a `Teacher` that runs here, or one whose rows are given.

    Attributes:
        name: For messages.
        preprocessing: Input that it takes.
    """

    name: str
    preprocessing: Inputs

    def rows(self, rendered: Any, keep: Tensor | None = None) -> Iterator[Tensor] | Iterator[TopKRows]:
        """Yield a batch's rows in order, a chunk at a time."""

    def close(self) -> None:
        """Release what is held."""


class Teachers:
    """An ensemble whose mean logits are stored as one; usually a single teacher.

    Attributes:
        name: For messages.
        preprocessing: One for each member.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = members
        self.name = ", ".join(member.name for member in members)
        self.preprocessing = tuple(member.preprocessing for member in members)

    def rows(self, rendered: Sequence[Any], keeps: Sequence[Tensor | None]) -> Iterator[Tensor | TopKRows]:
        """Yield the raw logits of a batch's rows in order, [r, C] float32, a chunk at a time; or what is known of them.

        Args:
            rendered: One entry of `Rendition.inputs` for each member.
            keeps: For each member the mask of its outputs that are rows (`Rendition.kept`).

        Raises:
            InputError: A network returns something else.
        """
        streams = [member.rows(*one) for member, *one in zip(self._members, rendered, keeps, strict=True)]
        for answers in zip(*streams, strict=True):
            yield answers[0] if len(answers) == 1 else mean_of([dense(one, 1.0) for one in answers])

    def logits(self, batch: Rendition, rows: RowLabels, first: int = 0) -> Tensor:
        """Return the raw logits of a batch's rows, [R, C] float32, as an ordinary tensor that autograd takes as a constant.

        Rows of which the largest are known are completed for temperature 1.

        Args:
            batch: The batch, with an input for each member.
            rows: Its rows.
            first: Position of the first member's input.
        """
        networks = range(first, first + len(self._members))
        keeps = [batch.kept(rows, network) for network in networks]
        return dense(joined_rows(list(self.rows([batch.inputs[network] for network in networks], keeps))), 1.0)

    def close(self) -> None:
        """Restore the mode of every network."""
        for member in self._members:
            member.close()


def largest_fitting(attempt: Callable[[int], object], most: int, first: int = 64) -> int:
    """Return the largest batch that fits, doubling from the first on.

    Args:
        attempt: Runs a batch of so many rows; raises InputError where memory runs out.
        most: Rows of the largest.
        first: Rows of the smallest batch, unless `most` is smaller.

    Raises:
        InputError: Not even the first fits.
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
