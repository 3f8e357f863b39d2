"""In-memory images rendered on the device. The crops of a whole epoch are copied there in advance, so no batch waits for the host."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcache.data.exclusion import excluded_of
from logitcache.data.images.sets import ArrayImages, ImageSet, resident
from logitcache.data.images.views import CROPS, View, read_recipe
from logitcache.data.images.views.mixing import blend_batch, unmixed
from logitcache.data.images.views.preprocessing import Preprocessing
from logitcache.data.images.views.render import cut_out
from logitcache.data.protocol import Ids, whole_of

__all__ = ["ResidentImages", "resident_images"]

_CUT, _MIX = 4, 5  # numbers of a crop (sample, top, left, flip), and of mixing (weight, box)


class ResidentImages:
    """Images of one size on a device, and the preprocessing of one network.

    Attributes:
        columns: Number of columns that `numbers` returns.
    """

    def __init__(self, images: ImageSet, views: Sequence[View], inputs: Preprocessing) -> None:
        """Wrap images that `resident_images` has checked.

        Args:
            images: `ArrayImages` on the device, or a stretch of them.
            views: All views that will be rendered.
            inputs: Preprocessing of the network, without resizing.
        """
        self._whole, self._first = whole_of(images)
        self._pixels: Tensor = self._whole.images
        self._inputs = inputs
        self._crops = any(read_recipe(view.recipe).crop is not CROPS["none"] for view in views)
        self._mixes = any(view.mixes for view in views)
        self.columns = 2 * _CUT + _MIX if self._mixes else _CUT

    def numbers(self, view: View, ids: Ids) -> NDArray[np.int64]:
        """Return the numbers of each row, the arguments of `inputs`, [N, columns] int64.

        These are the sample, top, left and flip of its crop. If any view mixes images, the same numbers of its partner, its weight and
        its box follow (see `Mixed`); a row of a view that does not mix has a weight of 1.

        Args:
            view: View to render.
            ids: Sample ids in the order of the epoch, [N].
        """
        samples = ids + self._first
        own = self._crop(view, samples)
        if not self._mixes:
            return own
        mixed = view.mixed(samples, len(self._whole), excluded_of(self._whole)) or unmixed(samples)
        return np.concatenate([own, self._crop(view, mixed.partners), mixed.weights[:, None], mixed.boxes], 1)

    def _crop(self, view: View, samples: Ids) -> NDArray[np.int64]:
        """Return sample, top, left and flip of each row, [N, 4]."""
        height, width = self._pixels.shape[-2:]
        boxes = view.boxes(samples, np.full(len(samples), height), np.full(len(samples), width))
        return np.stack([samples, boxes.top, boxes.left, boxes.flip], 1, dtype=np.int64, casting="unsafe")

    def inputs(self, numbers: Tensor) -> Tensor:
        """Return the network's input for a batch, [B, 3, H, W] float32, without synchronizing with the host.

        Args:
            numbers: Rows of the result of `numbers`, on the device, [B, columns].
        """
        pixels = self._cut_out(numbers[:, :_CUT])
        if self._mixes:
            partners, mix = self._cut_out(numbers[:, _CUT : 2 * _CUT]), numbers[:, 2 * _CUT :]
            pixels = blend_batch(pixels, partners, mix[:, 0], mix[:, 1:])
        return self._inputs.normalize(pixels)

    def _cut_out(self, crops: Tensor) -> Tensor:
        """Return crops, [B, C, H, W] uint8, from the result of `_crop`."""
        samples, top, left, flip = crops.unbind(1)
        pixels = self._pixels.index_select(0, samples)
        return cut_out(pixels, top, left, flip) if self._crops else pixels


def resident_images(
    samples: ImageSet, views: Sequence[View], inputs: Preprocessing, device: torch.device
) -> tuple[ResidentImages | None, str]:
    """Return images that are rendered on the device without the host, or None and the reason.

    Args:
        samples: Data set.
        views: All views that will be rendered.
        inputs: Preprocessing of the network.
        device: Device that renders.
    """
    if not isinstance(whole_of(samples)[0], ArrayImages):
        return None, "images are decoded by the host"
    if any(view.changes_pixels or not view.keeps_size for view in views) or inputs.resize != "none":
        return None, "views are rendered by the host"
    there = samples if device.type == "cpu" else resident(samples, device)
    if there is None:
        return None, "the images take more than a quarter of the device's free memory"
    return ResidentImages(there, views, inputs), ""
