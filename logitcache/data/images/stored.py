"""Images in files of other tools: webdataset tar shards, Hugging Face `datasets` tables, Parquet.

Each class is a map-style data set of (image, label) items, which `MappedImages` wraps. As with image folders, EXIF orientation is ignored
unless `--exif-orientation` is given.
"""

import io
import itertools
import json
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from logitcache.data.files import matching_files
from logitcache.data.images.items import label_column
from logitcache.data.images.listing import readable, suffixes
from logitcache.data.images.strings import PackedStrings
from logitcache.data.tables import Table, image_column
from logitcache.errors import InputError
from logitcache.runtime.wording import counted

__all__ = ["ShardItems", "StoredItems", "TableItems"]

_CLASS_NAMES = "classnames.txt"  # as in the data sets of CLIP benchmark
_JSON_LABELS = ("label", "cls", "class")


class StoredItems(ABC):
    """Map-style data set of (PIL image, label) items that are stored in files.

    Attributes:
        name: Name of the data set in messages.
        targets: Class of each item, [N] int64.
        classes: Class names in index order; None if the files do not name the classes.
    """

    name: str
    targets: NDArray[np.int64]
    classes: Sequence[str] | None = None

    def __len__(self) -> int:
        """Return the number of items, N."""
        return len(self.targets)

    def __getitem__(self, sample: int) -> tuple[Image.Image, int]:
        """Return an image and its class; the image is decoded when its pixels are accessed."""
        return Image.open(io.BytesIO(self.read(sample))), int(self.targets[sample])

    @abstractmethod
    def read(self, sample: int) -> bytes:
        """Return an encoded image, as stored in the file."""

    def label_of(self, sample: int) -> str:
        """Return the subject of an error message about an item."""
        return f"sample {sample} of {self.name}"


class TableItems(StoredItems):
    """Rows of a table with a column of encoded images and one of labels: class indices, or names, indexed in sorted order."""

    def __init__(self, table: Table, name: str) -> None:
        """Find the columns and read the labels.

        Raises:
            InputError: If there is no such column, or several could be meant.
        """
        self.name = name
        image, label = image_column(table.features.arrow_schema), label_column(table)
        if image is None or label is None:
            raise InputError(
                f"{name} has no column of {'images' if image is None else 'labels'}; it has {', '.join(table.column_names)}. "
                f"Rename it to {'image' if image is None else 'label'}."
            )
        self._image, self._rows = image, table.with_format("arrow")
        found = self._rows[label][:].to_numpy() if len(table) else np.empty(0, np.int64)
        self.classes = getattr(table.features[label], "names", None)
        if found.dtype == object and all(isinstance(one, str) for one in found):
            names, found = np.unique(found.astype(str), return_inverse=True)
            self.classes = names.tolist()
        if not np.issubdtype(found.dtype, np.integer):
            raise InputError(f"the labels of {name} (column {label}) must be all class indices or all class names")
        self.targets = found.astype(np.int64)

    def read(self, sample: int) -> bytes:
        """Return an encoded image, as stored in the file."""
        found = self._rows[sample][self._image][0].as_py()
        if not isinstance(found, dict):
            return bytes(found)
        return found["bytes"] if found.get("bytes") is not None else Path(found["path"]).read_bytes()


class _Member(NamedTuple):
    """A file in a tar archive.

    Attributes:
        key: Name up to the first dot; empty for hidden files.
        suffix: Rest of the name, in lower case.
        offset: Offset of the content, in bytes.
        size: Size of the content, in bytes.
    """

    key: str
    suffix: str
    offset: int
    size: int


class ShardItems(StoredItems):
    """Samples of webdataset tar shards: KEY.jpg, and KEY.cls with the class index or KEY.json with a `label`.

    The files of a sample are consecutive and share their name up to the first dot. Shards are read in the order of their names. Headers
    are read once; afterwards images are read at random access. A file `classnames.txt` in the folder of the shards or its parent lists
    the class names, one per line.
    """

    def __init__(self, path: str) -> None:
        """List the samples of shards.

        Args:
            path: Path of a tar file or of a folder of them, or a pattern (`train-*.tar`, `train-{000..146}.tar`).

        Raises:
            InputError: If there are no samples, a shard cannot be read, or a sample does not have exactly one image and a label.
        """
        self.name = f"webdataset:{path}"
        self._shards = matching_files(path, ".tar")
        keys, labels, places = list[str](), list[int](), list[tuple[int, int, int]]()
        for number, shard in enumerate(self._shards):
            for key, image, label in _samples_of(shard):
                keys.append(key)
                labels.append(label)
                places.append((number, image.offset, image.size))
        if not keys:
            raise InputError(f"{self.name} has no samples: its {counted(len(self._shards), 'shard')} are empty")
        self._keys, self.targets, self._places = PackedStrings.of([keys]), np.array(labels), np.array(places)
        self.classes = _class_names(self._shards[0].parent)

    def read(self, sample: int) -> bytes:
        """Return an encoded image, as stored in its shard."""
        number, offset, size = map(int, self._places[sample])
        with self._shards[number].open("rb") as shard:
            return _bytes_of(shard, offset, size)

    def label_of(self, sample: int) -> str:
        """Return the shard and key of a sample, the subject of an error message about it."""
        return readable(f"{self._shards[int(self._places[sample, 0])]}, sample {self._keys[sample]}")


def _samples_of(shard: Path) -> Iterator[tuple[str, _Member, int]]:
    """Yield the key, image and label of each sample of a shard, in order."""
    try:
        with shard.open("rb") as file:
            for key, group in itertools.groupby(_members_of(file, shard.stat().st_size), lambda one: one.key):
                if key:
                    members = {one.suffix: one for one in group}
                    yield key, *_image_and_label(file, readable(f"{shard}, sample {key}"), members)
    except (OSError, tarfile.TarError) as error:
        raise InputError(
            f"{readable(shard)} cannot be read as an uncompressed tar file: {error}. Decompress it if it is compressed, or copy it again."
        ) from error


def _members_of(file: BinaryIO, size: int) -> Iterator[_Member]:
    """Yield the files of a tar archive of `size` bytes. The file may be read elsewhere between two of them."""
    with tarfile.open(fileobj=file, mode="r:") as archive:
        while (one := archive.next()) is not None:
            if one.isfile():
                yield _Member(*_split_name(one.name), one.offset_data, one.size)
            archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
        if 0 < size - archive.offset < tarfile.BLOCKSIZE:  # tarfile would take it for the end of the archive
            raise tarfile.ReadError("unexpected end of data")


def _split_name(name: str) -> tuple[str, str]:
    """Return key and suffix of a file, as in `_Member`."""
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return (folder + slash + stem if stem else ""), suffix.lower()


def _image_and_label(file: BinaryIO, label: str, members: dict[str, _Member]) -> tuple[_Member, int]:
    images = [one for suffix, one in members.items() if f".{suffix.rpartition('.')[2]}" in suffixes()]
    if len(images) != 1:
        found = ", ".join(f".{suffix}" for suffix in members)
        raise InputError(f"{label} has {counted(len(images), 'image')} (files: {found}); expected one, such as .jpg")
    if "cls" not in members and "json" not in members:
        raise InputError(
            f"{label} has no label: expected a .cls file with the class index, or a .json file with a `label`"
        )
    said = members["cls" if "cls" in members else "json"]
    text = _bytes_of(file, said.offset, said.size)
    try:
        value: Any = json.loads(text)  # the content of .cls is valid JSON too
        if isinstance(value, dict):
            value = next(value[name] for name in _JSON_LABELS if name in value)
    except (ValueError, StopIteration):
        value = None
    if not isinstance(value, int) or isinstance(value, bool):
        raise InputError(f"the label of {label} is {text[:40]!r}; expected a class index")
    return images[0], value


def _bytes_of(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _class_names(folder: Path) -> list[str] | None:
    for one in (folder, folder.parent):
        if (file := one / _CLASS_NAMES).is_file():
            return file.read_text(encoding="utf-8").splitlines()
    return None
