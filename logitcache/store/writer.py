"""Writing a cache: whole blocks, each committed after its files are on disk; continued where a killed dump stopped.

Encoding to chunks, checksums and fsync run on background threads, at most six blocks at a time; their errors come out of the
next call here.
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

__all__ = ["CacheWriter", "Columns"]

Columns = Mapping[str, Mapping[str, Column]]  # teacher's slug -> column -> what is stored of a row
_AT_ONCE = 6  # blocks between the teacher and the disk: some are encoded while others wait for it


class CacheWriter:
    """An open cache that is being filled. Use as a context manager: the lock is released and its threads are ended in any case.

    Attributes:
        place: Where it lies.
        manifest: Its identity.
        command: What would continue it.
        committed: The blocks that are committed, (view, block), each with the ids of samples that it leaves out.
        complete: Whether the cache was whole, with these very views and exclusions, when its leader opened it.
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
        """Create a cache, or continue one of the same identity.

        Args:
            path: Where it lies: a folder, or `s3://bucket/c.zarr`.
            manifest: Its identity.
            columns: What the encoding writes.
            labels: Class of each row, [R].
            offsets: Row at which each sample begins, and R, [N + 1]; None where each sample is one row.
            command: What would continue this dump; shown to whoever finds it unfinished.
            notes: What the history says of this start besides.
            leads: Whether this process begins and finishes the cache; of several at one cache, one does, and holds it for all.
            carried: Arrays of the data that the cache carries: name to the name of their axis and their values, [n].
            anonymous: Whether the history leaves out the host and the command.

        Raises:
            CacheMismatchError: Another cache is there, or an anonymous one was begun otherwise.
            InputError: Something else is there, or another dump is writing it.
        """
        self.place, self.manifest, self.command = open_place(path), manifest, command
        _refuse_another(self.place, manifest)
        self._ledger = Ledger(self.place)
        self._hold: Hold = self.place.hold(f"{HOME}/lock") if leads else _HeldByTheLeader()
        self._rows = row_arrays(manifest, columns)
        self._labels, self._offsets, self._carried = labels, offsets, carried or {}
        self._executor = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="logitcache-writer")
        self._pending: deque[Future[int]] = deque()
        self._encoders = {key: ChunkEncoder(spec) for key, spec in self._rows.items()}
        self.committed: dict[tuple[int, int], tuple[int, ...]] = {}
        self.complete = False
        self._root: bytes | None = None  # metadata of a cache that was begun earlier
        if not leads:
            return
        try:
            _refuse_another(self.place, manifest)  # another dump may have begun or finished it meanwhile
            self._ledger.forget_damaged()
            now = datetime.now(UTC).isoformat(timespec="seconds")
            who = {} if anonymous else {"host": socket.gethostname(), "command": command}
            if anonymous and any("host" in entry for entry in history(self.place)):
                raise CacheMismatchError(
                    f"{self.place} was begun without --anonymous, and its history names the host. Choose another --out."
                )
            self.place.append(f"{HOME}/history.jsonl", {"event": "dump", "time": now, **who, **(notes or {})})
            self.committed = self._trusted()
            self.complete = self._is_whole()
            if self.complete:
                self._ledger.forget_records()  # which a kill after the mark left
        except BaseException:
            self._hold.close()
            raise

    def _trusted(self) -> dict[tuple[int, int], tuple[int, ...]]:
        """Take over the blocks whose record and files are there at full length."""
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
        """List (view, block) still to be written, in order."""
        everything = ((v, b) for v in range(len(self.manifest.views)) for b in range(self.manifest.blocks))
        return [key for key in everything if key not in self.committed]

    def read_committed(self) -> None:
        """Look again which blocks are committed, by all processes."""
        self.drain()
        self.committed = self._trusted()

    def take_back(self, blocks: Iterable[tuple[int, int]]) -> None:
        """Forget committed blocks, (view, block), so that they are missing; the cache is unfinished from here on."""
        by_view: dict[int, set[int]] = {}
        for view, block in blocks:
            by_view.setdefault(view, set()).add(block)
            self.committed.pop((view, block), None)
        self._hold.check()
        self._ledger.unmark()
        for view, bad in by_view.items():
            self._ledger.drop(view, bad)
        self.complete = False

    def leave_out(self, excluded: Sequence[int]) -> None:
        """Change which samples the cache leaves out (ids in the data set, ascending): before `begin`, or before `finish`."""
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
        """Write metadata, labels and probe where they are not there yet.

        Args:
            probe_rows: Row ids of the probe, [P]; view 0.
            probe: For each teacher's slug its logits, [P, C] float32; those of samples that are left out do not matter.
            changed: Which of these rows may be others than before, because samples are left out, [P]; None: none.
            allow_mixed: Whether to go on when they are not, bit for bit, what an earlier start computed.
            tolerance: Mean total variation up to which rows are what an earlier start was given, where they come from a server.

        Raises:
            CacheMismatchError: The teacher computes other bits here than where the dump was begun.
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
        # Metadata of a cache with fewer views stays until the new views are there.
        if not begun:
            self._write_changed(self._metadata)
        self._write_changed(self._whole_files)

    def _kept(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which rows are of samples that are not left out, [P]."""
        manifest = self.manifest
        return kept_mask(manifest.samples, manifest.data["first"], manifest.excluded)[samples_of(self._offsets, rows)]

    def _specs(self, probe_rows: int) -> dict[str, ArraySpec]:
        """Return the arrays of the cache; those of one that was begun keep the names of their axes."""
        specs = cache_arrays(self.manifest, self._rows, probe_rows, self._carried)
        return specs if self._root is None else with_stored_names(specs, self._root)

    def _describe(self) -> None:
        """Make the files of the metadata, and those of labels, offsets, probe and data; of samples that are left out it has zeros."""
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
        """Compare what the teachers say here with what they said to the leader, who has begun the cache (see `begin`).

        Raises:
            CacheMismatchError: It computes other bits.
        """
        for slug, values in probe.items():
            spec = cache_arrays(self.manifest, self._rows, len(values))[f"probe/logits/{slug}"]
            stored = self._stored_probe(spec)
            if stored is None:
                raise CacheMismatchError(
                    f"{self.place}: the probe that process 0 wrote is not seen from here. All processes must see the same path."
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
        """Return the probe to keep: the one that is there, where there is one, of rows that should be the same."""
        if stored is None or np.array_equal(stored[same], values[same]):
            return values
        if tolerance and not allow_mixed:
            if (found := total_variation(stored[same], values[same])) > tolerance:
                raise CacheMismatchError(
                    f"{self.place}: teacher {slug} gives other probabilities than where the dump was begun: they differ by {found:.2g} of "
                    f"1 on average over {len(values)} probe rows (total variation; up to {tolerance:g} comes from batches and rounding). "
                    "Serve the same model, or choose another --out."
                )
            return np.where(same[:, None], stored, values)
        if not allow_mixed:
            raise CacheMismatchError(
                f"{self.place}: on this machine teacher {slug} gives other logits than where the dump was begun (largest gap "
                f"{np.abs(stored - values)[same].max():.2g} over {len(values)} probe rows), although weights and versions are "
                "the same: another processor, or a teacher that is not deterministic. Continue on the first machine, or "
                "pass --allow-mixed to accept such gaps."
            )
        return np.where(same[:, None], stored, values)

    def count_committed(self) -> int:
        """Return how many blocks are committed now, by all processes."""
        return sum(1 for _ in self._ledger.committed(len(self.manifest.views)))

    def _write_changed(self, files: dict[str, bytes]) -> None:
        """Write files that are not there with this content; the root's metadata last, since it makes the folder a cache."""
        for name in self._changed(files):
            self.place.write({name: [files[name]]})

    def _changed(self, files: dict[str, bytes]) -> list[str]:
        """List those that are not there with this content, the root's metadata last."""
        return [
            name
            for name in sorted(files, key=lambda name: name == "zarr.json")
            if self.place.size(name) != len(files[name]) or self.place.read(name) != files[name]
        ]

    def _stored_probe(self, spec: ArraySpec) -> NDArray[np.float32] | None:
        """Read the probe of an earlier start; None where it is absent or damaged (it is then written again)."""
        try:
            return read_array(spec, self.place.read)
        except LogitCacheError:  # it is there and cannot be reached
            raise
        except (ValueError, RuntimeError, OSError):
            return None

    def write(self, view: int, block: int, rows: dict[str, NDArray[np.generic]], excluded: Sequence[int] = ()) -> int:
        """Hand over one block; returns the bytes committed meanwhile.

        Args:
            view: Index of the view.
            block: Number of the block.
            rows: Every array's rows, not to be changed afterwards.
            excluded: Ids in the data set of samples that are left out of what the block shows, ascending.
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
        """Wait until every block handed over is committed; returns their bytes."""
        written = 0
        while self._pending:
            written += self._pending.popleft().result()
        return written

    def finish(self) -> None:
        """Declare the cache whole.

        Raises:
            CacheIncompleteError: A block is missing.
        """
        self.drain()
        self._hold.check()
        self.committed = self._trusted()
        if missing := self.missing():
            raise CacheIncompleteError(
                f"{self.place}: {counted(len(missing), 'block')} missing, the first is (view, block) {missing[0]}."
            )
        for view in range(len(self.manifest.views)):
            self._ledger.fold(view)
        changed: list[str] = []
        if self._described != self.manifest:  # more samples were left out meanwhile
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
        """Remove what an extension left that was given up before it was whole."""
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
    """Nothing to hold: the leader does."""

    def check(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def _refuse_another(place: Place, manifest: Manifest) -> None:
    found = read_manifest(place)
    if found is None:
        return
    views = manifest.views[: len(found.views)]
    differences = found.with_views(found.views[: len(views)]).differences(manifest.with_views(views))
    if found.derived and not manifest.derived:
        raise CacheMismatchError(
            f"{place} was made by logitcache {found.derived['by']}; nothing in it was touched. A dump cannot extend it: dump into "
            "another path and merge."
        )
    if not differences and len(views) < len(found.views):
        there, asked = (
            len({view.get("group", number) for number, view in enumerate(one)}) for one in (found.views, views)
        )
        raise CacheMismatchError(
            f"{place} has {there} views already, and {asked} are asked for; nothing in it was touched. To go on with it ask "
            f"for --views {there} or more; to cut a cache of fewer out of it, when it is whole, type "
            f"`logitcache slice {place} --views {asked} --out PATH`."
        )
    if differences:
        lines = "".join(f"\n  {key}: there {there!r}, asked for {asked!r}" for key, there, asked in differences)
        raise CacheMismatchError(
            f"{place} is another cache; nothing in it was touched. It differs from what is asked for in:{lines}\n"
            + (
                "These decide the last bits of a logit: go on where the dump was begun, or pass --allow-mixed to accept that."
                if all(key.startswith(("device", "software.")) for key, _, _ in differences)
                else "Repeat the options it was made with to continue it, or choose another --out."
            )
        )
