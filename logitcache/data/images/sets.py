"""Labelled images indexed by sample id: one array in memory, or loaded one at a time from files or a user's data set."""

import copy
import errno
import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from logitcache.data.exclusion import Reading, refuse_unreadable, remedy_for, unreadable
from logitcache.data.images.items import class_names, class_number, image_and_label, listed_labels
from logitcache.data.images.listing import list_images, readable
from logitcache.data.images.stored import StoredItems
from logitcache.data.protocol import whole_of
from logitcache.errors import (
    InputError,
    UnreadableError,
    explain_foreign_errors,
    first_line,
    reason_of,
)
from logitcache.runtime.wording import counted

__all__ = [
    "IMAGENET",
    "ArrayImages",
    "FolderImages",
    "ImageSet",
    "MappedImages",
    "Normalization",
    "Part",
    "resident",
]

Normalization = tuple[
    tuple[float, float, float], tuple[float, float, float]
]  # per-channel mean and standard deviation, for pixels in [0, 1]
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_MOST_CLASSES = 1_000_000  # without names
_COMPARED = 8  # items to read on construction, to check that the list of labels agrees with them
IMAGENET: Normalization = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class ImageSet(Protocol):
    """Interface of the image data sets in this module.

    Attributes:
        labels: Class of each sample, [N] int64.
        classes: Class names in index order.
        normalization: Per-channel mean and standard deviation that networks for this data usually use.
        native_size: Height and width of all images, or None if they differ.
    """

    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    normalization: Normalization
    native_size: tuple[int, int] | None

    def __len__(self) -> int:
        """Return the number of samples."""
        ...

    def image(self, sample: int) -> Tensor:
        """Return one image, [C, H, W] uint8."""
        ...

    def digest(self) -> str:
        """Return a hash that identifies the list of samples."""
        ...


class ArrayImages:
    """Images of one size, all in memory."""

    def __init__(
        self,
        images: NDArray[np.uint8],
        labels: NDArray[np.integer[Any]],
        classes: Sequence[str] | None = None,
        normalization: Normalization | None = None,
    ) -> None:
        """Wrap arrays.

        Args:
            images: Pixels, [N, H, W] or [N, H, W, 1 or 3] uint8.
            labels: Class of each image, [N] integers.
            classes: Class names in index order. Defaults to the numbers up to the largest label.
            normalization: Per-channel mean and standard deviation. Defaults to those of the images.

        Raises:
            InputError: If a shape, a dtype or a label is invalid.
        """
        images, labels = np.asarray(images), np.asarray(labels)
        if (
            images.dtype != np.uint8
            or images.ndim not in (3, 4)
            or (images.ndim == 4 and images.shape[3] not in (1, 3))
        ):
            raise InputError(
                f"images must be uint8 of shape [N, H, W] or [N, H, W, 1 or 3], found {images.dtype} {list(images.shape)}"
            )
        self.labels, self.classes = _checked_labels(labels, classes, len(images))
        stacked = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        self.images = torch.from_numpy(np.ascontiguousarray(stacked))
        self.normalization = normalization or _measured(self.images)
        self.native_size: tuple[int, int] | None = (int(self.images.shape[2]), int(self.images.shape[3]))
        self._elsewhere: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, sample: int) -> Tensor:
        """Return one image, [C, H, W] uint8."""
        return self.images[sample]

    def on(self, device: torch.device) -> "ArrayImages":
        """Return this data set with its pixels on a device; the copy is made once and kept."""
        if self._elsewhere is None or self._elsewhere.device != device:
            self._elsewhere = self.images.to(device)
        there = copy.copy(self)  # keeps the current list of excluded samples
        there.images = self._elsewhere
        return there

    def __copy__(self) -> "ArrayImages":
        """Return a copy that shares the pixels on every device."""
        found = object.__new__(type(self))
        found.__dict__.update(self.__dict__)
        return found

    def __getstate__(self) -> dict[str, Any]:
        """Drop the copy on the device, because loader workers do not use it."""
        return self.__dict__ | {"_elsewhere": None}

    def digest(self) -> str:
        """Return a hash of every pixel, the labels and the class names."""
        hasher = blake2b(json.dumps([list(self.images.shape), self.classes]).encode(), digest_size=16)
        hasher.update(self.images.numpy().data)
        hasher.update(self.labels.data)
        return hasher.hexdigest()


class FolderImages:
    """Images in one folder per class. Classes are the sorted folder names; samples are the sorted relative paths."""

    native_size: tuple[int, int] | None = None
    normalization: Normalization = IMAGENET

    def __init__(self, root: Path, reading: Reading | None = None) -> None:
        """List a folder.

        Args:
            root: Folder that contains the class folders.
            reading: Policy for unreadable images and for EXIF orientation.

        Raises:
            InputError: If the class folders hold no images, or a file or folder cannot be opened.
        """
        found, reading = list_images(root), reading or Reading()
        self.root, self.paths, self.labels, self._folders = root, found.paths, found.labels, found.classes
        self.classes = tuple(map(readable, found.classes))
        self.exif_orientation = reading.exif_orientation
        self.unreadable = found.unreadable
        if not reading.tolerant:
            refuse_unreadable(self, self.unreadable)

    def __len__(self) -> int:
        return len(self.paths)

    def name_of(self, sample: int) -> str:
        """Return the path of an image relative to the folder, as it is printed in messages."""
        return readable(self.paths[sample])

    def label_of(self, sample: int) -> str:
        """Return the subject of an error message about an image: its full path."""
        return readable(self.root / self.paths[sample])

    def numbers_of(self, names: Collection[str]) -> dict[str, int]:
        """Return the sample id of each path, given as printed in messages or as in the file system; unknown paths are left out."""
        places = ((name, bisect_left(self.paths, name)) for name in names)
        found = {name: n for name, n in places if n < len(self) and self.paths[n] == name}
        escaped = {name for name in names if "\\x" in name} - found.keys()  # as printed in messages
        if escaped:
            found |= {name: n for n, name in enumerate(map(readable, self.paths)) if name in escaped}
        return found

    def image(self, sample: int) -> Tensor:
        """Decode one file, [3, H, W] uint8.

        Raises:
            UnreadableError: If the file is not a readable image.
        """
        path, name = self.root / self.paths[sample], self.name_of(sample)
        try:
            with Image.open(path) as image:
                _refuse_deep(image)
                return _pixels(_upright(image, self).convert("RGB"), sample)
        except Exception as error:  # decoders may raise anything on a damaged or hostile file
            raise _failure(self.label_of(sample), name, error, first_line(error) or type(error).__name__) from error

    def digest(self) -> str:
        """Return a hash of relative paths and labels: one line per class, an empty line, and `PATH<tab>LABEL` for each image."""
        folders = "".join(f"{name}\n" for name in self._folders)
        hasher, lines, first = blake2b(folders.encode("utf-8", "surrogateescape"), digest_size=16), [b""], 0
        for paths in self.paths.encoded():
            labels = self.labels[first : first + len(paths)].tolist()
            lines += [b"%b\t%d" % one for one in zip(paths, labels, strict=True)]
            hasher.update(b"\n".join(lines))
            lines, first = [b""], first + len(paths)
        return hasher.hexdigest()


class MappedImages:
    """A user's map-style data set of (image, label) items.

    An image is a PIL image, a uint8 array [H, W(, C)] or a uint8 tensor [C, H, W]. An item may also be a dictionary, as in Hugging Face
    data sets ({"image": ..., "label": ...}).

    If the data set lists its labels (`targets`, `labels` or a column, also inside torch's Subset and ConcatDataset), the list saves a
    pass over all items. Every item that is read must agree with the list.
    """

    native_size: tuple[int, int] | None = None
    normalization: Normalization = IMAGENET

    def __init__(self, dataset: Any, classes: Sequence[str] | None = None, reading: Reading | None = None) -> None:
        """Wrap a data set.

        Args:
            dataset: Data set. Its labels are read from its list of labels, or else from every item.
            classes: Class names, used if the data set has none.
            reading: Policy for unreadable items and for EXIF orientation. An unreadable item has class 0 unless a list of labels says
                otherwise.

        Raises:
            InputError: If items are not (image, label), cannot be read, or disagree with the list of labels.
        """
        self.dataset, reading = dataset, reading or Reading()
        self.exif_orientation, self.unreadable = reading.exif_orientation, dict[int, str]()
        self._name = name = dataset.name if isinstance(dataset, StoredItems) else type(dataset).__name__
        with explain_foreign_errors(f"cannot read the length, labels or class names of data set {name}"):
            count, listed, named = len(dataset), listed_labels(dataset), class_names(dataset)
        if not count:
            raise InputError(f"{name} is empty; expected at least one sample")
        labels = listed if listed is not None else np.asarray([self._label(i, reading) for i in range(count)])
        self.labels, self.classes = _checked_labels(labels, named or classes, count)
        if listed is not None:
            for sample in np.unique(np.linspace(0, count - 1, _COMPARED).astype(np.int64)).tolist():
                self._label(sample, reading)

    def _label(self, sample: int, reading: Reading) -> int:
        if sample not in reading.unasked:
            try:
                return self._item(sample)[1]
            except UnreadableError as error:
                if not reading.tolerant:
                    raise
                self.unreadable[sample] = error.reason
        return reading.known_label(sample)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, sample: int) -> Tensor:
        """Return one image, [C, H, W] uint8.

        Raises:
            UnreadableError: If the data set raises an error, or its item is not an image.
            InputError: If the label of the item differs from the one in the list.
        """
        image = self._item(sample)[0]
        try:
            if isinstance(image, Image.Image):
                _refuse_deep(image)
                image = _upright(image, self)
            return _pixels(image, sample)
        except UnreadableError:
            raise
        except Exception as error:  # a lazy image is decoded here
            raise self._failure(sample, error) from error

    def _item(self, sample: int) -> tuple[Any, int]:
        try:
            image, label = image_and_label(self.dataset[sample])
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a user's code, or the decoder it calls, may raise anything
            raise self._failure(sample, error) from error
        found = class_number(label)
        if found is None:
            shown = f"{repr(label)[:40]}" if np.ndim(label) == 0 else f"an array of shape {list(np.shape(label))}"
            reason = f"its label is {shown} ({type(label).__name__}); expected an integer class index"
            raise unreadable(self.label_of(sample), str(sample), reason)
        listed = getattr(self, "labels", None)
        if listed is not None and listed[sample] != found:
            raise InputError(
                f"{self._name} has two labels for sample {sample}: {listed[sample]} in its list (targets or labels), {found} in its item. "
                "Make the list agree with the items (a target_transform changes the items alone), or leave it out."
            )
        return image, found

    def label_of(self, sample: int) -> str:
        """Return the subject of an error message about an item."""
        if isinstance(self.dataset, StoredItems):
            return self.dataset.label_of(sample)
        return f"sample {sample} of {self._name}"

    def _failure(self, sample: int, error: BaseException) -> InputError:
        return _failure(self.label_of(sample), str(sample), error, reason_of(error))

    def digest(self) -> str:
        """Return a hash of length, labels and class names; the digests of the views cover the pixels."""
        hasher = blake2b(json.dumps([len(self.labels), self.classes]).encode(), digest_size=16)
        hasher.update(self.labels.data)
        return hasher.hexdigest()


class Part:
    """A stretch of consecutive samples of a data set, numbered from 0. They are rendered as in the whole data set."""

    def __init__(self, whole: ImageSet, first: int, last: int) -> None:
        """Select samples `first` to `last` - 1."""
        self.whole, self.first = whole, first
        self.labels, self.classes = whole.labels[first:last], whole.classes
        self.normalization, self.native_size = whole.normalization, whole.native_size

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, sample: int) -> Tensor:
        """Return one image, [C, H, W] uint8."""
        return self.whole.image(self.first + sample)

    def digest(self) -> str:
        """Return the hash of the whole data set."""
        return self.whole.digest()


def resident(images: ImageSet, device: torch.device) -> ImageSet | None:
    """Return in-memory images with their pixels on a device.

    None for images in files, and if the images would take more than a quarter of a GPU's free memory.
    """
    whole, first = whole_of(images)
    if not isinstance(whole, ArrayImages) or device.type not in ("cpu", "cuda"):
        return None
    if device.type == "cpu":
        return images
    if whole.images.numel() > torch.cuda.mem_get_info(device)[0] // 4:
        return None
    there = whole.on(device)
    return there if len(images) == len(whole) else Part(there, first, first + len(images))


def _upright(image: Image.Image, images: "FolderImages | MappedImages") -> Image.Image:
    """Rotate an image according to its EXIF orientation, if the data set asks for it."""
    return ImageOps.exif_transpose(image) if images.exif_orientation else image


def _failure(label: str, name: str, error: BaseException, reason: str) -> InputError:
    """Return the error for a sample whose decoding failed.

    If files or memory of the machine ran out, the sample itself may be good, so --skip-unreadable must not leave it out.

    Args:
        label: Subject of the message.
        name: Name of the sample in a file for --exclude.
        error: Exception raised while decoding.
        reason: The error in one line.
    """
    if isinstance(error, OSError) and error.errno in _EXHAUSTED:
        return InputError(
            f"{label} cannot be read for lack of system resources: {reason}. Raise the limit on open files (ulimit -n 65536) or use "
            "fewer --workers, and run the same command again."
        )
    return unreadable(label, name, reason)


def _refuse_deep(image: Image.Image) -> None:
    if image.mode.startswith(("I", "F")):
        raise InputError(f"it has more than 8 bits per channel (mode {image.mode}), which would be clipped to white")


def _pixels(image: Any, sample: int) -> Tensor:
    if isinstance(image, Image.Image):
        decoded = torch.from_numpy(np.array(image if image.mode in ("L", "RGB") else image.convert("RGB")))
        # Channels last in memory, as they were decoded: resizing takes half the time, to the same bits.
        image = decoded[None] if decoded.ndim == 2 else decoded.permute(2, 0, 1)
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.ascontiguousarray(image[None] if image.ndim == 2 else image.transpose(2, 0, 1)))
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        found = f"{image.dtype} {list(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        reason = f"it must be a PIL image or uint8 pixels, found {found}"
        raise UnreadableError(
            f"sample {sample} must be a PIL image or uint8 pixels, found {found}. Pass the data set without transforms: --augment and "
            f"--mean/--std replace them, the same for teacher and student. If only this sample is affected, {remedy_for(str(sample))}",
            reason,
        )
    if not image.numel():
        raise InputError(f"it has no pixels: its shape is {list(image.shape)}")
    return image


def _checked_labels(
    labels: NDArray[Any], classes: Sequence[str] | None, samples: int
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    if labels.shape != (samples,) or not np.issubdtype(labels.dtype, np.integer) or not samples:
        raise InputError(
            f"labels must be one integer per sample: expected [{samples}] integers, found {labels.dtype} {list(labels.shape)}"
        )
    labels = labels.astype(np.int64)
    if classes is None and (largest := int(labels.max())) >= _MOST_CLASSES:
        raise InputError(
            f"sample {labels.argmax()} has label {largest:,}, which would make more than {largest:,} classes. Correct it, or name the "
            "classes."
        )
    names = tuple(map(_class_name, range(int(labels.max()) + 1) if classes is None else classes))
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"class name {twice[0]!r} is used twice; class names must be unique")
    bad = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if len(bad):
        raise InputError(
            f"labels must lie in 0 ... {len(names) - 1} ({counted(len(names), 'class')}); sample {bad[0]} has {labels[bad[0]]}"
            f"{f', and {len(bad) - 1:,} more are out of range' if len(bad) > 1 else ''}. Correct the labels, or name all classes."
        )
    return labels, names


def _class_name(name: Any) -> str:
    return name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else str(name)


def _measured(images: Tensor) -> Normalization:
    """Return the per-channel mean and standard deviation, from integer sums; those of grey images are repeated for all channels."""
    counts = torch.stack(
        [torch.bincount(images[:, c].flatten(), minlength=256) for c in range(images.shape[1])]
    ).double()
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = (counts @ values) / counts.sum(1)
    std = ((counts @ values**2) / counts.sum(1) - mean**2).clamp_min(1e-12).sqrt()
    expand = (
        [round(float(x), 4) for x in mean.repeat(3)[:3]],
        [max(round(float(x), 4), 1e-4) for x in std.repeat(3)[:3]],
    )
    if images.shape[1] == 3:
        expand = [round(float(x), 4) for x in mean], [max(round(float(x), 4), 1e-4) for x in std]
    (m0, m1, m2), (s0, s1, s2) = expand
    return (m0, m1, m2), (s0, s1, s2)
