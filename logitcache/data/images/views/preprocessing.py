"""From a shared rendition to one network's input: resize and normalise.

Teacher and student may differ here (384 and 224 pixels, say) and still see the same rendition.
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
    """How pixels become one network's input.

    Attributes:
        image_size: Height and width of the input, in pixels.
        crop_pct: Share of the shorter side that `center-crop` keeps (timm's name).
        resize: `none` (pixels have the right size already), `stretch` (to a square, as after a random resized crop) or
            `center-crop` (shorter side to image_size / crop_pct, then the middle).
        mean, std: Of each of three channels, for pixels in [0, 1].
        channels: Channels of the network's input: 3, or 1 for a network of grey images.
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
            ("crop_pct", 0 < self.crop_pct <= 1, "a share above 0, at most 1"),
            ("std", all(0 < value < math.inf for value in self.std), "greater than 0"),
            ("mean", all(math.isfinite(value) for value in self.mean), "finite"),
        ):
            if not good:
                raise InputError(f"--{name.replace('_', '-')} must be {wanted}, not {getattr(self, name)}")

    def fit(self, pixels: Tensor | Sequence[Tensor]) -> Tensor:
        """Bring renditions, [C, h, w] uint8 each, to one size: [B, C, image_size, image_size] uint8.

        Resizing is bilinear with antialiasing and always happens on the CPU: devices round differently.
        """
        if self.resize == "none":
            return pixels if isinstance(pixels, Tensor) else _stacked(pixels)
        device = pixels.device if isinstance(pixels, Tensor) else None
        return _stacked([self._resized(row.cpu()) for row in pixels]).to(device)

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
        """Turn [B, 1 or 3, H, W] uint8 into [B, 3, H, W] float32 of the recorded mean and deviation; grey fills all three.

        A network of grey images is given [B, 1, H, W], of the first mean and deviation.

        Raises:
            InputError: The network takes grey images, and these have three channels.
        """
        if self.channels < pixels.shape[1]:
            raise InputError(
                "the network takes images of one channel, and these have three: give it grey ones, [N, H, W], or choose another"
            )
        mean, std = (_constant(values, pixels.device)[: self.channels] for values in (self.mean, self.std))
        return (pixels.float() / 255 - mean) / std

    def on(self, pixels: Tensor, device: torch.device) -> Tensor:
        """Return the network's input on a device, [B, 3, H, W] float32, from uint8 pixels."""
        return self.normalize(pixels.to(device, non_blocking=True))

    def variants(self, inputs: Tensor, test_time_views: str) -> list[Tensor]:
        """Return the images, and with `flip` their mirror images too."""
        return [inputs, inputs.flip(-1)] if test_time_views == "flip" else [inputs]

    def blank(self, samples: int) -> Tensor:
        """Return black pixels of the input's size, [B, 3, image_size, image_size] uint8."""
        return torch.zeros(samples, self.channels, self.image_size, self.image_size, dtype=torch.uint8)

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the manifest."""
        found = {**asdict(self), "mean": list(self.mean), "std": list(self.std)}
        return {name: value for name, value in found.items() if (name, value) != ("channels", 3)}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Preprocessing":
        """Read the entry of the manifest."""
        return cls(**{**entry, "mean": tuple(entry["mean"]), "std": tuple(entry["std"])})


@functools.cache
def _constant(values: tuple[float, float, float], device: torch.device) -> Tensor:
    """Keep three numbers on a device, [3, 1, 1]: a copy in every batch would wait for the device."""
    with torch.inference_mode(mode=False):
        return torch.tensor(values, dtype=torch.float32, device=device)[:, None, None]


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    """Put renditions of one size together; beside coloured ones a grey one's channel fills all."""
    channels = max(map(len, rows))
    return torch.stack([row.expand(channels, -1, -1) for row in rows])


def resize(row: Tensor, size: list[int]) -> Tensor:
    """Bring one rendition, [C, h, w] uint8, to a size: bilinear with antialiasing."""
    resized: Tensor = TF.resize_image(row, size, antialias=True)
    return resized
