"""Text in `stats`: surprise where it is, tokens and documents that stand out, in the terminal and on the page."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import texts
import torch

import logitcache
from logitcache.data.text.documents import Documents
from logitcache.report.words import after, visible
from logitcache.stats import cache_stats

LOUD = 17  # the document that is noise


@pytest.fixture(scope="module")
def samples():
    """Contexts that go up by one, one that is noise, one token that is odd, and a copy."""
    random = np.random.RandomState(0)
    lengths = random.randint(10, 20, 40)
    documents = [(np.arange(length) + start) % texts.VOCABULARY for start, length in enumerate(lengths)]
    documents[LOUD] = random.randint(0, texts.VOCABULARY, 19)
    documents[5][7] = (documents[5][6] + 20) % texts.VOCABULARY
    documents[30] = documents[12].copy()
    return Documents(np.concatenate(documents), np.cumsum([0, *map(len, documents)]), texts.VOCABULARY)


class Counter(torch.nn.Module):
    """Expects the next number, more surely the later it is."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, input_ids, position_ids, documents):
        following = torch.nn.functional.one_hot((input_ids + 1) % texts.VOCABULARY, texts.VOCABULARY).float()
        return following * (2 + position_ids[..., None].float() / 2) * self.weight


@pytest.fixture(
    scope="module", params=[("full", {"precision": "f32"}), ("topk", {"top_k": 8}), ("sampled", {"draws": 5})]
)
def cache(request, samples, tmp_path_factory):
    encoding, more = request.param
    return logitcache.dump_logits(
        Counter(), samples, tmp_path_factory.mktemp("c") / "c.zarr", encoding=encoding, block_rows=64, **more
    )


def rows_of(samples):
    """Document, position, label and logits of each row."""
    for document in range(len(samples)):
        begin, end = samples.documents[document : document + 2]
        tokens = samples.tokens[begin:end].astype(int)
        for position in range(1, len(tokens)):
            logits = np.zeros(texts.VOCABULARY)
            logits[(tokens[position - 1] + 1) % texts.VOCABULARY] = 2 + (position - 1) / 2
            log_p = logits - np.log(np.exp(logits).sum())
            yield document, position, tokens[position], -log_p[tokens[position]], -(np.exp(log_p) * log_p).sum()


def test_surprise_and_entropy_are_summed_by_position(cache, samples):
    found, rows = cache_stats(cache).tokens, list(rows_of(samples))
    assert found.rows == len(rows)
    assert found.surprise_nats == pytest.approx(np.mean([one[3] for one in rows]), rel=2e-3)
    assert found.perplexity == pytest.approx(math.exp(found.surprise_nats))
    assert [(one.first, one.last) for one in found.positions] == [(1, 1), (2, 3), (4, 7), (8, 15), (16, 31)]
    for one in found.positions:
        here = [row for row in rows if one.first <= row[1] <= one.last]
        assert one.rows == len(here)
        assert one.surprise_nats == pytest.approx(np.mean([row[3] for row in here]), rel=5e-3)
        assert one.entropy_nats == pytest.approx(np.mean([row[4] for row in here]), rel=5e-3)


def test_the_most_surprising_token_stands_in_its_context(cache, samples):
    found = cache_stats(cache).tokens.surprising
    assert len(found) == 20
    surprises = [one.surprise_nats for one in found]
    assert surprises == sorted(surprises, reverse=True)
    expected = sorted((row[3] for row in rows_of(samples)), reverse=True)[:20]
    np.testing.assert_allclose(surprises, expected, rtol=5e-3)
    (odd,) = [one for one in found if (one.document, one.position) == (5, 7)]
    context = samples.tokens[samples.documents[5] :][:7].tolist()
    assert odd.before == context
    assert odd.label == (context[-1] + 20) % texts.VOCABULARY
    assert odd.says == (context[-1] + 1) % texts.VOCABULARY


def test_noise_and_copies_are_named_and_nothing_else(cache):
    found = cache_stats(cache).tokens
    assert found.documents == 40
    assert found.odd_documents[0].document == LOUD
    assert found.odd_documents[0].deviations > 5
    assert found.odd_total == len(found.odd_documents) < 4
    assert found.copies == [(12, 30)]
    assert found.copies_total == 1


def test_what_is_left_out_counts_nowhere(samples, tmp_path):
    cache = logitcache.dump_logits(
        Counter(), samples, tmp_path / "c.zarr", encoding="full", exclude=[LOUD, 30], block_rows=64
    )
    found = cache_stats(cache).tokens
    assert found.documents == 38
    assert found.rows == sum(row[0] not in (LOUD, 30) for row in rows_of(samples))
    assert not found.copies
    assert LOUD not in {one.document for one in found.surprising} | {one.document for one in found.odd_documents}


def test_stretches_name_documents_of_the_whole(samples, tmp_path):
    cache = logitcache.dump_logits(Counter(), samples, tmp_path / "c.zarr", encoding="full", samples=(4, 40))
    found = cache_stats(cache).tokens
    assert found.copies == [(12, 30)]
    assert found.odd_documents[0].document == LOUD
    assert any((one.document, one.position) == (5, 7) for one in found.surprising)


def test_only_some_tokens_may_be_targets(tmp_path):
    samples = texts.contexts(60, targets=True)
    cache = logitcache.dump_logits(texts.Teller(), samples, tmp_path / "c.zarr", encoding="full", block_rows=64)
    found = cache_stats(cache).tokens
    assert found.rows == len(samples.labels)
    for one in found.surprising:
        begin = samples.documents[one.document]
        assert samples.tokens[begin + one.position] == one.label
        assert samples.targets[begin + one.position]


def test_terminal_and_page_show_it(run, cache, samples):
    place = str(cache.place)
    result = run("stats", place, "--all", "--report", "page.html")
    assert result.exit_code == 0, result.output
    words = " ".join(result.output.split())
    assert "Surprisal by position: mean" in words
    assert "copies of earlier ones 1: 12 = 30" in words
    assert re.search(r"<\d+> <\d+> │ <\d+>", words)  # ids, because no tokenizer is at hand
    page = Path("page.html").read_text()
    assert "Surprisal by position in the document" in page
    assert "12 = 30" in page
    assert "&lt;" in page
    assert "Likely label errors" not in page
    assert "Accuracy by class" not in page


def test_images_have_no_tokens(tmp_path):
    import tiny

    cache = logitcache.dump_logits(tiny.net(tiny.CLASSES), tiny.arrays(), tmp_path / "c.zarr")
    assert cache_stats(cache).tokens is None


def test_a_token_keeps_the_space_before_it():
    def spell(ids):
        return " ".join("abc"[one] for one in ids)

    assert after(spell, [0, 1], 2) == " c"
    assert after(spell, [], 2) == "c"
    assert after(lambda ids: "?" * (ids == [1]), [0], 1) == "?"


def test_control_characters_are_visible():
    assert visible("a\nb\x1b[31m\u202ec\u00e9 \t") == "a\\nb\\x1b[31m\\u202ec\u00e9 \\t"
