"""Training and evaluation mode, dtype and channels of a network."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["evaluating", "float_dtype", "input_channels"]


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
