"""Caches put together: every row is what it was, and what does not belong together is refused."""

import numpy as np
import pytest
import tiny
import torch

import logitcache
from logitcache.caches.merge import merge_caches
from logitcache.caches.slice import slice_cache
from logitcache.data import ArrayImages
from logitcache.errors import CacheMismatchError, CorruptCacheError, InputError


def same_rows(one, other, view=0, other_view=None, slug="sequential"):
    ours = tiny.columns_of(one, view, slug)
    theirs = tiny.columns_of(other, view if other_view is None else other_view, slug)
    assert ours.keys() == theirs.keys()
    return all((ours[name] == theirs[name]).all() for name in ours)


@pytest.mark.parametrize("made", [{}, {"top_k": 2, "precision": "u8"}, {"precision": "f16"}], ids=str)
def test_stretches_dumped_apart_are_the_whole(dump, tmp_path, images, made):
    """On other machines, in any order, cut anywhere."""
    whole = dump(**made)
    parts = [
        dump(**made, samples=span, out=tmp_path / f"{span[0]}.zarr") for span in ((170, 300), (0, 129), (129, 170))
    ]
    merged = merge_caches([part.place.path for part in parts], tmp_path / "merged.zarr")
    for view in (0, 1):
        assert same_rows(merged, whole, view)
        assert (merged.digests(view) == whole.digests(view)).all()
    assert (merged.labels() == whole.labels()).all()
    assert merged.manifest.data == whole.manifest.data
    samples, exact = merged.probe("sequential")
    assert (np.diff(samples) > 0).all()
    if not made:
        assert (exact == whole.view(0, "sequential")["logits"][samples]).all()
    report = logitcache.verify_cache(merged.place.path, data=images)
    assert report.ok and report.probe_gap < 1e-3


def test_a_stretch_trains_and_verifies_as_itself(dump, tmp_path, images):
    part = dump(samples=(100, 250), out=tmp_path / "part.zarr")
    assert part.manifest.samples == 150
    assert (part.labels() == images.labels[100:250]).all()
    assert logitcache.verify_cache(part.place.path, data=images).ok
    runs = [
        logitcache.train_student(
            cache=part.place.path, method="rld", student="tiny:student", data=images, epochs=2, batch_size=32,
            live_teacher=live, out=tmp_path / f"run-{bool(live)}",
        )
        for live in (False, tiny.net(tiny.CLASSES))
    ]  # fmt: skip
    cached, live = (run.student.state_dict().values() for run in runs)
    assert all((a == b).all() for a, b in zip(cached, live, strict=True))


def test_a_slice_of_samples_is_what_a_dump_of_them_would_be(dump, tmp_path, images):
    cut = slice_cache(dump().place.path, tmp_path / "cut.zarr", samples=(40, 260))
    direct = dump(samples=(40, 260), out=tmp_path / "direct.zarr")
    assert same_rows(cut, direct, 0) and same_rows(cut, direct, 1)
    assert cut.manifest.data == direct.manifest.data
    assert logitcache.verify_cache(cut.place.path, data=images).ok
    twice = slice_cache(cut.place.path, tmp_path / "twice.zarr", samples=(100, 200), views=1)
    assert (twice.view(0, "sequential")["logits"] == dump().view(0, "sequential")["logits"][100:200]).all()


@pytest.mark.parametrize(
    ("span", "message"),
    [
        ((200, 301), r"samples 200:301 are not a valid range; the data set has 300"),
        ((5, 5), r"samples 5:5 are not a valid range"),
        ((-1, 5), "are not a valid range"),
    ],
)
def test_a_stretch_that_is_none_is_refused(dump, span, message):
    with pytest.raises(InputError, match=message):
        dump(samples=span)


def test_views_of_several_caches_follow_one_another(dump, tmp_path, images):
    one, other = dump(seed=0), dump(seed=7, views=1, out=tmp_path / "other.zarr")
    merged = merge_caches([one, other], tmp_path / "merged.zarr")
    assert len(merged.manifest.views) == 3
    assert [view["index"] for view in merged.manifest.views] == [0, 1, 2]
    assert [view["key"] for view in merged.manifest.views] == [0, 1, 0]
    assert same_rows(merged, one, 1)
    assert same_rows(merged, other, 2, 0)
    assert logitcache.verify_cache(merged.place.path, data=images).ok
    run = logitcache.train_student(
        cache=merged.place.path, student="tiny:student", data=images, epochs=3, out=tmp_path / "run", batch_size=64
    )
    live = logitcache.train_student(
        cache=merged.place.path, student="tiny:student", data=images, epochs=3, out=tmp_path / "live", batch_size=64,
        live_teacher=tiny.net(tiny.CLASSES),
    )  # fmt: skip
    pairs = zip(run.student.state_dict().values(), live.student.state_dict().values(), strict=True)
    assert all((a == b).all() for a, b in pairs)


def test_pairs_of_views_stay_pairs(dump, tmp_path):
    made = {"augment": "none,pad-crop-flip", "views": 1}
    merged = merge_caches([dump(**made), dump(**made, seed=1, out=tmp_path / "b.zarr")], tmp_path / "m.zarr")
    assert [view["group"] for view in merged.manifest.views] == [0, 0, 1, 1]


def another_net():
    network = tiny.net(tiny.CLASSES)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.5)
    return network


@pytest.mark.parametrize("precision", ["f32", "f16"])
def test_the_mean_of_teachers_is_the_mean_of_their_logits(dump, tmp_path, images, run, precision):
    caches = [
        dump(precision=precision),
        dump(precision=precision, teacher=another_net(), out=tmp_path / "b.zarr"),
    ]
    mean = merge_caches(caches, tmp_path / "mean.zarr", average=True)
    expected = np.mean([cache.view(1, "sequential")["logits"].astype(float) for cache in caches], axis=0)
    np.testing.assert_allclose(mean.view(1, "mean")["logits"], expected, atol=1e-6 if precision == "f32" else 5e-3)
    assert (mean.digests(1) == caches[0].digests(1)).all()
    (teacher,) = mean.manifest.teachers
    assert teacher["name"] == "mean of Sequential, Sequential"
    assert len({entry["teachers"][0]["weights_sha256"] for entry in mean.manifest.derived["from"]}) == 2
    assert logitcache.verify_cache(mean.place.path, data=images).ok
    shown = run("info", str(mean.place)).stdout
    assert "mean of Sequential, Sequential" in shown and "by average" in shown
    with pytest.raises(InputError, match="was given as an object"):
        logitcache.train_student(
            cache=mean, student="tiny:student", data=images, epochs=1, live_teacher=True, out=tmp_path / "r"
        )


@pytest.mark.parametrize("made", [{"top_k": 2}, {"precision": "u8"}], ids=str)
def test_a_mean_of_what_was_cut_or_rounded_away_is_refused(dump, tmp_path, made):
    caches = [dump(**made), dump(**made, teacher=another_net(), out=tmp_path / "b.zarr")]
    with pytest.raises(
        InputError, match="whose mean is not the mean of the teachers' logits. Dump with `encoding` full"
    ):
        merge_caches(caches, tmp_path / "mean.zarr", average=True)


@pytest.mark.parametrize(
    ("changes", "average", "message"),
    [
        ({"precision": "f16"}, False, r"these differ in:\n  encoding.dtype: 'f32' in .*c.zarr, 'f16' in .*b.zarr"),
        ({"teacher": None}, False, r"teachers.0.weights_sha256: (.|\n)*`average` to store the mean of several teachers"),
        ({"teacher": None, "seed": 3}, True, r"views.0.seed: 0 in .*, 3 in"),
        ({"batch_size": 32, "seed": 3}, False, r"batch_size: 64 in (.|\n)*`allow_mixed` to accept that"),
        ({"samples": (0, 100)}, False, r"there is an overlap between .*c.zarr \(up to sample 300\)"),
        ({"samples": (0, 100), "seed": 3}, False, r"these differ in:\n  data|these differ in:(.|\n)*samples"),
        ({"views": 1}, False, "view 0 of .*b.zarr shows the same pixels as a view of .*c.zarr"),
        ({"augment": "none", "seed": 3, "views": 1, "samples": (0, 100)}, False, "views.0.recipe(.|\n)*slice --views` to keep"),
        ({"mean": [0.1]}, False, "preprocessing.mean"),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_belong_together_is_refused(dump, tmp_path, changes, average, message):
    changes = {name: another_net() if name == "teacher" else value for name, value in changes.items()}
    caches = [dump(), dump(**changes, out=tmp_path / "b.zarr")]
    with pytest.raises((CacheMismatchError, InputError), match=message):
        merge_caches(caches, tmp_path / "m.zarr", average=average)
    assert not (tmp_path / "m.zarr").exists()


def test_views_without_augmentation_are_one_view_whatever_the_seed(dump, tmp_path):
    caches = [dump(augment="none", views=1), dump(augment="none", views=1, seed=3, out=tmp_path / "b.zarr")]
    with pytest.raises(InputError, match="shows the same pixels"):
        merge_caches(caches, tmp_path / "m.zarr")


def test_a_dump_does_not_extend_what_was_merged(dump, tmp_path):
    merge_caches([dump(), dump(seed=7, out=tmp_path / "b.zarr")], tmp_path / "m.zarr")
    with pytest.raises(CacheMismatchError, match="was made by logitcache merge, and a dump cannot extend it"):
        dump(out=tmp_path / "m.zarr", views=5, teacher="tiny:none", data=f"arrays:{tmp_path / 'none.npz'}")


def test_other_data_is_refused(dump, tmp_path, test_images):
    other = dump(data=test_images, out=tmp_path / "b.zarr")
    with pytest.raises(CacheMismatchError, match="data.digest"):
        merge_caches([dump(), other], tmp_path / "m.zarr")


def test_a_gap_one_cache_or_the_same_twice_is_refused(dump, tmp_path):
    parts = [dump(samples=span, out=tmp_path / f"{span[0]}.zarr") for span in ((0, 100), (150, 300))]
    with pytest.raises(
        InputError, match=r"there is a gap between .*0.zarr \(up to sample 100\) and .*150.zarr \(from 150\)"
    ):
        merge_caches(parts, tmp_path / "m.zarr")
    with pytest.raises(InputError, match="two or more caches, not 1"):
        merge_caches(parts[:1], tmp_path / "m.zarr")
    with pytest.raises(InputError, match="hold the same rows"):
        merge_caches([parts[0], parts[0]], tmp_path / "m.zarr")
    with pytest.raises(InputError, match="hold the same rows"):
        merge_caches([parts[0], parts[0]], tmp_path / "m.zarr", average=True)
    with pytest.raises(InputError, match="is one of the source caches"):
        merge_caches(parts, parts[0].place.path)


def test_other_batch_sizes_are_accepted_on_request(dump, tmp_path):
    caches = [dump(), dump(batch_size=32, seed=3, out=tmp_path / "b.zarr")]
    assert len(merge_caches(caches, tmp_path / "m.zarr", allow_mixed=True).manifest.views) == 4


def test_a_stopped_merge_continues_to_the_same_bytes(dump, tmp_path):
    parts = [dump(samples=span, out=tmp_path / f"{span[0]}.zarr") for span in ((0, 100), (100, 300))]

    class Stopped(Exception):
        pass

    def stop(progress):
        raise Stopped

    with pytest.raises(Stopped):
        merge_caches(parts, tmp_path / "m.zarr", on_progress=stop)
    merge_caches(parts, tmp_path / "m.zarr")
    merge_caches(parts, tmp_path / "whole.zarr")
    assert tiny.bytes_of(tmp_path / "m.zarr") == tiny.bytes_of(tmp_path / "whole.zarr")


def test_a_damaged_cache_is_not_merged(dump, tmp_path):
    parts = [dump(samples=span, out=tmp_path / f"{span[0]}.zarr") for span in ((0, 100), (100, 300))]
    chunk = parts[1].place.path / "teachers/sequential/logits/c/0/0/0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(CorruptCacheError, match="c/0/0/0 has"):
        merge_caches(parts, tmp_path / "m.zarr")


def test_the_command_joins_what_two_commands_dumped(run, npz):
    for span, name in (("0:120", "a"), ("120:300", "b")):
        done = run(*f"dump --teacher tiny:net --data arrays:{npz} --out {name}.zarr --samples {span}".split())
        assert done.exit_code == 0, done.output
    done = run("merge", "b.zarr", "a.zarr", "--out", "whole.zarr")
    assert done.stdout == "whole.zarr: 300 samples x 1 view, finished\n"
    assert run("verify", "whole.zarr").exit_code == 0
    refused = run("dump", "--teacher", "tiny:net", "--data", f"arrays:{npz}", "--out", "x.zarr", "--samples", "5")
    assert refused.exit_code == 2
    assert "expected FIRST:LAST" in refused.stderr


def test_arrays_with_other_numbers_are_not_confused(dump, tmp_path, images):
    """A cache of a stretch refuses a data set that is only that stretch: its samples would look otherwise."""
    part = dump(samples=(0, 150), out=tmp_path / "part.zarr")
    pixels, labels, classes = tiny.arrays()
    report = logitcache.verify_cache(part.place.path, data=ArrayImages(pixels[:150], labels[:150], classes))
    assert "has 300 samples, but this data set has 150" in report.pixels_problem


@pytest.fixture
def dump_before(dump, monkeypatch):
    """Dump as before 2026-11-28, when pixels were hashed with BLAKE2b."""

    def make(**changes):
        with monkeypatch.context() as before:
            before.setattr("logitcache.data.images.views.recipes.MULTILINEAR", "blake2b")
            return dump(**changes)

    return make


def test_a_view_hashed_in_two_ways_is_one_view(dump, dump_before, tmp_path):
    caches = [dump_before(views=1), dump(views=1, out=tmp_path / "b.zarr")]
    with pytest.raises(InputError, match="view 0 of .*b.zarr shows the same pixels as a view of .*c.zarr"):
        merge_caches(caches, tmp_path / "m.zarr")
    other = dump(views=1, seed=3, out=tmp_path / "d.zarr")
    merged = merge_caches([caches[0], other], tmp_path / "m.zarr")
    assert [view.get("digest") for view in merged.manifest.views] == [None, "multilinear"]


@pytest.mark.parametrize("average", [False, True])
def test_parts_hashed_in_two_ways_are_refused_with_the_reason(dump, dump_before, tmp_path, average):
    changes = {"teacher": another_net()} if average else {"samples": (100, 300)}
    caches = [dump_before(**({} if average else {"samples": (0, 100)})), dump(**changes, out=tmp_path / "b.zarr")]
    with pytest.raises(CacheMismatchError, match="hashed with different functions, (.|\n)*have no `digest` again"):
        merge_caches(caches, tmp_path / "m.zarr", average=average)
