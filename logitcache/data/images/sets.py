"""Labelled images, by sample id: in memory as one array, or one at a time from files or somebody's data set."""

import contextlib
import copy
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from logitcache.data.exclusion import Reading, refuse_unreadable, remedy_for, unreadable
from logitcache.data.images.listing import list_images, readable
from logitcache.data.protocol import whole_of
from logitcache.errors import InputError, LogitCacheError, UnreadableError, first_line

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
]  # mean and deviation of three channels in [0, 1]
_IMAGE_KEYS = ("image", "img")  # in items of Hugging Face's data sets
_MOST_CLASSES = 1_000_000  # without names
_COMPARED = 8  # items that are read at once, to see whether a list of labels is theirs
IMAGENET: Normalization = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class ImageSet(Protocol):
    """What every data set here offers.

    Attributes:
        labels: Class of each sample, [N] int64.
        classes: Class names in index order.
        normalization: Mean and deviation that networks for this data usually take.
        native_size: Height and width where all images share them, else None.
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
        """Identify the list of samples."""
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
        """Take arrays.

        Args:
            images: [N, H, W] or [N, H, W, 1 or 3] uint8.
            labels: [N] integers.
            classes: Names in index order; without them as many as the largest label says.
            normalization: Mean and deviation; without them those of the images themselves.

        Raises:
            InputError: Shapes, types or labels do not fit.
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
        self._elsewhere: ArrayImages | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, sample: int) -> Tensor:
        """Return one image, [C, H, W] uint8."""
        return self.images[sample]

    def on(self, device: torch.device) -> "ArrayImages":
        """Return the same with its pixels on a device, copied there once."""
        if self._elsewhere is None or self._elsewhere.images.device != device:
            self._elsewhere = copy.copy(self)
            self._elsewhere.images = self.images.to(device)
        return self._elsewhere

    def __getstate__(self) -> dict[str, Any]:
        """Travel without what lies on a device: workers of a loader have none."""
        return self.__dict__ | {"_elsewhere": None}

    def digest(self) -> str:
        """Hash every pixel, the labels and the class names."""
        hasher = blake2b(json.dumps([list(self.images.shape), self.classes]).encode(), digest_size=16)
        hasher.update(self.images.numpy().data)
        hasher.update(self.labels.data)
        return hasher.hexdigest()


class FolderImages:
    """Images in one folder per class; classes are the sorted folder names, samples the sorted relative paths."""

    native_size: tuple[int, int] | None = None
    normalization: Normalization = IMAGENET

    def __init__(self, root: Path, reading: Reading | None = None) -> None:
        """List a folder.

        Args:
            root: The folder.
            reading: What to do with images that cannot be opened, and with EXIF orientation.

        Raises:
            InputError: There are no images in folders below it, or one of them cannot be opened.
        """
        found, reading = list_images(root), reading or Reading()
        self.root, self.paths, self._folders = root, found.paths, found.classes
        self.classes = tuple(map(readable, found.classes))
        index = {name: position for position, name in enumerate(found.classes)}
        self.labels = np.array([index[path.split("/", 1)[0]] for path in self.paths], np.int64)
        self.exif_orientation = reading.exif_orientation
        self.unreadable = {n: found.unreadable[path] for n, path in enumerate(self.paths) if path in found.unreadable}
        if not reading.tolerant:
            refuse_unreadable(self, self.unreadable)

    def __len__(self) -> int:
        return len(self.paths)

    def name_of(self, sample: int) -> str:
        """Return the path of an image in the folder, as messages print it."""
        return readable(self.paths[sample])

    def label_of(self, sample: int) -> str:
        """Return what an image is called at the beginning of a message: its whole path."""
        return readable(self.root / self.paths[sample])

    def numbers_by_name(self) -> dict[str, int]:
        """Return the sample of each path, spelled as messages print it and as the file system has it."""
        return {spell(path): n for spell in (str, readable) for n, path in enumerate(self.paths)}

    def image(self, sample: int) -> Tensor:
        """Decode one file, [3, H, W] uint8.

        Raises:
            UnreadableError: The file is no image.
        """
        path, name = self.root / self.paths[sample], self.name_of(sample)
        try:
            with Image.open(path) as image:
                _refuse_deep(image)
                return _pixels(_upright(image, self).convert("RGB"), sample)
        except LogitCacheError:
            raise
        except Exception as error:  # decoders raise whatever a damaged or hostile file makes them stumble over
            raise unreadable(self.label_of(sample), name, first_line(error) or type(error).__name__) from error

    def digest(self) -> str:
        """Hash relative paths and labels."""
        lines = [f"{path}\t{label}" for path, label in zip(self.paths, self.labels, strict=True)]
        return blake2b(
            "\n".join([*self._folders, "", *lines]).encode("utf-8", "surrogateescape"), digest_size=16
        ).hexdigest()


class MappedImages:
    """A user's map-style data set: items are (PIL image, uint8 array [H, W(, C)] or uint8 tensor [C, H, W]; label).

    What an item says its label is counts. Where the data set lists its labels too (`targets` or `labels`, also inside of torch's
    Subset and ConcatDataset), the list saves a pass over all items, and every item that is read is held against it.
    """

    native_size: tuple[int, int] | None = None
    normalization: Normalization = IMAGENET

    def __init__(self, dataset: Any, classes: Sequence[str] | None = None, reading: Reading | None = None) -> None:
        """Wrap a data set.

        Args:
            dataset: The data set; its labels are read from its list, or from all items, one after another.
            classes: Class names, for a data set that has none.
            reading: What to do with items that cannot be read, and with EXIF orientation. An item that cannot be read has class 0
                where no list of labels says otherwise.

        Raises:
            InputError: Items are not (image, label), cannot be read, or have other labels than the list.
        """
        self.dataset, reading = dataset, reading or Reading()
        self.exif_orientation, self.unreadable = reading.exif_orientation, dict[int, str]()
        count = _length(dataset)
        listed, named = _listed_labels(dataset), _class_names(dataset)
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
        return reading.labels.get(sample, 0)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, sample: int) -> Tensor:
        """Return one image, [C, H, W] uint8.

        Raises:
            UnreadableError: The data set fails, or its item is no image.
            InputError: The item has another label than the list says.
        """
        image = self._item(sample)[0]
        try:
            if isinstance(image, Image.Image):
                _refuse_deep(image)
                image = _upright(image, self)
            return _pixels(image, sample)
        except LogitCacheError:
            raise
        except Exception as error:  # a lazy image decodes only now
            raise self._unreadable(sample, error) from error

    def _item(self, sample: int) -> tuple[Any, int]:
        name = type(self.dataset).__name__
        try:
            image, label = _image_and_label(self.dataset[sample])
        except Exception as error:  # whatever a user's code, or the decoder it calls, stumbles over
            raise self._unreadable(sample, error) from error
        found = _class_number(label)
        if found is None:
            shown = f"{repr(label)[:40]}" if np.ndim(label) == 0 else f"an array of shape {list(np.shape(label))}"
            reason = f"its label is {shown} ({type(label).__name__}); expected the number of a class, an integer"
            raise unreadable(self.label_of(sample), str(sample), reason)
        listed = getattr(self, "labels", None)
        if listed is not None and listed[sample] != found:
            raise InputError(
                f"{name} has two labels for sample {sample}: {listed[sample]} in its list (targets or labels), {found} in its item. Make "
                "the list agree with the items (a target_transform changes the items alone), or leave it out."
            )
        return image, found

    def label_of(self, sample: int) -> str:
        """Return what an item is called at the beginning of a message."""
        return f"sample {sample} of {type(self.dataset).__name__}"

    def _unreadable(self, sample: int, error: Exception) -> UnreadableError:
        return unreadable(self.label_of(sample), str(sample), _why(error))

    def digest(self) -> str:
        """Hash length, labels and class names; pixels are held by the digests of the views."""
        hasher = blake2b(json.dumps([len(self.labels), self.classes]).encode(), digest_size=16)
        hasher.update(self.labels.data)
        return hasher.hexdigest()


def _length(dataset: Any) -> int:
    """Return the number of items of a data set.

    Raises:
        InputError: It has none, or does not say how many.
    """
    name = type(dataset).__name__
    try:
        count = len(dataset)
    except Exception as error:  # a user's code
        raise InputError(f"{name} does not say how many items it has: {_why(error)}") from error
    if not count:
        raise InputError(f"{name} is empty: there is nothing to show to a teacher or a student")
    return count


def _listed_labels(dataset: Any) -> NDArray[Any] | None:
    """Return the labels that a data set lists, [N]; None where it lists none, or not one integer for each item."""
    if isinstance(dataset, Subset):
        inner = _listed_labels(dataset.dataset)
        return None if inner is None else inner[np.asarray(dataset.indices)]
    if isinstance(dataset, ConcatDataset):
        parts = [_listed_labels(one) for one in dataset.datasets]
        return np.concatenate(parts) if all(part is not None for part in parts) else None  # type: ignore[arg-type]
    if hasattr(dataset, "features"):  # Hugging Face's
        with contextlib.suppress(Exception):
            found = np.asarray(dataset["label"])
            if found.shape == (len(dataset),) and np.issubdtype(found.dtype, np.integer):
                return found
    for name in ("targets", "labels"):
        with contextlib.suppress(Exception):  # a ragged list, a property that fails: items are asked instead
            found = np.asarray(getattr(dataset, name))
            if found.shape == (len(dataset),) and np.issubdtype(found.dtype, np.integer):
                return found
    return None


def _image_and_label(item: Any) -> tuple[Any, Any]:
    """Return image and label of an item: a tuple that begins with them, or a mapping as Hugging Face's data sets give it."""
    if isinstance(item, Mapping):
        image = next((item[key] for key in _IMAGE_KEYS if key in item), None)
        if image is None or "label" not in item:
            raise _OwnError(f"the item has {', '.join(map(str, item))}; expected image and label")
        return image, item["label"]
    if not isinstance(item, Sequence) or len(item) < 2:
        raise _OwnError(f"the item is {_described(item)}; expected (image, label)")
    return item[0], item[1]


def _described(item: Any) -> str:
    return (
        f"a {type(item).__name__} of length {len(item)}" if isinstance(item, Sequence) else f"a {type(item).__name__}"
    )


def _class_number(label: Any) -> int | None:
    """Return a label as a number, of whatever type it is; None for what is no whole number."""
    if isinstance(label, Tensor | np.ndarray | np.generic):
        numbers = np.asarray(label).reshape(-1).tolist()
        label = numbers[0] if len(numbers) == 1 else None
    if isinstance(label, float) and label.is_integer():
        return int(label)
    return label if isinstance(label, int) else None


def _class_names(dataset: Any) -> list[str] | None:
    """Return the class names of a data set, also of what a Subset or ConcatDataset is made of."""
    if isinstance(dataset, Subset):
        return _class_names(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        names = [_class_names(one) for one in dataset.datasets]
        return names[0] if all(one == names[0] for one in names) else None
    found = getattr(dataset, "classes", None)
    if found is None:  # Hugging Face's
        with contextlib.suppress(Exception):
            found = dataset.features["label"].names
    if not found:
        return None
    if isinstance(found, str) or not isinstance(found, Iterable):
        raise InputError(
            f"the classes of {type(dataset).__name__} are {found!r}; expected their names, in the order of the labels"
        )
    return list(found)


class Part:
    """A stretch of a data set. Samples are numbered from 0, and look as they do in the whole."""

    def __init__(self, whole: ImageSet, first: int, last: int) -> None:
        """Take the samples from `first` to one before `last`."""
        self.whole, self.first = whole, first
        self.labels, self.classes = whole.labels[first:last], whole.classes
        self.normalization, self.native_size = whole.normalization, whole.native_size

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, sample: int) -> Tensor:
        """Return one image, [C, H, W] uint8."""
        return self.whole.image(self.first + sample)

    def digest(self) -> str:
        """Identify the whole."""
        return self.whole.digest()


def resident(images: ImageSet, device: torch.device) -> ImageSet | None:
    """Return images in memory with their pixels on a GPU, where they take at most a quarter of what is free there; else None."""
    whole, first = whole_of(images)
    if device.type != "cuda" or not isinstance(whole, ArrayImages):
        return None
    if whole.images.numel() > torch.cuda.mem_get_info(device)[0] // 4:
        return None
    there = whole.on(device)
    return there if len(images) == len(whole) else Part(there, first, first + len(images))


def _upright(image: Image.Image, images: "FolderImages | MappedImages") -> Image.Image:
    """Turn an image as its EXIF orientation says, where the data set is read so."""
    return ImageOps.exif_transpose(image) if images.exif_orientation else image


class _OwnError(ValueError):
    """What is wrong with an item, in words of ours."""


def _why(error: Exception) -> str:
    """Say what went wrong: our own words, or the kind and the first line of somebody else's."""
    own = isinstance(error, _OwnError)
    return str(error) if own else f"{type(error).__name__}: {first_line(error)}".rstrip(": ")


def _refuse_deep(image: Image.Image) -> None:
    if image.mode.startswith(("I", "F")):
        raise _OwnError(f"it has more than 8 bits a channel (mode {image.mode}), which would be clipped to white")


def _pixels(image: Any, sample: int) -> Tensor:
    if isinstance(image, Image.Image):
        image = np.array(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    if isinstance(image, np.ndarray):
        image = torch.from_numpy(np.ascontiguousarray(image[None] if image.ndim == 2 else image.transpose(2, 0, 1)))
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
        found = f"{image.dtype} {list(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        reason = f"it must be a PIL image or uint8 pixels, found {found}"
        raise UnreadableError(
            f"sample {sample} must be a PIL image or uint8 pixels, found {found}. Give the data set without transforms: --augment and "
            f"--mean/--std do that part, the same way for teacher and student. If it is this sample alone, {remedy_for(str(sample))}",
            reason,
        )
    if not image.numel():
        raise _OwnError(f"it has no pixels: {list(image.shape)}")
    return image


def _checked_labels(
    labels: NDArray[Any], classes: Sequence[str] | None, samples: int
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    if labels.shape != (samples,) or not np.issubdtype(labels.dtype, np.integer) or not samples:
        raise InputError(
            f"labels must be one integer a sample: expected [{samples}] integers, found {labels.dtype} {list(labels.shape)}"
        )
    labels = labels.astype(np.int64)
    if classes is None and (largest := int(labels.max())) >= _MOST_CLASSES:
        raise InputError(
            f"sample {labels.argmax()} has the label {largest:,}, which would make as many classes. Correct it, or name the classes."
        )
    names = tuple(map(_class_name, range(int(labels.max()) + 1) if classes is None else classes))
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"class {twice[0]!r} is named twice: each class needs a name of its own")
    bad = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if len(bad):
        raise InputError(
            f"labels must lie in 0 ... {len(names) - 1} ({len(names)} classes); sample {bad[0]} has {labels[bad[0]]}"
            f"{f', and {len(bad) - 1:,} more do not' if len(bad) > 1 else ''}. Correct the labels, or name all classes."
        )
    return labels, names


def _class_name(name: Any) -> str:
    return name.decode("utf-8", "backslashreplace") if isinstance(name, bytes) else str(name)


def _measured(images: Tensor) -> Normalization:
    """Mean and deviation of each channel, from integer sums; a grey image's for all three."""
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
