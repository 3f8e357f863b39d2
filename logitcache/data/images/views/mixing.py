"""Mixup and CutMix. Partner, weight and box of a row are functions of (seed, view, sample), independent of the rest of the batch.

Weights are multiples of 1/256, and pixels are blended in integer arithmetic. Boxes are drawn in units of 1/256 of an image's sides, so
that their area, which determines the weight of the labels, does not depend on the size of the image.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcache.data.images.views.preprocessing import resize
from logitcache.errors import InputError
from logitcache.runtime.device import to_device
from logitcache.runtime.philox import integers, words
from logitcache.store import is_among

__all__ = ["MIXES", "Mixed", "Mixing", "blend", "blend_batch", "draw", "unmixed"]

_FIRST_DRAW = 1 << 16
_WHOLE = 256
_SMALLEST, _LARGEST = 1e-3, 100.0  # range of alpha; outside it, all weights are 0, 1 or 1/2
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Mixing:
    """A method of mixing two renditions: its version and the defaults of its parameters."""

    version: int
    defaults: Mapping[str, float | str]


MIXES: dict[str, Mixing] = {
    "mixup": Mixing(1, {"alpha": 0.2, "p": 1.0}),  # Zhang et al., ICLR 2018
    "cutmix": Mixing(1, {"alpha": 1.0, "p": 1.0}),  # Yun et al., ICCV 2019
}


@dataclass(frozen=True, slots=True)
class Mixed:
    """Mixing parameters of each row of a batch.

    Attributes:
        partners: Sample ids of the partners, rendered in the same view, [B].
        weights: Weight of the row itself and of its label, in 1/256, [B].
        boxes: Box filled by the partner, in 1/256 of the sides: top, bottom, left, right, [B, 4]; empty if pixels are blended.
    """

    partners: Ints
    weights: Ints
    boxes: Ints

    def without(self, samples: Ints, excluded: Ints) -> "Mixed":
        """Return a copy in which rows whose partner is excluded are mixed with themselves, so that image and label are unchanged."""
        gone = is_among(self.partners, excluded)
        return Mixed(
            np.where(gone, samples, self.partners),
            np.where(gone, _WHOLE, self.weights),
            np.where(gone[:, None], 0, self.boxes),
        )


def unmixed(samples: Ints) -> Mixed:
    """Return the mixing parameters that leave rows as they are."""
    return Mixed(samples, np.full(len(samples), _WHOLE), np.zeros((len(samples), 4), np.int64))


def draw(
    steps: Sequence[tuple[str, Mapping[str, float | str]]], seed: int, view: int, samples: Ints, total: int
) -> Mixed:
    """Draw the mixing parameters of each row.

    Args:
        steps: Keys of `MIXES` with their parameters. If there are several, each row uses one, chosen with equal probability.
        seed: Seed of the random numbers.
        view: Key of the view.
        samples: Sample ids, [B].
        total: Number of samples in the whole data set.
    """
    first, second = (words(seed, view, samples, _FIRST_DRAW + number) for number in (0, 1))
    chosen = integers(first[:, 2], len(steps))
    weights, boxes = np.full(len(samples), _WHOLE), np.zeros((len(samples), 4), np.int64)
    for number, (name, parameters) in enumerate(steps):
        alpha, p = float(parameters["alpha"]), float(parameters["p"])
        drawn = np.searchsorted(_thresholds(alpha), first[:, 1], side="right")
        takes = (chosen == number) & (first[:, 3] < p * 2.0**32)
        if name == "cutmix":
            around = _around(drawn, integers(second[:, 0], _WHOLE), integers(second[:, 1], _WHOLE))
            boxes[takes] = around[takes]
            area = (around[:, 1] - around[:, 0]) * (around[:, 3] - around[:, 2])
            drawn = _WHOLE - (area + _WHOLE // 2) // _WHOLE
        weights[takes] = drawn[takes]
    return Mixed(integers(first[:, 0], total), weights, boxes)


def _around(weights: Ints, rows: Ints, columns: Ints) -> Ints:
    """Return boxes with a share 1 - weight of the area around the given centers, clipped to the image, [B, 4]."""
    half = np.rint(np.sqrt((_WHOLE - weights) / _WHOLE) * (_WHOLE / 2)).astype(np.int64)
    edges = [rows - half, rows + half, columns - half, columns + half]
    return np.stack(edges, 1).clip(0, _WHOLE)


@functools.cache
def _thresholds(alpha: float) -> NDArray[np.float64]:
    """Return thresholds on a 32-bit random number that divide the weights of Beta(alpha, alpha), rounded to 1/256, [256] float64.

    The substitution x = t^(1/alpha) removes the pole of the density at 0; the other half is symmetric. Weight q has the mass from
    q - 1/2 to q + 1/2.
    """
    if not _SMALLEST <= alpha <= _LARGEST:
        raise InputError(f"alpha of mixup and cutmix must be between {_SMALLEST:g} and {_LARGEST:g}, not {alpha:g}")
    edges = ((np.arange(129) + 0.5) / _WHOLE).clip(0, 0.5) ** alpha
    nodes, shares = np.polynomial.legendre.leggauss(32)
    low, high = np.concatenate([[0.0], edges[:-1]])[:, None], edges[:, None]
    t = (high + low) / 2 + (high - low) / 2 * nodes
    mass = ((1 - t ** (1 / alpha)) ** (alpha - 1) * shares).sum(1) * (high - low)[:, 0] / 2
    below = np.cumsum(mass)[:128] / (2 * mass.sum())  # P(weight <= q), q = 0 ... 127
    return np.concatenate([below, 1 - below[::-1]]) * 2.0**32


def blend(own: Tensor | list[Tensor], partners: Tensor | list[Tensor], mixed: Mixed) -> Tensor | list[Tensor]:
    """Mix renditions: [B, C, H, W] uint8, or one tensor per row. Partners of another size are resized to the size of the row."""
    weights, boxes = torch.from_numpy(mixed.weights), torch.from_numpy(mixed.boxes)
    if isinstance(own, Tensor) and isinstance(partners, Tensor):
        return blend_batch(own, partners, to_device(weights, own.device), to_device(boxes, own.device))
    rows = []
    for row, pair in enumerate(zip(own, partners, strict=True)):
        one, other = (
            pixels.expand(max(map(len, pair)), -1, -1) for pixels in pair
        )  # repeat the channel of a grey image
        fitted = other if one.shape == other.shape else resize(other, list(one.shape[-2:]))
        rows.append(blend_batch(one[None], fitted[None], weights[row : row + 1], boxes[row : row + 1])[0])
    return rows


def blend_batch(own: Tensor, partners: Tensor, weights: Tensor, boxes: Tensor) -> Tensor:
    """Mix images of one size, without synchronizing. All tensors are on one device.

    Args:
        own: Images, [B, C, H, W] uint8.
        partners: Images to mix with them, of the same shape.
        weights: Weights as in `Mixed`, [B] int64.
        boxes: Boxes as in `Mixed`, [B, 4] int64.
    """
    height, width = own.shape[-2:]
    top, bottom, left, right = (
        edge[:, None] * side // _WHOLE
        for edge, side in zip(boxes.unbind(1), (height, height, width, width), strict=True)
    )
    rows, columns = (torch.arange(side, device=own.device) for side in (height, width))
    inside = ((rows >= top) & (rows < bottom))[:, :, None] & ((columns >= left) & (columns < right))[:, None, :]
    cut = (boxes[:, 1] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 2])
    share = torch.where(cut[:, None, None], torch.where(inside, 0, _WHOLE), weights[:, None, None]).int()[:, None]
    return ((own.int() * share + partners.int() * (_WHOLE - share) + _WHOLE // 2) >> 8).to(torch.uint8)
