"""Check the integrity of a cache: compare every file with the ledger and the completion mark, at disk speed."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from logitcache.errors import CorruptCacheError
from logitcache.runtime.files import FileRecord, matches
from logitcache.runtime.progress import OnProgress, Progress, silent
from logitcache.store.layout import checksum_holds
from logitcache.store.ledger import Ledger
from logitcache.store.manifest import HOME
from logitcache.store.places import open_place
from logitcache.store.reader import Cache

__all__ = ["FileProblem", "check_files", "drop_damaged", "forget_damaged_records"]


@dataclass(frozen=True, slots=True)
class FileProblem:
    """A missing or damaged file.

    Attributes:
        file: Path inside the cache.
        problem: Description of the problem.
        view, block: View and block of the file; `block` is None for a file of a whole view, both are None for other files.
    """

    file: str
    problem: str
    view: int | None = None
    block: int | None = None


def check_files(cache: Cache, on_progress: OnProgress = silent) -> list[FileProblem]:
    """Compare every file with its recorded size and digest, and chunks with their own checksum, several at a time."""
    ledger, manifest = Ledger(cache.place), cache.manifest
    problems = [
        FileProblem(name, problem)
        for name, record in (ledger.marked() or {}).items()
        if (problem := _problem(cache, name, record))
    ]
    total = len(manifest.views) * manifest.blocks
    with ThreadPoolExecutor(max(min(os.cpu_count() or 1, 8), cache.place.at_once)) as executor:
        for view in range(len(manifest.views)):
            try:
                blocks = ledger.view(view)
            except CorruptCacheError as error:
                problems.append(FileProblem(f".logitcache/ledger/{view}.json", str(error), view))
                continue
            problems += [
                FileProblem(f".logitcache/ledger/{view}.json", f"has no record of block {block}", view, block)
                for block in range(manifest.blocks)
                if block not in blocks
            ]
            files = [(block, *file) for block, recorded in sorted(blocks.items()) for file in recorded.items()]
            found = executor.map(lambda file: _problem(cache, *file[1:]), files)
            for (block, name, _), problem in zip(files, found, strict=True):
                if problem:
                    problems.append(FileProblem(name, problem, view, block))
                on_progress(Progress("checking files", view * manifest.blocks + block, total, "blocks"))
    on_progress(Progress("checking files", total, total, "blocks"))
    return problems


def _problem(cache: Cache, name: str, record: FileRecord) -> str | None:
    try:
        data = cache.place.read(name)
    except FileNotFoundError:
        return "is missing"
    if len(data) != record["bytes"]:
        return f"has {len(data):,} bytes instead of {record['bytes']:,}"
    if matches(record, data) and (name.endswith("zarr.json") or checksum_holds(data)):
        return None
    return "has been modified: its digest or checksum does not match"


def drop_damaged(cache: Cache, problems: list[FileProblem]) -> None:
    """Drop damaged blocks and the completion mark, so that the dump's own command writes them again."""
    ledger = Ledger(cache.place)
    with closing(cache.place.hold(f"{HOME}/lock")):
        ledger.unmark()
        for problem in problems:
            if problem.view is None or problem.block is None:
                cache.place.remove(problem.file)
            else:
                ledger.drop(problem.view, {problem.block})


def forget_damaged_records(path: str | Path) -> None:
    """Remove unreadable records and an unreadable completion mark, so that the dump's own command writes them again."""
    place = open_place(path)
    if not place.is_empty(HOME):
        with closing(place.hold(f"{HOME}/lock")):
            Ledger(place).forget_damaged()
