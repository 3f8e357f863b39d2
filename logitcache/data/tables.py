"""Tables of images or text: Hugging Face `datasets`, given by folder or name, and Parquet files with images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from logitcache.data.files import matching_files
from logitcache.data.images.items import IMAGE_COLUMNS
from logitcache.errors import InputError, first_line
from logitcache.runtime.plugins import import_extra

__all__ = [
    "TEXT_COLUMNS",
    "Table",
    "hub_test_split",
    "image_column",
    "open_hub_table",
    "open_parquet_table",
    "parquet_holds_images",
    "refuse_unlabelled",
]

_TEST_SPLITS = ("test", "validation")
TEXT_COLUMNS = ("text", "prompt", "completion", "messages", "instruction", "context", "input", "response", "output")
_IMAGE_COLUMNS = (*IMAGE_COLUMNS, "jpg", "png")  # the last two as webdataset names them


class Table(Protocol):
    """The part of the interface of `datasets.Dataset` that logitcache uses."""

    features: Any
    column_names: Sequence[str]

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def __getitem__(self, key: Any) -> Any:
        """Return a row by index, or a column by name."""
        ...

    def with_format(self, kind: str) -> "Table":
        """Return the same table with rows of another type."""
        ...


def open_hub_table(path: str) -> Table:
    """Open a Hugging Face data set.

    Args:
        path: Folder written by `save_to_disk` or with files that `load_dataset` reads, or name on the hub, optionally followed by
            `:SPLIT`. The split defaults to `train`, or to the only one.

    Raises:
        InputError: If the package `datasets` is missing, or the data set cannot be read or has no such split.
    """
    source, split = _source_and_split(path)
    return _split_of(_opened(source, path), split, source)


def hub_test_split(path: str) -> str | None:
    """Return the path of the split to evaluate on, when training on `path`: `test`, else `validation`; None if there is neither.

    None as well if `path` is not the split `train`.

    Args:
        path: As in `open_hub_table`.

    Raises:
        InputError: If the package `datasets` is missing, or the data set cannot be read.
    """
    source, split = _source_and_split(path)
    found = _opened(source, path) if split in ("", "train") else ()
    if not isinstance(found, Mapping) or "train" not in found:
        return None
    return next((f"{source}:{name}" for name in _TEST_SPLITS if name in found), None)


def refuse_unlabelled(targets: NDArray[np.int64], path: str) -> None:
    """Raise InputError if a split has no labels: all are -1, as in test splits of benchmarks that keep them secret."""
    if not len(targets) or (targets != -1).any():
        return
    source, _ = _source_and_split(path)
    found = _opened(source, path)
    others = [name for name in found if name == "validation"] if isinstance(found, Mapping) else []
    advice = f", such as --test-data hf:{source}:{others[0]}" if others else " (--test-data)"
    raise InputError(
        f"hf:{path} cannot be used, because the split has no labels (all {len(targets):,} are -1); name a split with labels{advice}"
    )


def _source_and_split(path: str) -> tuple[str, str]:
    """Divide `PATH[:SPLIT]`; the split is empty if there is none."""
    source, colon, split = path.rpartition(":")
    return (source, split) if colon and "/" not in split else (path, "")


def _opened(source: str, path: str) -> Any:
    """Open a data set by folder or name, with all its splits; `path` is its name in the message about a missing package."""
    datasets = import_extra("datasets", f"hf:{path}", "datasets")
    folder = Path(source).expanduser()
    saved = any((folder / name).exists() for name in ("state.json", "dataset_dict.json"))
    try:
        return (
            datasets.load_from_disk(folder)
            if saved
            else datasets.load_dataset(str(folder) if folder.exists() else source)
        )
    except Exception as error:  # from the hub, the file system or Arrow
        raise InputError(
            f"hf:{source} cannot be read as a data set: {first_line(error) or type(error).__name__}"
        ) from error


def _split_of(found: Any, split: str, source: str) -> Table:
    if not isinstance(found, Mapping):
        if split:
            raise InputError(f"hf:{source} has no splits: leave out :{split}")
        return cast("Table", found)
    chosen = split or ("train" if "train" in found else next(iter(found)) if len(found) == 1 else "")
    if chosen not in found:
        raise InputError(
            f"hf:{source} has the splits {', '.join(found)}: name one, such as hf:{source}:{next(iter(found))}"
        )
    return cast("Table", found[chosen])


def parquet_holds_images(path: str) -> bool:
    """Return whether Parquet files have a column of images; False if they cannot be read.

    Raises:
        InputError: If several columns could be the images.
    """
    try:
        import pyarrow.parquet as pq  # noqa: PLC0415  (an extra)

        schema = pq.read_schema(matching_files(path, ".parquet")[0])
    except (ImportError, InputError, OSError, ValueError):  # reported when they are opened
        return False
    return image_column(schema) is not None


def open_parquet_table(path: str) -> Table:
    """Open Parquet files as one table. `datasets` copies it once into its cache for random access.

    Raises:
        InputError: If the package `datasets` is missing, or a file cannot be read.
    """
    datasets = import_extra("datasets", f"parquet:{path}, which has images,", "datasets")
    files = [str(file) for file in matching_files(path, ".parquet")]
    try:
        found: Table = datasets.load_dataset("parquet", data_files=files, split="train")
    except Exception as error:
        raise InputError(f"parquet:{path} cannot be read: {first_line(error) or type(error).__name__}") from error
    return found


def image_column(schema: Any) -> str | None:
    """Return the column of encoded images in an Arrow schema (binary, or a struct with `bytes`), or None if there is none.

    Binary columns beside text, such as hashes, are images only where their name says so.

    Raises:
        InputError: If there are several such columns and none has a usual name.
    """
    found = [field.name for field in schema if _holds_bytes(field.type)]
    named = [name for name in _IMAGE_COLUMNS if name in found]
    if not named and set(schema.names) & set(TEXT_COLUMNS):
        found = [name for name in found if _is_structure(schema.field(name).type)]
    if not named and len(found) > 1:
        raise InputError(f"the columns {', '.join(found)} could each be the images; rename the right one to `image`")
    return named[0] if named else found[0] if found else None


def _is_structure(kind: Any) -> bool:
    import pyarrow as pa  # noqa: PLC0415  (an extra)

    return bool(pa.types.is_struct(kind))


def _holds_bytes(kind: Any) -> bool:
    import pyarrow as pa  # noqa: PLC0415  (an extra)

    if _is_structure(kind):
        return int(kind.get_field_index("bytes")) >= 0
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
