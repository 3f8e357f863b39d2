"""Open data sets by name or from an object, and find their modality."""

import copy
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import IterableDataset

from logitcache.data.exclusion import Reading
from logitcache.data.images.modality import IMAGES
from logitcache.data.images.sets import ArrayImages, FolderImages, MappedImages, Part
from logitcache.data.images.sources import NAMED_DATA, SPLITS, open_arrays
from logitcache.data.images.stored import ShardItems, TableItems
from logitcache.data.protocol import Modality, Samples, whole_of
from logitcache.data.tables import (
    Table,
    hub_test_split,
    image_column,
    open_hub_table,
    open_parquet_table,
    parquet_holds_images,
    refuse_unlabelled,
)
from logitcache.data.text.modality import TEXT
from logitcache.data.text.reading import TEXT_KINDS
from logitcache.data.text.sources import NAMED_TEXT, open_text
from logitcache.errors import InputError, explain_foreign_errors, unknown_name
from logitcache.runtime.plugins import resolve

__all__ = [
    "MODALITIES",
    "as_samples",
    "find_modality",
    "held_out_split",
    "load_data",
    "modality_of",
    "named_modality",
    "part_of",
    "refuse_orientation",
]

MODALITIES: dict[str, Modality] = {one.name: one for one in (IMAGES, TEXT)}  # by the name in a cache's manifest
_FORMS = (
    "imagefolder:PATH",
    "webdataset:PATH",
    "arrays:FILE.npz",
    "tokens:FILE.npz",
    "text:PATH",
    "jsonl:PATH",
    "parquet:PATH",
    "hf:PATH",
)
_IMAGE_KINDS = ("imagefolder", "webdataset", "arrays")
_TABLES = ("hf", "parquet")  # of images, or of text
_OURS = (ArrayImages, FolderImages, MappedImages, Part)


def find_modality(name: str) -> Modality:
    """Return a modality by name.

    Args:
        name: Key of `MODALITIES`, or `package.module:name` of a user's own.

    Raises:
        UnknownNameError: If there is no such modality.
        InputError: If it cannot be imported.
    """
    if name in MODALITIES:
        return MODALITIES[name]
    if ":" not in name:
        raise unknown_name("modality", name, [*MODALITIES, "package.module:name"])
    found: Modality = resolve(name, "modality")
    return found


def modality_of(samples: Samples) -> Modality:
    """Return the modality of a data set, images by default."""
    found: Modality | str = getattr(whole_of(samples)[0], "modality", IMAGES)
    return find_modality(found) if isinstance(found, str) else found


def named_modality(data: Any) -> Modality | None:
    """Return the modality of data that is not open yet, or None if it is known only after opening, as for a user's own factory.

    Args:
        data: Data set, as in `as_samples`.
    """
    if not isinstance(data, str):
        return modality_of(data)
    kind, _, rest = data.partition(":")
    if kind in _TABLES and rest:
        if kind == "parquet":  # the schema tells, without reading rows
            return IMAGES if parquet_holds_images(rest) else TEXT
        return TEXT if _table_of_images(kind, rest) is None else IMAGES
    if kind in (*TEXT_KINDS, *NAMED_TEXT):
        return TEXT
    return IMAGES if kind in (*NAMED_DATA, *_IMAGE_KINDS) else None


def as_samples(
    data: Any,
    classes: Sequence[str] | None = None,
    *,
    reading: Reading | None = None,
    subject: str = "the data set is of type",
) -> Any:
    """Convert data to a `Samples` data set.

    Args:
        data: Name (see `load_data`); a logitcache data set; a map-style torch or torchvision data set with items (PIL image or uint8
            pixels, label); a Hugging Face data set with items {"image": ..., "label": ...}; or arrays, (images, labels[, classes]).
        classes: Class names, used if the data set has none.
        reading: Reading options.
        subject: Beginning of the error message.

    Raises:
        UnknownNameError: If there is no such name.
        InputError: If it cannot be read or used.
    """
    if isinstance(data, str):
        return load_data(data, reading)
    if isinstance(data, _OURS) or hasattr(data, "modality"):
        return _with_orientation(data, reading)
    if isinstance(data, tuple) and len(data) in (2, 3):
        return _with_orientation(ArrayImages(*data), reading)
    if isinstance(data, Mapping):
        raise InputError(
            f"{subject} {type(data).__name__} with {', '.join(map(str, data)) or 'no entries'}; pass one of its entries"
        )
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, IterableDataset):
        return MappedImages(data, classes, reading)
    raise InputError(
        f"{subject} {type(data).__name__}; expected a map-style data set of (image, label) items, or (images, labels[, classes]) arrays. "
        "For a loader, pass its data set; convert a stream to a list or to files."
    )


def part_of(samples: Any, span: tuple[int, int]) -> Any:
    """Return samples `first` to `last` - 1 of a span (first, last), or the data set itself if these are all.

    Raises:
        InputError: If there are no such samples, or this kind of data cannot be divided.
    """
    first, last = span
    if not 0 <= first < last <= len(samples):
        raise InputError(f"samples {first}:{last} are not a valid range; the data set has {len(samples):,} samples")
    return samples if (first, last) == (0, len(samples)) else modality_of(samples).part(samples, first, last)


def load_data(spec: str, reading: Reading | None = None) -> Any:
    """Open a data set by name.

    Args:
        spec: Name: `NAME` or `NAME:test` with a name in `NAMED_DATA` or `NAMED_TEXT`; `imagefolder:PATH` with PATH/CLASS/IMAGE;
            `webdataset:PATH` with tar shards (`ShardItems`); `arrays:FILE.npz` with `images` (uint8, [N, H, W] or [N, H, W, 3]),
            `labels` and optionally `classes`; for text `tokens:FILE.npz`, `text:PATH` or `jsonl:PATH` (`open_text`); for images or text
            `parquet:PATH` or `hf:PATH[:SPLIT]` (`open_hub_table`); or `package.module:factory`, called with "train", or
            `package.module:factory:test`, which returns data for `as_samples`.
        reading: Reading options.

    Raises:
        UnknownNameError: If there is no such name.
        InputError: If the data cannot be read or used.
    """
    kind, colon, rest = spec.partition(":")
    if kind in (*TEXT_KINDS, *_IMAGE_KINDS) and colon and not rest:
        raise InputError(f"{spec} names no {'folder' if kind == 'imagefolder' else 'file'}: expected {spec}PATH")
    if kind == "webdataset" and rest:
        return MappedImages(ShardItems(rest), reading=reading)
    if kind in _TABLES and rest and (table := _table_of_images(kind, rest)) is not None:
        items = TableItems(table, spec)
        if kind == "hf":
            refuse_unlabelled(items.targets, rest)
        return MappedImages(items, reading=reading)
    if kind in TEXT_KINDS and rest:
        return open_text(kind, rest, None if reading is None else reading.text)
    if kind == "imagefolder" and rest:
        return FolderImages(Path(rest).expanduser(), reading)
    if kind == "arrays" and rest:
        return _with_orientation(open_arrays(Path(rest).expanduser()), reading)
    split = "train"
    if spec.rpartition(":")[2] in SPLITS:
        spec, _, split = spec.rpartition(":")
    if spec in NAMED_DATA:
        return _with_orientation(NAMED_DATA[spec](split), reading)
    if spec in NAMED_TEXT:
        return NAMED_TEXT[spec](split, None if reading is None else reading.text)
    if (named := spec.partition(":")[0]) in {**NAMED_DATA, **NAMED_TEXT}:
        raise unknown_name(f"split of {named}", spec.partition(":")[2], SPLITS)
    if ":" in spec:
        factory = resolve(spec, "data set")
        with explain_foreign_errors(f"data set {spec} cannot be created"):
            made = factory(split) if _takes_a_split(factory) else factory()
        return as_samples(made, reading=reading, subject=f"{spec} returned")
    raise unknown_name(
        "data set",
        spec,
        [*NAMED_DATA, *NAMED_TEXT, *_FORMS, "package.module:factory"],
    )


def _table_of_images(kind: str, path: str) -> Table | None:
    """Open a table if it has a column of images; return None if it is text."""
    if kind == "parquet":
        return open_parquet_table(path) if parquet_holds_images(path) else None
    table = open_hub_table(path)
    return None if image_column(table.features.arrow_schema) is None else table


def _with_orientation(samples: Any, reading: Reading | None) -> Any:
    """Return a copy of the data set with `exif_orientation` set as requested, if its images can have an orientation."""
    whole, _ = whole_of(samples)
    if reading is None or reading.exif_orientation == getattr(whole, "exif_orientation", False):
        return samples
    if not isinstance(whole, FolderImages | MappedImages):
        return samples
    turned = copy.copy(whole)
    turned.exif_orientation = reading.exif_orientation
    return turned if samples is whole else Part(turned, samples.first, samples.first + len(samples))


def refuse_orientation(samples: Any) -> None:
    """Raise an error if images cannot have an EXIF orientation.

    Raises:
        InputError: If the data set holds pixels, or is not of images.
    """
    if (kind := modality_of(samples).name) != IMAGES.name:
        raise InputError(f"--exif-orientation is for images, but the data is {kind}; leave it out")
    if not getattr(whole_of(samples)[0], "exif_orientation", False):
        raise InputError(
            "--exif-orientation applies to image files and PIL images, but this data set holds pixels. Leave it out."
        )


def held_out_split(spec: str) -> str | None:
    """Return the name of the test split of a training set (for `hf:`, else of its validation split), or None if there is none."""
    (name, _, split), (kind, _, rest) = spec.rpartition(":"), spec.partition(":")
    if kind == "hf":
        found = hub_test_split(rest)
        return found and f"hf:{found}"
    if kind in (*_IMAGE_KINDS, *TEXT_KINDS):  # the rest is a path, even if it ends in `train`
        return None
    if split in SPLITS and name:
        return f"{name}:test" if split == "train" else None
    if spec in NAMED_DATA or spec in NAMED_TEXT:
        return f"{spec}:test"
    if ":" not in spec:
        return None
    return f"{spec}:test" if _takes_a_split(resolve(spec, "data set")) else None


def _takes_a_split(factory: Any) -> bool:
    """Return whether a data set factory takes the name of the split as an argument."""
    with explain_foreign_errors("a data set factory must be a function of no arguments or of the name of the split"):
        return bool(inspect.signature(factory).parameters)
