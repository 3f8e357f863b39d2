"""Operations on a network's input (a tensor, or a mapping of named tensors, samples along the first axis), and arrays in torch's files."""

import operator
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from logitcache.errors import InputError, first_line

__all__ = [
    "call_network",
    "channels_last",
    "in_dtype",
    "load_arrays",
    "map_tensors",
    "padded",
    "sample_count",
    "shared",
    "split_samples",
    "to_inputs",
]

_REBUILT = np.empty(0).__reduce__()[0]  # by which numpy's arrays are pickled, under these names
_ARRAYS: list[Any] = [  # what runs nothing when it is loaded
    *(np.ndarray, np.dtype, *(type(np.dtype(one)) for one in ("?", "u1", "i4", "i8", "f2", "f4", "f8"))),
    *((_REBUILT, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
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


def shared(values: Tensor) -> Tensor:
    """Share numbers with the workers of a DataLoader, also with those that outlive an epoch."""
    return values.share_memory_()  # type: ignore[no-untyped-call,no-any-return]


def load_arrays(path: Path) -> Any:
    """Read a file of torch.save that holds tensors or numpy's arrays, in lists or mappings; code in it is not run.

    Raises:
        InputError: It is no such file, or holds other objects.
    """
    try:
        with torch.serialization.safe_globals(_ARRAYS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever a broken or hostile pickle makes it stumble over
        if isinstance(error, UnpicklingError) and "GLOBAL" in str(error):
            raise InputError(
                f"{path} holds Python objects besides arrays, which could run code and are not loaded"
            ) from error
        why = f" ({first_line(error)})" if isinstance(error, OSError) else ""
        raise InputError(f"{path} is no file that torch.save has written, or is damaged{why}") from error
