"""What a cache takes on disk or in a bucket: by array, in all, and a row. The one definition of "bytes a row"."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from logitcache.store.manifest import HOME, Manifest
from logitcache.store.reader import Cache

__all__ = ["DiskUse", "bytes_per_row", "disk_use"]

_METADATA = "metadata"  # of zarr


@dataclass(frozen=True, slots=True)
class DiskUse:
    """Size of a cache as it lies there.

    Attributes:
        by_array: Bytes of each array, of all teachers; under `metadata` those that zarr keeps, under `.logitcache` our own files.
        total: Their sum.
        blocks: Blocks of which every chunk is there, over all views.
        rows: Rows of these blocks.
        per_row: Bytes a row, as `bytes_per_row` defines it.
    """

    by_array: dict[str, int]
    total: int
    blocks: int
    rows: int
    per_row: float

    def payload(self, teacher: str) -> float:
        """Return the part of `per_row` that the columns of a teacher's rows take."""
        columns = sum(size for name, size in self.by_array.items() if name.startswith(f"teachers/{teacher}/"))
        return columns / self.rows if self.rows else 0.0


def disk_use(cache: Cache) -> DiskUse:
    """List the files of a cache, and add up their sizes; no file is opened.

    Args:
        cache: The cache, finished or not; narrowed to one of its teachers, the arrays of the others do not count for a row.

    Raises:
        LogitCacheError: Its folder or bucket cannot be listed.
    """
    files = cache.place.sizes()
    by_array: Counter[str] = Counter()
    for name, size in files.items():
        array, _, chunk = name.partition("/c/")
        by_array[HOME if name.startswith(f"{HOME}/") else array if chunk else _METADATA] += size
    there = _blocks_there(cache.manifest, files)
    rows = sum(last - first for first, last in (cache.manifest.span(block) for _, block in there))
    per_row = bytes_per_row(by_array, rows, cache.teachers)
    return DiskUse(dict(by_array), sum(files.values()), len(there), rows, per_row)


def bytes_per_row(by_array: Mapping[str, int], rows: int, teachers: Collection[str]) -> float:
    """Return the bytes a row takes in storage, a row being one sample in one view (of text, one target token in one view).

    All files of the cache count: logits as they are encoded and compressed, digests, labels, probe, metadata, and of text the tokens. Where
    one of several teachers is looked at, the arrays of the others do not.

    Args:
        by_array: Bytes by array.
        rows: Rows that are there, over all views; 0 gives 0.
        teachers: Slugs of the teachers that are looked at.
    """
    of_others = sum(size for name, size in by_array.items() if _teacher_of(name) not in ("", *teachers))
    return (sum(by_array.values()) - of_others) / rows if rows else 0.0


def _teacher_of(array: str) -> str:
    """Return the slug of the teacher that an array belongs to; empty if it belongs to all."""
    for above in ("teachers/", "probe/logits/"):
        if array.startswith(above):
            return array.removeprefix(above).partition("/")[0]
    return ""


def _blocks_there(manifest: Manifest, files: Collection[str]) -> set[tuple[int, int]]:
    """Return the blocks, (view, block), of which every array has its chunk."""
    found: dict[str, set[tuple[int, int]]] = defaultdict(set)
    slugs = {teacher["slug"] for teacher in manifest.teachers}
    for name in files:
        array, _, chunk = name.partition("/c/")
        if chunk and (array == "digests" or (array.startswith("teachers/") and _teacher_of(array) in slugs)):
            view, block = map(int, chunk.split("/")[:2])
            found[array].add((view, block))
    every = {(view, block) for view in range(len(manifest.views)) for block in range(manifest.blocks)}
    return every.intersection(*found.values()) if found else set()
