"""Crop boxes from images."""

import torch
from torch import Tensor
from torch.nn import functional as F

from logitcache.data.images.views.crops import Boxes
from logitcache.runtime.device import to_device

__all__ = ["cut", "cut_batch"]


def cut(image: Tensor, boxes: Boxes, row: int) -> Tensor:
    """Crop box number `row` from one image, [C, H, W] uint8; pixels outside the image are black."""
    top, left = int(boxes.top[row]), int(boxes.left[row])
    bottom, right = top + int(boxes.height[row]), left + int(boxes.width[row])
    height, width = image.shape[-2:]
    inside = image[:, max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
    beyond = (max(-left, 0), max(right - width, 0), max(-top, 0), max(bottom - height, 0))
    pixels = F.pad(inside, beyond) if any(beyond) else inside
    return pixels.flip(-1) if boxes.flip[row] else pixels


def cut_batch(images: Tensor, samples: Tensor, boxes: Boxes, padding: int = 4) -> Tensor:
    """Crop boxes of the images' own size from many images with one gather, on the device of the images.

    Args:
        images: Images, [N, C, H, W] uint8.
        samples: Rows of `images` to crop, [B] int64, on the same device.
        boxes: Boxes of size H x W that extend at most `padding` pixels beyond the image.
        padding: Width of the black border, in pixels.

    Returns:
        Crops, [B, C, H, W] uint8.
    """
    height, width = images.shape[-2:]
    chosen = images[samples]
    if not (boxes.top.any() or boxes.left.any() or boxes.flip.any()):
        return chosen
    device = images.device
    padded = F.pad(chosen, (padding,) * 4)
    rows = to_device(torch.from_numpy(boxes.top + padding), device)[:, None] + torch.arange(height, device=device)
    left = to_device(torch.from_numpy(boxes.left + padding), device)[:, None]
    columns = left + torch.arange(width, device=device)
    mirrored = left + torch.arange(width - 1, -1, -1, device=device)
    columns = torch.where(to_device(torch.from_numpy(boxes.flip), device)[:, None], mirrored, columns)
    flat = (rows[:, :, None] * padded.shape[-1] + columns[:, None, :]).flatten(1)  # [B, H*W]
    batch, channels = chosen.shape[:2]
    index = flat[:, None, :].expand(batch, channels, -1)
    return padded.flatten(2).gather(2, index).view(batch, channels, height, width)
