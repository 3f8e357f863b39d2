"""Caches of text: every row where it says, through dump, resume, merge, slice and export; and training without the files."""

import itertools
import json

import numpy as np
import pytest
import texts
import tiny
import torch
import zarr

import logitcache
from logitcache.data.text.modality import documents_of
from logitcache.errors import CacheMismatchError
from logitcache.store import open_cache

BLOCK = 64


@pytest.fixture
def dumped(tmp_path):
    def make(**changes):
        arguments = {
            "teacher": texts.Teller(),
            "data": texts.contexts(60, targets=True),
            "out": tmp_path / "c.zarr",
            "encoding": "full",
            "precision": "f32",
            "batch_size": 7,
            "block_rows": BLOCK,
        }
        return logitcache.dump_logits(**(arguments | changes))

    return make


def test_numpy_and_zarr_alone_give_back_tokens_labels_and_logits(dumped, tmp_path):
    dumped()
    samples = texts.contexts(60, targets=True)
    group = zarr.open_group(tmp_path / "c.zarr", mode="r")
    tokens, documents, targets = (group[name][:] for name in ("tokens", "documents", "targets"))
    assert np.array_equal(tokens, samples.tokens)
    assert tokens.dtype == np.uint16
    assert np.array_equal(documents, samples.documents)
    assert np.array_equal(targets, samples.targets)
    assert np.array_equal(group["labels"], tokens[targets])
    assert np.array_equal(group["teachers/teller/logits"][0][:, :3], texts.told(samples))
    assert group["teachers/teller/logits"].shape[2] == texts.VOCABULARY
    assert group["tokens"].metadata.dimension_names == ("token",)
    assert group["targets"].metadata.dimension_names == ("token",)
    assert group["documents"].metadata.dimension_names == group["offsets"].metadata.dimension_names == ("boundary",)
    assert group.attrs["logitcache"]["modality"] == "text"


def test_a_dump_that_was_stopped_leaves_the_same_bytes(dumped, tmp_path):
    dumped()
    with pytest.raises(logitcache.LogitCacheError, match="stopped on request"):
        dumped(out=tmp_path / "stopped.zarr", should_stop=lambda: True)
    unfinished = open_cache(tmp_path / "stopped.zarr", unfinished=True)
    assert np.array_equal(documents_of(unfinished).tokens, texts.contexts(60, targets=True).tokens)
    dumped(out=tmp_path / "stopped.zarr")
    assert tiny.bytes_of(tmp_path / "stopped.zarr") == tiny.bytes_of(tmp_path / "c.zarr")


def test_batches_and_left_out_contexts_move_no_row(dumped, tmp_path):
    samples = texts.contexts(60, targets=True)
    cache = dumped(exclude=[3, 17, 59], batch_size=5)
    expected, kept = texts.told(samples), cache.kept_rows()
    assert not kept.all()
    stored = zarr.open_group(tmp_path / "c.zarr", mode="r")["teachers/teller/logits"][0][:, :3]
    assert np.array_equal(stored[kept], expected[kept])
    assert not stored[~kept].any()


def test_a_stretch_knows_its_contexts_and_the_whole(dumped, tmp_path):
    samples = texts.contexts(60, targets=True)
    cache = dumped(samples=(10, 40))
    found = documents_of(cache)
    assert (len(found), found.first, len(found.whole)) == (30, 10, 60)
    assert np.array_equal(found.labels, cache.labels())
    assert np.array_equal(found.tokens, samples.part(10, 40).tokens)
    assert logitcache.verify_cache(tmp_path / "c.zarr", replay=9, teacher=texts.Teller()).ok


def test_verify_needs_no_files_and_finds_other_data(dumped, tmp_path):
    dumped()
    found = logitcache.verify_cache(tmp_path / "c.zarr", replay=50, teacher=texts.Teller())
    assert found.ok
    assert found.replayed > 0
    assert found.probe_gap == found.replay_gap == 0.0
    other = texts.contexts(60, targets=True)
    other.tokens[0] = (other.tokens[0] + 1) % texts.VOCABULARY
    found = logitcache.verify_cache(tmp_path / "c.zarr", data=other)
    assert "different samples" in (found.pixels_problem or "")


def trained(cache, out, **more):
    common = {"student": "texts:Student", "epochs": 3, "batch_size": 4, "lr": 0.05, "optimizer": "sgd"}
    common = {key: value for key, value in common.items() if key != "optimizer"}
    return logitcache.train_student(cache=cache, out=out, **(common | more))


@pytest.mark.parametrize(
    ("method", "more"),
    tiny.usual(
        itertools.product(["kd", "rld"], [{}, {"grad_accum_steps": 2}, {"drop_last": True}]),
        [("kd", {}), ("rld", {"grad_accum_steps": 2}), ("kd", {"drop_last": True})],
    ),
    ids=str,
)
def test_training_from_the_cache_alone_is_training_with_the_live_teacher(dumped, tmp_path, method, more):
    cache = dumped(teacher=texts.teacher(texts.VOCABULARY))
    cached = trained(cache, tmp_path / "cached", method=method, test_data=texts.make("test"), **more)
    live = trained(
        cache,
        tmp_path / "live",
        method=method,
        test_data=texts.make("test"),
        live_teacher=texts.teacher(texts.VOCABULARY),
        **more,
    )
    ours, theirs = cached.student.state_dict(), live.student.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    metrics = [json.loads(line) for line in (tmp_path / "cached/metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert all("documents_per_second" in one for one in metrics)


def test_windows_of_memory_pack_what_they_hold(dumped, tmp_path):
    cache = dumped(teacher=texts.teacher(texts.VOCABULARY))
    budget = 2 * 2 * BLOCK * 4 * texts.VOCABULARY * 2
    found = trained(cache, tmp_path / "r", memory_budget=budget)
    assert np.isfinite(found.results["loss"])


def test_the_loader_gives_rows_and_which_outputs_they_are(dumped):
    cache = dumped()
    loader, rows = logitcache.open(cache).loader(batch_size=16), 0
    teller = texts.Teller()
    for batch in loader.epoch(0):
        logits = teller(**batch.inputs).logits[batch.keep][:, : texts.VOCABULARY]
        assert torch.equal(logits, batch.logits)
        rows += len(batch.labels)
    assert rows == len(cache.labels())
    loader.close()


def test_data_given_at_training_must_be_the_same(dumped, tmp_path):
    cache = dumped(teacher=texts.teacher(texts.VOCABULARY))
    trained(cache, tmp_path / "same", data=texts.contexts(60, targets=True))
    with pytest.raises(CacheMismatchError, match="different rows"):
        trained(cache, tmp_path / "other", data=texts.contexts(60, seed=1, targets=True))


def told_of(cache):
    return zarr.open_group(str(cache.place), mode="r")["teachers/teller/logits"][0][:, :3]


def test_slices_merges_and_exports_keep_tokens_and_rows(dumped, tmp_path):
    samples, cache = texts.contexts(60, targets=True), dumped()
    narrow = logitcache.slice_cache(cache, tmp_path / "narrow.zarr", top_k=4)
    assert np.array_equal(documents_of(narrow).tokens, samples.tokens)
    first = logitcache.slice_cache(cache, tmp_path / "first.zarr", samples=(0, 25))
    second = logitcache.slice_cache(cache, tmp_path / "second.zarr", samples=(25, 60))
    for part, begin, end in ((first, 0, 25), (second, 25, 60)):
        assert np.array_equal(told_of(part), texts.told(samples.part(begin, end)))
        assert np.array_equal(documents_of(part).labels, part.labels())
        assert np.array_equal(part.offsets(), samples.part(begin, end).offsets)
        assert logitcache.verify_cache(part, replay=5, teacher=texts.Teller()).ok
    both = logitcache.merge_caches([second, first], tmp_path / "both.zarr")
    assert np.array_equal(told_of(both), texts.told(samples))
    assert np.array_equal(both.offsets(), samples.offsets)
    assert documents_of(both).digest() == samples.digest()
    assert logitcache.verify_cache(both, replay=5, teacher=texts.Teller()).ok
    apart = logitcache.merge_caches(
        [dumped(out=tmp_path / "a.zarr", samples=(0, 30)), dumped(out=tmp_path / "b.zarr", samples=(30, 60))],
        tmp_path / "joined.zarr",
    )
    assert np.array_equal(told_of(apart), texts.told(samples))
    (file,) = logitcache.export_cache(second, tmp_path / "rows.parquet")
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    assert np.array_equal(np.stack(table["logits"].to_numpy())[:, :3], texts.told(samples.part(25, 60)))
    assert table["sample"].to_numpy().min() >= 25


def test_stats_count_rows(dumped):
    found = logitcache.cache_stats(dumped())
    assert found.health.whole
    assert found.views[0].rows == len(texts.contexts(60, targets=True).labels)


def test_the_command_line_takes_it(run, tmp_path):
    result = run(
        *("dump", "--teacher", "texts:teacher", "--data", "texts:make", "--batch-size", "16", "--out", "c.zarr"),
    )
    assert result.exit_code == 0, result.output
    for words in (["stats", "c.zarr"], ["verify", "c.zarr"]):
        result = run(*words)
        assert result.exit_code == 0, result.output
    result = run("train", "c.zarr", "--method", "kd", "--student", "texts:Student", "--epochs", "2", "--out", "runs/kd")
    assert result.exit_code == 0, result.output
    result = run("compare", "runs")
    assert result.exit_code == 0, result.output


def test_the_command_line_dumps_a_file_of_tokens(run, tmp_path):
    samples = texts.make("train")
    arrays = {"tokens": samples.tokens, "documents": samples.documents, "vocabulary": texts.VOCABULARY}
    np.savez("t.npz", **arrays)
    result = run(
        "dump", "--teacher", "texts:teacher", "--data", "tokens:t.npz", "--precision", "f32", "--out", "c.zarr"
    )
    assert result.exit_code == 0, result.output
    cache = open_cache("c.zarr")
    assert documents_of(cache).digest() == samples.digest()
    assert cache.manifest.data["reading"]["too_long"] == "split"
    result = run("verify", "c.zarr", "--data", "tokens:t.npz")
    assert result.exit_code == 0, result.output
    arrays["tokens"] = samples.tokens + 1
    np.savez("t.npz", **arrays)
    result = run("dump", "--teacher", "texts:teacher", "--data", "tokens:t.npz", "--out", "d.zarr")
    assert result.exit_code == 1
    assert "has id 40, but the vocabulary has ids 0 to 39" in " ".join(result.output.split())
