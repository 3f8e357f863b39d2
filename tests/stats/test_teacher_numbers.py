"""What `stats` says of the teacher, against the obvious formulas in double precision."""

import numpy as np
import pytest
from made import BLOCK, CLASSES, ENCODINGS, SAMPLES, VIEWS, draw, make, softmax

from logitcache.encoding import FullEncoding, TopKEncoding
from logitcache.stats import cache_stats, describe, teacher
from logitcache.store import decode_rows, open_cache


def slowly(logits, labels):
    """The numbers of one view, row by row where that is plainest."""
    p = softmax(logits)
    says, confidence, right = p.argmax(1), p.max(1), p.argmax(1) == labels
    ranks = [int((row > row[label]).sum()) for row, label in zip(logits, labels, strict=True)]
    error = 0.0
    for number in range(15):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return {
        "says": says,
        "accuracy": right.mean(),
        "top5_accuracy": np.mean([rank < 5 for rank in ranks]),
        "confidence": confidence.mean(),
        "entropy_nats": -(p * np.log(p)).sum(1).mean(),
        "calibration_error": error,
        "ranks": np.bincount(ranks, minlength=logits.shape[1]).tolist(),
        "class_accuracy": [
            right[labels == label].mean() if (labels == label).any() else None for label in range(logits.shape[1])
        ],
    }


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_numbers_are_those_of_the_rows_as_they_are_stored(tmp_path, encoding):
    """A top-k row counts as one whose rest is spread evenly."""
    exact, labels = draw()
    cache = open_cache(make(tmp_path / "c.zarr", exact, labels, encoding))
    found = cache_stats(cache)
    slow = []
    for view in range(VIEWS):
        logits = decode_rows(encoding.to_json(), cache.view(view, "t"), CLASSES)
        slow.append(slowly(logits, labels))
        ours, expected = found.views[view], slow[-1]
        assert (ours.view, ours.recipe, ours.rows) == (view, "none", SAMPLES)
        for name in ("accuracy", "confidence", "entropy_nats", "calibration_error"):
            assert getattr(ours, name) == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name
        assert ours.mis_instruction_rate == pytest.approx(1 - expected["accuracy"])
        assert ours.class_accuracy == pytest.approx(expected["class_accuracy"])
        assert ours.class_accuracy[-1] is None
        # Ranks and the first five are those of the exact logits: rounding keeps what ranks at or above the label.
        ranks = slowly(exact[view], labels)["ranks"]
        kept = 11 if isinstance(encoding, FullEncoding) else encoding.k
        assert ours.rank_of_label == [*ranks[:kept], sum(ranks[kept:])]
        assert ours.top5_accuracy == pytest.approx(sum(ranks[: min(5, kept)]) / SAMPLES)
        assert sum(one.rows for one in ours.reliability) == SAMPLES
        assert sum(one.rows * one.accuracy for one in ours.reliability) == pytest.approx(SAMPLES * expected["accuracy"])
    says = np.array([one["says"] for one in slow])
    for one in range(VIEWS):
        for other in range(VIEWS):
            assert found.agreement[one][other] == pytest.approx((says[one] == says[other]).mean())
    assert found.agreement_of_all == pytest.approx((says == says[0]).all(0).mean())
    pairs = np.zeros((CLASSES, CLASSES), int)
    np.add.at(pairs, (np.tile(labels, VIEWS), says.ravel()), 1)
    of_class = pairs.sum(1)
    np.fill_diagonal(pairs, 0)
    assert [one.rows for one in found.confusions] == sorted(pairs.ravel().tolist(), reverse=True)[:20]
    for one in found.confusions:
        assert one.rows == pairs[one.label, one.says]
        assert one.share == pytest.approx(one.rows / of_class[one.label])


@pytest.mark.parametrize("dtype", ["f16", "u8"])
def test_a_top_k_cache_and_a_full_one_of_the_same_logits_agree(tmp_path, dtype):
    logits, labels = draw()
    kept, full = (
        cache_stats(make(tmp_path / f"{encoding}.zarr", logits, labels, encoding))
        for encoding in (TopKEncoding(6, dtype), FullEncoding("f32"))
    )
    for ours, theirs in zip(kept.views, full.views, strict=True):
        assert (ours.accuracy, ours.top5_accuracy) == (theirs.accuracy, theirs.top5_accuracy)
        assert ours.class_accuracy == theirs.class_accuracy
        assert ours.rank_of_label[:6] == theirs.rank_of_label[:6]
        assert ours.confidence == pytest.approx(theirs.confidence, abs=2e-3)
        assert ours.entropy_nats == pytest.approx(theirs.entropy_nats, rel=0.05)
    assert kept.agreement == full.agreement
    assert kept.confusions == full.confusions
    assert {one.sample for one in kept.odd} == {one.sample for one in full.odd}


def test_the_calibration_of_a_hand_of_rows(tmp_path):
    """Four rows say 0.82: three are right. Four say 0.62: one is. Error = 1/2 · |3/4 - 0.82| + 1/2 · |1/4 - 0.62| = 0.22."""
    p = np.array([[0.82, 0.15, 0.03]] * 4 + [[0.62, 0.3, 0.08]] * 4, np.float32)
    labels = np.array([0, 0, 0, 1, 0, 1, 1, 2], np.int32)
    (view,) = cache_stats(make(tmp_path / "c.zarr", np.log(p)[None], labels)).views
    assert view.calibration_error == pytest.approx(0.22, abs=1e-6)
    assert view.rank_of_label == [4, 3, 1]
    filled = {round(one.lower * 15): (one.rows, one.accuracy) for one in view.reliability if one.rows}
    assert filled == {9: (4, 0.25), 12: (4, 0.75)}


def test_the_calibration_of_several_views_is_that_of_all_their_rows(tmp_path):
    """One view too sure by 0.1, one too unsure by 0.25, in one bin: together too unsure by 0.075."""
    sure = np.log(np.array([[0.75, 0.15, 0.1]] * 20, np.float32))
    labels = np.array([0] * 13 + [1] * 7, np.int32)
    other = sure[:, [1, 0, 2]].copy()
    other[:13] = sure[:13]  # right in all 20
    found = cache_stats(make(tmp_path / "c.zarr", np.stack([sure, other]), labels))
    assert [view.calibration_error for view in found.views] == pytest.approx([0.1, 0.25], abs=1e-3)
    assert found.mean("calibration_error") == pytest.approx(0.075, abs=1e-3)


def test_stretches_and_merged_counts_change_nothing(tmp_path, monkeypatch):
    """As in a cache of millions of samples, where one stretch is forgotten before the next is read."""
    path = make(tmp_path / "c.zarr", *draw())
    whole = cache_stats(path)
    monkeypatch.setattr(describe, "STRETCH", BLOCK)
    monkeypatch.setattr(teacher, "_PENDING", 10)
    again = cache_stats(path)
    assert (again.agreement, again.confusions, again.odd) == (whole.agreement, whole.confusions, whole.odd)
    assert again.agreement_of_all == whole.agreement_of_all
    assert [view.class_accuracy for view in again.views] == [view.class_accuracy for view in whole.views]


def test_progress_ends_at_the_last_row(tmp_path):
    moments = []
    cache_stats(make(tmp_path / "c.zarr", *draw()), on_progress=moments.append)
    reading = [moment for moment in moments if moment.task == "reading"]
    assert [one.done for one in reading] == sorted(one.done for one in reading)
    assert (reading[-1].done, reading[-1].total) == (VIEWS * SAMPLES, VIEWS * SAMPLES)


def test_more_than_sixteen_views_are_compared_in_all_and_sixteen_in_pairs(tmp_path):
    logits, labels = draw(views=18)
    found = cache_stats(make(tmp_path / "c.zarr", logits, labels))
    assert len(found.views) == 18
    assert np.shape(found.agreement) == (16, 16)
    assert found.agreement_of_all == pytest.approx((logits.argmax(2) == logits[0].argmax(1)).all(0).mean())
