"""Size of a cache in storage: by array, in total, and per row. This is the only definition of "bytes per row"."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from logitcache.store.manifest import HOME, Manifest
from logitcache.store.reader import Cache

__all__ = ["DiskUse", "bytes_per_row", "disk_use"]

_METADATA = "metadata"  # of zarr


@dataclass(frozen=True, slots=True)
class DiskUse:
    """Size of a cache in storage.

    Attributes:
        by_array: Bytes of each array, for all teachers; zarr metadata is under `metadata`, and logitcache's files under `.logitcache`.
        total: Sum of these bytes.
        blocks: Number of complete blocks, over all views.
        rows: Number of rows in these blocks.
        per_row: Bytes per row, as defined by `bytes_per_row`.
    """

    by_array: dict[str, int]
    total: int
    blocks: int
    rows: int
    per_row: float

    def payload(self, teacher: str) -> float:
        """Return the bytes per row of the encoded columns of a teacher."""
        columns = sum(size for name, size in self.by_array.items() if name.startswith(f"teachers/{teacher}/"))
        return columns / self.rows if self.rows else 0.0


def disk_use(cache: Cache) -> DiskUse:
    """Return the size of a cache from a listing of its files, without opening them.

    Args:
        cache: Cache, finished or not. If it is limited to one of its teachers, the arrays of the others do not count per row.

    Raises:
        LogitCacheError: If the folder or bucket cannot be listed.
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
    """Return the bytes per row in storage. A row is one sample in one view or, for text, one target token in one view.

    All files count: encoded and compressed logits, digests, labels, the probe, metadata and, for text, the tokens. Arrays of teachers that
    are not in `teachers` do not count.

    Args:
        by_array: Bytes of each array.
        rows: Number of stored rows over all views; for 0 the result is 0.
        teachers: Slugs of the teachers to include.
    """
    of_others = sum(size for name, size in by_array.items() if _teacher_of(name) not in ("", *teachers))
    return (sum(by_array.values()) - of_others) / rows if rows else 0.0


def _teacher_of(array: str) -> str:
    """Return the slug of the teacher that an array belongs to, or an empty string if it belongs to all."""
    for above in ("teachers/", "probe/logits/"):
        if array.startswith(above):
            return array.removeprefix(above).partition("/")[0]
    return ""


def _blocks_there(manifest: Manifest, files: Collection[str]) -> set[tuple[int, int]]:
    """Return the blocks, (view, block), for which every array has its chunk."""
    found: dict[str, set[tuple[int, int]]] = defaultdict(set)
    slugs = {teacher["slug"] for teacher in manifest.teachers}
    for name in files:
        array, _, chunk = name.partition("/c/")
        if chunk and (array == "digests" or (array.startswith("teachers/") and _teacher_of(array) in slugs)):
            view, block = map(int, chunk.split("/")[:2])
            found[array].add((view, block))
    every = {(view, block) for view in range(len(manifest.views)) for block in range(manifest.blocks)}
    return every.intersection(*found.values()) if found else set()
