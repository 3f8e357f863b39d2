"""The teacher's forward pass, the same in `dump` and with a live teacher, down to the last bit.

A logit's last bits depend on the shape of the batch and on the number of threads, not on a row's neighbours. So
batches are always full: the last one is padded, and padding is thrown away.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from logitcache.data.images.views.preprocessing import Preprocessing
from logitcache.encoding import mean_of
from logitcache.errors import InputError
from logitcache.models import Network
from logitcache.runtime.device import compiled_unless_refused, cpu_threads, saying_when_out_of_memory

__all__ = ["Teacher", "Teachers", "largest_fitting"]


class Teacher:
    """A network that only ever answers. Close it to have the network back in the mode it was in."""

    def __init__(
        self,
        network: Network,
        preprocessing: Preprocessing,
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
    ) -> None:
        """Prepare a network.

        Args:
            network: The network with its weights.
            preprocessing: What turns pixels into its input.
            classes: Logits that the network answers with.
            batch_size: Rows of every forward pass.
            threads: CPU threads of every forward pass.
            device: Where it runs.
            class_map: For each class of the data, which of the network's it is; None: the same.
            autocast: torch's name of the type of matrix products, `bfloat16`; None: float32.
            channels_last: Whether pixels and weights are laid out so, which convolutions on GPUs like.
            compiled: Whether torch.compile translates it first.
            test_time_views: `flip` answers with the mean of an image's logits and those of its mirror image.
        """
        self._autocast = None if autocast is None else getattr(torch, autocast)
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._picked = None if class_map is None else torch.tensor(class_map, device=device)
        self.name, self.preprocessing = network.name, preprocessing
        self._modes = [(module, module.training) for module in network.module.modules()]
        self._module = network.module.to(device).eval()
        if channels_last:
            self._module.to(memory_format=torch.channels_last)
        translated = compiled_unless_refused(self._module, f"teacher {network.name}") if compiled else None
        self._run: Callable[[Tensor], Any] = translated or self._module
        self._flips = test_time_views == "flip"
        self._classes, self._batch_size, self._threads, self._device = classes, batch_size, threads, device

    def logits(self, pixels: Tensor) -> Tensor:
        """Answer for pixels, [B, C, H, W] uint8 of any B: raw logits of the data's classes, [B, C] float32 on the teacher's device.

        Raises:
            InputError: The network's output is something else.
        """
        with torch.inference_mode(), cpu_threads(self._threads), saying_when_out_of_memory(self._batch_size):
            parts = [self._full_batch(part) for part in torch.split(pixels, self._batch_size)]
        return torch.cat(parts).clone()  # cloned outside of inference mode, so that autograd takes it as a constant

    def close(self) -> None:
        """Put the network's parts back in the mode, training or evaluation, that they were in."""
        for module, training in self._modes:
            module.training = training

    def _full_batch(self, pixels: Tensor) -> Tensor:
        rows = len(pixels)
        if rows < self._batch_size:
            pixels = torch.cat([pixels, pixels[-1:].expand(self._batch_size - rows, *pixels.shape[1:])])
        shown = self.preprocessing.normalize(pixels.to(self._device, non_blocking=True))
        output = self._answer(shown)
        if self._flips:
            output = (output + self._answer(shown.flip(-1))) / 2
        return output[:rows]

    def _answer(self, shown: Tensor) -> Tensor:
        with torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None):
            output = _logits_of(self._run(shown.contiguous(memory_format=self._layout)))
        if not isinstance(output, Tensor) or output.ndim != 2:
            found = f"a tensor {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise InputError(f"teacher {self.name} must return logits [B, {self._classes}], found {found}")
        if output.shape[1] != self._classes:
            raise InputError(
                f"teacher {self.name} answers for {output.shape[1]} classes, not {self._classes}. "
                + (
                    "Use a teacher of the data's classes, or say with --class-map which of its classes they are."
                    if self._picked is None
                    else "Say with --teacher-classes how many it has."
                )
            )
        output = output.float()
        return output if self._picked is None else output[:, self._picked]


class Teachers:
    """Whose answer is stored as one: usually one teacher; of several, the mean of their logits.

    Attributes:
        name: For messages.
        eyes: What each of them looks through.
    """

    def __init__(self, members: Sequence[Teacher]) -> None:
        self._members = members
        self.name = ", ".join(member.name for member in members)
        self.eyes = tuple(member.preprocessing for member in members)

    def logits(self, pixels: Sequence[Tensor]) -> Tensor:
        """Answer for pixels, for each member [B, C, H, W] uint8: raw logits, [B, C] float32.

        Raises:
            InputError: A network's output is something else.
        """
        answers = [member.logits(one) for member, one in zip(self._members, pixels, strict=True)]
        return answers[0] if len(answers) == 1 else mean_of(answers)

    def close(self) -> None:
        """Put the networks back in the mode that they were in."""
        for member in self._members:
            member.close()


def largest_fitting(attempt: Callable[[int], object], first: int = 64, most: int = 8192) -> int:
    """Return the largest batch that fits, doubling from the first on.

    Args:
        attempt: Runs a batch of so many rows; raises InputError where memory runs out.
        first: Rows of the smallest batch.
        most: Rows of the largest.

    Raises:
        InputError: Not even the first fits.
    """
    attempt(first)
    size = first
    while size < most:
        try:
            attempt(2 * size)
        except InputError:
            break
        size *= 2
    return size


def _logits_of(output: Any) -> Any:
    """Find the logits in what a network returns: itself, `.logits` (Hugging Face, Inception), ["logits"], or the first of a tuple."""
    if isinstance(output, Tensor):
        return output
    if isinstance(getattr(output, "logits", None), Tensor):
        return output.logits
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
    return output[0] if isinstance(output, tuple | list) and output else output
