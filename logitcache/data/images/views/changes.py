"""Transforms of the pixels of a crop: torchvision's, with random numbers that depend only on row and step.

Transforms draw from the global generators. These are seeded for every row from (seed, view, sample, step) and restored afterwards, so
that any transform can be replayed, including a user's own that uses `random` or numpy's global generator.
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

_FIRST_DRAW = 1 << 20  # first draw number of transforms; crops use those from 0
Transform = Callable[[Tensor], Any]


@dataclass(frozen=True, slots=True)
class Change:
    """A torchvision transform.

    Attributes:
        version: Version, incremented when the same random numbers would give different pixels.
        make: Function that builds the transform from its parameters.
        defaults: Parameters with their defaults.
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
    """Apply transforms to crops, [C, h, w] uint8 each.

    Args:
        rows: Crops, one per sample.
        steps: Keys of `CHANGES` or `package.module:factory`, each with its parameters.
        seed: Seed of the random numbers.
        view: Key of the view.
        samples: Sample ids, [B].

    Raises:
        InputError: If a user's own transform cannot be used.
    """
    rows = list(rows)
    with (
        _restoring_random_states(),
        cpu_threads(1),
    ):  # the last bit of a convolution may depend on the number of threads
        for number, (name, parameters) in enumerate(steps):
            transform = _transform(name, tuple(parameters.items()))
            spelled = f" {dict(parameters)}" if parameters else ""
            for row, numbers in enumerate(words(seed, view, samples, _FIRST_DRAW + number).tolist()):
                _seed_generators(numbers)
                with explain_foreign_errors(f"augmentation {name}{spelled} fails on sample {samples[row]}"):
                    changed = transform(
                        rows[row] if name in CHANGES else rows[row].clone()
                    )  # a user's transform may modify it in place
                rows[row] = _checked(changed, name, int(samples[row]))
    return rows


@functools.cache
def _transform(name: str, parameters: tuple[tuple[str, float | str], ...]) -> Transform:
    if name in CHANGES:
        try:
            return CHANGES[name].make(**dict(parameters))
        except (TypeError, ValueError) as error:
            raise InputError(f"{name} does not accept {dict(parameters)}: {error}") from error
    factory = resolve(name, "augmentation")
    with explain_foreign_errors(
        f"augmentation {name} cannot be created", "It must be callable without arguments and return a transform."
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
            f"augmentation {name} must return uint8 pixels [C, H, W], found {found} for sample {sample}. Remove ToDtype and Normalize: "
            "normalization is applied for each network later."
        )
    return pixels.as_subclass(Tensor)


def _seed_generators(numbers: Sequence[int]) -> None:
    torch.default_generator.manual_seed(numbers[0] << 32 | numbers[1])
    random.seed(numbers[2])
    np.random.seed(numbers[3])  # noqa: NPY002  (for transforms that use it)


@contextmanager
def _restoring_random_states() -> Iterator[None]:
    """Restore the state of the global random number generators on exit."""
    kept = torch.default_generator.get_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        torch.default_generator.set_state(kept[0])
        random.setstate(kept[1])
        np.random.set_state(kept[2])  # noqa: NPY002
