"""Rows that count in a loss: those of answers, where a cache has all."""

import json

import numpy as np
import pytest
import texts
import tiny
import torch

import logitcache
from logitcache.data.text.documents import Documents
from logitcache.data.text.modality import documents_of
from logitcache.errors import InputError, UnknownNameError

TEXT = texts.contexts(60)
ANSWERS = np.random.RandomState(3).rand(len(TEXT.tokens)) < 0.4
ANSWERS[TEXT.documents[20] : TEXT.documents[24]] = False  # some contexts without an answer


LAST = ANSWERS & (np.random.RandomState(4).rand(len(TEXT.tokens)) < 0.5)  # as if they were of the last answer of a chat


def conversations(*, rows="all"):
    """The same contexts with rows of all tokens, or of answers alone, or of the last answers."""
    given = TEXT.tokens, TEXT.documents, TEXT.vocabulary
    if rows == "all":
        return Documents(*given, answers=ANSWERS, completions=LAST)
    if rows == "assistant":
        return Documents(*given, ANSWERS, completions=LAST)
    return Documents(*given, LAST)


@pytest.fixture
def cached(tmp_path):
    def make(data, name="c", **changes):
        given = {"teacher": texts.teacher(40), "data": data, "out": tmp_path / f"{name}.zarr", "block_rows": 64}
        return logitcache.dump_logits(**(given | {"encoding": "full", "precision": "f32"} | changes))

    return make


def trained(cache, out, **changes):
    given = {"student": "texts:Student", "epochs": 2, "batch_size": 4, "lr": 0.05, "method": "kd"}
    return logitcache.train_student(cache, out=out, **(given | changes))


def same(one, other):
    ours, theirs = one.student.state_dict(), other.student.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("more", "rows", "loss_on"),
    tiny.usual(
        [
            (more, *rows)
            for more in ({}, {"grad_accum_steps": 2}, {"holdout": 0.2})
            for rows in (("all", "assistant"), ("all", "completion"), ("assistant", "completion"))
        ],
        [
            ({}, "assistant", "completion"),
            ({"grad_accum_steps": 2}, "all", "completion"),
            ({"holdout": 0.2}, "all", "assistant"),
        ],
    ),
    ids=str,
)
def test_loss_on_answers_is_training_from_their_rows_alone(cached, tmp_path, more, rows, loss_on):
    """Bit for bit, whatever else the cache has; and every metric is of these rows."""
    every, alone = cached(conversations(rows=rows)), cached(conversations(rows=loss_on), "answers")
    assert every.manifest.view_rows > alone.manifest.view_rows
    found = trained(every, tmp_path / "every", loss_on=loss_on, **more)
    expected = trained(alone, tmp_path / "alone", **more)
    assert same(found, expected)
    for ours, theirs in zip(found.metrics, expected.metrics, strict=True):
        assert {n: v for n, v in ours.items() if "second" not in n} == {
            n: v for n, v in theirs.items() if "second" not in n
        }
    assert found.results["agreement_rows"] == expected.results["agreement_rows"]
    assert not same(found, trained(every, tmp_path / "all", loss_on="all", **more))


def test_the_live_teacher_is_asked_for_the_same_rows(cached, tmp_path):
    cache = cached(conversations())
    found = [
        trained(cache, tmp_path / str(number), loss_on="completion", live_teacher=live)
        for number, live in enumerate((False, texts.teacher(40)))
    ]
    assert same(*found)


def test_a_cache_keeps_which_tokens_are_answers(cached, tmp_path):
    cache = cached(conversations())
    assert np.array_equal(documents_of(cache).answers, ANSWERS)
    parts = [
        logitcache.slice_cache(cache, tmp_path / f"{first}.zarr", samples=(first, last))
        for first, last in ((0, 30), (30, 60))
    ]
    both = logitcache.merge_caches(parts, tmp_path / "both.zarr")
    assert np.array_equal(documents_of(both).answers, ANSWERS)
    assert documents_of(both).digest() == conversations().digest() != TEXT.digest()
    assert logitcache.verify_cache(both, replay=5, teacher=texts.teacher(40)).ok
    begin = TEXT.documents[30]
    assert np.array_equal(documents_of(parts[1]).answers, ANSWERS[begin:])
    for found, expected in ((both, LAST), (parts[1], LAST[begin:])):
        assert np.array_equal(documents_of(found).completions, expected)
    alone = documents_of(cached(conversations(rows="completion"), "alone"))
    assert alone.answers is alone.completions is None


@pytest.mark.parametrize(
    ("loss_on", "some"), [("assistant", ANSWERS), ("completion", LAST), ("all", None), (None, None)]
)
def test_a_loader_gives_the_rows_that_count(cached, loss_on, some):
    cache, labels = cached(conversations()), []
    with logitcache.Loader(cache, batch_size=7, shuffle=False, loss_on=loss_on) as loader:
        for batch in loader:
            assert len(batch.labels) == len(batch.logits) == batch.keep.sum() > 0
            labels.append(batch.labels)
    samples = conversations()
    expected = samples.tokens[samples.targets if some is None else samples.targets & some]
    assert np.array_equal(torch.cat(labels).numpy(), expected)


def test_a_loader_refuses_what_cannot_count(cached, dump, images, tmp_path):
    with pytest.raises(UnknownNameError, match="did you mean 'assistant'"):
        logitcache.Loader(cached(TEXT), loss_on="assistants")
    with pytest.raises(InputError, match="is for text, but the data is images"):
        logitcache.Loader(dump(out=tmp_path / "images.zarr"), images, loss_on="all")


def test_plain_text_is_all_completion(cached, tmp_path):
    cache = cached(TEXT)
    every = trained(cache, tmp_path / "all")
    for loss_on in ("assistant", "completion"):
        assert same(every, trained(cache, tmp_path / loss_on, loss_on=loss_on))


def test_a_run_records_it_and_what_it_leaves_out_is_nobodys_exclusion(cached, tmp_path):
    trained(cached(conversations()), tmp_path / "r", loss_on="completion", exclude=[2], epochs=1)
    recorded = json.loads((tmp_path / "r/run.json").read_text())["settings"]
    assert recorded["loss_on"] == "completion"
    assert recorded["exclude"] == [2]


def test_what_cannot_count_is_refused(cached, dump, images, tmp_path):
    none = Documents(TEXT.tokens, TEXT.documents, TEXT.vocabulary, answers=np.zeros(len(TEXT.tokens), bool))
    with pytest.raises(InputError, match="counts no row of this data"):
        trained(cached(none), tmp_path / "r", loss_on="assistant")
    with pytest.raises(UnknownNameError, match="did you mean 'completion'"):
        trained(cached(none), tmp_path / "r", loss_on="completions")
    cache = dump(out=tmp_path / "images.zarr")
    with pytest.raises(InputError, match="is for text, but the data is images"):
        logitcache.train_student(cache, "tiny:still", data=images, loss_on="all", epochs=1, out=tmp_path / "r")


def test_the_command_line_reads_prompts_and_trains_on_their_completions(run, tmp_path):
    pytest.importorskip("transformers")
    lines = [{"prompt": f"Tom saw {word}", "completion": " and ran away."} for word in ("a dog", "a big cat", "it")]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = ("dump", "--teacher", "hf:stories-mini", "--data", "jsonl:a.jsonl", "--rows", "all", "--out", "c.zarr")
    result = run(*words)
    assert result.exit_code == 0, result.output
    given = ("train", "c.zarr", "--student", "llama:hidden=16,layers=1,heads=2", "--epochs", "1")
    losses = {}
    for which in ("all", "completion"):
        result = run(*given, "--loss-on", which, "--out", which)
        assert result.exit_code == 0, result.output
        losses[which] = json.loads((tmp_path / which / "run.json").read_text())["results"]["loss"]
    assert losses["all"] != losses["completion"]
    assert run("verify", "c.zarr", "--data", "jsonl:a.jsonl").exit_code == 0
