"""Training and evaluation mode, dtype and channels of a network; and what to say when it fails."""

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
    """Raise InputError with the shape of the input when a network fails on it; memory and lost processes have words of their own.

    Args:
        label: Subject of the error message, e.g. "the student".
        inputs: The network's input.
    """
    try:
        yield
    except (LogitCacheError, torch.OutOfMemoryError, KeyboardInterrupt):
        raise
    except BaseException as error:  # whatever a user's network stumbles over, sys.exit too
        if is_lost_worker(error):  # of somebody's own loader: no fault of the network
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
    """Return what may help a network that failed."""
    if "Expected more than 1 value per channel" in str(error):
        return "Batch normalization wants two values or more a channel, so this batch is too small (--batch-size, --drop-last)."
    if isinstance(inputs, Tensor) and inputs.ndim == 4:
        if "channels" in str(error):
            return f"The data has {inputs.shape[1]} channels: choose a network that takes as many."
        return "Another size may suit it (--image-size)."
    return "Give it an input that it takes, or choose another network."


def float_dtype(module: nn.Module) -> torch.dtype:
    """Return the dtype of a network's weights; float32 where it has none."""
    found = (one.dtype for one in module.parameters() if one.is_floating_point())
    return next(found, torch.float32)


def input_channels(module: nn.Module) -> int | None:
    """Return how many channels a network's first convolution takes; None where it has no convolution of images."""
    return next((one.in_channels for one in module.modules() if isinstance(one, nn.Conv2d)), None)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode; afterwards each of its modules has its own mode again, a frozen one too."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def restoring_modes(module: nn.Module) -> Iterator[None]:
    """Give each module of a network its own mode again, training or evaluation, if what is done with it fails."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        yield
    except BaseException:
        for part, training in modes:
            part.training = training
        raise


@contextmanager
def checkpointing_gradients(module: nn.Module, name: str) -> Iterator[None]:
    """Recompute activations in the backward pass while this runs, which takes less memory and more time.

    Args:
        module: A network with a method `checkpoint_gradients(enabled=True)`, as language models of transformers have here, or
            `set_grad_checkpointing(enable=True)`, as networks of timm have.
        name: Name of the network for messages.

    Raises:
        InputError: The network has neither, or refuses.
    """
    switch = _checkpointing_switch(module)
    if switch is None:
        raise InputError(
            f"--gradient-checkpointing: {name} cannot recompute its activations. Language models of transformers and most networks of timm "
            "can, and networks with a method checkpoint_gradients(enabled=True): leave it out."
        )
    with explain_foreign_errors(f"--gradient-checkpointing: {name} cannot recompute its activations", "Leave it out."):
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
