"""The ledger of committed blocks: one record per block during a dump, one file per view afterwards, and the completion mark.

A block counts as written only if its record exists, because the record is written after the block's files.
"""

import contextlib
import json
import shlex
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from logitcache.errors import CorruptCacheError
from logitcache.runtime.files import FileRecord, digest_bytes
from logitcache.store.manifest import HOME
from logitcache.store.places import Place

__all__ = ["BlockRecord", "Ledger", "history", "last_command"]

_MARK = f"{HOME}/complete.json"
_RECORDS = f"{HOME}/blocks"


class BlockRecord(NamedTuple):
    """Record of a committed block.

    Attributes:
        files: Size and digest of each file, by name.
        excluded: Ids of samples in the data set that were excluded when the block was written, ascending.
    """

    files: dict[str, FileRecord]
    excluded: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the ledger entry; `excluded` is absent if it is empty."""
        return {"files": self.files} | ({"excluded": list(self.excluded)} if self.excluded else {})

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "BlockRecord":
        """Return the record of a ledger entry."""
        return cls(entry["files"], tuple(entry.get("excluded", ())))


class Ledger:
    """The ledger of one cache."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def commit(self, view: int, block: int, record: BlockRecord) -> None:
        """Record a block whose files are all on disk.

        The record itself is not synced: if a power failure tears it, its check fails and only that block is lost.
        """
        self._write(_record(view, block), {"view": view, "block": block, **record.to_json()}, synced=False)

    def view(self, view: int) -> dict[int, dict[str, FileRecord]]:
        """Return the files of the committed blocks of one view, by block number (see `records`)."""
        return {block: record.files for block, record in self.records(view).items()}

    def records(self, view: int) -> dict[int, BlockRecord]:
        """Return the records of the committed blocks of one view, by block number.

        A damaged record of a single block is ignored, since a power failure can leave one.

        Raises:
            CorruptCacheError: If the record of a whole view is damaged, or if a record belongs to another block.
        """
        blocks: dict[int, BlockRecord] = {}
        folded = self._read(_folded(view))
        if folded is not None:
            if folded["view"] != view:
                raise CorruptCacheError(
                    f"{self._place}/{_folded(view)} holds the records of view {folded['view']}. Restore it from a copy, or dump again."
                )
            blocks = {entry["block"]: BlockRecord.from_json(entry) for entry in folded["blocks"]}
        names = list(self._place.sizes(f"{_RECORDS}/{view}"))
        with ThreadPoolExecutor(self._place.at_once) as executor:
            for name, record in zip(names, executor.map(self._read_if_whole, names), strict=True):
                if record is None:
                    continue
                if _record(record["view"], record["block"]) != name:
                    raise CorruptCacheError(
                        f"{self._place}/{name} is the record of another block. Delete it and run the dump again."
                    )
                blocks[record["block"]] = BlockRecord.from_json(record)
        return blocks

    def committed(self, views: int) -> Iterator[tuple[int, int]]:
        """Yield (view, block) for every committed block."""
        for view in range(views):
            yield from ((view, block) for block in sorted(self.view(view)))

    def fold(self, view: int) -> None:
        """Merge all records of a view into one file."""
        self._write_folded(view, self.records(view))

    def _write_folded(self, view: int, blocks: Mapping[int, BlockRecord]) -> None:
        entries = [{"block": block, **record.to_json()} for block, record in sorted(blocks.items())]
        self._write(_folded(view), {"view": view, "blocks": entries})

    def excluded(self, views: int) -> list[int]:
        """Return the ids of samples that any committed block of these views excludes, ascending."""
        return sorted(
            {one for view in range(views) for record in self.records(view).values() for one in record.excluded}
        )

    def drop(self, view: int, bad: set[int]) -> None:
        """Delete the records of some blocks of a view, so that a dump writes them again. The cache is unfinished afterwards."""
        self.unmark()
        self._write_folded(view, {block: record for block, record in self.records(view).items() if block not in bad})
        for block in bad:
            self._place.remove(_record(view, block))

    def forget_damaged(self) -> None:
        """Delete damaged records, so that their blocks count as not written.

        A damaged record of a whole view also invalidates the completion mark; a record of a single block is of a view that the mark
        does not cover.
        """
        ours = (f"{HOME}/ledger/", f"{_RECORDS}/", _MARK)
        names = [name for name in self._place.sizes(HOME) if name.startswith(ours)]
        with ThreadPoolExecutor(self._place.at_once) as executor:
            for name, content in zip(names, executor.map(self._read_if_whole, names), strict=True):
                if content is None:
                    if not name.startswith(_RECORDS):
                        self.unmark()
                    self._place.remove(name)

    def _read_if_whole(self, name: str) -> dict[str, Any] | None:
        with contextlib.suppress(CorruptCacheError):
            return self._read(name)
        return None

    def forget_views_from(self, views: int) -> None:
        """Delete the records of views that the cache does not have, left by an abandoned extension."""
        for name in self._place.sizes(f"{HOME}/ledger"):
            if int(name.rpartition("/")[2].removesuffix(".json")) >= views:
                self._place.remove(name)

    def mark(self, files: dict[str, FileRecord]) -> None:
        """Write the completion mark, and delete the records of single blocks, which are no longer needed."""
        self._write(_MARK, {"files": files})
        self.forget_records()

    def forget_records(self) -> None:
        """Delete the records of single blocks of a finished cache."""
        self._place.remove_below(_RECORDS)

    def unmark(self) -> None:
        """Remove the completion mark."""
        self._place.remove(_MARK)

    def marked(self) -> dict[str, FileRecord] | None:
        """Return the files listed in the completion mark, or None if there is no mark."""
        content = self._read(_MARK)
        return None if content is None else dict(content["files"])

    def _write(self, name: str, content: Mapping[str, Any], *, synced: bool = True) -> None:
        """Write an object with its own digest under `check`, which detects flipped bits when it is read."""
        checked = {**content, "check": digest_bytes(_canonical(content))}
        self._place.write({name: [(json.dumps(checked, indent=1, sort_keys=True) + "\n").encode()]}, synced=synced)

    def _read(self, name: str) -> dict[str, Any] | None:
        """Return an object written by `_write`, without `check`, or None if it does not exist.

        Raises:
            CorruptCacheError: If the file is damaged.
        """
        try:
            data = self._place.read(name)
        except FileNotFoundError:
            return None
        try:
            content = json.loads(data)
            if content.pop("check") != digest_bytes(_canonical(content)):
                raise ValueError("its check does not match its content")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CorruptCacheError(
                f"{self._place}/{name} is damaged: {error}. Run the dump's own command again; it rewrites whatever is damaged."
            ) from error
        return dict(content)


def _record(view: int, block: int) -> str:
    return f"{_RECORDS}/{view}/{block}.json"


def _folded(view: int) -> str:
    return f"{HOME}/ledger/{view}.json"


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def history(place: Place) -> list[dict[str, Any]]:
    """Return the history of a cache, oldest entry first: `event`, `time` (UTC), `host`, `command`. Empty if there is none."""
    found: list[dict[str, Any]] = []
    with contextlib.suppress(OSError):
        for line in place.read(f"{HOME}/history.jsonl").decode(errors="replace").splitlines():
            with contextlib.suppress(ValueError):  # a line cut short by a kill
                found.append(json.loads(line))
    return found


def last_command(place: Place) -> str | None:
    """Return the command that began or last resumed the dump of this cache, with `--out` set to where the cache is now."""
    commands = [entry["command"] for entry in history(place) if "command" in entry]
    words = shlex.split(commands[-1] or "") if commands else []
    if "--out" in words[:-1]:
        words[words.index("--out") + 1] = str(place)
    return shlex.join(words) or None
