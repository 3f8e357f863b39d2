"""Two caches side by side, against the obvious formulas, and what cannot be compared."""

import numpy as np
import pytest
from made import CLASSES, SAMPLES, VIEWS, draw, make, softmax

from logitcache import compare_caches
from logitcache.encoding import FullEncoding, TopKEncoding
from logitcache.errors import CacheIncompleteError, CacheMismatchError
from logitcache.stats import cache_stats, comparison
from logitcache.store import decode_rows, open_cache


def slowly(one, other, temperature):
    """Mean KL of two arrays of logits, [V, N, C]."""
    p, q = softmax(one, temperature), softmax(other, temperature)
    return float((p * np.log(p / q)).sum(-1).mean())


def test_numbers_are_the_obvious_ones(tmp_path, monkeypatch):
    (logits, labels), (others, _) = draw(), draw(seed=1)
    others = 0.5 * others + 0.5 * logits
    first, second = make(tmp_path / "a.zarr", logits, labels), make(tmp_path / "b.zarr", others, labels, teacher="U")
    monkeypatch.setattr(comparison, "_BYTES_AT_ONCE", 4 * CLASSES * 250)
    found = compare_caches(first, second)
    says = [x.argmax(2) for x in (logits, others)]
    right = [one == labels for one in says]
    assert found.rows == VIEWS * SAMPLES
    assert found.top1_agreement == pytest.approx((says[0] == says[1]).mean())
    assert found.both_right == pytest.approx((right[0] & right[1]).mean())
    assert found.first_right == pytest.approx((right[0] & ~right[1]).mean())
    assert found.second_right == pytest.approx((~right[0] & right[1]).mean())
    assert found.both_right + found.first_right + found.second_right + found.both_wrong == pytest.approx(1)
    for temperature in (1, 4):
        assert found.kl_nats[f"T={temperature}"] == pytest.approx(slowly(logits, others, temperature), rel=1e-4)
        assert found.kl_back_nats[f"T={temperature}"] == pytest.approx(slowly(others, logits, temperature), rel=1e-4)
    assert found.class_agreement[2] == pytest.approx((says[0] == says[1])[:, labels == 2].mean())
    assert found.class_agreement[CLASSES - 1] is None
    for side, path in zip(found.sides, (first, second), strict=True):
        alone = cache_stats(path)
        assert (side.path, side.fingerprint) == (alone.path, alone.fingerprint)
        assert side.bytes_per_row == alone.bytes_per_row
        assert side.accuracy == pytest.approx(np.mean([view.accuracy for view in alone.views]))
        assert side.entropy_nats == pytest.approx(np.mean([view.entropy_nats for view in alone.views]))
    assert found.same == {
        "teacher": "differs: T beside U",
        "views": "3 the same",
        "encoding": "the same: full f32",
        "data": "the same: samples 0 to 599",
    }
    back = compare_caches(second, first)
    assert (back.kl_nats, back.first_right) == (found.kl_back_nats, found.second_right)


def test_two_encodings_of_one_teacher_differ_by_what_was_lost(tmp_path):
    logits, labels = draw()
    encoding = TopKEncoding(3, "u8")
    first, second = make(tmp_path / "a.zarr", logits, labels), make(tmp_path / "b.zarr", logits, labels, encoding)
    found = compare_caches(first, second)
    assert found.top1_agreement == 1.0
    for temperature in (1, 4):
        cache = open_cache(second)
        stored = [decode_rows(encoding.to_json(), cache.view(v, "t"), CLASSES, temperature) for v in range(VIEWS)]
        assert found.kl_nats[f"T={temperature}"] == pytest.approx(
            slowly(logits, np.array(stored), temperature), rel=1e-3
        )
    assert found.same["teacher"] == "the same: T"
    assert found.same["encoding"] == "differs: full f32 beside top-3 u8"
    assert any(sentence.startswith(f"{first} keeps every class") for sentence in found.advice)
    assert compare_caches(first, first).advice == []
    assert set(compare_caches(first, first).kl_nats.values()) == {0.0}


def test_advice_prefers_the_better_teacher_and_only_where_it_is_clear(tmp_path):
    logits, labels = draw()
    better = logits.copy()
    better[:, np.arange(SAMPLES), labels] += 2
    first, second = make(tmp_path / "a.zarr", 3 * logits, labels), make(tmp_path / "b.zarr", better, labels)
    advice = compare_caches(first, second).advice
    assert any(sentence.startswith(f"{second} is right more often") for sentence in advice)
    assert any(sentence.startswith(f"{second} is softer") for sentence in advice)
    assert any(sentence.startswith(f"{second} is better calibrated") for sentence in advice)
    hardly = logits.copy()
    hardly[:, :3] = better[:, :3]
    third = make(tmp_path / "c.zarr", logits, labels)
    assert compare_caches(third, make(tmp_path / "d.zarr", hardly, labels)).advice == []
    finer = make(tmp_path / "e.zarr", logits, labels, FullEncoding("u8"))
    assert compare_caches(finer, third).advice[-1] == f"{third} is finer (full f32 against full u8)"
    more, fewer = (make(tmp_path / f"{k}.zarr", logits, labels, TopKEncoding(k, "u8")) for k in (5, 2))
    assert f"{more} keeps more classes of a row (top-5 u8 against top-2 u8)" in compare_caches(fewer, more).advice


def test_other_views_are_compared_by_their_first_and_it_is_said(tmp_path):
    logits, labels = draw()
    first = make(tmp_path / "a.zarr", logits, labels, recipes=("none",) * 3)
    second = make(tmp_path / "b.zarr", logits[::-1].copy(), labels, recipes=("pad-crop-flip",) * 3, seed=5)
    found = compare_caches(first, second)
    assert found.rows == SAMPLES
    assert found.same["views"] == "differ: view 0 (none, seed 0) beside view 0 (pad-crop-flip, seed 5)"
    assert found.top1_agreement == pytest.approx((logits[0].argmax(1) == logits[2].argmax(1)).mean())


def test_views_of_another_number_in_the_other_cache_are_found(tmp_path):
    """The second cache has the first one's views 2 and 1 as its views 0 and 1."""
    logits, labels = draw()
    digests = np.arange(VIEWS * SAMPLES, dtype=np.uint64).reshape(VIEWS, SAMPLES)
    first = make(tmp_path / "a.zarr", logits, labels, recipes=("x", "y", "none"), digests=digests)
    second = make(tmp_path / "b.zarr", logits[[2, 1]], labels, recipes=("none", "y"), digests=digests[[2, 1]])
    found = compare_caches(first, second)
    assert found.same["views"] == "1 the same"  # "none" has another key there, and so another rendition
    assert (found.rows, found.top1_agreement, found.kl_nats["T=1"]) == (SAMPLES, 1.0, 0.0)


def test_rows_with_other_pixels_are_left_out(tmp_path):
    logits, labels = draw()
    digests = np.arange(VIEWS * SAMPLES, dtype=np.uint64).reshape(VIEWS, SAMPLES)
    first = make(tmp_path / "a.zarr", logits, labels, digests=digests)
    others = logits.copy()
    others[:, :100] = -others[:, :100]
    changed = digests.copy()
    changed[:, :100] += 10_000
    found = compare_caches(first, make(tmp_path / "b.zarr", others, labels, digests=changed))
    assert (found.rows, found.top1_agreement) == (VIEWS * (SAMPLES - 100), 1.0)
    assert found.same["views"] == "3 the same; 16.7% of their rows show other pixels and are left out"
    with pytest.raises(CacheMismatchError, match="other pixels in every row"):
        compare_caches(first, make(tmp_path / "c.zarr", others, labels, digests=digests + 10_000))


def test_stretches_that_overlap_are_compared_there(tmp_path):
    logits, labels = draw()
    digests = np.arange(VIEWS * SAMPLES, dtype=np.uint64).reshape(VIEWS, SAMPLES)
    parts = []
    for name, part in (("a", slice(0, 400)), ("b", slice(300, 600)), ("c", slice(400, 600))):
        data = {"first": part.start, "length": SAMPLES}
        parts.append(
            make(tmp_path / f"{name}.zarr", logits[:, part], labels[part], digests=digests[:, part], data=data)
        )
    found = compare_caches(parts[0], parts[1])
    assert (found.rows, found.top1_agreement) == (VIEWS * 100, 1.0)
    assert found.same["data"] == "samples 300 to 399 of the same data are in both"
    with pytest.raises(CacheMismatchError, match="holds samples 0 to 399 and .* 400 to 599: they have none in common"):
        compare_caches(parts[0], parts[2])


def test_what_cannot_be_compared_is_refused(tmp_path):
    logits, labels = draw()
    first = make(tmp_path / "a.zarr", logits, labels)
    fewer = make(tmp_path / "b.zarr", logits[:, :, :11].copy(), labels.clip(max=10))
    with pytest.raises(CacheMismatchError, match="has 12 classes and .* 11"):
        compare_caches(first, fewer)
    with pytest.raises(
        CacheMismatchError, match=r"digest d\) and .* of x \(digest e\): compare caches of one data set"
    ):
        compare_caches(first, make(tmp_path / "c.zarr", logits, labels, data={"digest": "e"}))
    unfinished = make(tmp_path / "d.zarr", logits, labels, leave_out=((0, 0),), finish=False)
    with pytest.raises(CacheIncompleteError):
        compare_caches(first, unfinished)


def test_many_rows_are_sampled_over_all_views_at_other_samples(tmp_path, monkeypatch):
    """Every twentieth sample, in view v from the v-th on: just those that the teacher has wrong there."""
    logits, labels = draw()
    logits[:, np.arange(SAMPLES), labels] = 50
    for view in range(VIEWS):
        logits[view, view::20] *= -1
    path = make(tmp_path / "a.zarr", logits, labels)
    monkeypatch.setattr(comparison, "_ROWS", 90)
    found = compare_caches(path, path)
    assert (found.rows, found.both_wrong) == (90, 1.0)
