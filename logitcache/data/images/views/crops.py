"""Crop boxes and horizontal flips, computed on the host in integers and double precision.

A box may extend beyond the image; pixels outside it are black.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import InputError
from logitcache.runtime.philox import integers, uniforms, words

__all__ = ["CROPS", "RECORDED", "Boxes", "Crop", "RecordedBoxes"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Boxes:
    """Crop box of each image, in pixels of that image.

    Attributes:
        top, left: Top left corner, [B]; may be negative.
        height, width: Size of the box, [B].
        flip: Whether the box is mirrored left to right, [B] bool.
    """

    top: Ints
    left: Ints
    height: Ints
    width: Ints
    flip: NDArray[np.bool_]


def _whole(_seed: int, _view: int, samples: Ints, heights: Ints, widths: Ints) -> Boxes:
    """Return boxes that keep the whole image, without a flip."""
    zero = np.zeros(len(samples), np.int64)
    return Boxes(zero, zero, heights, widths, np.zeros(len(samples), np.bool_))


def _pad_crop_flip(seed: int, view: int, samples: Ints, heights: Ints, widths: Ints) -> Boxes:
    """Pad by four black pixels, crop the image's own size at random, flip half: the CIFAR recipe (He et al., CVPR 2016, 4.2)."""
    random = words(seed, view, samples, 0)
    top, left = integers(random[:, 0], 9) - 4, integers(random[:, 1], 9) - 4
    return Boxes(top, left, heights, widths, integers(random[:, 2], 2) == 1)


def _random_resized_crop_flip(seed: int, view: int, samples: Ints, heights: Ints, widths: Ints) -> Boxes:
    """Crop 8 to 100 % of the area at a ratio of 3/4 to 4/3, flip half: the ImageNet recipe (Szegedy et al., CVPR 2015, 6).

    Follows torchvision's RandomResizedCrop: ten attempts, then the largest center crop of an allowed ratio. Draw 0 decides the flip, and
    draws 1 to 10 are used by one attempt each.
    """
    area = (heights * widths).astype(np.float64)
    top, left, height, width = (np.full(len(samples), -1, np.int64) for _ in range(4))
    for attempt in range(1, 11):
        random = words(seed, view, samples, attempt)
        target = area * (0.08 + 0.92 * uniforms(random[:, 0]))
        ratio = np.exp(np.log(3 / 4) + (np.log(4 / 3) - np.log(3 / 4)) * uniforms(random[:, 1]))
        w, h = np.rint(np.sqrt(target * ratio)).astype(np.int64), np.rint(np.sqrt(target / ratio)).astype(np.int64)
        take = (height < 0) & (w > 0) & (w <= widths) & (h > 0) & (h <= heights)
        height[take], width[take] = h[take], w[take]
        top[take] = integers(random[:, 2], np.maximum(heights - h + 1, 1))[take]
        left[take] = integers(random[:, 3], np.maximum(widths - w + 1, 1))[take]
    missed = height < 0
    w = np.minimum(widths, np.rint(heights * (4 / 3)).astype(np.int64))
    h = np.minimum(heights, np.rint(widths / (3 / 4)).astype(np.int64))
    height[missed], width[missed] = h[missed], w[missed]
    top[missed], left[missed] = ((heights - h) // 2)[missed], ((widths - w) // 2)[missed]
    return Boxes(top, left, height, width, integers(words(seed, view, samples, 0)[:, 0], 2) == 1)


def _recorded(_seed: int, _view: int, _samples: Ints, _heights: Ints, _widths: Ints) -> Boxes:
    """Raise an error: these boxes were drawn by another tool, so they can only be read from a cache that stores them.

    Raises:
        InputError: Always.
    """
    raise InputError(
        "cannot render this view: its images were augmented by another tool, and the cache does not record the augmentation in a form "
        "that can be replayed"
    )


class RecordedBoxes:
    """Boxes of a view that were drawn by another tool, read on first use."""

    def __init__(self, read: Callable[[], NDArray[np.float32]], first: int) -> None:
        """Store the reader; nothing is read yet.

        Args:
            read: Function that returns the boxes, [N, 5]: top, left, height and width as shares of the image size, and 1 if flipped.
            first: Sample id of the first box.
        """
        self._read, self._first = read, first

    def boxes(self, samples: Ints, heights: Ints, widths: Ints) -> Boxes:
        """Return the boxes of images with the given sizes, [B] each. Edges are rounded to whole pixels, as Pillow does in `crop`."""
        rows = self.rows(samples).astype(np.float64)
        top, bottom = (np.rint(x * heights).astype(np.int64) for x in (rows[:, 0], rows[:, 0] + rows[:, 2]))
        left, right = (np.rint(x * widths).astype(np.int64) for x in (rows[:, 1], rows[:, 1] + rows[:, 3]))
        return Boxes(top, left, np.maximum(bottom - top, 1), np.maximum(right - left, 1), rows[:, 4] > 0)

    def rows(self, samples: Ints) -> NDArray[np.float32]:
        """Return the boxes of samples as recorded, [B, 5]."""
        return self._read()[samples - self._first]

    def only(self, samples: Ints) -> "RecordedBoxes":
        """Return the boxes of some samples only, to be sent to a worker process."""
        return _SomeBoxes(samples, self.rows(samples))


class _SomeBoxes(RecordedBoxes):
    """Recorded boxes of the samples of one batch."""

    def __init__(self, samples: Ints, rows: NDArray[np.float32]) -> None:
        order = np.argsort(samples)
        self._samples, self._rows = samples[order], rows[order]

    def rows(self, samples: Ints) -> NDArray[np.float32]:
        """Return the boxes of samples of the batch, [B, 5]."""
        return self._rows[np.searchsorted(self._samples, samples)]


@dataclass(frozen=True, slots=True)
class Crop:
    """A way to crop images.

    Attributes:
        version: Version, incremented when the same arguments would give different boxes.
        boxes: Function of seed, view, sample ids, heights and widths that returns boxes.
        keeps_size: Whether a box always has the size of its image.
        drawn: Whether boxes are drawn by logitcache; False for the boxes of imported caches, drawn by another tool.
    """

    version: int
    boxes: Callable[[int, int, Ints, Ints, Ints], Boxes]
    keeps_size: bool
    drawn: bool = True


CROPS: dict[str, Crop] = {
    "none": Crop(1, _whole, keeps_size=True),
    "pad-crop-flip": Crop(1, _pad_crop_flip, keeps_size=True),
    "random-resized-crop-flip": Crop(1, _random_resized_crop_flip, keeps_size=False),
}
RECORDED: dict[str, Crop] = {  # crops of imported caches
    "recorded-boxes": Crop(1, _recorded, keeps_size=False, drawn=False),
    "recorded-seeds": Crop(1, _recorded, keeps_size=False, drawn=False),
}
