"""Atomic files (temporary file, fsync, rename), locks, and logs of one JSON object per line."""

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import socket
import zlib
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from logitcache.errors import CacheIncompleteError, InputError

__all__ = [
    "PARTIAL",
    "FileLock",
    "FileRecord",
    "Pieces",
    "append_line",
    "check_target",
    "describe",
    "digest_bytes",
    "explain_write_errors",
    "fill_folder",
    "is_address",
    "local_path",
    "matches",
    "remove_leftovers",
    "sync_folders",
    "tally",
    "write_bytes",
    "write_files",
]

_OPEN_AT_ONCE = 8  # files per block; some systems limit a process to 256, and several blocks are written concurrently
PARTIAL = ".partial"  # suffix of files that are being written
FileRecord = dict[str, Any]  # {"bytes": length} and "blake2b", 256 bits, or "crc32", 32 bits, in hexadecimal
Pieces = Sequence[bytes | memoryview]  # content of a file, to be concatenated


def is_address(path: str | Path) -> bool:
    """Return whether this is an address (`scheme://...`) instead of a local path."""
    return re.match(r"[A-Za-z][A-Za-z0-9]*:/", str(path)) is not None


def local_path(path: str | Path) -> Path:
    """Return a local path, with a leading `~` expanded to the home folder.

    Raises:
        InputError: If it is an address.
    """
    if is_address(path):
        raise InputError(f"{path} is an address, but only caches can be in object storage; use a local path")
    return Path(path).expanduser()


def check_target(path: str | Path) -> None:
    """Check in advance that a file can be written.

    Raises:
        InputError: If it is an address, a folder or inside a zarr store, or if its folder does not exist or is not writable.
    """
    file = local_path(path)
    if str(path) == "-":
        raise InputError("standard output (-) is not supported; name a file")
    if file.is_dir():
        raise InputError(f"{file} is a folder; name a file in it")
    if store := next((one for one in file.absolute().parents if (one / "zarr.json").exists()), None):
        raise InputError(f"{file} is inside {store}, which is a cache; name a file elsewhere")
    if not file.parent.is_dir():
        raise InputError(f"{file} cannot be written because {file.parent} is not a folder; create it, or name another")
    if not os.access(file.parent, os.W_OK):
        raise InputError(f"{file} cannot be written because {file.parent} is not writable; name another folder")


def digest_bytes(data: bytes | memoryview) -> str:
    """Return the BLAKE2b-256 digest of bytes in hexadecimal."""
    return blake2b(data, digest_size=32).hexdigest()


def describe(data: bytes) -> FileRecord:
    """Return the record of a file for the completion mark: size and digest."""
    return {"bytes": len(data), "blake2b": digest_bytes(data)}


def tally(pieces: Pieces) -> FileRecord:
    """Return the record of a chunk file for the ledger: size and CRC-32, which detects every error burst of up to 32 bits.

    It is not a digest, because BLAKE2b is slower than a disk. Chunks also contain a CRC-32C, so damage must defeat both.
    """
    crc = 0
    for piece in pieces:
        crc = zlib.crc32(piece, crc)
    return {"bytes": sum(map(len, pieces)), "crc32": f"{crc:08x}"}


def matches(record: FileRecord, data: bytes) -> bool:
    """Return whether the content of a file matches its record."""
    return record == (describe(data) if "blake2b" in record else tally([data]))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically and durably, also in case of a power failure.

    Raises:
        CacheIncompleteError: If the disk is full.
    """
    write_files({path: [data]}, lasting=True)


def write_files(contents: Mapping[Path, Pieces], *, lasting: bool, synced: bool = True) -> None:
    """Write files atomically, also in case of a power failure if `synced`.

    Several files are written before the first one is synced, and the largest is synced first, so that the others hardly wait.

    Args:
        contents: Content by path.
        lasting: Whether the files survive a power failure once this returns. If False, they do so after `sync_folders`, which covers
            many files at once.
        synced: Whether to wait until the content is on disk. If False, a power failure may leave a partial or empty file.

    Raises:
        CacheIncompleteError: If the disk is full.
    """
    by_size = sorted(contents, key=lambda path: sum(map(len, contents[path])))
    for first in range(0, len(by_size), _OPEN_AT_ONCE):
        _write_together(by_size[first : first + _OPEN_AT_ONCE], contents, lasting=lasting, synced=synced)


def _write_together(paths: Sequence[Path], contents: Mapping[Path, Pieces], *, lasting: bool, synced: bool) -> None:
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}") for path in paths}
    try:
        with explain_write_errors(paths[-1]), contextlib.ExitStack() as stack:
            opened = {}
            for path in paths:
                _make_folder(path.parent, lasting=lasting)
                opened[path] = stack.enter_context(temporary[path].open("wb"))
                opened[path].writelines(contents[path])
                opened[path].flush()
            for path in reversed(paths):
                if synced:
                    os.fsync(opened[path].fileno())
                opened[path].close()
                temporary[path].replace(path)
                if lasting:
                    _sync_folder(path.parent)
    except BaseException:
        for leftover in temporary.values():
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Translate errors while writing a file to our own.

    Args:
        path: File that is written, for the message.

    Raises:
        CacheIncompleteError: If the disk is full.
        InputError: If the path is not writable.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR):
            raise InputError(f"{path} cannot be written ({error.strerror}). Choose another path.") from error
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise CacheIncompleteError(
            f"no space left for {path}. Committed blocks are safe; free some space and run the same command again to resume."
        ) from error


def _make_folder(folder: Path, *, lasting: bool) -> None:
    """Create a folder and its parents; if `lasting`, each is synced before anything is created in it."""
    if folder.is_dir():
        return
    _make_folder(folder.parent, lasting=lasting)
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from error
    if lasting:
        _sync_folder(folder.parent)


@contextlib.contextmanager
def fill_folder(folder: Path, *, last: str) -> Iterator[Path]:
    """Yield an empty folder for another library to write to, and move its files to `folder` afterwards.

    Each file is replaced atomically, also in case of a power failure. Other files in `folder` are kept.

    Args:
        folder: Target folder of the files.
        last: Name of the file that is moved last; if it exists, so do all others.

    Raises:
        CacheIncompleteError: If the disk is full.
    """
    made = folder.with_name(f".{folder.name}.{os.getpid()}{PARTIAL}")
    try:
        with explain_write_errors(folder / last):
            shutil.rmtree(made, ignore_errors=True)
            _make_folder(made, lasting=False)
            yield made
            _make_folder(folder, lasting=True)
            for file in sorted(made.iterdir(), key=lambda file: (file.name == last, file.name)):
                with file.open("rb") as written:
                    os.fsync(written.fileno())
                if file.name == last:
                    _sync_folder(folder)
                file.replace(folder / file.name)
            _sync_folder(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders of killed processes. No other process may be writing here."""
    for leftover in [*folder.rglob(f".*{PARTIAL}")]:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def sync_folders(folder: Path) -> None:
    """Sync a folder and all folders below it, so that creations, renames and removals are on disk.

    Raises:
        CacheIncompleteError: If the disk is full.
    """
    with explain_write_errors(folder):
        for below, _, _ in os.walk(folder):
            _sync_folder(Path(below))


def _sync_folder(folder: Path) -> None:
    """Sync a folder if the file system supports it and permissions allow it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder may be writable but not readable
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)


def append_line(path: Path, content: Mapping[str, Any]) -> None:
    """Append a JSON object to a log.

    Raises:
        CacheIncompleteError: If the disk is full.
    """
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            file.seek(max(file.tell() - 1, 0))
            torn = file.read(1) not in (b"", b"\n")  # the last line was cut short by a kill
            file.write(b"\n" * torn + json.dumps(content).encode() + b"\n")


class FileLock:
    """Advisory file lock, which the operating system releases when the process ends."""

    def __init__(self, path: Path, name: str) -> None:
        file = path / name
        with explain_write_errors(file):
            _make_folder(file.parent, lasting=True)  # its existence marks a cache as started
            self._file = file.open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise InputError(f"{path} is being written by {holder}. Wait for it to finish, or stop it.") from error
        with contextlib.suppress(OSError):  # the holder is only recorded for the message
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
            self._file.flush()

    def check(self) -> None:
        """Do nothing, because the operating system keeps the lock."""

    def close(self) -> None:
        """Release the lock, also for copies of the file in forked processes, and remove the name of its holder."""
        with contextlib.suppress(OSError):
            self._file.truncate(0)
        fcntl.flock(self._file, fcntl.LOCK_UN)
        self._file.close()
