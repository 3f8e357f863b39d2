"""What a cache is, without reading a row of it."""

import json

import pytest
from made import BLOCK, CLASSES, SAMPLES, VIEWS, draw, make

import logitcache
from logitcache import METHODS, compare_caches
from logitcache.caches.fidelity import sweep_encodings
from logitcache.encoding import FullEncoding, TopKEncoding
from logitcache.errors import CacheIncompleteError, UnknownNameError
from logitcache.methods import get_loss, needs_of, serves_draws
from logitcache.stats import cache_info, cache_stats, serves


def test_it_says_what_stats_says_and_reads_no_row(run, tmp_path):
    path = make(tmp_path / "c.zarr", *draw(), TopKEncoding(4, "u8"))
    whole = cache_stats(path)
    for chunk in path.glob("teachers/t/*/c/*/*"):  # destroyed, at the same length
        for file in [chunk] if chunk.is_file() else chunk.iterdir():
            file.write_bytes(bytes(file.stat().st_size))
    found = cache_info(path)
    stated = whole.to_json()
    assert {name: stated[name] for name in found.to_json()} == found.to_json()
    assert (found.rows, found.rows_there, found.finished, found.blocks) == (VIEWS * SAMPLES, VIEWS * SAMPLES, True, 9)
    assert json.loads(run("info", "c.zarr", "--json").stdout) == json.loads(
        json.dumps(found.to_json() | {"path": "c.zarr"})
    )
    words = " ".join(run("info", "c.zarr").stdout.split())
    for part in (
        "teacher T",
        "data x, 600 samples, 12 classes",
        "views 3 x none",
        "the 4 largest logits",
        f"{found.bytes_per_row:.1f} bytes per row",
        "state finished",
        f"fingerprint {whole.fingerprint}",
        "command logitcache dump",
        "versions torch 1; cache format 1",
        "unsupported atkd, clkd",
        "(needs every class, but 4 of 12 are stored)",
    ):
        assert part in words, part


def test_an_unfinished_cache_says_how_far_it_is(run, tmp_path):
    path = make(tmp_path / "c.zarr", *draw(), leave_out=((1, 2), (2, 0)), finish=False)
    found = cache_info(path)
    assert (found.finished, found.blocks_there, found.rows_there, found.fingerprint) == (
        False,
        7,
        2 * SAMPLES + BLOCK,
        "",
    )
    assert found.bytes_per_row == pytest.approx(found.bytes_total / found.rows_there) == cache_stats(path).bytes_per_row
    shown = " ".join(run("info", "c.zarr").stdout.split())
    assert "state unfinished, 7 of 9 blocks written; run the dump command again to resume it" in shown
    assert f"rows 1,800, {found.rows_there:,} of them written" in shown
    (path / "zarr.json").unlink()
    with pytest.raises(CacheIncompleteError, match="was stopped before its first block"):
        cache_info(path)


def test_a_lost_block_is_damage(run, tmp_path):
    path = make(tmp_path / "c.zarr", *draw())
    (path / "teachers/t/logits/c/1/1/0").unlink()
    assert "state damaged, 8 of 9 blocks written" in " ".join(run("info", "c.zarr").stdout.split())


def test_of_several_teachers_all_are_named_and_one_can_be_chosen(run, dump, images, tmp_path):
    import tiny

    cache = dump(teacher=[tiny.net(tiny.CLASSES), tiny.net(tiny.CLASSES)])
    both, first = cache_info(cache), cache_info(cache, teacher=cache.teachers[0])
    assert both.bytes_per_row == pytest.approx(both.bytes_total / both.rows)
    others = sum(size for name, size in both.bytes_by_array.items() if f"/{cache.teachers[1]}" in name)
    assert first.bytes_per_row == pytest.approx((both.bytes_total - others) / both.rows)
    shown = run("info", "c.zarr").stdout
    for slug in cache.teachers:
        assert f"teacher {slug} " in shown
    with pytest.raises(UnknownNameError):
        cache_info(cache, teacher="nobody")


def test_the_methods_served_are_those_that_the_table_of_methods_has():
    losses = {name: get_loss(name) for name, one in METHODS.items() if one.divergence}
    assert set(serves.METHODS) == set(METHODS)
    assert {name for name, one in METHODS.items() if needs_of(name, one) == "every class"} == serves.EVERY_CLASS
    assert {name for name, loss in losses.items() if loss.needs_label} == serves.READ_LABELS
    assert {name for name, one in METHODS.items() if serves_draws(name, one)} == serves.FROM_DRAWS


def test_mixed_views_do_not_serve_methods_that_read_labels(tmp_path):
    path = make(tmp_path / "c.zarr", *draw(views=1), recipes=("pad-crop-flip+mixup(alpha=0.2,p=1.0)",))
    found = cache_info(path)
    assert set(found.refuses) == serves.READ_LABELS
    assert "kd" in found.serves and set(found.serves) | set(found.refuses) == set(METHODS)


def test_two_sides_have_the_same_size_as_one(tmp_path):
    path = make(tmp_path / "c.zarr", *draw())
    assert compare_caches(path, path).sides[0].bytes_per_row == logitcache.cache_info(path).bytes_per_row
    assert cache_info(path).ratio_to_float32 == pytest.approx(cache_info(path).bytes_per_row / (4 * CLASSES))


def test_the_bytes_of_an_encoding_that_could_have_been_chosen_are_those_of_a_cache_in_it(tmp_path):
    logits, labels = draw(views=1, samples=6 * BLOCK)  # blocks without padding
    paths = {dtype: make(tmp_path / dtype, logits, labels, FullEncoding(dtype)) for dtype in ("f32", "f16", "u8")}
    guessed = {
        one.encoding["dtype"]: one for one in sweep_encodings(paths["f32"], methods=["kd"]) if "k" not in one.encoding
    }
    for dtype, path in paths.items():
        assert guessed[dtype].bytes_per_row == pytest.approx(cache_info(path).bytes_per_row, rel=0.03), dtype


@pytest.mark.slow
def test_it_works_in_a_bucket(run, amazon, tmp_path):
    amazon.create_bucket(Bucket="of-info")
    make("s3://of-info/c.zarr", *draw())
    path = make(tmp_path / "c.zarr", *draw())
    there, here = cache_info("s3://of-info/c.zarr"), cache_info(path)
    assert there.bytes_by_array["teachers/t/logits"] == here.bytes_by_array["teachers/t/logits"]
    assert (there.rows_there, there.fingerprint) == (here.rows_there, here.fingerprint)
    assert "s3://of-info/c.zarr" in run("info", "s3://of-info/c.zarr").stdout
