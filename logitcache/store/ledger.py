"""What has been committed: one record a block while a dump runs, one file a view when it is done, and the completion mark.

A block counts as written when its record is there, and not before: the record is written after the block's files.
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
    """What was committed of one block.

    Attributes:
        files: Its files.
        excluded: Ids in the data set of samples that were left out of what it shows, ascending.
    """

    files: dict[str, FileRecord]
    excluded: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the ledger; `excluded` is absent where nothing was left out."""
        return {"files": self.files} | ({"excluded": list(self.excluded)} if self.excluded else {})

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "BlockRecord":
        """Read the entry of the ledger."""
        return cls(entry["files"], tuple(entry.get("excluded", ())))


class Ledger:
    """The records of one cache."""

    def __init__(self, place: Place) -> None:
        self._place = place

    def commit(self, view: int, block: int, record: BlockRecord) -> None:
        """Record a block whose files are all on disk.

        Without waiting for the record: one that a power failure tears is known by its check, and costs its block, not its truth.
        """
        self._write(_record(view, block), {"view": view, "block": block, **record.to_json()}, synced=False)

    def view(self, view: int) -> dict[int, dict[str, FileRecord]]:
        """Return the committed blocks of one view: block number to its files (see `records`)."""
        return {block: record.files for block, record in self.records(view).items()}

    def records(self, view: int) -> dict[int, BlockRecord]:
        """Return the committed blocks of one view.

        A block's own record that is not what was written counts as absent, as after a power failure.

        Raises:
            CorruptCacheError: The record of a whole view is not what was written, or one is another block's.
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
        """Yield (view, block) of every block committed."""
        for view in range(views):
            yield from ((view, block) for block in sorted(self.view(view)))

    def fold(self, view: int) -> None:
        """Write all records of a view into one file."""
        self._write_folded(view, self.records(view))

    def _write_folded(self, view: int, blocks: Mapping[int, BlockRecord]) -> None:
        entries = [{"block": block, **record.to_json()} for block, record in sorted(blocks.items())]
        self._write(_folded(view), {"view": view, "blocks": entries})

    def excluded(self, views: int) -> list[int]:
        """Return the ids of samples that any committed block of these views leaves out, ascending."""
        return sorted(
            {one for view in range(views) for record in self.records(view).values() for one in record.excluded}
        )

    def drop(self, view: int, bad: set[int]) -> None:
        """Forget blocks of a view, so that a dump writes them again; the cache is unfinished from here on."""
        self.unmark()
        self._write_folded(view, {block: record for block, record in self.records(view).items() if block not in bad})
        for block in bad:
            self._place.remove(_record(view, block))

    def forget_damaged(self) -> None:
        """Remove records that are not what was written, so that their blocks count as not written.

        With records of a whole view goes the mark; one of a single block is of a view that the mark does not speak of.
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
        """Remove the records of views that the cache does not have: of an extension that was given up."""
        for name in self._place.sizes(f"{HOME}/ledger"):
            if int(name.rpartition("/")[2].removesuffix(".json")) >= views:
                self._place.remove(name)

    def mark(self, files: dict[str, FileRecord]) -> None:
        """Say that the cache is whole; records of single blocks are no longer needed."""
        self._write(_MARK, {"files": files})
        self.forget_records()

    def forget_records(self) -> None:
        """Remove the records of single blocks, of a cache that is whole."""
        self._place.remove_below(_RECORDS)

    def unmark(self) -> None:
        """Take the completion mark away."""
        self._place.remove(_MARK)

    def marked(self) -> dict[str, FileRecord] | None:
        """Return the files named by the completion mark, or None where there is no mark."""
        content = self._read(_MARK)
        return None if content is None else dict(content["files"])

    def _write(self, name: str, content: Mapping[str, Any], *, synced: bool = True) -> None:
        """Write an object with its own digest under `check`, so that a flipped bit in it is found when it is read."""
        checked = {**content, "check": digest_bytes(_canonical(content))}
        self._place.write({name: [(json.dumps(checked, indent=1, sort_keys=True) + "\n").encode()]}, synced=synced)

    def _read(self, name: str) -> dict[str, Any] | None:
        """Read what `_write` wrote, without `check`; None where nothing is there.

        Raises:
            CorruptCacheError: It is not what was written.
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
                f"{self._place}/{name} is damaged: {error}. Run the dump's own command again: it writes anew what is damaged."
            ) from error
        return dict(content)


def _record(view: int, block: int) -> str:
    return f"{_RECORDS}/{view}/{block}.json"


def _folded(view: int) -> str:
    return f"{HOME}/ledger/{view}.json"


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def history(place: Place) -> list[dict[str, Any]]:
    """Return what was done to a cache, oldest first: `event`, `time` (UTC), `host`, `command`; empty where nothing was kept."""
    found: list[dict[str, Any]] = []
    with contextlib.suppress(OSError):
        for line in place.read(f"{HOME}/history.jsonl").decode(errors="replace").splitlines():
            with contextlib.suppress(ValueError):  # a line whose writer was killed
                found.append(json.loads(line))
    return found


def last_command(place: Place) -> str | None:
    """Return the command that began or last continued the dump of this cache, spelled for where the cache is now."""
    commands = [entry["command"] for entry in history(place) if "command" in entry]
    words = shlex.split(commands[-1] or "") if commands else []
    if "--out" in words[:-1]:
        words[words.index("--out") + 1] = str(place)
    return shlex.join(words) or None
