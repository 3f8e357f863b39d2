"""Write a cache block by block, each committed after its files are on disk, and resume where a killed dump stopped.

Chunk encoding, checksums and fsync run on background threads, for at most six blocks at a time. Their errors are raised by the next
call.
"""

import socket
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import CacheIncompleteError, CacheMismatchError, LogitCacheError
from logitcache.runtime.files import describe, tally
from logitcache.runtime.wording import counted
from logitcache.store.decode import total_variation
from logitcache.store.layout import (
    ArraySpec,
    Carried,
    ChunkEncoder,
    Column,
    cache_arrays,
    chunk_key,
    metadata_files,
    probe_ids,
    read_array,
    row_arrays,
    whole_array_files,
    with_stored_names,
)
from logitcache.store.ledger import BlockRecord, Ledger, history
from logitcache.store.manifest import HOME, Manifest, read_manifest
from logitcache.store.offsets import kept_mask, samples_of
from logitcache.store.places import Hold, Place, open_place

__all__ = ["CacheWriter", "Columns", "refuse_derived", "refuse_other_cache"]

Columns = Mapping[str, Mapping[str, Column]]  # teacher slug -> column name -> column
_AT_ONCE = 6  # blocks in flight between the teacher and the disk: some are encoded while others are synced


class CacheWriter:
    """Writer of a cache. Use it as a context manager, so that its lock is released and its threads end.

    Attributes:
        place: Storage of the cache.
        manifest: Manifest of the cache.
        command: Command that would resume it.
        committed: Committed blocks, (view, block), each with the ids of the samples it excludes.
        finished: Whether the cache was already finished, with the same views and exclusions, when its leader opened it.
    """

    def __init__(
        self,
        path: str | Path,
        manifest: Manifest,
        columns: Columns,
        labels: NDArray[np.integer[Any]],
        offsets: NDArray[np.int64] | None = None,
        *,
        command: str,
        leads: bool = True,
        notes: Mapping[str, Any] | None = None,
        carried: Carried | None = None,
        anonymous: bool = False,
    ) -> None:
        """Create a cache, or resume one with the same identity.

        Args:
            path: Folder or address (`s3://bucket/c.zarr`) of the cache.
            manifest: Manifest of the cache.
            columns: Columns of the encoding, by teacher slug.
            labels: Class of each row, [R].
            offsets: First row of each sample, followed by R, [N + 1], or None if each sample is one row.
            command: Command that would resume this dump, shown if it is found unfinished.
            notes: Further entries for the history.
            leads: Whether this process begins and finishes the cache. If several processes write a cache, exactly one of them leads and
                holds the lock for all.
            carried: Arrays copied from the data, name -> (axis name, values [n]).
            anonymous: Whether to leave host and command out of the history.

        Raises:
            CacheMismatchError: If the path holds a different cache, or one that was started without `anonymous`.
            InputError: If the path holds something else, or if another dump is writing it.
        """
        self.place, self.manifest, self.command = open_place(path), manifest, command
        refuse_other_cache(self.place, manifest)
        self._ledger = Ledger(self.place)
        self._hold: Hold = self.place.hold(f"{HOME}/lock") if leads else _HeldByTheLeader()
        self._rows = row_arrays(manifest, columns)
        self._labels, self._offsets, self._carried = labels, offsets, carried or {}
        self._executor = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="logitcache-writer")
        self._pending: deque[Future[int]] = deque()
        self._encoders = {key: ChunkEncoder(spec) for key, spec in self._rows.items()}
        self.committed: dict[tuple[int, int], tuple[int, ...]] = {}
        self.finished = False
        self._root: bytes | None = None  # root metadata of a cache that is resumed
        if not leads:
            return
        try:
            refuse_other_cache(self.place, manifest)  # another dump may have started or finished it meanwhile
            self._ledger.forget_damaged()
            now = datetime.now(UTC).isoformat(timespec="seconds")
            who = {} if anonymous else {"host": socket.gethostname(), "command": command}
            if anonymous and any("host" in entry for entry in history(self.place)):
                raise CacheMismatchError(
                    f"{self.place} was begun without --anonymous, and its history names the host. Choose another --out."
                )
            self.place.append(f"{HOME}/history.jsonl", {"event": "dump", "time": now, **who, **(notes or {})})
            self.committed = self._trusted()
            self.finished = self._is_whole()
            if self.finished:
                self._ledger.forget_records()  # left by a kill after the completion mark
        except BaseException:
            self._hold.close()
            raise

    def _trusted(self) -> dict[tuple[int, int], tuple[int, ...]]:
        """Return the blocks whose record exists and whose files have the recorded size."""
        sizes = self.place.sizes()
        return {
            (view, block): record.excluded
            for view in range(len(self.manifest.views))
            for block, record in self._ledger.records(view).items()
            if all(sizes.get(name) == file["bytes"] for name, file in record.files.items())
        }

    def _is_whole(self) -> bool:
        found = read_manifest(self.place)
        same = found is not None and not found.differences(self.manifest) and found.excluded == self.manifest.excluded
        return same and self._ledger.marked() is not None and not self.missing()

    def missing(self) -> list[tuple[int, int]]:
        """Return the blocks still to be written, (view, block), in order."""
        everything = ((v, b) for v in range(len(self.manifest.views)) for b in range(self.manifest.blocks))
        return [key for key in everything if key not in self.committed]

    def read_committed(self) -> None:
        """Update `committed` with the blocks of all processes."""
        self.drain()
        self.committed = self._trusted()

    def take_back(self, blocks: Iterable[tuple[int, int]]) -> None:
        """Drop committed blocks, (view, block), so that they are written again. The cache is unfinished afterwards."""
        by_view: dict[int, set[int]] = {}
        for view, block in blocks:
            by_view.setdefault(view, set()).add(block)
            self.committed.pop((view, block), None)
        self._hold.check()
        self._ledger.unmark()
        for view, bad in by_view.items():
            self._ledger.drop(view, bad)
        self.finished = False

    def leave_out(self, excluded: Sequence[int]) -> None:
        """Set the excluded samples (ids in the data set, ascending). Call it before `begin`, or before `finish`."""
        self.manifest = replace(self.manifest, excluded=tuple(excluded))

    def begin(
        self,
        probe_rows: NDArray[np.int64],
        probe: Mapping[str, NDArray[np.float32]],
        changed: NDArray[np.bool_] | None = None,
        *,
        allow_mixed: bool = False,
        tolerance: float = 0.0,
    ) -> None:
        """Write metadata, labels and probe unless they already exist.

        Args:
            probe_rows: Row ids of the probe in view 0, [P].
            probe: Probe logits by teacher slug, [P, C] float32; rows of excluded samples are ignored.
            changed: Probe rows that may differ from an earlier start because samples were excluded, [P] bool. None for none.
            allow_mixed: Whether to continue if the logits are not bit for bit those of an earlier start.
            tolerance: Mean total variation from an earlier start that is accepted for rows from a server.

        Raises:
            CacheMismatchError: If the teacher computes different bits than when the dump was started.
        """
        begun = self.place.size("zarr.json") is not None
        self._root = self.place.read("zarr.json") if begun else None
        specs = self._specs(len(probe_rows))
        same = self._kept(probe_rows) if changed is None else ~changed
        probe = {
            slug: self._agreed(
                slug,
                values,
                self._stored_probe(specs[f"probe/logits/{slug}"]) if self.committed else None,
                same,
                allow_mixed=allow_mixed,
                tolerance=tolerance,
            )
            for slug, values in probe.items()
        }
        self._probe = (probe_rows, probe)
        self._describe()
        # The metadata of a cache with fewer views stays until the new views are written.
        if not begun:
            self._write_changed(self._metadata)
        self._write_changed(self._whole_files)

    def _kept(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which rows belong to samples that are not excluded, [P] bool."""
        manifest = self.manifest
        return kept_mask(manifest.samples, manifest.data["first"], manifest.excluded)[samples_of(self._offsets, rows)]

    def _specs(self, probe_rows: int) -> dict[str, ArraySpec]:
        """Return the arrays of the cache; a resumed cache keeps the names of its axes."""
        specs = cache_arrays(self.manifest, self._rows, probe_rows, self._carried)
        return specs if self._root is None else with_stored_names(specs, self._root)

    def _describe(self) -> None:
        """Encode the files of metadata, labels, offsets, probe and carried arrays; the probe is 0 for excluded samples."""
        rows, probe = self._probe
        specs, kept = self._specs(len(rows)), self._kept(rows)
        whole: list[tuple[str, NDArray[np.generic]]] = [("labels", self._labels), (probe_ids(self.manifest), rows)]
        whole += [] if self._offsets is None else [("offsets", self._offsets)]
        whole += [(name, values) for name, (_, values) in self._carried.items()]
        whole += [
            (f"probe/logits/{slug}", values if kept.all() else np.where(kept[:, None], values, np.float32(0)))
            for slug, values in probe.items()
        ]
        self._whole_files = {
            name: data for key, values in whole for name, data in whole_array_files(specs[key], values).items()
        }
        self._metadata, self._described = metadata_files(self.manifest, specs), self.manifest

    def follow(
        self,
        probe: Mapping[str, NDArray[np.float32]],
        changed: NDArray[np.bool_],
        *,
        allow_mixed: bool = False,
        tolerance: float = 0.0,
    ) -> None:
        """Compare the teachers' probe logits with those of the leader, which has started the cache (see `begin`).

        Raises:
            CacheMismatchError: If a teacher computes different bits here.
        """
        for slug, values in probe.items():
            spec = cache_arrays(self.manifest, self._rows, len(values))[f"probe/logits/{slug}"]
            stored = self._stored_probe(spec)
            if stored is None:
                raise CacheMismatchError(
                    f"{self.place}: the probe written by process 0 is not visible here. All processes must write to the same path."
                )
            self._agreed(slug, values, stored, ~changed, allow_mixed=allow_mixed, tolerance=tolerance)

    def _agreed(
        self,
        slug: str,
        values: NDArray[np.float32],
        stored: NDArray[np.float32] | None,
        same: NDArray[np.bool_],
        *,
        allow_mixed: bool,
        tolerance: float,
    ) -> NDArray[np.float32]:
        """Check the probe against the stored one, if any, and return the probe to keep."""
        if stored is None or np.array_equal(stored[same], values[same]):
            return values
        if tolerance and not allow_mixed:
            if (found := total_variation(stored[same], values[same])) > tolerance:
                raise CacheMismatchError(
                    f"{self.place}: teacher {slug} returns other probabilities than when the dump was started: their mean total variation "
                    f"is {found:.2g} over {len(values)} probe rows (up to {tolerance:g} comes from batching and rounding). "
                    "Serve the same model, or choose another --out."
                )
            return np.where(same[:, None], stored, values)
        if not allow_mixed:
            raise CacheMismatchError(
                f"{self.place}: teacher {slug} computes other logits on this machine than where the dump was started (largest "
                f"gap {np.abs(stored - values)[same].max():.2g} over {len(values)} probe rows), although weights and versions are "
                "the same: the processor differs, or the teacher is not deterministic. Continue on the first machine, or "
                "pass --allow-mixed to accept such gaps."
            )
        return np.where(same[:, None], stored, values)

    def count_committed(self) -> int:
        """Return the number of blocks committed so far by all processes."""
        return sum(1 for _ in self._ledger.committed(len(self.manifest.views)))

    def _write_changed(self, files: dict[str, bytes]) -> None:
        """Write files that do not exist with this content; the root's metadata last, because it makes the folder a cache."""
        for name in self._changed(files):
            self.place.write({name: [files[name]]})

    def _changed(self, files: dict[str, bytes]) -> list[str]:
        """Return the names of files that do not exist with this content, the root's metadata last."""
        return [
            name
            for name in sorted(files, key=lambda name: name == "zarr.json")
            if self.place.size(name) != len(files[name]) or self.place.read(name) != files[name]
        ]

    def _stored_probe(self, spec: ArraySpec) -> NDArray[np.float32] | None:
        """Return the probe of an earlier start, or None if it is missing or damaged (it is then written again)."""
        try:
            return read_array(spec, self.place.read)
        except LogitCacheError:  # it exists but cannot be reached
            raise
        except (ValueError, RuntimeError, OSError):
            return None

    def write(self, view: int, block: int, rows: dict[str, NDArray[np.generic]], excluded: Sequence[int] = ()) -> int:
        """Submit one block for writing; return the bytes committed meanwhile.

        Args:
            view: Index of the view.
            block: Number of the block.
            rows: Rows of each array; must not be modified afterwards.
            excluded: Ids of samples in the data set that are excluded from the block, ascending.
        """
        self._pending.append(self._executor.submit(self._commit, view, block, rows, tuple(excluded)))
        written = 0
        while len(self._pending) > _AT_ONCE:
            written += self._pending.popleft().result()
        return written

    def _commit(self, view: int, block: int, rows: dict[str, NDArray[np.generic]], excluded: tuple[int, ...]) -> int:
        self._hold.check()
        files = {chunk_key(spec, view, block): self._encoders[key](rows[key]) for key, spec in self._rows.items()}
        self.place.write(files)
        self._hold.check()
        records = {name: tally(pieces) for name, pieces in files.items()}
        self._ledger.commit(view, block, BlockRecord(records, excluded))
        return sum(record["bytes"] for record in records.values())

    def drain(self) -> int:
        """Wait until all submitted blocks are committed; return their bytes."""
        written = 0
        while self._pending:
            written += self._pending.popleft().result()
        return written

    def finish(self) -> None:
        """Finish the cache: merge the ledger, write the final metadata, and mark it as complete.

        Raises:
            CacheIncompleteError: If a block is missing.
        """
        self.drain()
        self._hold.check()
        self.committed = self._trusted()
        if missing := self.missing():
            raise CacheIncompleteError(
                f"{self.place}: {counted(len(missing), 'block')} missing, the first is (view, block) {missing[0]}. Run the command again."
            )
        for view in range(len(self.manifest.views)):
            self._ledger.fold(view)
        changed: list[str] = []
        if self._described != self.manifest:  # more samples were excluded meanwhile
            self._describe()
            changed = self._changed(self._whole_files)
        if changed := changed + self._changed(self._metadata):
            self._ledger.unmark()
            self.place.settle(HOME)
            for name in changed:
                self.place.write({name: [(self._whole_files | self._metadata)[name]]})
        self._remove_views_from(len(self.manifest.views))
        files = {name: describe(data) for name, data in sorted((self._metadata | self._whole_files).items())}
        self.place.settle()
        self._hold.check()
        self._ledger.mark(files)
        self.place.settle(HOME)

    def _remove_views_from(self, views: int) -> None:
        """Remove the files of an extension that was abandoned before it finished."""
        self._ledger.forget_views_from(views)
        for key in self._rows:
            for folder in self.place.folders(f"{key}/c"):
                if int(folder) >= views:
                    self.place.remove_below(f"{key}/c/{folder}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._hold.close()


class _HeldByTheLeader:
    """Placeholder lock for processes that do not lead; the leader holds the lock."""

    def check(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def refuse_derived(place: Place, manifest: Manifest) -> None:
    """Raise CacheMismatchError if the cache at a place was made from other caches, so that a dump cannot extend it."""
    if manifest.derived:
        raise CacheMismatchError(
            f"{place} was made by logitcache {manifest.derived['by']}, and a dump cannot extend it; nothing in it was touched. Dump into "
            "another path and merge."
        )


def refuse_other_cache(place: Place, manifest: Manifest) -> None:
    """Check that a cache can be written to a place, or resumed there.

    Raises:
        CacheMismatchError: If the place holds a different cache.
        InputError: If it holds something else.
    """
    found = read_manifest(place)
    if found is None:
        return
    views = manifest.views[: len(found.views)]
    differences = found.with_views(found.views[: len(views)]).differences(manifest.with_views(views))
    if not manifest.derived:
        refuse_derived(place, found)
    if not differences and len(views) < len(found.views):
        there, asked = (
            len({view.get("group", number) for number, view in enumerate(one)}) for one in (found.views, views)
        )
        raise CacheMismatchError(
            f"{place} already has {there} views, but --views is {asked}; nothing in it was touched. To resume it, pass --views {there} "
            f"or more. To get a cache with fewer views once it is finished, run "
            f"`logitcache slice {place} --views {asked} --out PATH`."
        )
    if differences:
        lines = "".join(f"\n  {key}: there {there!r}, requested {asked!r}" for key, there, asked in differences)
        raise CacheMismatchError(
            f"{place} is a different cache; nothing in it was touched. It differs from the requested one in:{lines}\n"
            + (
                "These change the last bits of a logit: continue where the dump was started, or pass --allow-mixed to accept that."
                if all(key.startswith(("device", "software.")) for key, _, _ in differences)
                else "Repeat the options it was made with to resume it, or choose another --out."
            )
        )
