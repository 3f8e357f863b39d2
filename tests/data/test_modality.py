"""The seam: a second modality, whose samples have several rows each, goes through every verb without a line in logitcache/."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import sequences
import tiny
import torch
import zarr

import logitcache
from logitcache.errors import CacheMismatchError, InputError
from logitcache.store import open_cache

VIEWS, BLOCK = 2, 64


@pytest.fixture
def dumped(tmp_path):
    def make(**changes):
        arguments = {
            "teacher": sequences.teacher(sequences.CLASSES),
            "data": sequences.make("train"),
            "out": tmp_path / "c.zarr",
            "augment": "shift",
            "views": VIEWS,
            "precision": "f32",
            "batch_size": 16,
            "block_rows": BLOCK,
        }
        return logitcache.dump_logits(**(arguments | changes))

    return make


def told(samples, view):
    """What the teacher says of every row, sample by sample."""
    network, found = sequences.teacher(sequences.CLASSES).eval(), []
    with torch.no_grad():
        for ids in np.array_split(np.arange(len(samples)), len(samples)):
            (batch,) = sequences.Renderer(samples, [sequences.Inputs(sequences.LONGEST)], False).batches(view, [ids])
            logits = network(batch.inputs[0])["logits"]
            found.append(logits[0, 1 : len(samples.sequences[ids[0]])])
    return torch.cat(found).numpy()


def test_every_row_of_every_sample_is_stored_and_zarr_alone_reads_it(dumped, tmp_path):
    cache, samples = dumped(), sequences.make("train")
    assert cache.manifest.samples == len(samples)
    assert cache.manifest.blocks == -(-len(samples.labels) // BLOCK) > 3
    group = zarr.open_group(tmp_path / "c.zarr", mode="r")
    entry = group.attrs["logitcache"]
    assert (entry["modality"], entry["rows"], entry["classes"]) == ("sequences:MODALITY", len(samples.labels), 5)
    assert "row_shape" not in entry
    assert np.array_equal(group["labels"], samples.labels)
    assert np.array_equal(group["offsets"], samples.offsets)
    assert group["teachers/net/logits"].metadata.dimension_names == ("view", "row", "class")
    for entry in cache.manifest.views:
        expected = told(samples, sequences.View(**entry))
        stored = group["teachers/net/logits"][entry["index"]]
        assert np.abs(stored - expected).max() < 1e-5
    probed, exact = cache.probe("net")
    assert np.array_equal(exact, group["teachers/net/logits"][0][probed])


def test_a_dump_that_was_stopped_leaves_the_same_bytes(dumped, tmp_path):
    dumped()
    asked = iter([False, True])
    with pytest.raises(logitcache.LogitCacheError, match="stopped on request"):
        dumped(out=tmp_path / "stopped.zarr", should_stop=lambda: next(asked, False))
    dumped(out=tmp_path / "stopped.zarr")
    assert tiny.bytes_of(tmp_path / "stopped.zarr") == tiny.bytes_of(tmp_path / "c.zarr")


def test_verify_looks_at_rows_and_finds_what_changed(dumped, tmp_path):
    dumped()
    teacher, data = sequences.teacher(sequences.CLASSES), sequences.make("train")
    found = logitcache.verify_cache(tmp_path / "c.zarr", data=data, replay=50, teacher=teacher)
    assert found.ok
    assert found.replayed == 50
    assert found.probe_gap == found.replay_gap == 0.0
    data.sequences[70] = data.sequences[70] * 0 + data.sequences[70][0]  # other digits, labels as they were
    found = logitcache.verify_cache(tmp_path / "c.zarr", data=data)
    assert "was shown different digits" in (found.pixels_problem or "") or "different samples" in (
        found.pixels_problem or ""
    )


WINDOWS = {"memory_budget": 2 * 2 * 2 * BLOCK * 4 * sequences.CLASSES}


@pytest.mark.parametrize(
    ("method", "more"),
    tiny.usual(itertools.product(["kd", "rld"], [{}, WINDOWS]), [("kd", {}), ("rld", WINDOWS)]),
    ids=str,
)
def test_training_from_the_cache_is_training_with_the_live_teacher(dumped, tmp_path, method, more):
    cache, data = dumped(), sequences.make("train")
    common = {"student": "sequences:Net", "data": data, "test_data": sequences.make("test"), "method": method}
    common |= {"epochs": 3, "batch_size": 16, "lr": 0.05, **more}
    cached = logitcache.train_student(cache=cache, out=tmp_path / "cached", **common)
    live = logitcache.train_student(
        cache=cache, live_teacher=sequences.teacher(sequences.CLASSES), out=tmp_path / "live", **common
    )
    ours, theirs = cached.student.state_dict(), live.student.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert 0 <= cached.results["teacher_agreement"] <= 1
    metrics = [json.loads(line) for line in (tmp_path / "cached/metrics.jsonl").read_text().splitlines()]
    assert all("sequences_per_second" in one for one in metrics)
    assert metrics[-1]["loss"] < metrics[0]["loss"]


def test_a_batch_counts_by_its_rows(dumped, tmp_path):
    """Two micro-batches of other numbers of rows are the step of the whole batch."""
    cache, data = dumped(), sequences.make("train")

    def trained(parts):
        student = sequences.teacher(sequences.CLASSES)
        student.drop.p = 0.0
        common = {"cache": cache, "student": student, "data": data, "epochs": 1, "batch_size": 30, "lr": 0.5}
        return logitcache.train_student(
            **common, grad_accum_steps=parts, out=tmp_path / str(parts)
        ).student.state_dict()

    one, two = trained(1), trained(2)
    for name in one:
        assert torch.allclose(one[name], two[name], atol=1e-6)


def test_stats_count_rows(dumped):
    cache, samples = dumped(), sequences.make("train")
    found = logitcache.cache_stats(cache)
    expected = (told(samples, sequences.View(**cache.manifest.views[0])).argmax(1) == samples.labels).mean()
    assert found.health.whole
    assert found.views[0].accuracy == pytest.approx(expected)
    assert found.views[0].rows == len(samples.labels)
    assert found.manifest["classes"] == sequences.CLASSES


def test_the_loader_gives_rows_and_which_outputs_they_are(dumped):
    cache, samples = dumped(), sequences.make("train")
    loader = logitcache.open(cache).loader(samples, batch_size=16, shuffle=False)
    student, rows = sequences.teacher(sequences.CLASSES), 0
    for batch in loader.epoch(0):
        logits = student(**batch.inputs)["logits"][batch.keep]
        assert logits.shape == batch.logits.shape == (len(batch.labels), sequences.CLASSES)
        rows += len(batch.labels)
    assert rows == len(samples.labels)
    loader.close()


def test_slices_merges_and_exports_keep_rows(dumped, tmp_path):
    cache = dumped()
    one = logitcache.slice_cache(cache, tmp_path / "one.zarr", views=1, top_k=2)
    assert np.array_equal(one.offsets(), cache.offsets())
    assert logitcache.verify_cache(tmp_path / "one.zarr", data=sequences.make("train")).ok
    other = dumped(out=tmp_path / "other.zarr", seed=1)
    both = logitcache.merge_caches([cache, other], tmp_path / "both.zarr")
    assert len(both.manifest.views) == 2 * VIEWS
    assert np.array_equal(both.offsets(), cache.offsets())
    (file,) = logitcache.export_cache(cache, tmp_path / "rows.parquet", view_ids=[0])
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    samples = table["sample"].to_numpy()
    assert np.array_equal(np.bincount(samples), np.diff(cache.offsets()))
    few = logitcache.slice_cache(cache, tmp_path / "few.zarr", samples=(20, 40))
    first, last = cache.offsets()[[20, 40]]
    assert np.array_equal(few.labels(), cache.labels()[first:last])
    assert np.array_equal(few.offsets(), cache.offsets()[20:41] - first)
    assert np.array_equal(few.view(1, "net")["logits"], cache.view(1, "net")["logits"][first:last])


def test_other_data_is_refused(dumped, images, tmp_path):
    dumped()
    with pytest.raises(CacheMismatchError, match=r"is sequences:MODALITY, but this data set is images"):
        logitcache.train_student(cache=tmp_path / "c.zarr", student="sequences:Net", data=images, out=tmp_path / "r")
    shorter = sequences.make("train")
    shorter = sequences.Sequences(
        [
            *shorter.sequences[:-1],
            shorter.sequences[-1][:-1],
        ]
    )
    with pytest.raises(CacheMismatchError, match="the lengths of samples differ"):
        logitcache.train_student(cache=tmp_path / "c.zarr", student="sequences:Net", data=shorter, out=tmp_path / "r")
    with pytest.raises(InputError, match="sequences have no mean"):
        dumped(out=tmp_path / "other.zarr", mean=(0.5,))


def test_the_command_line_takes_it(run):
    result = run(
        *("dump", "--teacher", "sequences:teacher", "--data", "sequences:make", "--views", "2", "--augment", "shift"),
        *("--batch-size", "16", "--out", "c.zarr"),
    )
    assert result.exit_code == 0, result.output
    result = run("stats", "c.zarr")
    assert result.exit_code == 0, result.output
    result = run("verify", "c.zarr")
    assert result.exit_code == 0, result.output
    for method in ("ce", "kd"):
        result = run(
            "train",
            "c.zarr",
            "--method",
            method,
            "--student",
            "sequences:Net",
            "--epochs",
            "2",
            "--out",
            f"runs/{method}",
        )
        assert result.exit_code == 0, result.output
    result = run("compare", "runs")
    assert result.exit_code == 0, result.output
    assert "test loss (nats)" in result.output
    results = json.loads(Path("runs/kd/run.json").read_text())["results"]
    assert results["headline"] == {"name": "test_loss", "unit": "nats", "better": "lower"}
    losses = [json.loads(line)["test_loss"] for line in Path("runs/kd/metrics.jsonl").read_text().splitlines()]
    assert results["best_test_loss"] == min(losses)
    assert open_cache("c.zarr").manifest.data["spec"] == "sequences:make"


def odd(*lengths):
    """Sequences of so many rows each."""
    random = np.random.RandomState(3)
    return sequences.Sequences([random.randint(0, sequences.DIGITS, length + 1) for length in lengths])


@pytest.mark.parametrize(
    ("parts", "more"),
    tiny.usual(itertools.product([1, 3], [{}, {"memory_budget": 10_000}]), [(1, {"memory_budget": 10_000}), (3, {})]),
    ids=str,
)
def test_samples_without_rows_are_left_out_of_training(dumped, tmp_path, more, parts):
    data = odd(3, 0, 5, 0, 0, 2, 0, 8, 4, 0, 6, 1)
    cache = dumped(data=data, block_rows=8, batch_size=2)
    assert logitcache.verify_cache(tmp_path / "c.zarr", data=data, replay=7, teacher=sequences.teacher(5)).ok
    common = {"cache": cache, "student": "sequences:Net", "data": data, "test_data": data, "epochs": 2, "batch_size": 2}
    common |= {"lr": 0.05, "grad_accum_steps": parts if parts == 1 else 2, **more}
    cached = logitcache.train_student(out=tmp_path / "cached", **common)
    live = logitcache.train_student(out=tmp_path / "live", live_teacher=sequences.teacher(5), **common)
    ours, theirs = cached.student.state_dict(), live.student.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert np.isfinite(cached.results["loss"])


def test_a_memory_budget_counts_the_blocks_that_a_long_sample_goes_on_in(dumped, tmp_path, monkeypatch):
    monkeypatch.setattr(sequences, "LONGEST", 60)
    data = odd(50, 2, 3, 55, 1, 2, 3, 8)
    cache = dumped(data=data, block_rows=8, batch_size=4)
    row = 4 * sequences.CLASSES
    common = {"cache": cache, "student": "sequences:Net", "data": data, "epochs": 1}
    with pytest.raises(InputError, match=f"is too small: one block .* take {2 * 8 * row * 8:,}"):
        logitcache.train_student(out=tmp_path / "a", memory_budget=2 * 8 * row * 7, **common)
    held, view = [], type(cache).view
    monkeypatch.setattr(type(cache), "view", lambda self, *which: held.append(which[2]) or view(self, *which))
    budget = 2 * 8 * row * 8
    logitcache.train_student(out=tmp_path / "b", memory_budget=budget, **common)
    assert max(map(len, held)) * 2 * 8 * row <= budget


def test_what_is_odd_is_named_by_its_row(dumped, run, tmp_path):
    cache = dumped()
    assert logitcache.cache_stats(cache).row_name == "row"
    result = run("stats", str(tmp_path / "c.zarr"), "--all")
    assert "Likely duplicate rows" in result.output
    with pytest.raises(CacheMismatchError, match="only caches of images or text can be compared"):
        logitcache.compare_caches(cache, cache)
