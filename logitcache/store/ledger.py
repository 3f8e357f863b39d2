"""What has been committed: one record a block while a dump runs, one file a view when it is done, and the completion mark.

A block counts as written when its record is there, and not before: the record is written after the block's files.
"""

import contextlib
import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from logitcache.errors import CorruptCacheError
from logitcache.files import FileRecord, read_json, write_json
from logitcache.store.manifest import HOME

__all__ = ["Ledger", "last_command"]


class Ledger:
    """The records of one cache."""

    def __init__(self, cache: Path) -> None:
        self.home = cache / HOME
        self.mark_path = self.home / "complete.json"

    def commit(self, view: int, block: int, files: dict[str, FileRecord]) -> None:
        """Record a block whose files are all on disk."""
        write_json(self._record(view, block), {"view": view, "block": block, "files": files})

    def view(self, view: int) -> dict[int, dict[str, FileRecord]]:
        """Return the committed blocks of one view: block number to its files.

        Raises:
            CorruptCacheError: A record is not what was written.
        """
        blocks: dict[int, dict[str, FileRecord]] = {}
        folded = self._folded(view)
        if folded.exists():
            content = read_json(folded)
            if content["view"] != view:
                raise CorruptCacheError(
                    f"{folded} holds the records of view {content['view']}. Restore it from a copy, or dump again."
                )
            blocks = {entry["block"]: entry["files"] for entry in content["blocks"]}
        for path in (self.home / "blocks").glob(f"{view}-*.json"):
            record = read_json(path)
            if self._record(record["view"], record["block"]) != path:
                raise CorruptCacheError(f"{path} is the record of another block. Delete it and run the dump again.")
            blocks[record["block"]] = record["files"]
        return blocks

    def committed(self, views: int) -> Iterator[tuple[int, int]]:
        """Yield (view, block) of every block committed."""
        for view in range(views):
            yield from ((view, block) for block in sorted(self.view(view)))

    def fold(self, view: int) -> None:
        """Write all records of a view into one file."""
        self._write_folded(view, self.view(view))

    def _write_folded(self, view: int, blocks: dict[int, dict[str, FileRecord]]) -> None:
        entries = [{"block": block, "files": files} for block, files in sorted(blocks.items())]
        write_json(self._folded(view), {"view": view, "blocks": entries})

    def drop(self, view: int, bad: set[int]) -> None:
        """Forget blocks of a view, so that a dump writes them again; the cache is unfinished from here on."""
        self.unmark()
        self._write_folded(view, {block: files for block, files in self.view(view).items() if block not in bad})
        for block in bad:
            self._record(view, block).unlink(missing_ok=True)

    def forget_damaged(self) -> None:
        """Remove records that are not what was written, and with them the mark: their blocks count as not written."""
        for path in [*self.home.glob("ledger/*.json"), *self.home.glob("blocks/*.json"), self.mark_path]:
            try:
                read_json(path)
            except FileNotFoundError:
                continue
            except CorruptCacheError:
                self.unmark()
                path.unlink(missing_ok=True)

    def forget_views_from(self, views: int) -> None:
        """Remove the records of views that the cache does not have: of an extension that was given up."""
        for path in self.home.glob("ledger/*.json"):
            if int(path.stem) >= views:
                path.unlink()

    def mark(self, files: dict[str, FileRecord]) -> None:
        """Say that the cache is whole; records of single blocks are no longer needed."""
        write_json(self.mark_path, {"files": files})
        shutil.rmtree(self.home / "blocks", ignore_errors=True)

    def unmark(self) -> None:
        """Take the completion mark away."""
        self.mark_path.unlink(missing_ok=True)

    def marked(self) -> dict[str, FileRecord] | None:
        """Return the files named by the completion mark, or None where there is no mark."""
        if not self.mark_path.exists():
            return None
        files: dict[str, Any] = read_json(self.mark_path)["files"]
        return files

    def _record(self, view: int, block: int) -> Path:
        return self.home / "blocks" / f"{view}-{block}.json"

    def _folded(self, view: int) -> Path:
        return self.home / "ledger" / f"{view}.json"


def last_command(path: Path) -> str | None:
    """Return the command that began or last continued the dump of this cache, spelled for where the cache is now."""
    found: dict[str, Any] = {}
    with contextlib.suppress(OSError), (path / HOME / "history.jsonl").open() as lines:
        for line in lines:
            with contextlib.suppress(ValueError):  # a line whose writer was killed
                entry = json.loads(line)
                found = entry if "command" in entry else found
    words = shlex.split(found.get("command") or "")
    if "--out" in words[:-1]:
        words[words.index("--out") + 1] = str(path)
    return shlex.join(words) or None
