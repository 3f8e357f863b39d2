"""What is missing or damaged is said first, and the rest described."""

import json
import re

import numpy as np
import pytest
from made import BLOCK, SAMPLES, draw, encode, make

from logitcache.encoding import FullEncoding, TopKEncoding
from logitcache.errors import CacheIncompleteError, CorruptCacheError
from logitcache.stats import cache_stats
from logitcache.stats.rows import answers, read_rows
from logitcache.store import bytes_per_row, open_cache


@pytest.fixture
def path(tmp_path):
    return make(tmp_path / "c.zarr", *draw())


def test_an_unfinished_cache_is_described_as_far_as_it_goes(tmp_path):
    logits, labels = draw()
    path = make(tmp_path / "c.zarr", logits, labels, leave_out=((1, 2), (2, 0)), finish=False)
    with pytest.raises(CacheIncompleteError, match="7 of 9 blocks are committed"):
        open_cache(path)
    found = cache_stats(path)
    assert (found.health.finished, found.health.blocks, found.health.damaged) == (False, 9, [])
    assert found.health.missing == ["view 1, block 2", "view 2, block 0"]
    assert [view.rows for view in found.views] == [SAMPLES, 2 * BLOCK, SAMPLES - BLOCK]
    says = logits.argmax(2)
    assert found.views[1].accuracy == pytest.approx((says[1, : 2 * BLOCK] == labels[: 2 * BLOCK]).mean())
    assert found.agreement[1][2] == pytest.approx((says[1] == says[2])[BLOCK : 2 * BLOCK].mean())
    assert found.agreement_of_all == pytest.approx((says == says[0]).all(0)[BLOCK : 2 * BLOCK].mean())
    assert (found.fingerprint, found.probe.rows) == ("", 12)
    assert found.bytes_per_row == pytest.approx(found.bytes_total / (2 * SAMPLES + BLOCK))


def test_a_cache_without_one_block_has_no_numbers_and_no_failure(tmp_path):
    everything = tuple((view, block) for view in range(3) for block in range(3))
    found = cache_stats(make(tmp_path / "c.zarr", *draw(), leave_out=everything, finish=False))
    assert len(found.health.missing) == 9 + 1  # and the rows that the probe is compared with
    assert [view.rows for view in found.views] == [0, 0, 0]
    assert (found.views[0].accuracy, found.views[0].mis_instruction_rate, found.bytes_per_row) == (0, 0, 0)
    assert (found.preview.rows, found.probe.rows, found.odd, found.duplicates) == (0, 0, [], [])
    json.dumps(found.to_json(), allow_nan=False)


def test_damaged_and_missing_blocks_are_named(path):
    whole = cache_stats(path)
    chunk = path / "teachers/t/logits/c/1/1/0"
    data = bytearray(chunk.read_bytes())
    data[100] ^= 1
    chunk.write_bytes(data)
    (path / "teachers/t/logits/c/2/0/0").unlink()
    found = cache_stats(path)
    assert (found.health.finished, found.health.missing, found.health.damaged) == (
        True,
        ["view 2, block 0"],
        ["view 1, block 1"],
    )
    assert found.views[0] == whole.views[0]
    assert found.views[1].rows == SAMPLES - BLOCK
    with pytest.raises(CorruptCacheError):
        open_cache(path).view(1, "t")


def test_a_view_whose_records_are_damaged_is_damaged(path):
    ledger = path / ".logitcache/ledger/1.json"
    ledger.write_text(ledger.read_text().replace("0", "1", 3))
    found = cache_stats(path)
    assert found.health.damaged == [f"view 1, block {block}" for block in range(3)]
    assert [view.rows for view in found.views] == [SAMPLES, 0, SAMPLES]


def test_a_row_that_does_not_name_its_label_is_damage():
    """Codes that decompress well and mean nothing, as a broken writer leaves them."""
    (logits,), labels = draw(views=1)
    encoding = TopKEncoding(3, "u8")
    columns = encode(encoding, logits, labels)
    with pytest.raises(CorruptCacheError, match="lacks its label"):
        read_rows(encoding.to_json(), columns, (labels + 1) % 12, 12)
    columns["ids"][:, -1] += 12
    with pytest.raises(CorruptCacheError, match="has a class above 11"):
        read_rows(encoding.to_json(), columns, labels, 12)


def test_a_missing_probe_is_said_and_labels_must_be_there(path):
    (path / "probe/logits/t/c/0/0").unlink()
    found = cache_stats(path)
    assert found.health.missing == ["probe, or rows of it"]
    assert found.probe.rows == 0
    (path / "labels/c/0").unlink()
    with pytest.raises(CorruptCacheError, match="labels is missing"):
        cache_stats(path)


def test_labels_that_an_unfinished_cache_has_lost_are_not_zeros(tmp_path):
    path = make(tmp_path / "c.zarr", *draw(), leave_out=((2, 2),), finish=False)
    (path / "labels/c/0").unlink()
    with pytest.raises(CorruptCacheError, match="labels is missing"):
        cache_stats(path)


def test_a_folder_without_a_first_block_is_no_cache_to_describe(tmp_path):
    (tmp_path / "c.zarr/.logitcache").mkdir(parents=True)
    with pytest.raises(CacheIncompleteError, match="was stopped before its first block"):
        cache_stats(tmp_path / "c.zarr")


@pytest.mark.parametrize("encoding", [None, TopKEncoding(3, "f32")], ids=str)
def test_rows_that_are_constant_or_not_finite_are_counted_and_the_latter_left_out(tmp_path, encoding):
    logits, labels = draw()
    whole = cache_stats(make(tmp_path / "c.zarr", logits[:, 3:], labels[3:], encoding)).views[0]
    other = (labels + 1) % 12
    logits[0, 0, other[0]], logits[0, 1, other[1]], logits[0, 2, labels[2]], logits[1, 5] = np.nan, np.inf, np.nan, 0.0
    found = cache_stats(make(tmp_path / "d.zarr", logits, labels, encoding))
    assert (found.health.not_finite_rows, found.health.constant_rows) == (3, 1)
    assert (found.views[0].not_finite_rows, found.views[1].constant_rows) == (3, 1)
    assert found.views[0].rows == SAMPLES - 3
    assert found.views[0].accuracy == whole.accuracy
    assert found.views[0].entropy_nats == pytest.approx(whole.entropy_nats, rel=1e-5)
    json.dumps(found.to_json(), allow_nan=False)


def test_when_and_on_what_it_was_made(path):
    found = cache_stats(path)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}\+00:00", found.made["begun"])
    assert (found.made["device"], found.made["command"]) == ("cpu", "logitcache dump")
    assert found.made["host"]
    assert "continued" not in found.made
    (path / ".logitcache/history.jsonl").unlink()
    assert cache_stats(path).made == {}


def test_bytes_by_array_are_all_there_are(path):
    found = cache_stats(path)
    assert sum(found.bytes_by_array.values()) == found.bytes_total
    assert found.bytes_total == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert found.bytes_by_array["teachers/t/logits"] == 3 * 3 * (BLOCK * 12 * 4 + 4)
    assert found.bytes_per_row == pytest.approx(found.bytes_total / (3 * SAMPLES))


@pytest.mark.parametrize("encoding", [FullEncoding("f32"), TopKEncoding(3, "f32")], ids=str)
def test_nearly_constant_is_not_constant(encoding):
    """Row 0 is; row 1 has one class a little above, row 2 one below, which a top-k row knows from the minimum of the rest alone."""
    logits, labels = np.full((3, 12), 2.0, np.float32), np.zeros(3, np.int32)
    logits[1, 5], logits[2, 11] = 2.001, 1.999
    found = answers(read_rows(encoding.to_json(), encode(encoding, logits, labels), labels, 12))
    assert found.constant.tolist() == [True, False, False]


def test_a_row_of_one_teacher_does_not_weigh_what_others_left():
    sizes = {
        "teachers/t/logits": 60,
        "teachers/t-2/logits": 700,
        "probe/logits/t": 5,
        "probe/logits/t-2": 70,
        "digests": 35,
    }
    assert bytes_per_row(sizes, 10, ["t"]) == 10.0
    assert bytes_per_row(sizes, 10, ["t", "t-2"]) == 87.0
