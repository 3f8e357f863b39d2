"""Storage of a cache: a folder, or a prefix in a bucket. File names are relative paths with slashes."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from logitcache.errors import InputError
from logitcache.runtime.files import (
    PARTIAL,
    FileLock,
    Pieces,
    append_line,
    is_address,
    local_path,
    remove_leftovers,
    sync_folders,
    write_files,
)

__all__ = ["Folder", "Hold", "Place", "open_place"]


class Hold(Protocol):
    """Exclusive right to write a cache, released when the process ends in any way."""

    def check(self) -> None:
        """Check that the right is still ours.

        Raises:
            InputError: If another process has taken it.
        """

    def close(self) -> None:
        """Release the right to write."""


class Place(Protocol):
    """Storage interface of a cache. Files are written atomically, even if the writer is killed.

    Attributes:
        at_once: Number of files to read or write concurrently.
    """

    at_once: int

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            FileNotFoundError: If the file does not exist.
        """
        ...

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, or None if it does not exist."""
        ...

    def sizes(self, below: str = "") -> dict[str, int]:
        """Return the size in bytes of every file below a folder, by name."""
        ...

    def folders(self, below: str) -> list[str]:
        """Return the names of the subfolders of a folder."""
        ...

    def is_empty(self, below: str = "") -> bool:
        """Return whether a folder is empty or does not exist."""
        ...

    def write(self, files: Mapping[str, Pieces], *, synced: bool = True) -> None:
        """Write files atomically. They survive a power failure once `settle` returns, if `synced`.

        Args:
            files: Content by file name.
            synced: Whether to wait until the content is on disk. If False, a power failure may leave a partly written file.

        Raises:
            CacheIncompleteError: If there is no space left.
        """

    def settle(self, below: str = "") -> None:
        """Make all creations and removals below a folder durable, including those by other processes."""

    def append(self, name: str, content: Mapping[str, Any]) -> None:
        """Append a JSON object to a log."""

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""

    def remove_below(self, folder: str) -> None:
        """Remove a folder and its content."""

    def hold(self, name: str) -> Hold:
        """Acquire the exclusive right to write, recorded in this file, and clean up after killed writers.

        Raises:
            InputError: If another process holds it.
        """
        ...

    def beside(self, suffix: str) -> str:
        """Return the path of a sibling cache: the same name with a suffix before `.zarr`."""
        ...


def open_place(path: str | Path) -> Place:
    """Open a folder, or an address such as `s3://bucket/c.zarr` (also gs:// and az://).

    Raises:
        InputError: If the address is invalid or credentials are missing.
    """
    if not is_address(path):
        return Folder(local_path(path))
    if isinstance(path, Path):
        raise InputError(f"{path}: pass an address as a string; pathlib.Path drops one of its slashes")
    from logitcache.store.bucket import Bucket  # noqa: PLC0415  (an extra)

    return Bucket(path)


class Folder:
    """A directory on a local or shared disk."""

    at_once = 1  # readers and writers have their own threads

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Folder) and self.path.resolve() == other.path.resolve()

    def __hash__(self) -> int:
        return hash(self.path.resolve())

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        return (self.path / name).read_bytes()

    def size(self, name: str) -> int | None:
        """Return the size of a file in bytes, or None if it does not exist."""
        try:
            return (self.path / name).stat().st_size
        except OSError:
            return None

    def sizes(self, below: str = "") -> dict[str, int]:
        """Return the size in bytes of every file below a folder, by name."""
        return {
            file.relative_to(self.path).as_posix(): file.stat().st_size
            for file in sorted((self.path / below).rglob("*"))
            if file.is_file() and file.suffix != PARTIAL
        }

    def folders(self, below: str) -> list[str]:
        """Return the names of the subfolders of a folder."""
        folder = self.path / below
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []

    def is_empty(self, below: str = "") -> bool:
        """Return whether a folder is empty or does not exist."""
        folder = self.path / below
        return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))

    def write(self, files: Mapping[str, Pieces], *, synced: bool = True) -> None:
        """Write to a temporary file, fsync it (if `synced`) and rename. A power failure may undo the rename but not tear a synced file."""
        write_files({self.path / name: pieces for name, pieces in files.items()}, lasting=False, synced=synced)

    def settle(self, below: str = "") -> None:
        """Sync the folders. Done once at the end, because a sync per file would wait for the disk each time."""
        sync_folders(self.path / below)

    def append(self, name: str, content: Mapping[str, Any]) -> None:
        """Append a JSON object to a log."""
        append_line(self.path / name, content)

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        (self.path / name).unlink(missing_ok=True)

    def remove_below(self, folder: str) -> None:
        """Remove a folder and its content."""
        shutil.rmtree(self.path / folder, ignore_errors=True)

    def hold(self, name: str) -> FileLock:
        """Lock a file, and remove temporary files left by killed writers."""
        lock = FileLock(self.path, name)
        remove_leftovers(self.path)
        return lock

    def beside(self, suffix: str) -> str:
        """Return the path of a sibling cache: the same name with a suffix before `.zarr`."""
        return str(self.path.with_name(f"{self.path.stem}{suffix}.zarr"))
