"""Crop boxes from images."""

import torch
from torch import Tensor
from torch.nn import functional as F

from logitcache.data.images.views.crops import Boxes
from logitcache.runtime.device import to_device

__all__ = ["cut", "cut_batch", "cut_out"]

_PADDING = 4  # pixels that a box of an image's own size may reach beyond it


def cut(image: Tensor, boxes: Boxes, row: int) -> Tensor:
    """Crop box number `row` from one image, [C, H, W] uint8; pixels outside the image are black."""
    top, left = int(boxes.top[row]), int(boxes.left[row])
    bottom, right = top + int(boxes.height[row]), left + int(boxes.width[row])
    height, width = image.shape[-2:]
    inside = image[:, max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
    beyond = (max(-left, 0), max(right - width, 0), max(-top, 0), max(bottom - height, 0))
    pixels = F.pad(inside, beyond) if any(beyond) else inside
    return pixels.flip(-1) if boxes.flip[row] else pixels


def cut_batch(images: Tensor, samples: Tensor, boxes: Boxes) -> Tensor:
    """Crop boxes of the images' own size from many images with one gather, on the device of the images.

    Args:
        images: Images, [N, C, H, W] uint8.
        samples: Rows of `images` to crop, [B] int64, on the same device.
        boxes: Boxes of size H x W that extend at most 4 pixels beyond the image.

    Returns:
        Crops, [B, C, H, W] uint8.
    """
    chosen = images[samples]
    if not (boxes.top.any() or boxes.left.any() or boxes.flip.any()):
        return chosen
    numbers = (to_device(torch.from_numpy(one), images.device) for one in (boxes.top, boxes.left, boxes.flip))
    return cut_out(chosen, *numbers)


def cut_out(images: Tensor, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
    """Crop a box of the image's own size from each image, without synchronizing; pixels outside the image are black.

    Args:
        images: Images, [B, C, H, W] uint8.
        top: Top edge of each box, at most 4 pixels outside the image, [B] int64.
        left: Left edge of each box, at most 4 pixels outside the image, [B] int64.
        flip: Whether to mirror each box left to right, [B] bool, or 0 and 1.
    """
    batch, channels, height, width = images.shape
    padded = F.pad(images, (_PADDING,) * 4)
    down, across = (torch.arange(size, device=images.device) for size in (height, width))
    across = torch.where(flip[:, None] != 0, width - 1 - across, across)
    rows, columns = (top + _PADDING)[:, None] + down, (left + _PADDING)[:, None] + across
    flat = (rows[:, :, None] * padded.shape[-1] + columns[:, None, :]).flatten(1)  # [B, H*W]
    index = flat[:, None, :].expand(batch, channels, -1)
    return padded.flatten(2).gather(2, index).view(batch, channels, height, width)
