"""In-memory images rendered on the device. The crops of a whole epoch are copied there in advance, so no batch waits for the host."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcache.data.images.sets import ArrayImages, ImageSet, resident
from logitcache.data.images.views import CROPS, View, read_recipe
from logitcache.data.images.views.preprocessing import Preprocessing
from logitcache.data.images.views.render import cut_out
from logitcache.data.protocol import Ids, whole_of

__all__ = ["ResidentImages", "resident_images"]


class ResidentImages:
    """Images of one size on a device, and the preprocessing of one network.

    Attributes:
        columns: Number of columns that `numbers` returns.
    """

    columns = 4  # sample, top, left, flip

    def __init__(self, images: ImageSet, views: Sequence[View], inputs: Preprocessing) -> None:
        """Wrap images that `resident_images` has checked.

        Args:
            images: `ArrayImages` on the device, or a stretch of them.
            views: All views that will be rendered.
            inputs: Preprocessing of the network, without resizing.
        """
        whole, self._first = whole_of(images)
        self._pixels: Tensor = whole.images
        self._inputs = inputs
        self._crops = any(read_recipe(view.recipe).crop is not CROPS["none"] for view in views)

    def numbers(self, view: View, ids: Ids) -> NDArray[np.int64]:
        """Return the sample and crop of each row, the arguments of `inputs`, [N, 4] int64.

        Args:
            view: View to render.
            ids: Sample ids in the order of the epoch, [N].
        """
        samples, (height, width) = ids + self._first, self._pixels.shape[-2:]
        boxes = view.boxes(samples, np.full(len(ids), height), np.full(len(ids), width))
        return np.stack([samples, boxes.top, boxes.left, boxes.flip], 1, dtype=np.int64, casting="unsafe")

    def inputs(self, numbers: Tensor) -> Tensor:
        """Return the network's input for a batch, [B, 3, H, W] float32, without synchronizing with the host.

        Args:
            numbers: Rows of the result of `numbers`, on the device, [B, 4].
        """
        samples, top, left, flip = numbers.unbind(1)
        pixels = self._pixels.index_select(0, samples)
        return self._inputs.normalize(cut_out(pixels, top, left, flip) if self._crops else pixels)


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
    if any(view.mixes for view in views):
        return None, "views mix samples"
    if any(view.changes_pixels or not view.keeps_size for view in views) or inputs.resize != "none":
        return None, "views are rendered by the host"
    there = samples if device.type == "cpu" else resident(samples, device)
    if there is None:
        return None, "the images take more than a quarter of the device's free memory"
    return ResidentImages(there, views, inputs), ""
