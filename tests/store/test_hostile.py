"""Bytes that are not what was written: each is found, named, and can be repaired."""

import errno
import os
import random
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from test_store import COLUMNS, LABELS, LOGITS, VIEWS, manifest, write
from tiny import bytes_of

from logitcache.caches.verify import verify_cache
from logitcache.errors import CacheIncompleteError, CacheNotFoundError, CorruptCacheError, InputError, LogitCacheError
from logitcache.runtime.files import FileLock, describe
from logitcache.store import CacheWriter, check_files, drop_damaged, open_cache
from logitcache.store.layout import metadata_files
from logitcache.store.ledger import BlockRecord, Ledger
from logitcache.store.places import Folder

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


def test_damage_that_one_checksum_cannot_see_is_seen_by_the_other(cache):
    """The generator of CRC-32, added anywhere, leaves it as it is."""
    path = cache / CHUNK
    data = bytearray(path.read_bytes())
    before = zlib.crc32(data)
    data[1000:1005] = (int.from_bytes(data[1000:1005], "little") ^ 0x1DB710641).to_bytes(5, "little")
    assert zlib.crc32(data) == before
    path.write_bytes(data)
    assert [problem.file for problem in check_files(open_cache(cache))] == [CHUNK]


def test_blocks_that_were_recorded_with_a_digest_are_compared_with_it(cache):
    ledger = Ledger(Folder(cache))
    ledger.drop(1, {1})
    digest = describe((cache / CHUNK).read_bytes())
    pixels = describe((cache / "digests/c/1/1").read_bytes())
    ledger.commit(1, 1, BlockRecord({CHUNK: digest, "digests/c/1/1": pixels}))
    write(cache, manifest())
    assert not check_files(open_cache(cache))
    flip(cache / CHUNK, 3)
    assert [problem.file for problem in check_files(open_cache(cache))] == [CHUNK]


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


def everything(cache):
    """All that training reads."""
    opened = open_cache(cache)
    rows = [opened.view(view, "t")["logits"] for view in range(VIEWS)] + [opened.digests(view) for view in range(VIEWS)]
    return b"".join(part.tobytes() for part in [opened.labels(), *opened.probe("t"), *rows])


@pytest.mark.slow
def test_no_flipped_byte_anywhere_escapes_verify_or_changes_what_is_read(cache):
    """Every byte of every file that is part of the cache, one at a time."""
    whole = everything(cache)
    for name, content in bytes_of(cache).items():
        step = max(1, len(content) // 150)
        for position in range(0, len(content), step):
            flip(cache / name, position)
            try:
                assert check_files(open_cache(cache)), f"{name} byte {position}"
            except LogitCacheError:
                pass
            try:
                assert everything(cache) == whole, f"{name} byte {position} was read"
            except LogitCacheError:
                pass
            flip(cache / name, position)
    assert not check_files(open_cache(cache))


def test_a_cache_whose_metadata_was_written_otherwise_is_mended(cache, tmp_path, monkeypatch):
    """By an earlier version: the same manifest in other bytes."""
    write(tmp_path / "whole.zarr", manifest())

    def otherwise(*given):
        return {name: data + b"\n" for name, data in metadata_files(*given).items()}

    with monkeypatch.context() as patch:
        patch.setattr("logitcache.store.writer.metadata_files", otherwise)
        write(tmp_path / "earlier.zarr", manifest())
    (tmp_path / "earlier.zarr" / CHUNK).unlink()
    write(tmp_path / "earlier.zarr", manifest())
    assert bytes_of(tmp_path / "earlier.zarr") == bytes_of(tmp_path / "whole.zarr")


def test_records_that_a_kill_after_the_mark_left_are_removed(cache, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "remove_below", lambda self, folder: None)
        write(tmp_path / "left.zarr", manifest())
    assert list((tmp_path / "left.zarr/.logitcache/blocks").rglob("*.json"))
    with CacheWriter(tmp_path / "left.zarr", manifest(), COLUMNS, LABELS, command="") as writer:
        assert writer.finished
    assert bytes_of(tmp_path / "left.zarr") == bytes_of(cache)


def test_what_lies_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match=r"cannot be written \(Not a directory\)"):
        FileLock(tmp_path / "file/run", "lock")


def test_a_folder_that_may_be_written_and_not_read_will_do(tmp_path, monkeypatch):
    """Mode 0333, or 1733 and somebody else's; root may read everything, so the refusal is made here."""
    real, refused = os.open, []

    def opened(path, *more, **named):
        if Path(path) == tmp_path:
            refused.append(path)
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *more, **named)

    monkeypatch.setattr(os, "open", opened)
    write(tmp_path / "c.zarr", manifest())
    assert refused
    assert not check_files(open_cache(tmp_path / "c.zarr"))


def test_a_disk_that_is_full_from_the_start_is_said_too(tmp_path, monkeypatch):
    real = Path.open

    def full(path, mode="r", **more):
        if mode == "rb":
            return real(path, mode, **more)
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
    with pytest.raises(
        CacheIncompleteError, match="no space left for .* free some space and run the same command again"
    ):
        write(tmp_path / "c.zarr", manifest())
    monkeypatch.setattr(os, "fsync", real)
    assert not list((tmp_path / "c.zarr").rglob("*.partial"))
    with pytest.raises(CacheIncompleteError, match="of 6 blocks are committed"):
        open_cache(tmp_path / "c.zarr")
    write(tmp_path / "c.zarr", manifest())
    write(tmp_path / "whole.zarr", manifest())
    assert bytes_of(tmp_path / "c.zarr") == bytes_of(tmp_path / "whole.zarr")


def test_many_files_need_few_handles(tmp_path):
    """Of many teachers' columns, say; some systems allow 256, and several blocks are written at once."""
    code = (
        "import resource, sys; from pathlib import Path; from logitcache.runtime.files import write_files; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20)); "
        "write_files({Path(sys.argv[1]) / str(n): [b'x' * n] for n in range(100)}, lasting=True)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)
    assert all((tmp_path / str(n)).stat().st_size == n for n in range(100))


@pytest.mark.parametrize("size", [100_500, 110_000, 8_000_000])
def test_a_file_that_grows_too_large_is_said_wherever_it_stops(tmp_path, size):
    """Also where the last bytes were kept back and cannot be written on closing either."""
    code = (
        "import resource, sys; from pathlib import Path; from logitcache.runtime.files import write_files; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); one = Path(sys.argv[1]); "
        "write_files({one / 'small': [b'x'], one / 'large': [b'y' * int(sys.argv[2]), b'crc4']}, lasting=False)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path, str(size)], capture_output=True, text=True, check=False
    )
    assert done.stderr.splitlines()[-1].startswith("logitcache.errors.CacheIncompleteError: no space left for")
    assert not list(tmp_path.iterdir())


def killed_at(step, path, what):
    """Write in a process of its own that dies, as by SIGKILL, in the step-th wait for the disk; whether it got to the end."""
    child = os.fork()
    if child == 0:
        left, real = [step], os.fsync

        def fsync(descriptor):
            left[0] -= 1
            if left[0] < 0:
                os._exit(9)
            real(descriptor)

        os.fsync = fsync
        write(path, what)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, 9)
    return status == 0


@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.slow), 13])
@pytest.mark.parametrize("views", [0, 1], ids=["new", "one view more"])
def test_a_dump_killed_at_any_step_is_continued_to_the_same_bytes(tmp_path, views, stride):
    """Every fsync in turn: temporary files, metadata, chunks, records, ledger, mark. The cache is refused or whole, never between."""
    write(tmp_path / "whole.zarr", manifest())
    whole, steps = bytes_of(tmp_path / "whole.zarr"), 0
    while True:
        path = tmp_path / f"{steps}.zarr"
        if views:
            write(path, manifest(views=views))
        finished = killed_at(steps, path, manifest())
        try:
            opened = open_cache(path)
            assert len(opened.manifest.views) in (views, VIEWS)
            assert not check_files(opened)
        except (CacheIncompleteError, CacheNotFoundError):
            pass
        write(path, manifest())
        assert bytes_of(path) == whole, f"killed at fsync {steps}"
        if finished:
            break
        steps += stride
    assert steps > 30


def test_what_a_given_up_extension_left_does_not_stay(cache):
    """Killed on the way to three views, after their records were folded; then two are asked for."""
    before = bytes_of(cache)
    write(cache, manifest(views=3), finish=False)
    Ledger(Folder(cache)).fold(2)
    (cache / ".logitcache/complete.json").unlink()
    write(cache, manifest())
    assert bytes_of(cache) == before


@pytest.mark.parametrize("name", ["complete.json", "ledger/0.json", "ledger/1.json"])
@pytest.mark.parametrize("kind", ["flipped", "truncated", "empty"])
def test_damaged_records_are_written_anew_by_the_dumps_own_command(cache, kind, name):
    before = bytes_of(cache)
    damage(cache, kind, f".logitcache/{name}")
    write(cache, manifest())
    assert bytes_of(cache) == before


@pytest.mark.parametrize("kind", ["flipped", "empty"])
def test_a_damaged_record_of_a_running_dump_is_a_block_not_written(tmp_path, cache, kind):
    write(tmp_path / "a.zarr", manifest(), only={(0, 0), (0, 1)}, finish=False)
    damage(tmp_path / "a.zarr", kind, ".logitcache/blocks/0/1.json")
    write(tmp_path / "a.zarr", manifest())
    assert bytes_of(tmp_path / "a.zarr") == bytes_of(cache)


def test_a_damaged_probe_is_not_blamed_on_the_machine(tmp_path, cache):
    write(tmp_path / "a.zarr", manifest(), only={(0, 0)}, finish=False)
    damage(tmp_path / "a.zarr", "flipped", "probe/logits/t/c/0/0")
    write(tmp_path / "a.zarr", manifest())
    assert bytes_of(tmp_path / "a.zarr") == bytes_of(cache)


def test_the_line_after_a_torn_one_is_read(tmp_path):
    write(tmp_path / "a.zarr", manifest(), only={(0, 0)}, finish=False)
    with (tmp_path / "a.zarr/.logitcache/history.jsonl").open("a") as history:
        history.write('{"event": "du')
    write(tmp_path / "a.zarr", manifest(), only={(0, 1)}, finish=False)
    with pytest.raises(CacheIncompleteError, match="Complete it with:\n  logitcache dump --again"):
        open_cache(tmp_path / "a.zarr")


def test_the_command_names_the_cache_where_it_is_now(tmp_path):
    line = "logitcache dump --out elsewhere.zarr --views 2"
    with CacheWriter(tmp_path / "a.zarr", manifest(), COLUMNS, LABELS, command=line):
        pass
    with pytest.raises(CacheIncompleteError, match=rf"--out {tmp_path}/a.zarr --views 2"):
        open_cache(tmp_path / "a.zarr")


def test_rows_unlike_the_probe_are_found_and_their_blocks_dropped(tmp_path):
    probe = LOGITS[0, [0, 7, 299]].copy()
    probe[1] += 1
    write(tmp_path / "a.zarr", manifest(), probe=probe)
    report = verify_cache(tmp_path / "a.zarr", check_rows=0, repair=True)
    assert [(problem.view, problem.block) for problem in report.problems] == [(0, 0)]
    with pytest.raises(CacheIncompleteError, match="5 of 6 blocks are committed"):
        open_cache(tmp_path / "a.zarr")


def test_repair_forgets_a_damaged_mark_and_says_how_to_go_on(cache):
    before = bytes_of(cache)
    damage(cache, "flipped", ".logitcache/complete.json")
    with pytest.raises(CorruptCacheError, match="Run the dump's own command again"):
        verify_cache(cache, check_rows=0)
    with pytest.raises(CacheIncompleteError, match="6 of 6 blocks are committed. Complete it with"):
        verify_cache(cache, check_rows=0, repair=True)
    write(cache, manifest())
    assert bytes_of(cache) == before


@pytest.mark.parametrize("name", ["labels/c/0", "probe/samples/c/0", "probe/logits/t/c/0/0"])
def test_a_missing_chunk_of_a_whole_array_is_not_zeros(cache, name):
    """zarr reads it as zeros without a word."""
    (cache / name).unlink()
    opened = open_cache(cache)
    with pytest.raises(
        CorruptCacheError, match=rf"is missing: {name} should have .* bytes. .*logitcache verify --repair"
    ):
        opened.labels() if name.startswith("labels") else opened.probe("t")
