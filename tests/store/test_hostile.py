"""Bytes that are not what was written: each is found, named, and can be repaired."""

import errno
import os
import random

import pytest
from test_store import LOGITS, bytes_of, manifest, write

from logitcache.errors import CacheIncompleteError, CorruptCacheError, LogitCacheError
from logitcache.store import check_files, drop_damaged, open_cache

CHUNK = "teachers/t/logits/c/1/1/0"


@pytest.fixture
def cache(tmp_path):
    write(tmp_path / "c.zarr", manifest())
    return tmp_path / "c.zarr"


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def damage(cache, kind, name=CHUNK):
    path = cache / name
    match kind:
        case "flipped":
            flip(path, path.stat().st_size // 2)
        case "truncated":
            path.write_bytes(path.read_bytes()[:-7])
        case "empty":
            path.write_bytes(b"")
        case "missing":
            path.unlink()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("flipped", "is damaged: its checksum does not match"),
        ("truncated", r"has 2,045 bytes instead of 2,052"),
        ("empty", r"has 0 bytes instead of 2,052"),
        ("missing", r"is missing: teachers/t/logits/c/1/1/0 should have 2,052 bytes"),
    ],
)
def test_reading_a_damaged_block_names_it_and_the_remedy(cache, kind, message):
    damage(cache, kind)
    where = r"teachers/t/logits, view 1, block 1 \(samples 128 to 255\)"
    with pytest.raises(CorruptCacheError, match=rf"{where} {message}.*logitcache verify --repair"):
        open_cache(cache).view(1, "t")
    assert (open_cache(cache).view(0, "t")["logits"] == LOGITS[0]).all()


@pytest.mark.parametrize("kind", ["flipped", "truncated", "empty", "missing"])
@pytest.mark.parametrize("name", [CHUNK, "digests/c/0/2", "labels/c/0", "probe/logits/t/c/0/0", "labels/zarr.json"])
def test_verify_names_the_file_and_repair_lets_a_dump_write_it_again(cache, kind, name):
    before = bytes_of(cache)
    damage(cache, kind, name)
    opened = open_cache(cache)
    problems = check_files(opened)
    assert [problem.file for problem in problems] == [name]
    drop_damaged(opened, problems)
    with pytest.raises(CacheIncompleteError):
        open_cache(cache)
    write(cache, manifest())
    assert bytes_of(cache) == before


def test_a_damaged_ledger_is_found_and_repaired(cache):
    before = bytes_of(cache)
    flip(cache / ".logitcache/ledger/1.json", 200)
    with pytest.raises(CorruptCacheError, match=r"ledger/1.json is damaged"):
        open_cache(cache).view(1, "t")
    problems = check_files(open_cache(cache))
    assert [problem.file for problem in problems] == [".logitcache/ledger/1.json"]
    drop_damaged(open_cache(cache), problems)
    write(cache, manifest())
    assert bytes_of(cache) == before


def test_exchanged_ledgers_are_found(cache):
    first, second = (cache / f".logitcache/ledger/{view}.json" for view in (0, 1))
    first.write_bytes(second.read_bytes())
    with pytest.raises(CorruptCacheError, match="holds the records of view 1"):
        open_cache(cache).view(0, "t")


def test_exchanged_chunks_are_found_by_verify(cache):
    """Each is whole, so reading cannot tell; the ledger can."""
    one, other = cache / CHUNK, cache / "teachers/t/logits/c/0/1/0"
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    assert {problem.file for problem in check_files(open_cache(cache))} == {CHUNK, "teachers/t/logits/c/0/1/0"}


@pytest.mark.parametrize("name", ["zarr.json", ".logitcache/complete.json"])
def test_no_flipped_byte_of_manifest_or_mark_opens(cache, name):
    size = (cache / name).stat().st_size
    for position in random.Random(0).sample(range(size), 60):
        flip(cache / name, position)
        with pytest.raises(LogitCacheError):
            open_cache(cache)
        flip(cache / name, position)
    open_cache(cache)


@pytest.mark.slow
def test_no_flipped_byte_anywhere_escapes_verify(cache):
    """Every byte of every file that is part of the cache, one at a time."""
    for name, content in bytes_of(cache).items():
        step = max(1, len(content) // 150)
        for position in range(0, len(content), step):
            flip(cache / name, position)
            try:
                assert check_files(open_cache(cache)), f"{name} byte {position}"
            except LogitCacheError:
                pass
            flip(cache / name, position)
    assert not check_files(open_cache(cache))


def test_a_disk_that_is_full_from_the_start_is_said_too(tmp_path, monkeypatch):
    def full(*_args, **_more):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pathlib.Path.open", full)
    with pytest.raises(CacheIncompleteError, match="no space left for"):
        write(tmp_path / "c.zarr", manifest())


def test_a_full_disk_is_said_and_what_was_committed_is_whole(tmp_path, monkeypatch):
    real, left = os.fsync, [40]  # metadata, labels and probe fit, and some blocks

    def fsync(descriptor):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(CacheIncompleteError, match="no space left for .* make room and run the same command again"):
        write(tmp_path / "c.zarr", manifest())
    monkeypatch.setattr(os, "fsync", real)
    assert not list((tmp_path / "c.zarr").rglob("*.partial"))
    with pytest.raises(CacheIncompleteError, match="of 6 blocks are committed"):
        open_cache(tmp_path / "c.zarr")
    write(tmp_path / "c.zarr", manifest())
    write(tmp_path / "whole.zarr", manifest())
    assert bytes_of(tmp_path / "c.zarr") == bytes_of(tmp_path / "whole.zarr")
