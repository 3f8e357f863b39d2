"""The manifest: everything that determines the bytes of a cache, and everything that `train` would otherwise have to ask.

The store does not interpret the sections of other packages (views, preprocessing, encoding). It keeps them as plain objects, and the
package that wrote a section reads it back.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from logitcache.errors import CorruptCacheError, FormatVersionError, InputError
from logitcache.store.classes import classes_from_json, classes_to_json
from logitcache.store.places import Place

__all__ = ["FORMAT", "HOME", "Manifest", "SomethingElseError", "average_of", "read_manifest"]

FORMAT = 1
HOME = ".logitcache"  # folder of our own files inside a cache
_CONVENIENCE = re.compile(
    r"data\.spec|teachers\.\d+(\.members\.\d+)?\.weights"
)  # paths as typed, which do not identify a cache


_IMAGES = "images"
_FORWARD = {"autocast": None, "channels_last": False, "compiled": False, "test_time_views": "none"}
_ABSENT = {"modality": _IMAGES, "rows": None, "excluded": ()}  # keys that are omitted if they have these values
_ROW_SHAPE = (
    "row_shape"  # [] if each sample is one row, so that such caches keep their bytes and fingerprints; never read
)


@dataclass(frozen=True, slots=True)
class Manifest:
    """Identity of a cache, with the keys specified in docs/format.md.

    Attributes:
        samples: Number of samples, N.
        classes: C class names in index order, or `NumberedClasses` if they have no names.
        block_rows: Rows per block.
        batch_size: Rows per forward pass of the teacher.
        threads: CPU threads of the forward pass.
        device: Type of device of the forward pass: `cpu`, `cuda`, ...
        forward: Settings of the forward pass: `autocast` (null or `bfloat16`), `channels_last`, `compiled`, `test_time_views`; on a GPU
            also `matmul_precision` and `cudnn_tf32`; `deterministic` if deterministic algorithms were requested.
        views: One entry per view.
        data: `spec`, `length` and `digest` of the whole data set, and `first`, the sample of row 0.
        teachers: One entry per teacher: `slug`, `name`, `weights`, `weights_sha256`, `class_map`, `preprocessing`, `members`.
        encoding: Entry of the encoding: `kind`, `dtype` and its parameters.
        software: Versions of packages that can change the last bits of a logit.
        derived: Origin of a cache made from other caches: `by` (`slice`, `merge`, `average`) and `from`, or None.
        modality: Kind of data: `images`, or `package.module:name`.
        rows: Rows of one view, R, if samples have a variable number of rows (see `offsets`); None if each sample is one row.
        excluded: Ids of excluded samples in the data set, ascending. They keep their rows, whose content is meaningless.
    """

    samples: int
    classes: Sequence[str]
    block_rows: int
    batch_size: int
    threads: int
    device: str
    views: tuple[dict[str, Any], ...]
    data: dict[str, Any]
    teachers: tuple[dict[str, Any], ...]
    encoding: dict[str, Any]
    software: dict[str, str]
    forward: dict[str, Any] = field(default_factory=lambda: dict(_FORWARD))
    format: int = FORMAT
    byte_order: Literal["little"] = "little"
    derived: dict[str, Any] | None = None
    modality: str = _IMAGES
    rows: int | None = None
    excluded: tuple[int, ...] = ()

    @property
    def view_rows(self) -> int:
        """Rows of one view, R."""
        return self.samples if self.rows is None else self.rows

    @property
    def blocks(self) -> int:
        """Blocks of one view."""
        return -(-self.view_rows // self.block_rows)

    def span(self, block: int) -> tuple[int, int]:
        """Return the first row of a block and one past its last."""
        return block * self.block_rows, min((block + 1) * self.block_rows, self.view_rows)

    @property
    def of_images(self) -> bool:
        """Whether the data are images."""
        return self.modality == _IMAGES

    @property
    def first_row(self) -> int:
        """Number of row 0 in messages: its sample id in the data set if each sample is one row, else 0."""
        return int(self.data["first"]) if self.rows is None else 0

    @property
    def row_axis(self) -> str:
        """Name of the arrays' row axis: `sample` if each sample is one row, else `row`."""
        return "sample" if self.rows is None else "row"

    def with_views(self, views: tuple[dict[str, Any], ...]) -> "Manifest":
        """Return the same manifest with other views."""
        return replace(self, views=views)

    def to_json(self) -> dict[str, Any]:
        """Return the manifest as an attribute of the zarr group."""
        plain = asdict(self) | {"classes": classes_to_json(self.classes)}
        found: dict[str, Any] = {}
        for key, value in plain.items():
            if key == "byte_order" and self.rows is None:
                found[_ROW_SHAPE] = []
            if key not in _ABSENT or value != _ABSENT[key]:
                found[key] = list(value) if isinstance(value, tuple) else value
        return found

    @classmethod
    def from_json(cls, entry: Mapping[str, Any], where: str) -> "Manifest":
        """Return the manifest of a zarr group's attribute.

        Args:
            entry: Content of the attribute.
            where: Path of the cache, for error messages.

        Raises:
            FormatVersionError: If a newer logitcache wrote it.
            CorruptCacheError: If keys are missing or unknown.
        """
        found = entry.get("format")
        if not isinstance(found, int):
            raise CorruptCacheError(f"{where}: the manifest has no format version. Dump the cache again.")
        if found > FORMAT:
            raise FormatVersionError(
                f"{where} has cache format {found}; this logitcache reads formats up to {FORMAT}. Upgrade logitcache to read it."
            )
        known = {one.name for one in fields(cls)}
        if odd := sorted((known - _ABSENT.keys() - entry.keys()) | (entry.keys() - known - {_ROW_SHAPE})):
            raise CorruptCacheError(
                f"{where}: the manifest does not follow format {found} (keys missing or unknown: {', '.join(odd)}). Dump again."
            )
        values: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in entry.items() if key != _ROW_SHAPE
        }
        return cls(**values | {"classes": classes_from_json(entry["classes"])})

    def differences(self, other: "Manifest") -> list[tuple[str, Any, Any]]:
        """Return (key, value here, value there) for every key in which two caches differ.

        Paths as typed are ignored, and so are excluded samples, which may grow in number.
        """
        here, there, missing = self.identity(), other.identity(), "absent"
        return [
            (key, here.get(key, missing), there.get(key, missing))
            for key in sorted((here.keys() | there.keys()) - {"excluded"})
            if here.get(key, missing) != there.get(key, missing)
        ]

    def identity(self) -> dict[str, Any]:
        """Return all keys and values, flattened, without paths as typed."""
        return {key: value for key, value in _flatten(self.to_json()) if not _CONVENIENCE.fullmatch(key)}


def average_of(teachers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the manifest entry for the mean of several teachers."""
    return {
        "slug": "mean",
        "name": f"mean of {', '.join(teacher['name'] for teacher in teachers)}",
        "weights": "",
        "weights_sha256": None,
        "class_map": None,
        "preprocessing": teachers[0]["preprocessing"],
        "members": [dict(teacher) for teacher in teachers],
    }


class SomethingElseError(InputError):
    """The path exists but is not a cache."""


def read_manifest(place: Place) -> Manifest | None:
    """Return the manifest of a finished or unfinished cache, or None if there is nothing yet.

    Raises:
        SomethingElseError: If the path holds something else.
        CorruptCacheError, FormatVersionError: If the manifest cannot be read.
    """
    entry: object = None
    try:
        data = place.read("zarr.json")
    except FileNotFoundError:
        # The root's metadata, which makes the folder a cache, is written last.
        if HOME in place.folders("") or place.is_empty():
            return None
        data = b"{}"
    except (IsADirectoryError, NotADirectoryError):
        path = Path(str(place))
        if above := next((parent for parent in path.parents if parent.is_file()), None):
            raise SomethingElseError(
                f"{place} cannot be a cache because {above} is a file. Choose another path."
            ) from None
        data = b"{}"
    try:
        entry = json.loads(data).get("attributes", {}).get("logitcache")
    except (ValueError, AttributeError) as error:
        raise CorruptCacheError(
            f"{place}/zarr.json is damaged: {error}. Restore it from a copy, or dump into another path."
        ) from error
    if not isinstance(entry, dict):
        raise SomethingElseError(
            f"{place} exists and is not a logit cache; nothing in it was touched. Choose another --out."
        )
    return Manifest.from_json(entry, str(place))


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else key)
    elif isinstance(value, list | tuple) and any(isinstance(inner, dict) for inner in value):
        for position, inner in enumerate(value):
            yield from _flatten(inner, f"{prefix}.{position}")
    else:
        yield prefix, list(value) if isinstance(value, tuple) else value
