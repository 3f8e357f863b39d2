"""Caches of draws: the same bytes however they are made, and what every verb does with them."""

import json

import numpy as np
import pytest
import texts
import tiny
import zarr

import logitcache
from logitcache.caches.fidelity import advice, cache_fidelity, sweep_encodings
from logitcache.errors import CacheMismatchError, InputError
from logitcache.stats import cache_stats, compare_caches
from logitcache.store import drawn_targets, open_cache

TEACHER = "teacher"


@pytest.fixture
def dumped(tmp_path):
    def make(out="c.zarr", **changes):
        arguments = {
            "teacher": texts.teacher(texts.VOCABULARY),
            "data": texts.contexts(60, targets=True),
            "out": tmp_path / out,
            "encoding": "sampled",
            "draws": 20,
            "views": 2,
            "batch_size": 7,
            "block_rows": 64,
        }
        return logitcache.dump_logits(**(arguments | changes))

    return make


def columns_of(cache, view=0):
    return tiny.columns_of(cache, view, cache.teacher)


def test_numpy_and_zarr_alone_give_back_the_draws(dumped, tmp_path):
    cache = dumped(proposal_temperature=1.5)
    group = zarr.open_group(tmp_path / "c.zarr", mode="r")[f"teachers/{cache.teacher}"]
    ids = group["draws"][0].astype("int64").cumsum(1)
    targets = group["ratios"][0].astype("float32") / ids.shape[1]
    expected = drawn_targets(cache.manifest.encoding, columns_of(cache))
    assert np.array_equal(ids, expected[0])
    np.testing.assert_allclose(targets, expected[1], rtol=1e-6)
    assert group["draws"].metadata.dimension_names == ("view", "row", "draw")
    assert ids.max() < texts.VOCABULARY
    sums = targets.sum(1)
    assert sums.mean() == pytest.approx(1, abs=0.05)
    assert sums.std() > 0


def test_a_dump_that_was_stopped_and_one_in_other_batches_leave_the_same_draws(dumped, tmp_path):
    whole = dumped()
    with pytest.raises(logitcache.LogitCacheError, match="stopped on request"):
        dumped("stopped.zarr", should_stop=lambda: True)
    dumped("stopped.zarr")
    assert tiny.bytes_of(tmp_path / "stopped.zarr") == tiny.bytes_of(tmp_path / "c.zarr")
    dumped("more.zarr", views=1)
    dumped("more.zarr")  # a view is added
    assert tiny.bytes_of(tmp_path / "more.zarr") == tiny.bytes_of(tmp_path / "c.zarr")
    assert not np.array_equal(*(columns_of(whole, view)["draws"] for view in (0, 1)))
    assert np.array_equal(*(columns_of(whole, view)["facts"] for view in (0, 1)))


def test_stretches_slices_and_merges_have_the_draws_of_the_whole(dumped, tmp_path):
    whole = dumped()
    halves = [dumped(f"{number}.zarr", samples=part) for number, part in enumerate([(0, 30), (30, 60)])]
    merged = logitcache.merge_caches(halves, tmp_path / "merged.zarr")
    sliced = logitcache.slice_cache(whole, tmp_path / "sliced.zarr", samples=(30, 60))
    for view in (0, 1):
        for name, column in columns_of(whole, view).items():
            assert np.array_equal(columns_of(merged, view)[name], column)
            assert np.array_equal(columns_of(sliced, view)[name], columns_of(halves[1], view)[name])
    for cache in ("merged.zarr", "sliced.zarr"):
        found = logitcache.verify_cache(tmp_path / cache, replay=40, teacher=texts.teacher(texts.VOCABULARY))
        assert found.ok
        assert found.replayed > 0
        assert found.probe_gap < 1e-6
    with pytest.raises(InputError, match="`top_k` and `precision` do not apply to a cache of sampled classes"):
        logitcache.slice_cache(whole, tmp_path / "x.zarr", top_k=4)


def test_views_of_other_caches_cannot_follow(tmp_path):
    images = {"teacher": tiny.net(tiny.CLASSES), "data": tiny.arrays(), "encoding": "sampled", "draws": 4}
    caches = [
        logitcache.dump_logits(**images, out=tmp_path / f"{number}.zarr", augment=augment)
        for number, augment in enumerate(["none", "pad-crop-flip"])
    ]
    with pytest.raises(InputError, match="Run its dump's own command"):
        logitcache.merge_caches(caches, tmp_path / "merged.zarr")


def test_verify_finds_another_teacher(dumped, tmp_path):
    dumped()
    other = texts.teacher(texts.VOCABULARY)
    found = logitcache.verify_cache(tmp_path / "c.zarr", replay=40, teacher=other)
    assert found.ok
    rows = zarr.open_group(tmp_path / "c.zarr", mode="r+")["probe/logits"]
    name = next(iter(rows))
    rows[name][:] = rows[name][:][:, ::-1]
    assert not logitcache.verify_cache(tmp_path / "c.zarr", check_rows=0).ok


def test_stats_and_export_say_what_is_exact(dumped, tmp_path):
    cache = dumped()
    exact = dumped("full.zarr", encoding="full", precision="f32", views=1, draws=None)
    found, expected = cache_stats(cache), cache_stats(exact)
    assert found.views[0].accuracy == expected.views[0].accuracy
    assert found.views[0].entropy_nats == pytest.approx(expected.views[0].entropy_nats, rel=1e-3)
    assert found.views[1].calibration_error == pytest.approx(expected.views[0].calibration_error, abs=1e-3)
    assert found.preview.rows == 0
    assert found.health.finished
    with pytest.raises(CacheMismatchError, match="holds draws"):
        compare_caches(cache, exact)
    (file,) = logitcache.export_cache(cache, tmp_path / "c.safetensors", view_ids=[1])
    from safetensors.numpy import load_file

    rows = load_file(file)
    assert np.array_equal(rows["ids"], drawn_targets(cache.manifest.encoding, columns_of(cache, 1))[0])
    assert {"targets", "first", "log_prob_first", "log_prob_label", "entropy"} <= rows.keys()


def test_train_takes_the_methods_that_draws_serve(dumped, tmp_path):
    cache = dumped()
    common = {"student": "texts:Student", "epochs": 2, "batch_size": 4, "lr": 0.05}
    run = logitcache.train_student(cache, out=tmp_path / "kd", method="kd", holdout=0.2, **common)
    assert run.metrics[-1]["kl_to_teacher"] < run.metrics[0]["kl_to_teacher"]
    assert [one["view"] for one in run.metrics] == [0, 1]
    assert "kl_to_teacher" in run.metrics[0]
    assert "topk_overlap" not in run.metrics[0]
    json.dumps(run.results, allow_nan=False)
    with pytest.raises(CacheMismatchError, match="dkd is not linear .* at temperature 1: ce, kd, rc"):
        logitcache.train_student(cache, out=tmp_path / "dkd", method="dkd", **common)
    with pytest.raises(CacheMismatchError, match="sampled at temperature 1, not 2"):
        logitcache.train_student(cache, out=tmp_path / "kd2", method="kd", temperature=2.0, **common)
    with pytest.raises(InputError, match="leave no rest for `tail` bucket"):
        logitcache.train_student(cache, out=tmp_path / "kd3", method="kd", tail="bucket", **common)


def test_fidelity_measures_draws_and_gives_no_advice(dumped):
    cache = dumped(draws=50)
    found = {one.method: one for one in cache_fidelity(cache, methods=["kd", "dkd"]).methods}
    assert found["kd"].gradient["trained"] > 0
    assert "would bias its gradient" in (found["dkd"].refused or "")
    assert cache_fidelity(cache, methods="kd").kl_nats == {}
    sweep = sweep_encodings(cache, methods=["kd"])
    errors = {one.encoding["draws"]: one.methods[0].gradient["trained"] for one in sweep if "draws" in one.encoding}
    assert errors[50] == found["kd"].gradient["trained"]  # the same random numbers as the dump's
    assert errors[12] > errors[50] > errors[200]
    assert not any("draws" in one.encoding for one in sweep_encodings(cache, methods=["dkd"]))
    assert advice(cache) == []


def test_images_have_draws_too(tmp_path):
    arguments = {
        "teacher": tiny.net(tiny.CLASSES),
        "data": tiny.arrays(),
        "out": tmp_path / "c.zarr",
        "block_rows": 256,
    }
    cache = logitcache.dump_logits(**arguments, encoding="sampled", draws=8, exclude=[3])
    assert logitcache.verify_cache(tmp_path / "c.zarr", data=tiny.arrays(), replay=20, teacher=tiny.net(5)).ok
    assert cache_stats(cache).duplicates_among == 0
    loss, rows = logitcache.get_loss("kd", temperature=1.0), open_cache(tmp_path / "c.zarr").manifest.encoding
    assert rows["draws"] == 8
    (batch, *_) = logitcache.open(tmp_path / "c.zarr").loader(tiny.arrays(), batch_size=16)
    assert loss(batch.logits.targets.new_zeros(16, 5), batch.logits, batch.labels).shape == (16,)
    run = logitcache.train_student(
        cache, "tiny:student", out=tmp_path / "kd", data=tiny.arrays(), method="kd", temperature=1.0, epochs=1
    )
    assert run.metrics[0]["kd"] > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": 5}, "leave out `top_k`, or give `draws`"),
        ({"precision": "u8"}, "so it has no precision; leave out `precision`"),
        ({"encoding": "full"}, "`draws` requires `encoding` sampled"),
        ({"encoding": "full", "draws": None, "proposal_temperature": 2.0}, "`proposal_temperature` belongs to"),
        ({"proposal_temperature": 40.0}, "must be from 0.5 to 4, not 40"),
        ({"encoding": "full", "draws": None}, "text has one view"),
    ],
)
def test_options_that_mean_nothing_together_are_refused(dumped, changes, message):
    with pytest.raises(InputError, match=message):
        dumped(**changes)


def test_other_draws_are_another_cache(dumped):
    dumped()
    with pytest.raises(CacheMismatchError, match=r"encoding\.draws"):
        dumped(draws=21)
