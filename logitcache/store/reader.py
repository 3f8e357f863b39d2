"""Read a cache: open it (two small files), decode a whole view into memory, and gather batches from there.

Rows are never looked up in zarr one by one. A view is decoded once, block by block, while a background thread prefetches the next one.
"""

import contextlib
import copy
import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import Buffer, cpu
from zarr.storage import MemoryStore

from logitcache.errors import CacheIncompleteError, CacheNotFoundError, CorruptCacheError, InputError, unknown_name
from logitcache.runtime.files import FileRecord, describe, digest_bytes
from logitcache.store.layout import ChunkDecoder, probe_ids, read_whole, recorded_arrays
from logitcache.store.ledger import Ledger, last_command
from logitcache.store.manifest import Manifest, SomethingElseError, read_manifest
from logitcache.store.offsets import Ids, kept_mask, samples_of
from logitcache.store.places import Place, open_place

__all__ = ["Cache", "MissingChunkError", "ViewStream", "find_newest", "open_cache"]


_OF_EVERY_CACHE = {"labels", "offsets", "digests", "boxes", "seeds"}  # other top-level arrays are copied from the data


class MissingChunkError(CorruptCacheError):
    """A chunk is missing, or has no ledger record."""


class Cache:
    """A finished cache, or an unfinished one opened with `open_cache(unfinished=True)`.

    Attributes:
        place: Storage of the cache; `str(place)` is its path or address.
        manifest: Manifest of the cache.
        finished: Whether the dump has finished.
    """

    def __init__(
        self,
        place: Place,
        manifest: Manifest,
        ledger: Ledger,
        marked: dict[str, FileRecord],
        root: bytes,
        *,
        finished: bool,
    ) -> None:
        self.place, self.manifest, self._marked = place, manifest, marked
        self._records = _ViewRecords(ledger)
        self.finished = finished
        self._identity = manifest.identity()
        # zarr reads only the metadata, because it would read a missing chunk as zeros.
        memory: dict[str, Buffer] = {"zarr.json": cpu.Buffer.from_bytes(root)}
        self._group = zarr.open_group(MemoryStore(memory), mode="r", use_consolidated=True)
        self._decoders: dict[str, ChunkDecoder] = {}

    @property
    def fingerprint(self) -> str:
        """Digest of the manifest (without paths as typed), array metadata, labels and probe; empty if the cache is unfinished."""
        if not self.finished:
            return ""
        files = {name: record for name, record in self._marked.items() if name != "zarr.json"}
        return digest_bytes(json.dumps([self._identity, files], sort_keys=True).encode())[:16]

    @property
    def teachers(self) -> list[str]:
        """Slugs of the teachers."""
        return [teacher["slug"] for teacher in self.manifest.teachers]

    @property
    def teacher(self) -> str:
        """Slug of the teacher, if there is only one or one was selected by `of`.

        Raises:
            InputError: If there are several.
        """
        return self.of(None).teachers[0]

    def of(self, teacher: str | None) -> "Cache":
        """Return the cache restricted to one of its teachers.

        Args:
            teacher: Slug of the teacher; may be None if there is only one.

        Raises:
            InputError: If there are several teachers and `teacher` is None.
            UnknownNameError: If there is no such teacher.
        """
        if teacher is None and len(self.teachers) > 1:
            raise InputError(
                f"{self.place} holds several teachers ({', '.join(self.teachers)}); choose one with --cached-teacher "
                "(`logitcache slice --cached-teacher` writes it to a separate cache)"
            )
        if teacher is not None and teacher not in self.teachers:
            raise unknown_name(f"teacher of {self.place}", teacher, self.teachers)
        chosen = copy.copy(self)
        entries = self.manifest.teachers
        chosen.manifest = replace(self.manifest, teachers=tuple(e for e in entries if teacher in (None, e["slug"])))
        return chosen

    @property
    def command(self) -> str | None:
        """Command that made the cache, with its current path, or None if it was not made from the command line."""
        return last_command(self.place)

    def labels(self) -> NDArray[np.int32]:
        """Return the class of each row, [R] (for images, of each sample)."""
        return self._whole("labels")

    def offsets(self) -> NDArray[np.int64] | None:
        """Return the first row of each sample, followed by R, [N + 1], or None if each sample is one row."""
        return None if self.manifest.rows is None else self._whole("offsets")

    def array(self, name: str) -> NDArray[Any]:
        """Return an array copied from the data (see `carried`), [n].

        Raises:
            CorruptCacheError: If it is missing or damaged.
        """
        if name not in self._group:
            raise MissingChunkError(f"{self.place}: {name} is missing. Dump the cache again.")
        return self._whole(name)

    def carries(self, name: str) -> bool:
        """Return whether the cache has an array of this name, copied from the data."""
        return name in self._group

    def carried(self) -> dict[str, tuple[str, NDArray[Any]]]:
        """Return the arrays copied from the data, name -> (axis name, values [n]); none for images."""
        names = sorted(set(self._group.array_keys()) - _OF_EVERY_CACHE)
        return {name: (_axis(self._array(name)), self._whole(name)) for name in names}

    def kept(self) -> Ids:
        """Return the samples that are not excluded, numbered as in the cache, ascending."""
        return np.flatnonzero(self._kept_samples())

    def gone(self) -> Ids:
        """Return the excluded samples, numbered as in the cache, ascending."""
        return np.flatnonzero(~self._kept_samples())

    def kept_rows(self) -> NDArray[np.bool_]:
        """Return which rows belong to samples that are not excluded, [R] bool."""
        kept, offsets = self._kept_samples(), self.offsets()
        return kept if offsets is None else np.repeat(kept, np.diff(offsets))

    def _kept_samples(self) -> NDArray[np.bool_]:
        """Return which samples are not excluded, [N] bool."""
        return kept_mask(self.manifest.samples, self.manifest.data["first"], self.manifest.excluded)

    def probe(self, teacher: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the probe's row ids (in view 0), [P], and their exact logits, [P, C], without excluded samples."""
        rows, exact = self._whole(probe_ids(self.manifest)), self._whole(f"probe/logits/{teacher}")
        if not self.manifest.excluded:
            return rows, exact
        kept = (rows < 0) | (rows >= self.manifest.view_rows)  # invalid ids are reported by `verify`
        kept[~kept] = self._kept_samples()[samples_of(self.offsets(), rows[~kept])]
        return rows[kept], exact[kept]

    def _whole(self, key: str) -> NDArray[Any]:
        where = f"{self.place}: {key}"

        def read(name: str) -> bytes:
            if name not in self._marked:
                raise MissingChunkError(f"{where} is missing. {self._remedy}")
            return self._complete(name, self._marked[name]["bytes"], where)

        try:
            return read_whole(self._array(key), read)
        except (ValueError, RuntimeError) as error:
            raise CorruptCacheError(f"{where} is damaged ({error}). {self._remedy}") from error

    def _complete(self, name: str, expected: int, where: str) -> bytes:
        try:
            data = self.place.read(name)
        except FileNotFoundError:
            raise MissingChunkError(
                f"{where} is missing: {name} should have {expected:,} bytes. {self._remedy}"
            ) from None
        if len(data) != expected:
            raise CorruptCacheError(f"{where} has {len(data):,} bytes instead of {expected:,}. {self._remedy}")
        return data

    def _array(self, key: str) -> "zarr.Array":  # type: ignore[type-arg]
        array = self._group[key]
        if not isinstance(array, zarr.Array):
            raise CorruptCacheError(f"{self.place}: {key} is not an array. Dump the cache again.")
        return array

    @property
    def _remedy(self) -> str:
        return f"`logitcache verify --repair {self.place}` drops damaged blocks; the dump's own command then writes them again."

    def columns(self, teacher: str) -> dict[str, str]:
        """Return the array keys of a teacher's columns, by column name."""
        group = self._group[f"teachers/{teacher}"]
        if not isinstance(group, zarr.Group):
            raise CorruptCacheError(f"{self.place}: teachers/{teacher} is not a group. Dump the cache again.")
        return {name: f"teachers/{teacher}/{name}" for name in sorted(group.array_keys())}

    def digests(self, view: int, blocks: Sequence[int] | None = None) -> NDArray[np.uint64]:
        """Return the digest of the teacher's input for each row of a view, [R], or of some of its blocks, in the given order."""
        array, rows = self._array("digests"), self._count(blocks)
        return self._read(view, "digests", blocks, np.empty(rows, array.dtype))

    def shown_of(self, view: int, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return the input digests of some rows of a view, `digests` [B], and the arrays of `recorded`; `rows` must be ascending."""
        return self._read_rows(view, {name: name for name in ("digests", *recorded_arrays(self.manifest))}, rows)

    def recorded(self, view: int) -> dict[str, NDArray[Any]]:
        """Return how another tool augmented each row of a view, if the cache was imported from one that records it.

        Returns:
            `boxes`, [R, 5] float32: top, left, height and width as fractions of the image's height and width, and 1 if flipped; or
            `seeds`, [R] int32, of the other tool's random numbers. Empty for views produced by logitcache.
        """
        arrays = {name: self._array(name) for name in recorded_arrays(self.manifest)}
        return {
            name: self._read(view, name, None, np.empty((self.manifest.view_rows, *array.shape[2:]), array.dtype))
            for name, array in arrays.items()
        }

    def rows(self, view: int, teacher: str, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Read some rows of a view, one block at a time, and return each column, [B, ...].

        Args:
            view: Index of the view.
            teacher: Slug of the teacher.
            rows: Row ids, ascending, [B].

        Raises:
            CorruptCacheError: If a chunk is missing, truncated or damaged; the message names the block.
        """
        return self._read_rows(view, self.columns(teacher), rows)

    def _read_rows(self, view: int, keys: Mapping[str, str], rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        found: dict[str, list[NDArray[Any]]] = {name: [] for name in keys}
        self.read_records(view)
        with ThreadPoolExecutor(self.place.at_once) as executor:
            for block in np.unique(rows // self.manifest.block_rows).tolist():
                first, last = self.manifest.span(block)
                here = rows[(rows >= first) & (rows < last)] - first
                columns = executor.map(lambda key, block=block: self._read_block(view, key, block), keys.values())
                for name, column in zip(keys, columns, strict=True):
                    found[name].append(column[here])
        return {name: np.concatenate(parts) for name, parts in found.items()}

    def fields(self, teacher: str) -> np.dtype[np.void]:
        """Return the structured dtype of a teacher's rows, with a field per column, widest dtype first to avoid padding."""
        arrays = {name: self._array(key) for name, key in self.columns(teacher).items()}
        widest_first = sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize)
        return np.dtype([(name, array.dtype, array.shape[2:]) for name, array in widest_first], align=True)

    def view(self, view: int, teacher: str, blocks: Sequence[int] | None = None) -> NDArray[np.void]:
        """Decode a view of one teacher into memory, or some of its blocks in the given order, [R] with a field per column.

        The columns of a row are adjacent in memory, so a batch of rows is a single gather.

        Raises:
            CorruptCacheError: If a chunk is missing, truncated or damaged; the message names the block.
        """
        rows = np.empty(self._count(blocks), self.fields(teacher))
        for name, key in self.columns(teacher).items():
            self._read(view, key, blocks, rows[name])
        return rows

    def blocks(self, view: int, teacher: str) -> Iterator[tuple[int, int, dict[str, NDArray[Any]]]]:
        """Yield (first row, one past the last row, columns) for each block of a view, to read it in bounded memory."""
        for block in range(self.manifest.blocks):
            first, last = self.manifest.span(block)
            yield first, last, self.block(view, teacher, block)

    def block(self, view: int, teacher: str, block: int) -> dict[str, NDArray[Any]]:
        """Read one block of a view and return each column, [B, ...].

        Raises:
            MissingChunkError: If the block is missing.
            CorruptCacheError: If the block is damaged.
        """
        columns = {name: self._read_block(view, key, block) for name, key in self.columns(teacher).items()}
        return {name: _copy(rows, np.empty(rows.shape, rows.dtype)) for name, rows in columns.items()}

    def _count(self, blocks: Sequence[int] | None) -> int:
        if blocks is None:
            return self.manifest.view_rows
        return sum(last - first for first, last in map(self.manifest.span, blocks))

    def _read(self, view: int, key: str, blocks: Sequence[int] | None, out: NDArray[Any]) -> NDArray[Any]:
        """Read one array's rows of a view into `out`."""
        chosen = range(self.manifest.blocks) if blocks is None else blocks
        self.read_records(view)
        ends = np.cumsum([last - first for first, last in map(self.manifest.span, chosen)])

        def take(block: int, end: int) -> None:
            rows = self._read_block(view, key, block)
            _copy(rows, out[end - len(rows) : end])

        with ThreadPoolExecutor(self.place.at_once) as executor:
            for _ in executor.map(take, chosen, ends.tolist()):
                pass
        return out

    def _read_block(self, view: int, key: str, block: int) -> NDArray[Any]:
        """Return one array's rows of a block, [B, ...], read-only."""
        first, last = self.manifest.span(block)
        where = f"{self.place}: {key}, view {view}, block {block} ({self.manifest.row_axis}s {first} to {last - 1})"
        records = self._records.of(view)
        prefix = f"{key}/c/{view}/{block}"
        name = next((name for name in records.get(block, {}) if name == prefix or name.startswith(f"{prefix}/")), None)
        if name is None:
            raise MissingChunkError(f"{where} has no record in the ledger. {self._remedy}")
        data = self._complete(name, records[block][name]["bytes"], where)
        if key not in self._decoders:
            self._decoders[key] = ChunkDecoder(self._array(key))
        try:
            return self._decoders[key](data)[0, : last - first]
        except (ValueError, RuntimeError) as error:
            raise CorruptCacheError(f"{where} is damaged: {error}. {self._remedy}") from error

    def read_records(self, view: int) -> None:
        """Read a view's ledger records once, before several threads read its blocks.

        Raises:
            CorruptCacheError: If the ledger is damaged.
        """
        self._records.of(view)


class _ViewRecords:
    """Ledger records of the views read last. Shared by threads and copies of a cache; pickling drops the records."""

    _KEPT = 8  # views; a step uses at most a pair while the next pair is prefetched

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._views: OrderedDict[int, dict[int, dict[str, FileRecord]]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, view: int) -> dict[int, dict[str, FileRecord]]:
        """Return the files of a view's committed blocks, by block number. Reads the ledger on the first call."""
        with self._lock:
            if view not in self._views:
                self._views[view] = self._ledger.view(view)
                while len(self._views) > self._KEPT:
                    self._views.popitem(last=False)
            self._views.move_to_end(view)
            return self._views[view]

    def __reduce__(self) -> "tuple[type[_ViewRecords], tuple[Ledger]]":
        return _ViewRecords, (self._ledger,)


def _copy(rows: NDArray[Any], out: NDArray[Any]) -> NDArray[Any]:
    """Copy rows, one column at a time if they are column-major, which is three times as fast as numpy's copy."""
    if rows.ndim == 2 and not rows.flags.c_contiguous:
        for rank in range(rows.shape[1]):
            out[:, rank] = rows[:, rank]
    else:
        out[...] = rows
    return out


def open_cache(path: str | Path | Cache, *, unfinished: bool = False) -> Cache:
    """Open a finished cache for reading, or return it if it is already open.

    Args:
        path: Path or address of the cache, or an open cache.
        unfinished: Whether to accept a cache whose dump has not finished, as soon as it has its first block. Blocks may be missing.

    Raises:
        CacheNotFoundError: If there is no cache at this path.
        CacheIncompleteError: If the dump has not finished or not started.
        CorruptCacheError: If the manifest or completion mark is damaged.
        FormatVersionError: If a newer logitcache wrote the cache.
    """
    if isinstance(path, Cache):
        return path
    if not isinstance(path, str | Path):
        raise InputError(f"a cache must be a path, an address or a Cache, not {type(path).__name__}")
    place = open_place(path)
    try:
        manifest = read_manifest(place)
    except SomethingElseError as error:
        raise CacheNotFoundError(
            f"{place} is not a logit cache (no manifest in {place}/zarr.json). Check the path."
        ) from error
    if manifest is None and place.is_empty():
        raise CacheNotFoundError(
            f"there is no cache at {place}. Check the path, or make one with `logitcache dump --out {place}`."
        )
    ledger = Ledger(place)
    marked = ledger.marked()
    if manifest is None or (marked is None and not unfinished):
        raise CacheIncompleteError(_unfinished(place, manifest, ledger))
    root = place.read("zarr.json")
    if marked is None:
        manifest = _with_what_blocks_leave_out(manifest, ledger)
        there = {name: {"bytes": size} for key in _written_at_once(root) for name, size in place.sizes(key).items()}
        return Cache(place, manifest, ledger, there, root, finished=False)
    if marked.get("zarr.json") != describe(root):
        raise CorruptCacheError(
            f"{place}/zarr.json (the manifest) has been modified. Restore it from a copy, or dump into another path."
        )
    return Cache(place, manifest, ledger, marked, root, finished=True)


def _axis(array: "zarr.Array") -> str:  # type: ignore[type-arg]
    (name,) = getattr(array.metadata, "dimension_names", None) or (None,)
    return name or array.path


def _written_at_once(root: bytes) -> list[str]:
    """Return the folders of arrays that are written at once, from the consolidated metadata of the root."""
    every = json.loads(root).get("consolidated_metadata", {}).get("metadata", {})
    return sorted({key.partition("/")[0] for key in every} - {"boxes", "digests", "seeds", "teachers"})


def _with_what_blocks_leave_out(manifest: Manifest, ledger: Ledger) -> Manifest:
    """Add the samples excluded by the blocks of an unfinished dump, whose manifest is only updated at the end."""
    excluded = set(manifest.excluded)
    with contextlib.suppress(CorruptCacheError):  # reported when the blocks are read
        excluded |= set(ledger.excluded(len(manifest.views)))
    return replace(manifest, excluded=tuple(sorted(excluded)))


def _unfinished(place: Place, manifest: Manifest | None, ledger: Ledger) -> str:
    command = last_command(place)
    remedy = f"Complete it with:\n  {command}" if command else "Run the command that started it again."
    verb = next((word for word in ("slice", "merge", "import") if word in (command or "").split()[1:2]), "dump")
    if manifest is None:
        return f"the {verb} of {place} was stopped before its first block. {remedy}"
    done, total = len(list(ledger.committed(len(manifest.views)))), manifest.blocks * len(manifest.views)
    return f"the {verb} of {place} has not finished: {done} of {total} blocks are committed. {remedy}"


def find_newest(folder: str | Path = ".") -> Path:
    """Return the most recently finished cache in a folder.

    Raises:
        CacheNotFoundError: If the folder has none.
    """
    marks = [path for path in Path(folder).glob("*/.logitcache/complete.json") if path.is_file()]
    if not marks:
        raise CacheNotFoundError(
            f"there is no finished cache in {Path(folder).resolve()}. Name one, or make one with `logitcache dump`."
        )
    return max(marks, key=lambda path: path.stat().st_mtime_ns).parent.parent


Part = tuple[int, tuple[int, ...] | None]  # part of a cache: a view, and some of its blocks or None for all


class ViewStream:
    """Stream the views of one teacher, or parts of them: keeps the current part in memory and prefetches the next."""

    def __init__(self, cache: Cache, teacher: str) -> None:
        self._cache, self._teacher = cache, teacher
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="logitcache-reader")
        self._pending: tuple[Part, Future[NDArray[np.void]]] | None = None
        self._current: tuple[Part, NDArray[np.void]] | None = None

    def take(self, part: Part, upcoming: Part) -> NDArray[np.void]:
        """Return the rows of a part, and start to prefetch the upcoming one."""
        if self._current is None or self._current[0] != part:
            pending, self._pending, self._current = self._pending, None, None
            fetched = pending[1].result() if pending and pending[0] == part else self._read(part)
            self._current = (part, fetched)
        if upcoming != part:
            self._pending = (upcoming, self._executor.submit(self._read, upcoming))
        return self._current[1]

    def _read(self, part: Part) -> NDArray[np.void]:
        return self._cache.view(part[0], self._teacher, part[1])

    def close(self) -> None:
        """End the background thread."""
        self._executor.shutdown(wait=True, cancel_futures=True)
