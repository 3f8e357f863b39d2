"""A cache is read by whatever reads zarr: xarray, tensorstore, zarrs. Each is tried where it is installed."""

import json
from collections import defaultdict

import numpy as np
import pytest
import tiny
import zarr

import logitcache
from logitcache.caches.merge import merge_caches
from logitcache.encoding.columns import Column
from logitcache.encoding.topk import TopKEncoding

ENCODINGS = [
    *({"precision": precision} for precision in ("f32", "f16", "u8")),
    *({"precision": precision, "top_k": 3} for precision in ("f32", "f16", "u8")),
]
each_encoding = pytest.mark.parametrize("made", ENCODINGS, ids=lambda made: "-".join(map(str, made.values())))


def arrays_of(place):
    """Every array of a cache, as zarr itself reads it."""
    group = zarr.open_group(place, mode="r")
    stored = json.loads((place / "zarr.json").read_text())["consolidated_metadata"]["metadata"]
    return {key: group[key] for key, entry in stored.items() if entry["node_type"] == "array"}


@pytest.fixture
def place(dump, made):
    return dump(**made).place.path


@each_encoding
def test_axes_of_one_name_have_one_length(place):
    lengths = defaultdict(set)
    for array in arrays_of(place).values():
        for name, length in zip(array.metadata.dimension_names, array.shape, strict=True):
            lengths[name].add(length)
    assert all(len(found) == 1 for found in lengths.values()), lengths


def test_axes_of_one_name_have_one_length_where_samples_have_several_rows(tmp_path):
    import sequences

    made = logitcache.dump_logits(
        "sequences:teacher", "sequences:make", tmp_path / "c.zarr", top_k=3, precision="u8", batch_size=16
    )
    lengths = defaultdict(set)
    for array in arrays_of(made.place.path).values():
        for name, length in zip(array.metadata.dimension_names, array.shape, strict=True):
            lengths[name].add(length)
    assert sequences
    assert all(len(found) == 1 for found in lengths.values()), lengths


@each_encoding
def test_xarray_opens_every_group_and_the_tree(place):
    xarray = pytest.importorskip("xarray")
    tree = xarray.open_datatree(place, engine="zarr", consolidated=True, mask_and_scale=False)
    for key, array in arrays_of(place).items():
        group, _, name = key.rpartition("/")
        alone = xarray.open_zarr(place, group=group or None, consolidated=not group, mask_and_scale=False, chunks=None)
        for found in (alone[name], tree[key]):
            assert found.dims == array.metadata.dimension_names
            assert np.array_equal(found.to_numpy(), array[...])
    taught = xarray.open_zarr(place, group="teachers/sequential", consolidated=False, mask_and_scale=False, chunks=None)
    assert taught.isel(view=1, sample=slice(100, 140)).sizes["sample"] == 40


@each_encoding
def test_tensorstore_reads_every_array(place):
    tensorstore = pytest.importorskip("tensorstore")
    for key, array in arrays_of(place).items():
        opened = tensorstore.open({"driver": "zarr3", "kvstore": f"file://{place / key}/"}, open=True).result()
        assert opened.domain.labels == array.metadata.dimension_names
        assert np.array_equal(opened.read().result(), array[...])


@each_encoding
def test_zarrs_reads_every_array(place):
    pytest.importorskip("zarrs")
    plain = {key: array[...] for key, array in arrays_of(place).items()}
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        for key, array in arrays_of(place).items():
            assert np.array_equal(array[...], plain[key])
            assert np.array_equal(array[-3:], plain[key][-3:])


@pytest.fixture
def before(monkeypatch):
    """The names of axes that earlier versions gave."""
    columns = TopKEncoding.columns

    def as_it_was(self, classes):
        found = columns(self, classes)
        return found | {"scale": Column((2,), "<f4", ("statistic",), compression=1)}

    with monkeypatch.context() as patched:
        patched.setattr(TopKEncoding, "columns", as_it_was)
        yield patched


U8 = {"precision": "u8", "top_k": 3}


@pytest.mark.parametrize("later", [2, 3], ids=["continued", "extended"])
def test_a_cache_of_before_keeps_its_names_bytes_and_fingerprint(dump, tmp_path, before, later):
    whole = dump(**U8, out=tmp_path / "whole.zarr", views=later)
    asked = iter([False, True] if later == 2 else [False] * 9)
    stopped = tmp_path / "c.zarr"
    if later == 2:
        with pytest.raises(logitcache.errors.CacheIncompleteError):
            dump(**U8, out=stopped, should_stop=lambda: next(asked, True))
    else:
        dump(**U8, out=stopped)
    before.undo()
    now = dump(**U8, out=stopped, views=later)
    assert tiny.bytes_of(stopped) == tiny.bytes_of(whole.place.path)
    assert now.fingerprint == whole.fingerprint
    assert logitcache.verify_cache(stopped, check_rows=0).ok


def test_a_cache_of_before_is_merged_with_one_of_now(dump, tmp_path, images, before):
    old = dump(**U8, out=tmp_path / "old.zarr", samples=(0, 128))
    before.undo()
    new = dump(**U8, out=tmp_path / "new.zarr", samples=(128, 300))
    whole = dump(**U8, out=tmp_path / "whole.zarr")
    merged = merge_caches([old.place.path, new.place.path], tmp_path / "merged.zarr")
    assert old.fingerprint != dump(**U8, out=tmp_path / "again.zarr", samples=(0, 128)).fingerprint
    for view in (0, 1):
        ours, theirs = (tiny.columns_of(one, view) for one in (merged, whole))
        assert all((ours[name] == theirs[name]).all() for name in theirs)
    assert logitcache.verify_cache(merged.place.path, data=images).ok
