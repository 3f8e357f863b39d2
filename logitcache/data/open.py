"""A data set by name or object, and the modality it belongs to."""

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
from logitcache.data.tables import hub_splits, image_column, open_hub_table, open_parquet_table, parquet_holds_images
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

MODALITIES: dict[str, Modality] = {
    one.name: one for one in (IMAGES, TEXT)
}  # kinds of data; a cache's manifest names one
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
_TABLES = {"hf": open_hub_table, "parquet": open_parquet_table}  # of images, or of text
_OURS = (ArrayImages, FolderImages, MappedImages, Part)


def find_modality(name: str) -> Modality:
    """Return the modality of this name.

    Args:
        name: A key of `MODALITIES`, or `package.module:name` of a user's own.

    Raises:
        UnknownNameError: No such modality.
        InputError: It cannot be imported.
    """
    if name in MODALITIES:
        return MODALITIES[name]
    if ":" not in name:
        raise unknown_name("modality", name, [*MODALITIES, "package.module:name"])
    found: Modality = resolve(name, "modality")
    return found


def modality_of(samples: Samples) -> Modality:
    """Return the modality of a data set: images, unless it names another."""
    found: Modality | str = getattr(whole_of(samples)[0], "modality", IMAGES)
    return find_modality(found) if isinstance(found, str) else found


def named_modality(data: Any) -> Modality | None:
    """Return the modality of data that is not open yet, or None where only opening it would tell: a user's own factory.

    Args:
        data: As `as_samples` takes it.
    """
    if not isinstance(data, str):
        return modality_of(data)
    kind, _, rest = data.partition(":")
    if kind in _TABLES and rest:
        return IMAGES if _holds_images(kind, rest) else TEXT
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
    """Return a data set as the rest of logitcache sees it.

    Args:
        data: A name (see `load_data`); one of our data sets; any map-style torch or torchvision data set whose items are
            (PIL image or uint8 pixels, label); one of Hugging Face `datasets`, whose items are {"image": ..., "label": ...}; or
            arrays, (images, labels[, classes]).
        classes: Class names, for a data set that has none.
        reading: How samples are read.
        subject: Beginning of the error message.

    Raises:
        UnknownNameError: No such name.
        InputError: It cannot be read or used.
    """
    if isinstance(data, str):
        return load_data(data, reading)
    if isinstance(data, _OURS) or hasattr(data, "modality"):
        return _turned(data, reading)
    if isinstance(data, tuple) and len(data) in (2, 3):
        return _turned(ArrayImages(*data), reading)
    if isinstance(data, Mapping):
        raise InputError(
            f"{subject} {type(data).__name__}, with {', '.join(map(str, data)) or 'nothing'} in it: give one of these"
        )
    if hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, IterableDataset):
        return MappedImages(data, classes, reading)
    raise InputError(
        f"{subject} {type(data).__name__}; expected a data set of (image, label) items that can be asked for by number, or (images, "
        "labels[, classes]) arrays. Of a loader give its data set; put a stream into a list or into files."
    )


def part_of(samples: Any, span: tuple[int, int]) -> Any:
    """Return the samples from the first to one before the last: the data set itself where these are all.

    Raises:
        InputError: There are no such samples, or this kind of data cannot be divided.
    """
    first, last = span
    if not 0 <= first < last <= len(samples):
        raise InputError(f"samples {first}:{last} are not a stretch of the {len(samples):,} samples there are")
    return samples if (first, last) == (0, len(samples)) else modality_of(samples).part(samples, first, last)


def load_data(spec: str, reading: Reading | None = None) -> Any:
    """Open a data set.

    Args:
        spec: `NAME` or `NAME:test` with a name in `NAMED_DATA` or `NAMED_TEXT`; `imagefolder:PATH` with PATH/CLASS/IMAGE;
            `webdataset:PATH` with tar shards (`ShardItems`);
            `arrays:FILE.npz` with `images` (uint8, [N, H, W] or [N, H, W, 3]), `labels` and perhaps `classes`; for text (`open_text`)
            `tokens:FILE.npz`, `text:PATH` or `jsonl:PATH`; of images or text `parquet:PATH` and `hf:PATH[:SPLIT]` (`open_hub_table`);
            `package.module:factory`, called with "train", or `package.module:factory:test`, which returns what `as_samples` takes.
        reading: How samples are read.

    Raises:
        UnknownNameError: No such name.
        InputError: The data cannot be read or used.
    """
    kind, colon, rest = spec.partition(":")
    if kind in (*TEXT_KINDS, *_IMAGE_KINDS) and colon and not rest:
        raise InputError(f"{spec} names no {'folder' if kind == 'imagefolder' else 'file'}: expected {spec}PATH")
    if kind == "webdataset" and rest:
        return MappedImages(ShardItems(rest), reading=reading)
    if kind in _TABLES and rest and _holds_images(kind, rest):
        return MappedImages(TableItems(_TABLES[kind](rest), spec), reading=reading)
    if kind in TEXT_KINDS and rest:
        return open_text(kind, rest, None if reading is None else reading.text)
    if kind == "imagefolder" and rest:
        return FolderImages(Path(rest).expanduser(), reading)
    if kind == "arrays" and rest:
        return _turned(open_arrays(Path(rest).expanduser()), reading)
    split = "train"
    if spec.rpartition(":")[2] in SPLITS:
        spec, _, split = spec.rpartition(":")
    if spec in NAMED_DATA:
        return _turned(NAMED_DATA[spec](split), reading)
    if spec in NAMED_TEXT:
        return NAMED_TEXT[spec](split, None if reading is None else reading.text)
    if (named := spec.partition(":")[0]) in {**NAMED_DATA, **NAMED_TEXT}:
        raise unknown_name(f"split of {named}", spec.partition(":")[2], SPLITS)
    if ":" in spec:
        factory = resolve(spec, "data set")
        with explain_foreign_errors(f"data set {spec} cannot be made"):
            made = factory(split) if _takes_a_split(factory) else factory()
        return as_samples(made, reading=reading, subject=f"{spec} returned")
    raise unknown_name(
        "data set",
        spec,
        [*NAMED_DATA, *NAMED_TEXT, *_FORMS, "package.module:factory"],
    )


def _holds_images(kind: str, path: str) -> bool:
    """Return whether a table has a column of images; without one it is text."""
    if kind == "parquet":
        return parquet_holds_images(path)
    return image_column(open_hub_table(path).features.arrow_schema) is not None


def _turned(samples: Any, reading: Reading | None) -> Any:
    """Return the data set with `exif_orientation` set as asked, if its images can have an orientation."""
    whole, _ = whole_of(samples)
    if reading is None or reading.exif_orientation == getattr(whole, "exif_orientation", False):
        return samples
    if not isinstance(whole, FolderImages | MappedImages):
        return samples
    turned = copy.copy(whole)
    turned.exif_orientation = reading.exif_orientation
    return turned if samples is whole else Part(turned, samples.first, samples.first + len(samples))


def refuse_orientation(samples: Any) -> None:
    """Refuse to turn images that have no EXIF orientation.

    Raises:
        InputError: The data set holds pixels, or is of another kind.
    """
    if (kind := modality_of(samples).name) != IMAGES.name:
        raise InputError(f"--exif-orientation is for images, and the data is {kind}: leave it out")
    if not getattr(whole_of(samples)[0], "exif_orientation", False):
        raise InputError(
            "--exif-orientation turns images that come as files or as PIL images; this data set holds pixels. Leave it out."
        )


def held_out_split(spec: str) -> str | None:
    """Return the test split that belongs to a training set, or None where there is none."""
    (name, _, split), kind = spec.rpartition(":"), spec.partition(":")[0]
    if kind == "hf":
        source = name.partition(":")[2]
        return f"{name}:test" if split == "train" and source and "test" in hub_splits(source) else None
    if kind in (*_IMAGE_KINDS, *TEXT_KINDS):  # what follows is a path, also where it is `train`
        return None
    if split in SPLITS and name:
        return f"{name}:test" if split == "train" else None
    if spec in NAMED_DATA or spec in NAMED_TEXT:
        return f"{spec}:test"
    if ":" not in spec:
        return None
    return f"{spec}:test" if _takes_a_split(resolve(spec, "data set")) else None


def _takes_a_split(factory: Any) -> bool:
    """Return whether a data set factory takes the name of the split."""
    with explain_foreign_errors(
        "a data set factory must be a function that takes no argument or the name of the split"
    ):
        return bool(inspect.signature(factory).parameters)
