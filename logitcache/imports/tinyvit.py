"""Read logits saved by TinyViT's save_logits.py, in a folder `logits_top{K}_epoch{E}` for each epoch.

Each process of the teacher writes two files: `rank{R}-keys.txt` with a key per line, and `rank{R}-values.bin` with 4 + 4 K bytes per key:
the seed of the image's augmentation as int32, the classes of the K largest probabilities as int16, and these probabilities as float16,
in descending order, from a softmax at temperature 1, all little-endian. A key is the name of an image without its suffix, or its number
in the data set. For images that several processes have seen, the rows of the lowest rank are used.

The seed is for TinyViT's own copy of timm's augmentation, so logitcache cannot reproduce these images.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import InputError
from logitcache.imports.image_reader import Shown, logprobs_of, refuse_classes, refuse_improper, refuse_missing
from logitcache.runtime.wording import counted
from logitcache.teachers.given import KnownRows

__all__ = ["TinyViTReader"]

_FOLDER = re.compile(r"logits_top(\d+)_epoch(\d+)")
_FILES = re.compile(r"rank(-?\d+)-values\.bin")


class TinyViTReader:
    """Reads epochs, each of which is a view, with one of them in memory at a time."""

    own, recipe, row_bytes = False, "recorded-seeds", 0

    def __init__(self, source: str | Path, samples: Any, views: int | None) -> None:
        """Find the epochs, without reading them.

        Args:
            source: Folder with the folders of the epochs, or one of these.
            samples: Data set of the images.
            views: Number of epochs to import; None imports all.

        Raises:
            InputError: There are no epochs, too few, or epochs with different K.
        """
        folder = Path(source).expanduser()
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder}; expected one with folders logits_top100_epoch0, ...")
        every = [folder] if _FOLDER.fullmatch(folder.name) else sorted(one for one in folder.iterdir() if one.is_dir())
        epochs = {int(match[2]): (one, int(match[1])) for one in every if (match := _FOLDER.fullmatch(one.name))}
        if not epochs:
            raise InputError(
                f"{folder} has no folders of epochs such as logits_top100_epoch0, which save_logits.py makes"
            )
        if len({k for _, k in epochs.values()}) > 1:
            names = ", ".join(sorted(one.name for one, _ in epochs.values()))
            raise InputError(
                f"{folder} has epochs with different numbers of classes per row: {names}. Import them separately."
            )
        if views is not None and views > len(epochs):
            raise InputError(f"--views {views} is too many: {folder} has {counted(len(epochs), 'epoch')}")
        self.keys = tuple(sorted(epochs)[:views])
        self._folders = [epochs[epoch][0] for epoch in self.keys]
        self.largest, self._samples = epochs[self.keys[0]][1], samples
        self._numbers = _numbers_of(samples)
        self._held: tuple[int, NDArray[Any]] | None = None

    def rows(self, view: int, samples: NDArray[np.int64]) -> Shown:
        """Return the rows and seeds of a batch of images in an epoch.

        Raises:
            InputError: An image is missing, or a file is truncated or invalid.
        """
        if self._held is None or self._held[0] != view:
            self._held = view, self._read(self._folders[view])
        found = self._held[1][samples]
        ids = found["ids"].astype(np.int64)
        subject = str(self._folders[view])
        refuse_classes(ids, len(self._samples.classes), subject)
        refuse_improper(found["probabilities"], subject)
        return Shown(KnownRows(ids, logprobs_of(found["probabilities"])), found["seed"])

    def _read(self, folder: Path) -> NDArray[Any]:
        """Read an epoch, [N]."""
        record = np.dtype([("seed", "<i4"), ("ids", "<i2", self.largest), ("probabilities", "<f2", self.largest)])
        rows, there = np.zeros(len(self._samples), record), np.zeros(len(self._samples), np.bool_)
        files = sorted((int(match[1]), one) for one in folder.iterdir() if (match := _FILES.fullmatch(one.name)))
        if not files:
            raise InputError(f"{folder} has no file rank0-values.bin; saving this epoch did not finish")
        for rank, file in files:
            numbers = self._numbered(folder / f"rank{rank}-keys.txt")
            if file.stat().st_size != len(numbers) * record.itemsize:
                raise InputError(
                    f"{file} has {file.stat().st_size:,} bytes, but {counted(len(numbers), 'key')} of {record.itemsize} bytes take "
                    f"{len(numbers) * record.itemsize:,}; it was truncated, or its K is not {self.largest}"
                )
            new = np.flatnonzero(numbers >= 0)
            new = new[~there[numbers[new]]]
            if len(new):
                rows[numbers[new]] = np.memmap(file, record, "r")[new]
                there[numbers[new]] = True
        refuse_missing(there, self._samples, str(folder))
        return rows

    def _numbered(self, file: Path) -> NDArray[np.int64]:
        """Return the id of the image of each key, [n]; -1 if the data set does not have it."""
        try:
            keys = file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read {file} with the keys of the images: {error}") from error
        keys = [key.strip() for key in keys]
        if keys and not any(key in self._numbers for key in keys):
            if not all(map(str.isdecimal, keys)):
                raise InputError(
                    f"{file} has keys like {keys[0]!r}, none of which is in the data set; set --data to the images that the teacher saw"
                )
            found = np.array(keys, np.int64)
            if found.max() >= len(self._samples):
                raise InputError(
                    f"{file} has image numbers up to {found.max():,}, but the data set has {len(self._samples):,} images; set --data to "
                    "the images that the teacher saw"
                )
            return found
        return np.array([self._numbers.get(key, -1) for key in keys], np.int64)


def _numbers_of(samples: Any) -> Mapping[str, int]:
    """Return the id of each image by its path, its path without suffix, and its file name without suffix, if these are unique."""
    found, twice = dict[str, int](), set[str]()
    for number, path in enumerate(getattr(samples, "paths", ())):
        bare = path.rpartition(".")[0]
        for name in {path, bare, bare.rpartition("/")[2]}:
            if name in found:
                twice.add(name)
            found[name] = number
    return {name: number for name, number in found.items() if name not in twice}
