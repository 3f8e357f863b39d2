"""Operations on a network's input: a tensor, or a mapping of named tensors, with samples along the first axis."""

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = [
    "call_network",
    "channels_last",
    "in_dtype",
    "map_tensors",
    "padded",
    "sample_count",
    "split_samples",
    "to_inputs",
]


def map_tensors(function: Callable[[Tensor], Tensor], inputs: Any) -> Any:
    """Apply a function to every tensor of an input."""
    if isinstance(inputs, Mapping):
        return {name: function(tensor) for name, tensor in inputs.items()}
    return function(inputs)


def sample_count(inputs: Any) -> int:
    """Return the number of samples of an input."""
    return len(next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs)


def split_samples(inputs: Any, size: int) -> Iterator[Any]:
    """Yield consecutive parts of at most `size` samples."""
    for start in range(0, sample_count(inputs), size):
        yield map_tensors(operator.itemgetter(slice(start, start + size)), inputs)


def padded(inputs: Any, size: int) -> Any:
    """Repeat the last sample until there are `size` of them."""
    missing = size - sample_count(inputs)
    if missing <= 0:
        return inputs
    return map_tensors(lambda tensor: torch.cat([tensor, tensor[-1:].expand(missing, *tensor.shape[1:])]), inputs)


def to_inputs(inputs: Any, device: torch.device) -> Any:
    """Copy an input to a device, asynchronously if it is in page-locked memory."""
    return map_tensors(lambda tensor: tensor.to(device, non_blocking=True), inputs)


def channels_last(inputs: Any) -> Any:
    """Convert images, [B, C, H, W], to channels-last memory format; leave other tensors unchanged."""
    return map_tensors(
        lambda tensor: tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor, inputs
    )


def in_dtype(inputs: Any, dtype: torch.dtype) -> Any:
    """Convert floating-point tensors to a network's dtype."""
    return map_tensors(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor, inputs)


def call_network(network: nn.Module | Callable[..., Any], inputs: Any) -> Any:
    """Call a network with a tensor, or with the tensors of a mapping as keyword arguments."""
    return network(**inputs) if isinstance(inputs, Mapping) else network(inputs)
