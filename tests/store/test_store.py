"""The cache on disk against docs/format.md."""

import dataclasses
import json
import pickle
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from tiny import bytes_of
from zarr.codecs import Crc32cCodec, GzipCodec
from zarr.core.buffer import cpu
from zarr.storage import MemoryStore

from logitcache.errors import (
    CacheIncompleteError,
    CacheMismatchError,
    CacheNotFoundError,
    CorruptCacheError,
    FormatVersionError,
    InputError,
)
from logitcache.store import CacheWriter, Manifest, ViewStream, block_rows_for, check_files, find_newest, open_cache
from logitcache.store.layout import ArraySpec, ChunkDecoder, ChunkEncoder, metadata_files
from logitcache.store.ledger import Ledger
from logitcache.store.offsets import is_among

CLASSES, SAMPLES, VIEWS = 4, 300, 2
COLUMNS = {"t": {"logits": ((CLASSES,), "<f4", ("class",), False, True)}}
RANDOM = np.random.RandomState(0)
LOGITS = RANDOM.randn(VIEWS + 1, SAMPLES, CLASSES).astype(np.float32)
DIGESTS = RANDOM.randint(0, 2**62, (VIEWS + 1, SAMPLES)).astype(np.uint64)
LABELS = RANDOM.randint(0, CLASSES, SAMPLES)
PROBE = np.array([0, 7, 299])


def manifest(views=VIEWS, **changes):
    fields = {
        "samples": SAMPLES,
        "classes": tuple("abcd"),
        "block_rows": 128,
        "batch_size": 64,
        "threads": 1,
        "device": "cpu",
        "views": tuple({"index": view} for view in range(views)),
        "data": {"spec": "x", "length": SAMPLES, "digest": "d", "first": 0},
        "teachers": (
            {"slug": "t", "name": "T", "weights": "w", "weights_sha256": "s", "class_map": None, "members": []},
        ),
        "encoding": {"kind": "full", "dtype": "f32"},
        "software": {"torch": "1"},
    }
    return Manifest(**(fields | changes))


def write(path: Path, what: Manifest, only=None, finish=True, probe=None):
    with CacheWriter(path, what, COLUMNS, LABELS, command="logitcache dump --again") as writer:
        writer.begin(PROBE, {"t": LOGITS[0, PROBE] if probe is None else probe})
        for view, block in writer.missing():
            if only is None or (view, block) in only:
                first, last = what.span(block)
                rows = {"digests": DIGESTS[view, first:last], "teachers/t/logits": LOGITS[view, first:last]}
                writer.write(view, block, rows)
        writer.drain()
        if finish:
            writer.finish()


@pytest.fixture
def cache(tmp_path):
    write(tmp_path / "c.zarr", manifest())
    return tmp_path / "c.zarr"


def test_plain_zarr_reads_the_arrays(cache, recwarn):
    group = zarr.open(cache, mode="r")
    assert (group["teachers/t/logits"][...] == LOGITS[:VIEWS]).all()
    assert (group["digests"][...] == DIGESTS[:VIEWS]).all()
    assert (group["labels"][...] == LABELS).all()
    assert (group["probe/samples"][...] == PROBE).all()
    assert (group["probe/logits/t"][...] == LOGITS[0, PROBE]).all()
    assert group["teachers/t/logits"].metadata.dimension_names == ("view", "sample", "class")
    assert sorted(group.array_keys()) == ["digests", "labels"]
    assert not recwarn.list


def test_columns_that_lie_rank_by_rank_come_back_as_rows(tmp_path):
    ids = RANDOM.randint(0, 99, (VIEWS, SAMPLES, 3)).astype(np.uint32)
    with CacheWriter(
        tmp_path / "c.zarr", manifest(), {"t": {"ids": ((3,), "<u4", ("rank",), 9, True)}}, LABELS, command=""
    ) as writer:
        writer.begin(PROBE, {"t": LOGITS[0, PROBE]})
        for view, block in writer.missing():
            first, last = manifest().span(block)
            writer.write(view, block, {"digests": DIGESTS[view, first:last], "teachers/t/ids": ids[view, first:last]})
        writer.finish()
    found = open_cache(tmp_path / "c.zarr")
    assert (found.view(1, "t")["ids"] == ids[1]).all()
    assert (found.view(1, "t", (2, 0))["ids"] == ids[1][[*range(256, 300), *range(128)]]).all()
    assert (found.block(0, "t", 1)["ids"] == ids[0, 128:256]).all()
    assert found.block(0, "t", 1)["ids"].flags.c_contiguous
    assert (found.rows(1, "t", np.array([3, 200]))["ids"] == ids[1, [3, 200]]).all()


def test_many_threads_read_the_same_block_at_once(cache):
    """As the loop and the thread that reads ahead do; a chunk that is gone for zarr would be zeros."""
    opened = open_cache(cache)
    with ThreadPoolExecutor(8) as executor:
        found = list(executor.map(lambda _: opened.view(1, "t", (1,))["logits"], range(400)))
    assert all((rows == LOGITS[1, 128:256]).all() for rows in found)


class Yielding(int):
    """A view's number that lets other threads run whenever it is compared: between the check of a memo and its use."""

    def __eq__(self, other):
        time.sleep(1e-4)
        return int(self) == other

    def __ne__(self, other):
        return not self == other

    __hash__ = int.__hash__


def test_threads_that_read_different_views_get_their_own(cache):
    """Threads and copies of a cache share the records of a view; each got those of whichever view was asked for last."""
    found = open_cache(cache)
    both = [found, found.of("t")]

    def read(number):
        one, view = both[number // VIEWS % 2], Yielding(number % VIEWS)
        for block, rows in ((0, slice(0, 128)), (1, slice(128, 256)), (2, slice(256, 300))) * 20:
            np.testing.assert_array_equal(one.block(view, "t", block)["logits"], LOGITS[view][rows])

    with ThreadPoolExecutor(8) as executor:
        for done in [executor.submit(read, number) for number in range(8)]:
            done.result()


def test_the_ledger_of_a_view_is_read_once(cache, monkeypatch):
    asked, read = Counter[int](), Ledger.view
    monkeypatch.setattr(Ledger, "view", lambda self, view: asked.update([view]) or read(self, view))
    found = open_cache(cache)
    for _ in range(3):
        for view in range(VIEWS):
            found.of("t").view(view, "t")
            found.block(view, "t", 0)
    assert asked == dict.fromkeys(range(VIEWS), 1)


def test_a_cache_goes_into_a_worker_after_it_was_read(cache):
    found = open_cache(cache)
    found.view(0, "t")
    again = pickle.loads(pickle.dumps(found.of("t")))
    for view in range(VIEWS):
        np.testing.assert_array_equal(again.view(view, "t")["logits"], LOGITS[view])


def test_the_reader_returns_what_was_written(cache):
    opened = open_cache(cache)
    assert (opened.view(1, "t")["logits"] == LOGITS[1]).all()
    assert (opened.digests(0) == DIGESTS[0]).all()
    assert (opened.labels() == LABELS).all()
    assert opened.manifest == manifest()
    parts = list(opened.blocks(1, "t"))
    assert [(first, last) for first, last, _ in parts] == [(0, 128), (128, 256), (256, 300)]
    assert (np.concatenate([columns["logits"] for _, _, columns in parts]) == LOGITS[1]).all()


def test_a_stream_gives_each_part_whichever_comes(cache):
    stream = ViewStream(open_cache(cache), "t")
    for view, upcoming in [(0, 1), (1, 0), (1, 1), (0, 1)]:
        assert (stream.take((view, None), (upcoming, None))["logits"] == LOGITS[view]).all()
    some = stream.take((1, (2, 0)), (1, (1,)))["logits"]
    assert (some == np.concatenate([LOGITS[1, 256:], LOGITS[1, :128]])).all()
    assert (stream.take((1, (1,)), (1, (1,)))["logits"] == LOGITS[1, 128:256]).all()
    stream.close()


def test_chunks_carry_a_checksum_and_the_format_is_in_every_file(cache):
    metadata = json.loads((cache / "teachers/t/logits/zarr.json").read_text())
    assert [codec["name"] for codec in metadata["codecs"]] == ["bytes", "crc32c"]
    assert metadata["codecs"][0]["configuration"] == {"endian": "little"}
    assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == [1, 128, CLASSES]
    assert json.loads((cache / "zarr.json").read_text())["attributes"]["logitcache"]["format"] == 1


@pytest.mark.parametrize("rows", [128, 100], ids=["a block", "the last block"])
@pytest.mark.parametrize(
    ("dtype", "row", "compression"),
    [
        ("<f4", (4,), None),
        ("<f2", (4,), None),
        ("<u8", (), None),
        ("|u1", (4,), None),
        ("<u4", (4,), "blosc"),
        ("<f2", (), "blosc"),
    ],
)
def test_chunks_are_the_bytes_that_zarr_writes_and_reads(dtype, row, compression, rows):
    """What is not compressed does not go through zarr on its way to the disk, and nothing on its way back."""
    spec = ArraySpec(
        "x", (1, 256, *row), (1, 128, *row), dtype, ("view", "sample", "class")[: 2 + len(row)], compression
    )
    values = (100 * np.abs(RANDOM.randn(rows, *row))).astype(dtype)
    ours = b"".join(ChunkEncoder(spec)(np.repeat(values, 2, 0)[::2]))  # which does not lie in one piece
    what = dataclasses.replace(manifest(), samples=256)
    stored = {"zarr.json": cpu.Buffer.from_bytes(metadata_files(what, {"x": spec})["x/zarr.json"])}
    array = zarr.open_array(MemoryStore(stored), mode="r+")
    array[0, :rows] = values
    (name,) = set(stored) - {"zarr.json"}
    assert ours == stored[name].to_bytes()
    back = ChunkDecoder(array)(ours)
    assert back.shape == (1, 128, *row)
    assert back.dtype == values.dtype
    assert (back[0, :rows] == values).all()
    assert not back[0, rows:].any()
    for damaged in (ours[:-5], ours[:9] + bytes([ours[9] ^ 1]) + ours[10:], b""):
        with pytest.raises(ValueError, match="checksum"):
            ChunkDecoder(array)(damaged)


@pytest.mark.parametrize("compression", [None, "blosc"])
@pytest.mark.parametrize(("shape", "message"), [((129, 4), "128 rows, not 129"), ((9, 5), r"must have shape \(4,\)")])
def test_rows_that_do_not_fit_are_refused(compression, shape, message):
    spec = ArraySpec("x", (1, 256, 4), (1, 128, 4), "<u4", ("view", "sample", "rank"), compression)
    with pytest.raises(ValueError, match=message):
        ChunkEncoder(spec)(np.zeros(shape, np.uint32))


def test_a_codec_that_the_format_does_not_know_is_refused():
    array = zarr.create_array(MemoryStore(), shape=(4,), dtype="<f4", compressors=[GzipCodec(), Crc32cCodec()])
    with pytest.raises(FormatVersionError, match=r"stored with GzipCodec.*Upgrade logitcache"):
        ChunkDecoder(array)


def test_a_chunk_of_zeros_is_written_too(tmp_path):
    with CacheWriter(tmp_path / "z.zarr", manifest(), COLUMNS, LABELS * 0, command="") as writer:
        writer.begin(PROBE, {"t": np.zeros((3, CLASSES), np.float32)})
        for view, block in writer.missing():
            first, last = manifest().span(block)
            zeros = np.zeros((last - first, CLASSES), np.float32)
            writer.write(view, block, {"digests": zeros[:, 0].astype(np.uint64), "teachers/t/logits": zeros})
        writer.finish()
    assert not open_cache(tmp_path / "z.zarr").view(1, "t")["logits"].any()
    assert not check_files(open_cache(tmp_path / "z.zarr"))


@pytest.mark.parametrize("stop", [0, 1, 3, 5])
def test_a_dump_continued_in_any_order_leaves_the_same_bytes(tmp_path, cache, stop):
    everything = [(v, b) for v in range(VIEWS) for b in range(3)]
    write(tmp_path / "other.zarr", manifest(), only=everything[::-1][:stop], finish=False)
    write(tmp_path / "other.zarr", manifest())
    assert bytes_of(tmp_path / "other.zarr") == bytes_of(cache)


def test_added_views_leave_the_bytes_of_a_cache_that_always_had_them(tmp_path, cache):
    write(cache, manifest(views=VIEWS + 1))
    write(tmp_path / "whole.zarr", manifest(views=VIEWS + 1))
    assert bytes_of(cache) == bytes_of(tmp_path / "whole.zarr")


def test_a_cache_stays_readable_while_views_are_added(cache):
    write(cache, manifest(views=VIEWS + 1), only={(VIEWS, 0)}, finish=False)
    assert len(open_cache(cache).manifest.views) == VIEWS
    assert (open_cache(cache).view(1, "t")["logits"] == LOGITS[1]).all()
    write(cache, manifest(views=VIEWS + 1))
    assert (open_cache(cache).view(VIEWS, "t")["logits"] == LOGITS[VIEWS]).all()


def test_a_torn_record_of_an_added_view_costs_its_block_alone(cache, tmp_path):
    """As a power failure leaves it."""
    write(cache, manifest(views=VIEWS + 1), only={(VIEWS, 0), (VIEWS, 1)}, finish=False)
    record = cache / f".logitcache/blocks/{VIEWS}/1.json"
    record.write_bytes(record.read_bytes()[:40])
    with CacheWriter(cache, manifest(views=VIEWS + 1), COLUMNS, LABELS, command="") as writer:
        assert writer.missing() == [(VIEWS, 1), (VIEWS, 2)]
        assert len(open_cache(cache).manifest.views) == VIEWS
    write(cache, manifest(views=VIEWS + 1))
    write(tmp_path / "whole.zarr", manifest(views=VIEWS + 1))
    assert bytes_of(cache) == bytes_of(tmp_path / "whole.zarr")


def test_fewer_views_than_there_are_is_another_cache(cache):
    with pytest.raises(CacheMismatchError, match="views"):
        write(cache, manifest(views=1))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"batch_size": 32}, "batch_size: there 64, requested 32"),
        ({"encoding": {"kind": "full", "dtype": "f16"}}, "encoding.dtype: there 'f32', requested 'f16'"),
        ({"software": {"torch": "2"}}, "software.torch: there '1', requested '2'"),
        ({"classes": tuple("abce")}, "classes: there"),
    ],
)
def test_another_cache_is_refused_and_left_alone(cache, changes, named):
    before = bytes_of(cache)
    with pytest.raises(CacheMismatchError, match=named.replace(".", r"\.")):
        write(cache, manifest(**changes))
    assert bytes_of(cache) == before


def test_another_spelling_of_a_path_is_the_same_cache(cache):
    spelled = manifest(data=manifest().data | {"spec": "elsewhere"})
    before, fingerprint = bytes_of(cache), open_cache(cache).fingerprint
    write(cache, spelled)
    assert open_cache(cache).fingerprint == fingerprint
    with CacheWriter(cache, spelled, COLUMNS, LABELS, command="") as writer:
        assert writer.finished
    write(cache, manifest())
    assert bytes_of(cache) == before


def test_something_that_is_no_cache_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.txt").write_text("words")
    with pytest.raises(InputError, match="exists and is not a logit cache; nothing in it was touched"):
        write(tmp_path / "thesis", manifest())
    assert [file.name for file in (tmp_path / "thesis").iterdir()] == ["chapter.txt"]


def test_other_bits_from_the_teacher_stop_a_continued_dump(tmp_path):
    write(tmp_path / "c.zarr", manifest(), only={(0, 0)}, finish=False)
    with pytest.raises(CacheMismatchError, match="largest gap .* over 3 probe rows"):
        write(tmp_path / "c.zarr", manifest(), probe=LOGITS[0, PROBE] + 1e-6)


def test_a_second_writer_is_refused(tmp_path):
    with (
        CacheWriter(tmp_path / "c.zarr", manifest(), COLUMNS, LABELS, command=""),
        pytest.raises(InputError, match=r"is being written by process \d+ on "),
    ):
        CacheWriter(tmp_path / "c.zarr", manifest(), COLUMNS, LABELS, command="")
    write(tmp_path / "c.zarr", manifest())  # the lock went with its holder


def test_finish_refuses_a_missing_block(tmp_path):
    with pytest.raises(CacheIncompleteError, match="1 block missing, the first is .* \\(1, 2\\)"):
        write(tmp_path / "c.zarr", manifest(), only={(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)})


def test_errors_of_the_writing_thread_reach_the_caller(tmp_path):
    with (
        pytest.raises(ValueError, match="a row must have shape"),
        CacheWriter(tmp_path / "c.zarr", manifest(), COLUMNS, LABELS, command="") as writer,
    ):
        writer.begin(PROBE, {"t": LOGITS[0, PROBE]})
        writer.write(0, 0, {"digests": DIGESTS[0, :128], "teachers/t/logits": LOGITS[0, :128, :2]})
        writer.drain()


def test_an_unfinished_cache_is_refused_with_the_command_that_completes_it(tmp_path):
    write(tmp_path / "c.zarr", manifest(), only={(0, 0), (1, 2)}, finish=False)
    with pytest.raises(
        CacheIncompleteError, match=r"2 of 6 blocks are committed. Complete it with:\n  logitcache dump --again"
    ):
        open_cache(tmp_path / "c.zarr")


def test_nothing_there_and_something_else_there_are_said_apart(tmp_path):
    with pytest.raises(CacheNotFoundError, match="there is no cache at"):
        open_cache(tmp_path / "nothing.zarr")
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(CacheNotFoundError, match="is not a logit cache"):
        open_cache(tmp_path)


def test_a_newer_format_is_refused(cache):
    root = json.loads((cache / "zarr.json").read_text())
    root["attributes"]["logitcache"]["format"] = 2
    (cache / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(FormatVersionError, match="has cache format 2; this logitcache reads formats up to 1. Upgrade"):
        open_cache(cache)


@pytest.mark.parametrize("change", ["add", "remove"])
def test_unknown_and_missing_manifest_keys_are_refused(cache, change):
    root = json.loads((cache / "zarr.json").read_text())
    if change == "add":
        root["attributes"]["logitcache"]["flavour"] = 1
    else:
        del root["attributes"]["logitcache"]["samples"]
    (cache / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(CorruptCacheError, match="keys missing or unknown: (flavour|samples)"):
        open_cache(cache)


def test_the_newest_finished_cache_is_found(tmp_path, cache):
    write(tmp_path / "later.zarr", manifest())
    write(tmp_path / "unfinished.zarr", manifest(), only=set(), finish=False)
    assert find_newest(tmp_path) == tmp_path / "later.zarr"
    with pytest.raises(CacheNotFoundError, match="there is no finished cache in"):
        find_newest(tmp_path / "later.zarr")


@given(st.integers(1, 3_000_000), st.integers(2, 600_000))
def test_blocks_are_even_and_nearly_full(samples, row_bytes):
    rows = block_rows_for(samples, row_bytes)
    blocks = -(-samples // rows)
    assert rows % 256 == 0
    assert rows <= 16384
    assert rows * row_bytes <= 8 << 20 or rows <= 1024
    assert blocks * rows - samples < 256 * blocks + rows * (blocks == 1) * (samples < 256)


def test_manifests_read_back():
    entry = json.loads(json.dumps(manifest().to_json()))
    assert Manifest.from_json(entry, "here") == Manifest.from_json(manifest().to_json(), "here")
    assert not Manifest.from_json(entry, "here").differences(manifest())


def test_python_without_assertions_is_refused_with_a_sentence(tmp_path):
    """zarr 3.1 cannot read under -O."""
    write(tmp_path / "c.zarr", manifest())
    words = [sys.executable, "-O", "-m", "logitcache", "stats", str(tmp_path / "c.zarr")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == "error: zarr cannot read under python -O or PYTHONOPTIMIZE; run Python without it\n"


def test_ids_are_found_among_others():
    ids = np.array([7, 0, 3, 9, 3])
    for others in ([], [3], [0, 3, 8], [9], [10]):
        assert np.array_equal(is_among(ids, np.array(others, np.int64)), np.isin(ids, others))
