"""Thumbnails of samples for reports."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from logitcache.errors import InputError

if TYPE_CHECKING:
    from logitcache.store import Cache

__all__ = ["sample_images"]

_LONGEST = 160  # maximum width and height in pixels


def sample_images(cache: "str | Path | Cache", samples: Sequence[int], data: Any = None) -> dict[int, bytes]:
    """Return the images of samples as they are in the data set, without the augmentation of a view.

    Args:
        cache: Cache of the samples, or its path.
        samples: Ids of the samples in the data set.
        data: Data set, if it is not where it was at the dump.

    Returns:
        PNG of each sample, at most 160 pixels wide and high.

    Raises:
        CacheMismatchError: The data has changed since the dump.
        InputError: The data set cannot be opened, an image cannot be read, or the data is not images.
    """
    from logitcache.data.contract import recorded_data  # noqa: PLC0415  (torch; not needed where nothing is shown)
    from logitcache.store import open_cache  # noqa: PLC0415

    if not samples:
        return {}
    opened = open_cache(cache)
    if not opened.manifest.of_images:
        raise InputError(f"{opened.place} is a cache of {opened.manifest.modality}, which cannot be shown as images.")
    images, first = recorded_data(opened, data), opened.manifest.data["first"]
    return {sample: _png(images, sample - first) for sample in samples}


def _png(images: Any, sample: int) -> bytes:
    pixels = images.image(sample).numpy()
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    image.thumbnail((_LONGEST, _LONGEST))
    written = io.BytesIO()
    image.save(written, "PNG", optimize=True)
    return written.getvalue()
