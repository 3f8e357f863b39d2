"""Where a cache lies: a folder, or a prefix of a bucket. Names inside it are paths with slashes."""

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
    """The right to write a cache; it ends with the process, however that ends."""

    def check(self) -> None:
        """Do nothing while it is ours.

        Raises:
            InputError: Another process has taken it.
        """

    def close(self) -> None:
        """Give it back."""


class Place(Protocol):
    """What a cache needs of storage. Every file is whole or absent, also when its writer is killed.

    Attributes:
        at_once: How many files to read or write at the same time.
    """

    at_once: int

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Raises:
            FileNotFoundError: There is none.
        """
        ...

    def size(self, name: str) -> int | None:
        """Return the length of a file in bytes; None where there is none."""
        ...

    def sizes(self, below: str = "") -> dict[str, int]:
        """Return every file in a folder and its folders, with its length."""
        ...

    def folders(self, below: str) -> list[str]:
        """Return the names of the folders in a folder."""
        ...

    def is_empty(self, below: str = "") -> bool:
        """Say whether nothing is there."""
        ...

    def write(self, files: Mapping[str, Pieces], *, synced: bool = True) -> None:
        """Write files, each whole or not at all; they outlive the machine once `settle` was called, if they are `synced`.

        Args:
            files: Name to content.
            synced: Whether to wait until the content is on disk; else a power failure may leave a part of it under its name.

        Raises:
            CacheIncompleteError: There is no room for them.
        """

    def settle(self, below: str = "") -> None:
        """Wait until every name that was written or removed here, or in a folder of it, by anybody, outlives the machine."""

    def append(self, name: str, content: Mapping[str, Any]) -> None:
        """Append one JSON object to a log."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    def remove_below(self, folder: str) -> None:
        """Remove a folder and what is in it."""

    def hold(self, name: str) -> Hold:
        """Take the right to write here, recorded in this file; and clear what killed writers left.

        Raises:
            InputError: Another process has it.
        """
        ...

    def beside(self, suffix: str) -> str:
        """Return where another cache could lie: the same name with this before `.zarr`."""
        ...


def open_place(path: str | Path) -> Place:
    """Open a folder, or `s3://bucket/c.zarr` (also gs:// and az://).

    Raises:
        InputError: An address that cannot be used, or credentials that are missing.
    """
    if not is_address(path):
        return Folder(local_path(path))
    if isinstance(path, Path):
        raise InputError(f"{path}: give an address as text, not as a pathlib.Path, which loses a slash")
    from logitcache.store.bucket import Bucket  # noqa: PLC0415  (an extra)

    return Bucket(path)


class Folder:
    """A directory on a local or shared disk."""

    at_once = 1  # those who read and write have threads of their own

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
        """Return the length of a file in bytes; None where there is none."""
        try:
            return (self.path / name).stat().st_size
        except OSError:
            return None

    def sizes(self, below: str = "") -> dict[str, int]:
        """Return every file in a folder and its folders, with its length."""
        return {
            file.relative_to(self.path).as_posix(): file.stat().st_size
            for file in sorted((self.path / below).rglob("*"))
            if file.is_file() and file.suffix != PARTIAL
        }

    def folders(self, below: str) -> list[str]:
        """Return the names of the folders in a folder."""
        folder = self.path / below
        return sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []

    def is_empty(self, below: str = "") -> bool:
        """Say whether nothing is there."""
        folder = self.path / below
        return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))

    def write(self, files: Mapping[str, Pieces], *, synced: bool = True) -> None:
        """Write by temporary file, fsync (if `synced`) and rename; a power failure may take the new name, not a part of what is synced."""
        write_files({self.path / name: pieces for name, pieces in files.items()}, lasting=False, synced=synced)

    def settle(self, below: str = "") -> None:
        """Sync the folders: at the end, because with every file each would be one more wait for the disk."""
        sync_folders(self.path / below)

    def append(self, name: str, content: Mapping[str, Any]) -> None:
        """Append one JSON object to a log."""
        append_line(self.path / name, content)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        (self.path / name).unlink(missing_ok=True)

    def remove_below(self, folder: str) -> None:
        """Remove a folder and what is in it."""
        shutil.rmtree(self.path / folder, ignore_errors=True)

    def hold(self, name: str) -> FileLock:
        """Lock a file, and remove temporary files of killed writers."""
        lock = FileLock(self.path, name)
        remove_leftovers(self.path)
        return lock

    def beside(self, suffix: str) -> str:
        """Return where another cache could lie: the same name with this before `.zarr`."""
        return str(self.path.with_name(f"{self.path.stem}{suffix}.zarr"))
