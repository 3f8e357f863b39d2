"""Documents that are held out of a text cache: not trained on, and compared with the teacher's rows after every epoch."""

import json

import numpy as np
import pytest
import texts
import torch

import logitcache
from logitcache.data.text.modality import documents_of
from logitcache.errors import CacheMismatchError, InputError
from logitcache.models.language import load_tokenizer
from logitcache.train.beside import compared

SHARE = 0.2


@pytest.fixture
def cached(tmp_path):
    def make(**changes):
        given = {"teacher": texts.teacher(40), "data": texts.contexts(61), "out": tmp_path / "c.zarr", "block_rows": 64}
        return logitcache.dump_logits(**(given | {"encoding": "full", "precision": "f32"} | changes))

    return make


def trained(cache, out, **changes):
    given = {"student": "texts:Student", "epochs": 2, "batch_size": 4, "lr": 0.05, "method": "kd", "holdout": SHARE}
    return logitcache.train_student(cache, out=out, **(given | changes))


def measured(student, samples, held, teacher):
    """The three numbers, document by document, in float64."""
    nats, agreed, shared, ce, count = 0.0, 0, 0.0, 0.0, 0
    for one in held:
        tokens = torch.from_numpy(samples.part(one, one + 1).tokens.astype(np.int64))[None]
        inputs = {"input_ids": tokens, "position_ids": torch.arange(tokens.shape[1])[None], "documents": tokens * 0}
        with torch.no_grad():
            ours, theirs = (
                found.head(found.states)[0, :-1, :40].double() for found in (student(**inputs), teacher(**inputs))
            )
        p, q = theirs.log_softmax(1), ours.log_softmax(1)
        nats += float((p.exp() * (p - q)).sum())
        agreed += int((theirs.argmax(1) == ours.argmax(1)).sum())
        shared += sum(
            len({*a} & {*b}) / 10
            for a, b in zip(theirs.topk(10).indices.tolist(), ours.topk(10).indices.tolist(), strict=True)
        )
        ce -= float(q.gather(1, tokens[0, 1:, None]).sum())
        count += len(ours)
    return {
        "kl_to_teacher": nats / count,
        "test_teacher_agreement": agreed / count,
        "topk_overlap": shared / count,
        "perplexity": np.exp(ce / count),
    }


def held_documents(samples):
    """The last share of those with targets."""
    return np.flatnonzero(np.diff(samples.offsets))[-11:]


def test_what_is_held_out_is_measured_token_by_token(cached, tmp_path):
    samples = texts.contexts(61)
    held = held_documents(samples)
    assert len(held) == round(SHARE * np.count_nonzero(np.diff(samples.offsets)))
    found = trained(cached(), tmp_path / "r")
    expected = measured(found.student, samples, held, texts.teacher(40))
    for name, value in expected.items():
        assert found.results[name] == pytest.approx(value, rel=1e-4), name
        assert found.metrics[-1][name] == found.results[name]
    assert found.results["kl_to_teacher"] < found.metrics[0]["kl_to_teacher"]
    assert "bits_per_byte" not in found.results


def test_what_is_held_out_is_not_trained_on(cached, tmp_path):
    """Other weights for other documents; the same for other held-out ones."""
    samples = texts.contexts(61)
    held = held_documents(samples)
    cache = cached()
    found = trained(cache, tmp_path / "held", test_data=None)
    without = trained(cache, tmp_path / "excluded", holdout=None, exclude=held.tolist())
    ours, theirs = found.student.state_dict(), without.student.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert "kl_to_teacher" not in without.results
    assert "exclude" not in json.loads((tmp_path / "held/run.json").read_text())["settings"]


def test_a_run_that_was_stopped_holds_out_the_same(cached, tmp_path):
    cache, more = cached(exclude=[58]), {"exclude": [3, 60]}
    whole = trained(cache, tmp_path / "whole", **more)
    steps = []
    with pytest.raises(logitcache.LogitCacheError, match="stopped on request"):
        trained(cache, tmp_path / "r", on_progress=steps.append, should_stop=lambda: bool(steps), **more)
    recorded = json.loads((tmp_path / "r/run.json").read_text())["settings"]
    assert recorded["holdout"] == SHARE
    assert recorded["exclude"] == [3, 58, 60]
    resumed = trained(cache, tmp_path / "r", resume=True, **more)
    assert resumed.results["kl_to_teacher"] == whole.results["kl_to_teacher"]
    with pytest.raises(CacheMismatchError, match="holdout: there 0.2, requested 0.3"):
        trained(cache, tmp_path / "r", resume=True, **(more | {"holdout": 0.3}))


def test_rows_of_the_largest_give_a_lower_bound(cached, tmp_path):
    """Closer the more are kept; and the classes in front are the same."""
    caches = [cached(out=tmp_path / f"{k}.zarr", encoding=None, precision="f32", top_k=k) for k in (4, 20)]
    few, many, full = (
        trained(cache, tmp_path / f"r{number}", method="ce").results for number, cache in enumerate([*caches, cached()])
    )
    assert 0 < few["kl_to_teacher"] < many["kl_to_teacher"] < full["kl_to_teacher"]
    assert few["test_teacher_agreement"] == many["test_teacher_agreement"] == full["test_teacher_agreement"]
    assert few["topk_overlap"] != many["topk_overlap"] == full["topk_overlap"]
    assert few["perplexity"] == full["perplexity"]


def test_one_bucket_is_the_rest(cached):
    """KL of the classes kept and of one for all others, by its definition."""
    cache = cached(encoding=None, precision="f32", top_k=6)
    rows = logitcache.open(cache).logits(np.arange(20))
    student = torch.randn(20, 40)
    labels = torch.from_numpy(cache.labels()[:20]).long()
    kl, agreed, shared = compared(student, rows, labels)
    log_p = torch.cat([rows.values, rows.rest[:, 2:3]], 1).double().log_softmax(1)
    q = student.double().softmax(1).gather(1, rows.ids)
    log_q = torch.cat([q, 1 - q.sum(1, keepdim=True)], 1).log()
    assert kl.item() == pytest.approx((log_p.exp() * (log_p - log_q)).sum().item(), rel=1e-4)
    same = compared(rows.at(1.0), rows, labels)
    assert same.tolist() == pytest.approx([0.0, 20.0, 20.0], abs=1e-4)
    assert 0 <= agreed <= 20
    assert 0 <= shared <= 20


def test_never_all_rows_at_once(cached, tmp_path, monkeypatch):
    from logitcache.train import evaluate as module

    seen = []

    def watched(student, *others):
        seen.append(len(student))
        return compared(student, *others)

    monkeypatch.setattr(module, "compared", watched)
    data = texts.contexts(200, longest=80)
    trained(cached(data=data), tmp_path / "r", epochs=1, holdout=0.5)
    assert max(seen) == 256 < sum(seen)


def test_the_average_of_weights_is_measured_too(cached, tmp_path):
    found = trained(cached(), tmp_path / "r", model_ema_decay=0.5)
    assert found.results["kl_to_teacher"] > 0
    assert "ema_test_accuracy" in found.metrics[-1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"test_data": "texts:make:test"}, "both set the evaluation data; use only one of them"),
        ({"holdout": 1.0}, "between 0 and 1"),
        ({"holdout": 0.999}, "leaves none to train on"),
    ],
    ids=["test data", "all", "nearly all"],
)
def test_what_cannot_be_held_out_is_refused(cached, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        trained(cached(), tmp_path / "r", **changes)


def test_images_hold_nothing_out(dump, images, tmp_path):
    with pytest.raises(InputError, match="is for text, but the data is images"):
        logitcache.train_student(dump(), "tiny:still", data=images, holdout=0.1, epochs=1, out=tmp_path / "r")


def test_labels_alone_have_no_rows_to_compare_with(tmp_path):
    with pytest.raises(InputError, match="pass a cache"):
        logitcache.train_student(
            None, "texts:Student", data="texts:make", method="ce", holdout=0.1, epochs=1, out=tmp_path / "r"
        )


def test_the_command_line_says_what_it_measured(run):
    words = ("dump", "--teacher", "texts:teacher", "--data", "texts:make", "--top-k", "12", "--out", "c.zarr")
    assert run(*words).exit_code == 0
    result = run(*("train", "c.zarr", "--student", "texts:Student", "--epochs", "2", "--holdout", "0.1", "--out", "r"))
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "perplexity" in said
    assert "KL 0." in said
    assert "teacher agreement" in said
    assert run("train", "--resume", "--out", "r").exit_code == 0
    assert run("compare", "r").exit_code == 0


@pytest.mark.parametrize("how", [{}, {"sequence_length": 8}, {"pack": "stream", "sequence_length": 16}], ids=str)
def test_bits_per_byte_are_of_the_text_that_is_held_out(tmp_path, how):
    """Documents that begin with a space of the tokenizer's, characters of several bytes; whole, split, in a stream."""
    pytest.importorskip("transformers")
    lines = [
        f"Tom saw {thing} and ran." for thing in ("a dog", "un café", "日本", "a tree", "it", "€ 3", "a cat", "the sun")
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": one}) + "\n" for one in lines))
    cache = logitcache.dump_logits("hf:stories-mini", f"jsonl:{tmp_path}/t.jsonl", tmp_path / "c.zarr", top_k=8, **how)
    given = {"student": "llama:hidden=16,layers=1,heads=2", "sequence_length": 32, "epochs": 1}
    found = trained(cache, tmp_path / "r", **given)
    samples = documents_of(cache)
    having = np.flatnonzero(np.diff(samples.offsets))
    count = max(round(SHARE * len(having)), 1)
    tokenizer = load_tokenizer("hf:stories-mini")
    held = samples.tokens[samples.documents[having[-count]] :]
    rows = np.diff(samples.offsets)[having[-count:]].sum()
    counted = np.log(found.results["perplexity"]) * rows / np.log(2) / found.results["bits_per_byte"]
    if not how:
        assert counted == pytest.approx(sum(len(one.encode()) for one in lines[-count:]))
    else:  # decoding drops a space at the beginning, and marks half a character with three bytes
        assert counted == pytest.approx(len(tokenizer.decode(held, skip_special_tokens=True).encode()), abs=3)
    assert found.metrics[-1]["bits_per_byte"] == found.results["bits_per_byte"]


def test_without_a_tokenizer_there_are_no_bits_per_byte(tmp_path):
    samples = texts.stories(10, 20)
    cache = logitcache.dump_logits(texts.wide(512), samples, tmp_path / "c.zarr", top_k=8)
    assert "bits_per_byte" not in trained(cache, tmp_path / "r", student="texts:wide", epochs=1).results
