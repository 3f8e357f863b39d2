"""Two caches side by side, against the obvious formulas, and what cannot be compared."""

from pathlib import Path

import numpy as np
import pytest
import texts
import torch
from made import CLASSES, SAMPLES, VIEWS, draw, make, softmax

import logitcache
from logitcache import compare_caches
from logitcache.data.text.documents import Documents
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
        "teacher": "different: T and U",
        "views": "3 in common",
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
    assert found.same["encoding"] == "different: full f32 and top-3 u8"
    assert any(sentence.startswith(f"{first} keeps every class") for sentence in found.advice)
    assert compare_caches(first, first).advice == []
    assert set(compare_caches(first, first).kl_nats.values()) == {0.0}


def test_advice_prefers_the_better_teacher_and_only_where_it_is_clear(tmp_path):
    logits, labels = draw()
    better = logits.copy()
    better[:, np.arange(SAMPLES), labels] += 2
    first, second = make(tmp_path / "a.zarr", 3 * logits, labels), make(tmp_path / "b.zarr", better, labels)
    advice = compare_caches(first, second).advice
    assert any(sentence.startswith(f"{second} is more accurate") for sentence in advice)
    assert any(sentence.startswith(f"{second} is softer") for sentence in advice)
    assert any(sentence.startswith(f"{second} is better calibrated") for sentence in advice)
    hardly = logits.copy()
    hardly[:, :3] = better[:, :3]
    third = make(tmp_path / "c.zarr", logits, labels)
    assert compare_caches(third, make(tmp_path / "d.zarr", hardly, labels)).advice == []
    finer = make(tmp_path / "e.zarr", logits, labels, FullEncoding("u8"))
    assert compare_caches(finer, third).advice[-1] == f"{third} has higher precision (full f32 instead of full u8)"
    more, fewer = (make(tmp_path / f"{k}.zarr", logits, labels, TopKEncoding(k, "u8")) for k in (5, 2))
    assert f"{more} keeps more classes per row (top-5 u8 instead of top-2 u8)" in compare_caches(fewer, more).advice


def test_other_views_are_compared_by_their_first_and_it_is_said(tmp_path):
    logits, labels = draw()
    first = make(tmp_path / "a.zarr", logits, labels, recipes=("none",) * 3)
    second = make(tmp_path / "b.zarr", logits[::-1].copy(), labels, recipes=("pad-crop-flip",) * 3, seed=5)
    found = compare_caches(first, second)
    assert found.rows == SAMPLES
    assert found.same["views"] == "different: view 0 (none, seed 0) and view 0 (pad-crop-flip, seed 5)"
    assert found.top1_agreement == pytest.approx((logits[0].argmax(1) == logits[2].argmax(1)).mean())


def test_views_of_another_number_in_the_other_cache_are_found(tmp_path):
    """The second cache has the first one's views 2 and 1 as its views 0 and 1."""
    logits, labels = draw()
    digests = np.arange(VIEWS * SAMPLES, dtype=np.uint64).reshape(VIEWS, SAMPLES)
    first = make(tmp_path / "a.zarr", logits, labels, recipes=("x", "y", "none"), digests=digests)
    second = make(tmp_path / "b.zarr", logits[[2, 1]], labels, recipes=("none", "y"), digests=digests[[2, 1]])
    found = compare_caches(first, second)
    assert found.same["views"] == "1 in common"  # "none" has another key there, and so another rendition
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
    assert found.same["views"] == "3 in common; 16.7% of their rows have different pixels and are left out"
    with pytest.raises(CacheMismatchError, match="the pixels differ in every row"):
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
    assert found.same["data"] == "the same, with samples 300 to 399 in both"
    with pytest.raises(
        CacheMismatchError, match="has samples 0 to 399 and .* 400 to 599; compare caches with samples in common"
    ):
        compare_caches(parts[0], parts[2])


def test_what_cannot_be_compared_is_refused(tmp_path):
    logits, labels = draw()
    first = make(tmp_path / "a.zarr", logits, labels)
    fewer = make(tmp_path / "b.zarr", logits[:, :, :11].copy(), labels.clip(max=10))
    with pytest.raises(CacheMismatchError, match="has 12 classes and .* 11"):
        compare_caches(first, fewer)
    with pytest.raises(
        CacheMismatchError, match=r"digest d\) and .* from x \(digest e\); compare caches of one data set"
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


class Rising(torch.nn.Module):
    """Expects the next number; with `shift` another one where the number divides by 7."""

    def __init__(self, shift=0):
        super().__init__()
        self.weight, self.shift = torch.nn.Parameter(torch.ones(1)), shift

    def forward(self, input_ids, position_ids, documents):
        expected = (input_ids + 1 + self.shift * (input_ids % 7 == 0)) % texts.VOCABULARY
        following = torch.nn.functional.one_hot(expected, texts.VOCABULARY).float()
        return (
            following * (2 + position_ids[..., None].float() / 3) + 0.01 * input_ids[..., None].float()
        ) * self.weight


@pytest.fixture(scope="module")
def rising(tmp_path_factory):
    """A function that dumps text of numbers that go up by one, in documents of any length."""
    lengths = np.random.RandomState(0).randint(1, 20, 30)
    tokens = np.concatenate([(np.arange(length) + 3 * n) % texts.VOCABULARY for n, length in enumerate(lengths)])
    documents, folder = np.cumsum([0, *lengths]), tmp_path_factory.mktemp("text")

    def make(name, shift=0, *, targets=None, **changes):
        data = Documents(tokens, documents, texts.VOCABULARY, targets)
        return logitcache.dump_logits(
            Rising(shift), data, folder / name, **{"encoding": "full", "precision": "f32"} | changes
        )

    make.tokens, make.documents = tokens, documents
    return make


def test_two_caches_of_text_are_compared_token_by_token(rising):
    one, other = rising("a.zarr"), rising("b.zarr", shift=3)
    found = compare_caches(one, other)
    first, second = (np.concatenate([c.rows(0, c.teacher, np.arange(c.manifest.rows))["logits"]]) for c in (one, other))
    assert found.rows == one.manifest.rows
    assert found.top1_agreement == pytest.approx((first.argmax(1) == second.argmax(1)).mean())
    assert 0.5 < found.top1_agreement < 0.95
    for temperature in (1, 4):
        assert found.kl_nats[f"T={temperature}"] == pytest.approx(
            slowly(first[None], second[None], temperature), rel=1e-4
        )
        assert found.kl_back_nats[f"T={temperature}"] == pytest.approx(
            slowly(second[None], first[None], temperature), rel=1e-4
        )
    for side, logits in zip(found.sides, (first, second), strict=True):
        surprise = -np.log(softmax(logits)[np.arange(len(logits)), one.labels()]).mean()
        assert side.surprise_nats == pytest.approx(surprise, rel=1e-4)
        assert side.perplexity == pytest.approx(np.exp(surprise), rel=1e-4)
    assert sum(one.rows for one in found.tokens.positions) == found.rows
    mean = sum(one.rows * one.agreement for one in found.tokens.positions) / found.rows
    assert mean == pytest.approx(found.top1_agreement)
    most = found.tokens.differing[0]
    begin = rising.documents[most.document]
    assert rising.tokens[begin + most.position] == most.label
    assert most.before == rising.tokens[max(begin, begin + most.position - 16) : begin + most.position].tolist()
    assert most.first_says != most.second_says and most.before[-1] % 7 == 0
    assert (found.class_agreement, found.same["views"]) == ([], "text without augmentation, the same preceding tokens")


def test_rows_of_the_largest_of_text_give_a_lower_bound(rising):
    whole = compare_caches(rising("a.zarr"), rising("b.zarr", shift=3))
    few = compare_caches(
        rising("a4.zarr", encoding="topk", top_k=4), rising("b4.zarr", shift=3, encoding="topk", top_k=4)
    )
    assert 0 < few.kl_nats["T=1"] < whole.kl_nats["T=1"]
    itself = compare_caches(rising("a.zarr"), rising("a4.zarr", encoding="topk", top_k=4))
    assert itself.kl_nats["T=1"] == pytest.approx(0, abs=1e-4)


def test_of_text_only_tokens_with_rows_in_both_are_compared(rising):
    random = np.random.RandomState(1)
    some = [random.rand(len(rising.tokens)) < 0.6 for _ in range(2)]
    caches = [rising(f"t{n}.zarr", targets=mask) for n, mask in enumerate(some)]
    common = some[0] & some[1]
    common[rising.documents[:-1]] = False
    found = compare_caches(*caches)
    assert (found.rows, found.top1_agreement) == (common.sum(), 1.0)
    assert found.kl_nats["T=1"] == pytest.approx(0, abs=1e-6)


def test_text_that_is_divided_otherwise_is_refused(rising, tmp_path):
    other = Documents(rising.tokens, np.array([0, 5, len(rising.tokens)]), texts.VOCABULARY)
    cache = logitcache.dump_logits(Rising(), other, tmp_path / "c.zarr", encoding="full")
    with pytest.raises(CacheMismatchError, match="or divide it into different contexts"):
        compare_caches(rising("a.zarr"), cache)


def test_two_caches_of_text_in_the_terminal_and_on_a_page(rising, run, monkeypatch):
    one, other = rising("a.zarr"), rising("b.zarr", shift=3)
    done = run("stats", str(one.place), str(other.place), "--report", "page.html")
    assert done.exit_code == 0, done.output
    words = " ".join(done.stdout.split())
    for part in ("perplexity", "Agreement on the top token, by position", "Tokens with the largest KL divergence"):
        assert part in words
    page = Path("page.html").read_text()
    for part in ("Agreement by position", "Tokens with the largest KL divergence", "perplexity", "top of A"):
        assert part in page
    assert "Agreement by class" not in page
