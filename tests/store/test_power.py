"""A disk that forgets, when the power fails, every name whose folder was not synced, and content that was not: no system promises more."""

import errno
import os
import random
import shutil
import stat
from pathlib import Path

import pytest
from test_store import VIEWS, manifest, write
from tiny import bytes_of

from logitcache.errors import CacheIncompleteError, CacheNotFoundError
from logitcache.store import check_files, open_cache


class PowerFailure(BaseException):
    """Nothing catches it."""


class Disk:
    """Stands between the program and the disk; what was renamed, made or removed can be undone until its folder is synced."""

    def __init__(self, monkeypatch, steps=None):
        self.left = steps
        self.synced = set()  # inodes of files whose content is on disk
        self.torn = set()  # paths of those whose content may not be
        self.names = {}  # path -> inode of its folder, content before or None
        self.folders = {}  # path -> inode of its folder
        self.real = {name: getattr(os, name) for name in ("replace", "mkdir", "unlink", "fsync")}
        for name in self.real:
            monkeypatch.setattr(os, name, getattr(self, name))

    def step(self):
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise PowerFailure

    def changed(self, path):
        path = Path(path)
        before = path.read_bytes() if path.is_file() else None
        self.names.setdefault(path, (path.parent.stat().st_ino, before))

    def replace(self, source, target):
        self.step()
        if Path(source).stat().st_ino not in self.synced:
            assert "blocks" in Path(target).parts, f"{target} got its name before its content was on disk"
            self.torn.add(Path(target))
        if Path(target).name == "complete.json":
            assert not self.names, "the mark says that all is there"
            assert not self.folders
        self.changed(target)
        self.real["replace"](source, target)

    def mkdir(self, path, *more, **named):
        self.step()
        self.real["mkdir"](path, *more, **named)
        self.folders[Path(path)] = Path(path).parent.stat().st_ino

    def unlink(self, path, *, dir_fd=None):
        self.step()
        if dir_fd is None and not str(path).endswith(".partial"):
            self.changed(path)
        self.real["unlink"](path, dir_fd=dir_fd)

    def fsync(self, descriptor):
        self.step()
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            self.names = {path: one for path, one in self.names.items() if one[0] != found.st_ino}
            self.folders = {path: inode for path, inode in self.folders.items() if inode != found.st_ino}
        else:
            self.synced.add(found.st_ino)
        self.real["fsync"](descriptor)

    def forget(self, chance):
        """Undo each change that was not synced with this chance."""
        for path in self.torn:
            if random.random() < chance and path.exists():
                path.write_bytes(path.read_bytes()[: random.choice([0, 99])])
        for path, (_, before) in self.names.items():
            if random.random() < chance:
                if before is None:
                    path.unlink(missing_ok=True)
                elif path.parent.is_dir():
                    path.write_bytes(before)
        for path in self.folders:
            if random.random() < chance:
                shutil.rmtree(path, ignore_errors=True)


@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.slow), 17])
@pytest.mark.parametrize("views", [0, 1], ids=["new", "one view more"])
def test_a_dump_that_lost_its_power_is_continued_to_the_same_bytes(tmp_path, views, stride):
    """At every step in turn; names that were not synced are lost, all or some. The cache is refused or whole, never between."""
    write(tmp_path / "whole.zarr", manifest())
    whole, steps, finished = bytes_of(tmp_path / "whole.zarr"), 0, False
    while not finished:
        path = tmp_path / f"{steps}.zarr"
        if views:
            write(path, manifest(views=views))
        with pytest.MonkeyPatch.context() as patch:
            disk = Disk(patch, steps)
            try:
                write(path, manifest())
                finished = True
            except PowerFailure:
                pass
        disk.forget(random.choice([1, 0.5, 0]))
        try:
            opened = open_cache(path)
            assert len(opened.manifest.views) in (views, VIEWS)
            assert not check_files(opened)
        except (CacheIncompleteError, CacheNotFoundError):
            assert not finished
        write(path, manifest())
        assert bytes_of(path) == whole, f"power lost at step {steps}"
        steps += stride
    assert steps > 60


def test_a_file_system_whose_folders_cannot_be_synced_will_do(tmp_path, monkeypatch):
    real, refused = os.fsync, []

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            refused.append(descriptor)
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write(tmp_path / "c.zarr", manifest())
    assert refused
    assert not check_files(open_cache(tmp_path / "c.zarr"))


def test_when_a_dump_is_done_every_name_is_on_disk(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    write(tmp_path / "c.zarr", manifest(views=1))
    write(tmp_path / "c.zarr", manifest())
    assert disk.synced
    assert not [path for path in disk.names if "blocks" not in path.parts]
    assert not disk.folders
