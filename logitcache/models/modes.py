"""Training and evaluation mode, dtype and channels of a network, and error messages if its forward pass fails."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from logitcache.errors import InputError, LogitCacheError, explain_foreign_errors, reason_of
from logitcache.runtime.workers import is_lost_worker

__all__ = [
    "checkpointing_gradients",
    "evaluating",
    "explain_forward_errors",
    "float_dtype",
    "input_channels",
    "restoring_modes",
]


@contextmanager
def explain_forward_errors(label: str, inputs: Any) -> Iterator[None]:
    """Raise InputError with the input's shape if a network fails on it; out-of-memory and lost processes are reported elsewhere.

    Args:
        label: Subject of the error message, e.g. "the student".
        inputs: Input of the network.
    """
    try:
        yield
    except (LogitCacheError, torch.OutOfMemoryError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a user's network may raise anything, even SystemExit
        if is_lost_worker(error):  # a worker of a user's loader, not the network
            raise
        if isinstance(error, RuntimeError) and any(word in str(error) for word in ("allocate memory", "gloo", "NCCL")):
            raise
        shape = (
            list(inputs.shape)
            if isinstance(inputs, Tensor)
            else {name: list(one.shape) for name, one in inputs.items()}
        )
        raise InputError(
            f"{label} fails on an input of shape {shape}: {reason_of(error).rstrip('.!')}. {_remedy(error, inputs)}"
        ) from error


def _remedy(error: BaseException, inputs: Any) -> str:
    """Return a remedy for a failed forward pass."""
    if "Expected more than 1 value per channel" in str(error):
        return "Batch normalization needs more than one value per channel; use a larger --batch-size, or --drop-last."
    if isinstance(inputs, Tensor) and inputs.ndim == 4:
        if "channels" in str(error):
            return f"The data has {inputs.shape[1]} channels; choose a network that takes as many."
        return "Try another --image-size."
    return "Give it a valid input, or choose another network."


def float_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype of a network's weights, or float32 if it has none."""
    found = (one.dtype for one in module.parameters() if one.is_floating_point())
    return next(found, torch.float32)


def input_channels(module: nn.Module) -> int | None:
    """Return the number of input channels of a network's first 2d convolution, or None if it has none."""
    return next((one.in_channels for one in module.modules() if isinstance(one, nn.Conv2d)), None)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode in this block, and restore the mode of each of its modules afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def restoring_modes(module: nn.Module) -> Iterator[None]:
    """Restore the mode, training or evaluation, of each module of a network if this block fails."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    except BaseException:
        for part, training in modes:
            part.training = training
        raise


@contextmanager
def checkpointing_gradients(module: nn.Module, name: str) -> Iterator[None]:
    """Recompute activations in the backward pass in this block, which takes less memory and more time.

    Args:
        module: Network with a method `checkpoint_gradients(enabled=True)`, like language models of transformers here, or
            `set_grad_checkpointing(enable=True)`, like networks of timm.
        name: Name of the network, for messages.

    Raises:
        InputError: If the network has neither method, or if it fails.
    """
    switch = _checkpointing_switch(module)
    if switch is None:
        raise InputError(
            f"--gradient-checkpointing is not supported by {name}; leave it out. Language models of transformers, most networks of timm, "
            "and networks with a method checkpoint_gradients(enabled=True) support it."
        )
    with explain_foreign_errors(f"--gradient-checkpointing fails for {name}", "Leave it out."):
        switch(True)
    try:
        yield
    finally:
        switch(False)


def _checkpointing_switch(module: nn.Module) -> Callable[[bool], object] | None:
    own: Any = getattr(module, "checkpoint_gradients", None)
    if own is not None:
        return lambda enabled: own(enabled=enabled)
    timms: Any = getattr(module, "set_grad_checkpointing", None)
    return None if timms is None else lambda enabled: timms(enable=enabled)
