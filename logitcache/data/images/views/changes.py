"""What happens to a box's pixels: torchvision's transforms, each drawn from numbers of its row and step alone.

A transform draws from the global generators. Here these are set for every row from (seed, view, sample, step) and put back
afterwards, so that any transform can be replayed, also one that somebody wrote with `random` or numpy's generator.
"""

import functools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms import v2

from logitcache.errors import InputError, explain_foreign_errors
from logitcache.runtime.device import cpu_threads
from logitcache.runtime.philox import words
from logitcache.runtime.plugins import resolve

__all__ = ["CHANGES", "Change", "change"]

_FIRST_DRAW = 1 << 20  # of steps; crops take the ones from 0
Transform = Callable[[Tensor], Any]


@dataclass(frozen=True, slots=True)
class Change:
    """A transform of torchvision's.

    Attributes:
        version: Raised when the same numbers would give other pixels.
        make: Parameters to transform.
        defaults: Its parameters.
    """

    version: int
    make: Callable[..., Transform]
    defaults: Mapping[str, float | str]


def _auto_augment(policy: str) -> Transform:
    known = {policy.value: policy for policy in v2.AutoAugmentPolicy}
    if policy not in known:
        raise InputError(f"autoaugment has the policies {', '.join(known)}, not {policy!r}")
    transform: Transform = v2.AutoAugment(known[policy])
    return transform


CHANGES: dict[str, Change] = {
    "randaugment": Change(1, v2.RandAugment, {"num_ops": 2, "magnitude": 9}),
    "autoaugment": Change(1, _auto_augment, {"policy": "imagenet"}),
    "trivialaugment": Change(1, v2.TrivialAugmentWide, {}),
    "colorjitter": Change(1, v2.ColorJitter, {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.0}),
    "erasing": Change(1, v2.RandomErasing, {"p": 0.25}),
}


def change(
    rows: Sequence[Tensor],
    steps: Sequence[tuple[str, Mapping[str, float | str]]],
    seed: int,
    view: int,
    samples: NDArray[np.int64],
) -> list[Tensor]:
    """Run the steps over renditions, [C, h, w] uint8 each.

    Args:
        rows: What the boxes hold.
        steps: Keys of `CHANGES`, or `package.module:factory`, each with its parameters.
        seed: Seed of the random numbers.
        view: The view's key.
        samples: Sample ids, [B].

    Raises:
        InputError: Somebody's own transform cannot be used.
    """
    rows = list(rows)
    with _numbers_put_back(), cpu_threads(1):  # a convolution's last bit may depend on how it is divided
        for number, (name, parameters) in enumerate(steps):
            transform = _transform(name, tuple(parameters.items()))
            spelled = f" {dict(parameters)}" if parameters else ""
            for row, numbers in enumerate(words(seed, view, samples, _FIRST_DRAW + number).tolist()):
                _set_numbers(numbers)
                with explain_foreign_errors(f"augmentation {name}{spelled} fails on sample {samples[row]}"):
                    changed = transform(
                        rows[row] if name in CHANGES else rows[row].clone()
                    )  # which may be changed in place
                rows[row] = _checked(changed, name, int(samples[row]))
    return rows


@functools.cache
def _transform(name: str, parameters: tuple[tuple[str, float | str], ...]) -> Transform:
    if name in CHANGES:
        try:
            return CHANGES[name].make(**dict(parameters))
        except (TypeError, ValueError) as error:
            raise InputError(f"{name} cannot have {dict(parameters)}: {error}") from error
    factory = resolve(name, "augmentation")
    with explain_foreign_errors(
        f"augmentation {name} cannot be made", "It is called with nothing, and returns a transform."
    ):
        made = factory()
    if not callable(made):
        raise InputError(
            f"augmentation {name} returned {type(made).__name__}; expected a transform of uint8 pixels [C, H, W]"
        )
    transform: Transform = made
    return transform


def _checked(pixels: Any, name: str, sample: int) -> Tensor:
    if not isinstance(pixels, Tensor) or pixels.dtype != torch.uint8 or pixels.ndim != 3 or not pixels.numel():
        found = (
            f"{pixels.dtype} {list(pixels.shape)}".removeprefix("torch.")
            if isinstance(pixels, Tensor)
            else type(pixels).__name__
        )
        raise InputError(
            f"augmentation {name} must turn uint8 pixels [C, H, W] into such, and gave {found} for sample {sample}. Leave ToDtype and "
            "Normalize out: each network has its own."
        )
    return pixels.as_subclass(Tensor)


def _set_numbers(numbers: Sequence[int]) -> None:
    torch.default_generator.manual_seed(numbers[0] << 32 | numbers[1])
    random.seed(numbers[2])
    np.random.seed(numbers[3])  # noqa: NPY002  (for transforms that use it)


@contextmanager
def _numbers_put_back() -> Iterator[None]:
    """Leave the process's own random numbers as they were."""
    kept = torch.default_generator.get_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        torch.default_generator.set_state(kept[0])
        random.setstate(kept[1])
        np.random.set_state(kept[2])  # noqa: NPY002
