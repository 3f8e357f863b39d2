"""Files that are whole or absent: temporary file, fsync, rename; and logs of one JSON object a line."""

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

_OPEN_AT_ONCE = 8  # files of a block; a process may have 256 on some systems, and several blocks are written at once
PARTIAL = ".partial"  # of the names of files that are being written
FileRecord = dict[str, Any]  # {"bytes": length} and "blake2b", 256 bits, or "crc32", 32 bits, in hexadecimal
Pieces = Sequence[bytes | memoryview]  # of a file, one after another


def is_address(path: str | Path) -> bool:
    """Say whether this is `scheme://...` and not a path on a disk."""
    return re.match(r"[A-Za-z][A-Za-z0-9]*:/", str(path)) is not None


def local_path(path: str | Path) -> Path:
    """Return a path on a disk; a leading `~` is the home folder.

    Raises:
        InputError: It is an address.
    """
    if is_address(path):
        raise InputError(f"{path} is an address: only caches can lie in object storage. Name a path on a disk.")
    return Path(path).expanduser()


def check_target(path: str | Path) -> None:
    """Say at once that a file cannot be written, before there is anything to write.

    Raises:
        InputError: It is an address or a folder, lies inside a zarr store, or its folder is not there or may not be written to.
    """
    file = local_path(path)
    if str(path) == "-":
        raise InputError("- is no file: name one.")
    if file.is_dir():
        raise InputError(f"{file} is a folder: name a file in it.")
    if store := next((one for one in file.absolute().parents if (one / "zarr.json").exists()), None):
        raise InputError(f"{file} lies inside of {store}, which is a cache: name a file elsewhere.")
    if not file.parent.is_dir():
        raise InputError(f"{file} cannot be written, {file.parent} is no folder: make it, or name another.")
    if not os.access(file.parent, os.W_OK):
        raise InputError(f"{file} cannot be written, {file.parent} is not yours to write to: name another folder.")


def digest_bytes(data: bytes | memoryview) -> str:
    """Hash bytes: BLAKE2b-256 in hexadecimal."""
    return blake2b(data, digest_size=32).hexdigest()


def describe(data: bytes) -> FileRecord:
    """Return what the completion mark keeps of a file: length and digest."""
    return {"bytes": len(data), "blake2b": digest_bytes(data)}


def tally(pieces: Pieces) -> FileRecord:
    """Return what the ledger keeps of a chunk file: length and CRC-32, which finds every damage of up to 32 bits in a row.

    Not a digest: BLAKE2b takes longer than a disk does. And a chunk carries a CRC-32C besides, so that both must fail at once.
    """
    crc = 0
    for piece in pieces:
        crc = zlib.crc32(piece, crc)
    return {"bytes": sum(map(len, pieces)), "crc32": f"{crc:08x}"}


def matches(record: FileRecord, data: bytes) -> bool:
    """Say whether a file is what a record was made of."""
    return record == (describe(data) if "blake2b" in record else tally([data]))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file that is either whole or not there, also after a power failure.

    Raises:
        CacheIncompleteError: The disk is full.
    """
    write_files({path: [data]}, lasting=True)


def write_files(contents: Mapping[Path, Pieces], *, lasting: bool, synced: bool = True) -> None:
    """Write files of which each is either whole or not there, where they are `synced` also after a power failure.

    Several are written before the first is synced, and the largest is synced first: what the others wait for is mostly done by then.

    Args:
        contents: Name to content.
        lasting: Whether they are there after a power failure when this returns; else only after `sync_folders`, in one go with others.
        synced: Whether to wait for their content; else a power failure may leave a part of it, or nothing.

    Raises:
        CacheIncompleteError: The disk is full.
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
    """Turn a full disk, or one that may not be written, met while writing a file, into a sentence.

    Raises:
        CacheIncompleteError: The disk is full.
        InputError: Nothing can be written there.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR):
            raise InputError(f"{path} cannot be written ({error.strerror}). Choose another place for it.") from error
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise CacheIncompleteError(
            f"no space left for {path}. What was committed before is whole; make room and run the same command again to "
            "go on from there."
        ) from error


def _make_folder(folder: Path, *, lasting: bool) -> None:
    """Make a folder and those above it; each is on disk before a file in it can be, where that is to last."""
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
    """Yield an empty folder for another library to write files into; they replace those of `folder` at the end.

    Each file is either whole or not there, also after a power failure. Files that `folder` has besides stay.

    Args:
        folder: Folder that the files end up in.
        last: Name of the file that is put there after all others: where it is, all are.

    Raises:
        CacheIncompleteError: The disk is full.
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
    """Remove temporary files and folders of processes that were killed while they wrote; nobody else may be writing here."""
    for leftover in [*folder.rglob(f".*{PARTIAL}")]:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def sync_folders(folder: Path) -> None:
    """Wait until the names in a folder and in those below it are on disk.

    Raises:
        CacheIncompleteError: The disk is full.
    """
    with explain_write_errors(folder):
        for below, _, _ in os.walk(folder):
            _sync_folder(Path(below))


def _sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk, where the file system and its rights let us."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # names may be made in it, and not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some file systems sync no folders
            raise
    finally:
        os.close(descriptor)


def append_line(path: Path, content: Mapping[str, Any]) -> None:
    """Append one JSON object to a log.

    Raises:
        CacheIncompleteError: The disk is full.
    """
    with explain_write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            file.seek(max(file.tell() - 1, 0))
            torn = file.read(1) not in (b"", b"\n")  # a line whose writer was killed in the middle
            file.write(b"\n" * torn + json.dumps(content).encode() + b"\n")


class FileLock:
    """An advisory lock of the operating system: it goes away with the process."""

    def __init__(self, path: Path, name: str) -> None:
        file = path / name
        with explain_write_errors(file):
            _make_folder(file.parent, lasting=True)  # a cache that was begun is known by it
            self._file = file.open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise InputError(f"{path} is being written by {holder}. Wait until it is done, or stop it.") from error
        with contextlib.suppress(OSError):  # who holds it is a courtesy
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
            self._file.flush()

    def check(self) -> None:
        """Do nothing: the operating system keeps it for us."""

    def close(self) -> None:
        """Unlock, also for copies of the file in processes that were forked from this one; nobody's name stays behind."""
        with contextlib.suppress(OSError):
            self._file.truncate(0)
        fcntl.flock(self._file, fcntl.LOCK_UN)
        self._file.close()
