"""Preprocessing of one network: resize and normalize a shared rendition.

Teacher and student may differ here (such as 384 and 224 pixels) and still see the same rendition.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from logitcache.errors import InputError

__all__ = ["TEST_TIME_VIEWS", "Preprocessing", "resize"]

TEST_TIME_VIEWS = ("none", "flip")


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Preprocessing of one network's input.

    Attributes:
        image_size: Height and width of the input, in pixels.
        crop_pct: Share of the shorter side that `center-crop` keeps (timm's name).
        resize: Resizing: `none` (pixels already have the right size), `stretch` (to a square, as after a random resized crop) or
            `center-crop` (resize the shorter side to image_size / crop_pct, then crop the center).
        mean, std: Mean and standard deviation of the three channels, for pixels in [0, 1].
        channels: Number of input channels: 3, or 1 for a network that takes grayscale images.
    """

    image_size: int
    crop_pct: float
    resize: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channels: int = 3

    def __post_init__(self) -> None:
        if self.resize not in ("none", "stretch", "center-crop"):
            raise InputError(f"resize must be none, stretch or center-crop, not {self.resize!r}")
        for name, good, wanted in (
            ("image_size", self.image_size >= 2, "2 pixels or more"),
            ("crop_pct", 0 < self.crop_pct <= 1, "greater than 0 and at most 1"),
            ("std", all(0 < value < math.inf for value in self.std), "greater than 0"),
            ("mean", all(math.isfinite(value) for value in self.mean), "finite"),
        ):
            if not good:
                raise InputError(f"--{name.replace('_', '-')} must be {wanted}, not {getattr(self, name)}")

    def fit(self, pixels: Tensor | Sequence[Tensor]) -> Tensor:
        """Resize renditions, [C, h, w] uint8 each, to [B, C, image_size, image_size] uint8.

        Resizing is bilinear with antialiasing, and always runs on the CPU because devices round differently.
        """
        if self.resize == "none":
            return pixels if isinstance(pixels, Tensor) else _stack(pixels)
        device = pixels.device if isinstance(pixels, Tensor) else None
        return _stack([self._resized(row.cpu()) for row in pixels]).to(device)

    def _resized(self, row: Tensor) -> Tensor:
        size = self.image_size
        if self.resize == "stretch":
            return resize(row, [size, size])
        if row.shape[-2:] == (size, size) and self.crop_pct == 1:
            return row
        height, width = row.shape[-2:]
        scale = round(size / self.crop_pct) / min(height, width)
        target = [max(size, round(height * scale)), max(size, round(width * scale))]
        cropped: Tensor = TF.center_crop_image(resize(row, target), [size, size])
        return cropped

    def normalize(self, pixels: Tensor) -> Tensor:
        """Normalize [B, 1 or 3, H, W] uint8 to [B, 3, H, W] float32; a grayscale image is repeated in all three channels.

        For a network with one input channel the result is [B, 1, H, W], normalized with the first mean and standard deviation.

        Raises:
            InputError: If the network has one input channel and the images have three.
        """
        if self.channels < pixels.shape[1]:
            raise InputError(
                "the network takes images with one channel, but these have three: pass grayscale images, [N, H, W], or choose another "
                "network"
            )
        mean, std = (_constant(values, pixels.device)[: self.channels] for values in (self.mean, self.std))
        return (pixels.float() / 255 - mean) / std

    def on(self, pixels: Tensor, device: torch.device) -> Tensor:
        """Return the network's input on a device, [B, 3, H, W] float32, from uint8 pixels."""
        return self.normalize(pixels.to(device, non_blocking=True))

    def variants(self, inputs: Tensor, test_time_views: str) -> list[Tensor]:
        """Return the images and, with `flip`, also their mirror images."""
        return [inputs, inputs.flip(-1)] if test_time_views == "flip" else [inputs]

    def blank(self, samples: int) -> Tensor:
        """Return black images, [B, channels, image_size, image_size] uint8."""
        return torch.zeros(samples, self.channels, self.image_size, self.image_size, dtype=torch.uint8)

    def to_json(self) -> dict[str, Any]:
        """Return the manifest entry."""
        found = {**asdict(self), "mean": list(self.mean), "std": list(self.std)}
        return {name: value for name, value in found.items() if (name, value) != ("channels", 3)}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Preprocessing":
        """Read a manifest entry."""
        return cls(**{**entry, "mean": tuple(entry["mean"]), "std": tuple(entry["std"])})


@functools.cache
def _constant(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """Return three numbers as a cached tensor on a device, [3, 1, 1]; copying them for every batch would synchronize."""
    with torch.inference_mode(mode=False):
        return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]


def _stack(rows: Sequence[Tensor]) -> Tensor:
    """Stack renditions of one size; the channel of grayscale images is repeated if others have color."""
    channels = max(map(len, rows))
    return torch.stack([row.expand(channels, -1, -1) for row in rows])


def resize(row: Tensor, size: list[int]) -> Tensor:
    """Resize one rendition, [C, h, w] uint8: bilinear with antialiasing."""
    resized: Tensor = TF.resize_image(row, size, antialias=True)
    return resized
