"""A smaller cache out of a larger one: what is left is what it was."""

import numpy as np
import pytest
from tiny import columns_of

import logitcache
from logitcache.caches import derive
from logitcache.caches.slice import slice_cache
from logitcache.dump.dump import probe_rows
from logitcache.errors import CacheMismatchError, CacheNotFoundError, CorruptCacheError, InputError, LogitCacheError


def test_fewer_views_are_the_first_ones_bit_for_bit(dump, tmp_path, images):
    whole = dump(views=3)
    part = slice_cache(whole.place.path, tmp_path / "part.zarr", views=2)
    for view in (0, 1):
        assert (columns_of(part, view)["logits"] == columns_of(whole, view)["logits"]).all()
        assert (part.digests(view) == whole.digests(view)).all()
    assert part.manifest.derived["by"] == "slice"
    (source,) = part.manifest.derived["from"]
    assert (source["fingerprint"], source["encoding"], source["views"]) == (
        whole.fingerprint,
        whole.manifest.encoding,
        3,
    )
    assert logitcache.verify_cache(part.place.path, data=images).ok


@pytest.mark.parametrize("precision", ["f16", "u8"])
@pytest.mark.parametrize("top_k", [None, 2])
def test_a_slice_of_exact_rows_is_what_a_dump_would_have_stored(dump, tmp_path, images, top_k, precision):
    part = slice_cache(dump().place.path, tmp_path / "part.zarr", top_k=top_k, precision=precision)
    direct = dump(top_k=top_k, precision=precision, out=tmp_path / "direct.zarr")
    for view in (0, 1):
        ours, theirs = columns_of(part, view), columns_of(direct, view)
        assert ours.keys() == theirs.keys()
        assert all((ours[name] == theirs[name]).all() for name in ours)
    assert logitcache.verify_cache(part.place.path, data=images).ok


def test_a_smaller_k_of_a_larger_one_keeps_the_mass_of_what_it_leaves(dump, tmp_path):
    small = slice_cache(dump(top_k=3, precision="f32").place.path, tmp_path / "small.zarr", top_k=1)
    direct = dump(top_k=1, precision="f32", out=tmp_path / "direct.zarr")
    ours, theirs = columns_of(small), columns_of(direct)
    assert (ours["ids"] == theirs["ids"]).all()
    assert (ours["values"] == theirs["values"]).all()
    np.testing.assert_allclose(ours["rest"].astype(float), theirs["rest"].astype(float), atol=5e-3)


def test_a_student_trains_from_a_slice(dump, tmp_path, images):
    slice_cache(dump().place.path, tmp_path / "part.zarr", views=1, precision="u8")
    run = logitcache.train_student(
        cache=tmp_path / "part.zarr", student="tiny:student", data=images, epochs=1, out=tmp_path / "r"
    )
    assert run.results["agreement_rows"] == 300


def test_a_stopped_slice_continues_and_is_no_dump(dump, tmp_path):
    whole = dump()

    class Stopped(Exception):
        pass

    def stop(progress):
        if progress.done > 300:
            raise Stopped

    with pytest.raises(Stopped):
        slice_cache(whole.place.path, tmp_path / "part.zarr", precision="u8", on_progress=stop)
    with pytest.raises(logitcache.LogitCacheError, match=r"Complete it with:\n  logitcache slice .* --precision u8"):
        logitcache.open_cache(tmp_path / "part.zarr")
    slice_cache(whole.place.path, tmp_path / "part.zarr", precision="u8")
    with pytest.raises(CacheMismatchError, match="was made by logitcache slice"):
        dump(out=tmp_path / "part.zarr", precision="u8")


@pytest.mark.parametrize(
    ("made", "changes", "message"),
    [
        ({}, {}, "the slice would be a full copy"),
        ({}, {"views": 3}, "has 2 views; `views` must be from 1 to that many, not 3"),
        ({"precision": "f16"}, {"precision": "f32"}, "`precision` f32 is higher than the cache's f16"),
        ({"top_k": 2}, {"top_k": 0}, "`top_k` must be 1 or more, not 0"),
        ({"top_k": 2}, {"top_k": 3}, "`top_k` 3 is more than the 2 largest logits that the cache keeps"),
        ({}, {"top_k": 4}, "top-k 4 of 5 classes leaves no rest"),
        ({}, {"precision": "f8"}, "unknown precision 'f8'"),
    ],
)
def test_what_cannot_be_cut_out_is_refused(dump, tmp_path, made, changes, message):
    with pytest.raises(logitcache.LogitCacheError, match=message):
        slice_cache(dump(**made).place.path, tmp_path / "part.zarr", **changes)
    assert not (tmp_path / "part.zarr").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"samples": "0:10"}, "`samples` must be two whole numbers, as .0, 50000., not '0:10'"),
        ({"views": "1"}, "`views` must be a whole number of 1 or more, not '1'"),
        ({"view": 1}, "unknown setting 'view'; did you mean 'views'"),
    ],
)
def test_a_setting_of_the_wrong_type_is_one_sentence(dump, tmp_path, wrong, message):
    with pytest.raises(LogitCacheError, match=message):
        slice_cache(dump(), tmp_path / "s.zarr", **wrong)


@pytest.mark.parametrize("part", [{"precision": "f16"}, {"samples": (0, 100)}])
def test_a_slice_that_could_not_be_measured_is_refused(dump, tmp_path, part):
    cache = dump(views=1, exclude=probe_rows(0, 300, 5).tolist())
    with pytest.raises(InputError, match="would have no probe.* the result of slicing could not be verified"):
        slice_cache(cache, tmp_path / "s.zarr", **part)
    assert not (tmp_path / "s.zarr").exists()


def test_a_damaged_cache_is_not_cut_into_one_that_looks_whole(dump, tmp_path):
    """A chunk of the right length and checksum in the wrong place: only the ledger of the larger one knows."""
    whole = dump()
    right, wrong = (whole.place.path / f"teachers/sequential/logits/c/{view}/0/0" for view in (0, 1))
    wrong.write_bytes(right.read_bytes())
    with pytest.raises(
        CorruptCacheError,
        match=r"logits/c/1/0/0 has been modified: its digest or checksum does not match .* then try again",
    ):
        slice_cache(whole.place.path, tmp_path / "part.zarr", precision="u8")
    assert not (tmp_path / "part.zarr").exists()


def test_a_path_with_another_cache_is_refused_before_the_files_are_verified(dump, tmp_path, monkeypatch):
    whole = dump()
    slice_cache(whole, tmp_path / "part.zarr", views=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").touch()
    monkeypatch.setattr(derive, "check_files", None)
    with pytest.raises(CacheMismatchError, match="part.zarr is a different cache; nothing in it was touched"):
        slice_cache(whole, tmp_path / "part.zarr", samples=(0, 100))
    with pytest.raises(InputError, match="other exists and is not a logit cache; nothing in it was touched"):
        slice_cache(whole, tmp_path / "other", views=1)


def test_views_that_belong_together_are_not_parted(dump, tmp_path):
    whole = dump(augment="none,pad-crop-flip")
    with pytest.raises(InputError, match="`views` 3 would split a group of 2 views that belong together"):
        slice_cache(whole, tmp_path / "part.zarr", views=3)
    assert len(slice_cache(whole, tmp_path / "part.zarr", views=2).manifest.views) == 2


def test_a_cache_is_not_cut_onto_itself(dump):
    whole = dump()
    with pytest.raises(InputError, match="is one of the source caches"):
        slice_cache(whole.place.path, whole.place.path, views=1)


def test_slice_on_the_command_line(dump, run):
    dump()
    assert (
        run("slice", "c.zarr", "--out", "d.zarr", "--views", "1").stdout == "d.zarr: 300 samples x 1 view, finished\n"
    )
    assert "derived from" in run("info", "d.zarr").stdout


def test_a_slice_needs_a_cache(tmp_path):
    with pytest.raises(CacheNotFoundError, match="there is no cache at"):
        slice_cache(tmp_path / "no.zarr", tmp_path / "part.zarr", views=1)


def test_the_command_that_a_slice_records_can_be_typed(run, dump, tmp_path):
    dump()
    assert run("slice", "c.zarr", "--out", "d.zarr", "--views", "1").exit_code == 0
    command = logitcache.open_cache(tmp_path / "d.zarr").command
    assert run(*command.split()[1:]).exit_code == 0
