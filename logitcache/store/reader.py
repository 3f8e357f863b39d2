"""Reading a cache: open it (two small files), take a whole view into memory, gather batches from there.

Never look a row up in zarr: a view is decoded once, block by block, and the next one is fetched by one background
thread meanwhile.
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


_OURS = {"labels", "offsets", "digests", "boxes", "seeds"}  # arrays; others at the top are the data's own


class MissingChunkError(CorruptCacheError):
    """A chunk is not there, or nothing says that it was written: what is there may be good."""


class Cache:
    """A finished cache, or one that was opened to be described as far as it goes.

    Attributes:
        place: Where it lies; prints as its path or address.
        manifest: What it is.
        finished: Whether its dump has ended; only `open_cache(unfinished=True)` returns one that has not.
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
        # zarr reads the metadata alone: it would take a missing chunk for zeros.
        memory: dict[str, Buffer] = {"zarr.json": cpu.Buffer.from_bytes(root)}
        self._group = zarr.open_group(MemoryStore(memory), mode="r", use_consolidated=True)
        self._decoders: dict[str, ChunkDecoder] = {}

    @property
    def fingerprint(self) -> str:
        """Digest of what the cache is: manifest without spellings of paths, arrays' metadata, labels, probe; empty while unfinished."""
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
        """Slug of the teacher, where there is one or one was chosen.

        Raises:
            InputError: There are several.
        """
        return self.of(None).teachers[0]

    def of(self, teacher: str | None) -> "Cache":
        """Return the same cache with one of its teachers alone.

        Args:
            teacher: Its slug; None where there is no choice.

        Raises:
            InputError: There are several and none was chosen.
            UnknownNameError: There is no such teacher.
        """
        if teacher is None and len(self.teachers) > 1:
            raise InputError(
                f"{self.place} holds the teachers {', '.join(self.teachers)}: choose one with --cached-teacher "
                "(`logitcache slice --cached-teacher` makes it a cache of its own)"
            )
        if teacher is not None and teacher not in self.teachers:
            raise unknown_name(f"teacher of {self.place}", teacher, self.teachers)
        chosen = copy.copy(self)
        entries = self.manifest.teachers
        chosen.manifest = replace(self.manifest, teachers=tuple(e for e in entries if teacher in (None, e["slug"])))
        return chosen

    @property
    def command(self) -> str | None:
        """The command that made it, spelled for where it is now; None where it was not made from the command line."""
        return last_command(self.place)

    def labels(self) -> NDArray[np.int32]:
        """Class of each row, [R]; where each sample is one row (images), of each sample."""
        return self._whole("labels")

    def offsets(self) -> NDArray[np.int64] | None:
        """Row at which each sample begins, and R at the end, [N + 1]; None where each sample is one row."""
        return None if self.manifest.rows is None else self._whole("offsets")

    def array(self, name: str) -> NDArray[Any]:
        """Return an array of the data that the cache carries (`carried`), [n].

        Raises:
            CorruptCacheError: It is missing or damaged.
        """
        if name not in self._group:
            raise MissingChunkError(f"{self.place}: {name} is missing. Dump the cache again.")
        return self._whole(name)

    def carries(self, name: str) -> bool:
        """Say whether the cache carries an array of its data by this name."""
        return name in self._group

    def carried(self) -> dict[str, tuple[str, NDArray[Any]]]:
        """Return the arrays of its data that the cache carries: name to the name of their axis and their values, [n]; of images none."""
        names = sorted(set(self._group.array_keys()) - _OURS)
        return {name: (_axis(self._array(name)), self._whole(name)) for name in names}

    def kept(self) -> Ids:
        """Return the samples that are not left out, numbered as in the cache, ascending."""
        return np.flatnonzero(self._kept_samples())

    def gone(self) -> Ids:
        """Return the samples that are left out, numbered as in the cache, ascending."""
        return np.flatnonzero(~self._kept_samples())

    def kept_rows(self) -> NDArray[np.bool_]:
        """Return which rows are of samples that are not left out, [R]; where each sample is one row (images), which samples."""
        kept, offsets = self._kept_samples(), self.offsets()
        return kept if offsets is None else np.repeat(kept, np.diff(offsets))

    def _kept_samples(self) -> NDArray[np.bool_]:
        """Return which samples are not left out, [N]."""
        return kept_mask(self.manifest.samples, self.manifest.data["first"], self.manifest.excluded)

    def probe(self, teacher: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return row ids (of view 0), [P], and their exact logits, [P, C]; without those of samples that are left out."""
        rows, exact = self._whole(probe_ids(self.manifest)), self._whole(f"probe/logits/{teacher}")
        if not self.manifest.excluded:
            return rows, exact
        kept = (rows < 0) | (rows >= self.manifest.view_rows)  # reported where the probe is verified
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
        return f"`logitcache verify --repair {self.place}` drops what is damaged; the dump's own command then writes it again."

    def columns(self, teacher: str) -> dict[str, str]:
        """Return the encoding's columns of a teacher: name to key of the array."""
        group = self._group[f"teachers/{teacher}"]
        if not isinstance(group, zarr.Group):
            raise CorruptCacheError(f"{self.place}: teachers/{teacher} is not a group. Dump the cache again.")
        return {name: f"teachers/{teacher}/{name}" for name in sorted(group.array_keys())}

    def digests(self, view: int, blocks: Sequence[int] | None = None) -> NDArray[np.uint64]:
        """Digests of what the teacher was shown for each row of one view, [R], or of some of its blocks, in this order."""
        array, rows = self._array("digests"), self._count(blocks)
        return self._read(view, "digests", blocks, np.empty(rows, array.dtype))

    def shown_of(self, view: int, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Return what says what the teacher was shown for some rows of a view, ascending: `digests`, [B], and arrays of `recorded`."""
        return self._read_rows(view, {name: name for name in ("digests", *recorded_arrays(self.manifest))}, rows)

    def recorded(self, view: int) -> dict[str, NDArray[Any]]:
        """Return how another tool augmented each row of a view, where the cache was imported from one that records it.

        Returns:
            `boxes`, [R, 5] float32: top, left, height and width as shares of the image's height and width, and 1 where mirrored; or
            `seeds`, [R] int32, of the other tool's random numbers. Empty where views are drawn here.
        """
        arrays = {name: self._array(name) for name in recorded_arrays(self.manifest)}
        return {
            name: self._read(view, name, None, np.empty((self.manifest.view_rows, *array.shape[2:]), array.dtype))
            for name, array in arrays.items()
        }

    def rows(self, view: int, teacher: str, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """Read some rows of a view, a block in memory at a time: each column, [B, ...].

        Args:
            view: Index of the view.
            teacher: Slug of the teacher.
            rows: Row ids, ascending, [B].

        Raises:
            CorruptCacheError: A chunk is missing, short or damaged; names the block.
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
        """Return what a row of a teacher is in memory: a field for each column, the widest numbers first, so that no gaps are between."""
        arrays = {name: self._array(key) for name, key in self.columns(teacher).items()}
        widest_first = sorted(arrays.items(), key=lambda item: -item[1].dtype.itemsize)
        return np.dtype([(name, array.dtype, array.shape[2:]) for name, array in widest_first], align=True)

    def view(self, view: int, teacher: str, blocks: Sequence[int] | None = None) -> NDArray[np.void]:
        """Decode one view of one teacher into memory, or some blocks of it, in this order: [R], with a field for each column.

        A row's columns lie beside each other, so that a batch of rows is one gather.

        Raises:
            CorruptCacheError: A chunk is missing, short or damaged; names the block.
        """
        rows = np.empty(self._count(blocks), self.fields(teacher))
        for name, key in self.columns(teacher).items():
            self._read(view, key, blocks, rows[name])
        return rows

    def blocks(self, view: int, teacher: str) -> Iterator[tuple[int, int, dict[str, NDArray[Any]]]]:
        """Yield (first row, one past the last, columns) of one view, a block at a time: for reading in bounded memory."""
        for block in range(self.manifest.blocks):
            first, last = self.manifest.span(block)
            yield first, last, self.block(view, teacher, block)

    def block(self, view: int, teacher: str, block: int) -> dict[str, NDArray[Any]]:
        """Read one block of one view: each column, [B, ...].

        Raises:
            MissingChunkError: It is not there.
            CorruptCacheError: It is damaged.
        """
        columns = {name: self._read_block(view, key, block) for name, key in self.columns(teacher).items()}
        return {name: _copy(rows, np.empty(rows.shape, rows.dtype)) for name, rows in columns.items()}

    def _count(self, blocks: Sequence[int] | None) -> int:
        if blocks is None:
            return self.manifest.view_rows
        return sum(last - first for first, last in map(self.manifest.span, blocks))

    def _read(self, view: int, key: str, blocks: Sequence[int] | None, out: NDArray[Any]) -> NDArray[Any]:
        """Fill `out` with one array's rows of a view."""
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
        """Read one array's rows of a block, [B, ...], not to be written to."""
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
        """Read what the ledger says of a view: once, before several threads read its blocks.

        Raises:
            CorruptCacheError: It is damaged.
        """
        self._records.of(view)


class _ViewRecords:
    """The ledger's records of the views read last. Threads and copies of a cache share it; pickling leaves the records behind."""

    _KEPT = 8  # views; a step uses at most a pair while the next pair is fetched

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._views: OrderedDict[int, dict[int, dict[str, FileRecord]]] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, view: int) -> dict[int, dict[str, FileRecord]]:
        """Return the committed blocks of a view: block number to its files. The ledger is read on the first call."""
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
    """Copy rows; of those that lie rank by rank one rank at a time, three times as fast as numpy's walk along the rows."""
    if rows.ndim == 2 and not rows.flags.c_contiguous:
        for rank in range(rows.shape[1]):
            out[:, rank] = rows[:, rank]
    else:
        out[...] = rows
    return out


def open_cache(path: str | Path | Cache, *, unfinished: bool = False) -> Cache:
    """Open a finished cache for reading; one that is open already is returned.

    Args:
        path: Where it lies.
        unfinished: Whether one whose dump has not finished will do, from its first block on; its blocks may be missing.

    Raises:
        CacheNotFoundError: Nothing is there.
        CacheIncompleteError: Its dump has not finished, or not begun.
        CorruptCacheError: Manifest or completion mark are not what was written.
        FormatVersionError: A newer logitcache wrote it.
    """
    if isinstance(path, Cache):
        return path
    if not isinstance(path, str | Path):
        raise InputError(f"a cache is a path, an address or a Cache, not {type(path).__name__}")
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
            f"{place}/zarr.json (the manifest) is not the one that was written. Restore it from a copy, or dump into another path."
        )
    return Cache(place, manifest, ledger, marked, root, finished=True)


def _axis(array: "zarr.Array") -> str:  # type: ignore[type-arg]
    (name,) = getattr(array.metadata, "dimension_names", None) or (None,)
    return name or array.path


def _written_at_once(root: bytes) -> list[str]:
    """Return the folders of the arrays that are not written in blocks, from the consolidated metadata of the root."""
    every = json.loads(root).get("consolidated_metadata", {}).get("metadata", {})
    return sorted({key.partition("/")[0] for key in every} - {"boxes", "digests", "seeds", "teachers"})


def _with_what_blocks_leave_out(manifest: Manifest, ledger: Ledger) -> Manifest:
    """Add to a manifest what the blocks of an unfinished dump leave out: it is told at the end."""
    excluded = set(manifest.excluded)
    with contextlib.suppress(CorruptCacheError):  # reported where the blocks are read
        excluded |= set(ledger.excluded(len(manifest.views)))
    return replace(manifest, excluded=tuple(sorted(excluded)))


def _unfinished(place: Place, manifest: Manifest | None, ledger: Ledger) -> str:
    command = last_command(place)
    remedy = f"Complete it with:\n  {command}" if command else "Run the command that began it once more."
    verb = next((word for word in ("slice", "merge", "import") if word in (command or "").split()[1:2]), "dump")
    if manifest is None:
        return f"the {verb} of {place} was stopped before its first block. {remedy}"
    done, total = len(list(ledger.committed(len(manifest.views)))), manifest.blocks * len(manifest.views)
    return f"the {verb} of {place} has not finished: {done} of {total} blocks are committed. {remedy}"


def find_newest(folder: str | Path = ".") -> Path:
    """Return the cache of a folder whose dump finished last.

    Raises:
        CacheNotFoundError: The folder has none.
    """
    marks = [path for path in Path(folder).glob("*/.logitcache/complete.json") if path.is_file()]
    if not marks:
        raise CacheNotFoundError(
            f"there is no finished cache in {Path(folder).resolve()}. Name one, or make one with `logitcache dump`."
        )
    return max(marks, key=lambda path: path.stat().st_mtime_ns).parent.parent


Part = tuple[int, tuple[int, ...] | None]  # of a cache: a view, and some of its blocks or all


class ViewStream:
    """Parts of one teacher's answers, one after another: the one in use in memory, the next being read."""

    def __init__(self, cache: Cache, teacher: str) -> None:
        self._cache, self._teacher = cache, teacher
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="logitcache-reader")
        self._pending: tuple[Part, Future[NDArray[np.void]]] | None = None
        self._current: tuple[Part, NDArray[np.void]] | None = None

    def take(self, part: Part, upcoming: Part) -> NDArray[np.void]:
        """Return the rows of a view or of some blocks of it, and begin to read what comes next."""
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
