"""What training on text says where a setting means nothing for it, and how much a cache of it has lost."""

import numpy as np
import pytest
import texts
import torch

import logitcache
from logitcache.errors import CacheMismatchError, InputError
from logitcache.stats import cache_stats
from logitcache.store import decode_rows

WIDE = 5000


@pytest.fixture
def cache(tmp_path):
    return logitcache.dump_logits(texts.teacher(40), texts.contexts(60), tmp_path / "c.zarr", top_k=6, precision="u8")


def trained(cache, out, **changes):
    given = {"student": "texts:Student", "method": "kd", "epochs": 1, "batch_size": 4}
    return logitcache.train_student(cache, out=out, **(given | changes))


@pytest.mark.parametrize(("name", "value"), [("augment", "cifar"), ("exif_orientation", True), ("channels_last", True)])
@pytest.mark.parametrize("cached", [True, False])
def test_settings_of_images_are_refused_as_such(cache, tmp_path, name, value, cached):
    given = {name: value} | ({} if cached else {"method": "ce", "data": texts.contexts(60)})
    with pytest.raises(InputError, match=f"`{name}` is for images, but the data is text; leave it out"):
        trained(cache if cached else None, tmp_path / "r", **given)
    assert not (tmp_path / "r").exists()


def test_without_a_last_batch_sequences_are_counted(cache, tmp_path):
    """Sixty documents are ten sequences or so."""
    with pytest.raises(InputError, match=r"leaves nothing to train on: \d+ sequences are fewer than a batch of 20"):
        trained(cache, tmp_path / "r", batch_size=20, sequence_length=64, drop_last=True)
    found = trained(cache, tmp_path / "r", batch_size=2, sequence_length=64, drop_last=True)
    assert found.metrics[0]["left_out"] >= 0


def test_many_classes_are_told_of_methods_and_of_sizes(tmp_path):
    samples = texts.Documents(texts.contexts(5).tokens, texts.contexts(5).documents, WIDE)
    cache = logitcache.dump_logits(texts.wide(WIDE), samples, tmp_path / "wide.zarr", top_k=6)
    with pytest.raises(CacheMismatchError) as refused:
        trained(cache, tmp_path / "r", student="texts:wide", method="clkd")
    said = str(refused.value)
    assert "stores the 6 largest of 5,000 logits, and clkd needs every logit" in said
    assert "Choose a method that supports such rows (ce, " in said
    assert " kd, " in said
    assert "clkd," not in said
    assert f"a row would take 10 kB, and the cache {len(samples.labels) * 10} kB." in said
    assert "Dump again" not in said


def test_what_storing_has_lost_is_measured_with_the_rest_as_one_class(cache):
    """As students of text are trained; slowly, row by row."""
    found = cache_stats(cache).probe
    rows, exact = cache.probe(cache.teacher)
    held = cache.view(0, cache.teacher)[rows]
    ids = held["ids"].astype(np.int64).cumsum(1)
    top, step = held["scale"][:, :1], held["scale"][:, 1:]
    values = np.where(
        held["values"] == 255, top + held["label"][:, None].astype(np.float64), top - step * held["values"]
    )
    nats, gap = [], 0.0
    for row in range(len(rows)):
        p = torch.from_numpy(exact[row]).double().softmax(0).numpy()
        stored = decode_rows(cache.manifest.encoding, held[row : row + 1], 40)[0]
        q = torch.from_numpy(stored).double().softmax(0).numpy()
        others = np.setdiff1d(np.arange(40), ids[row])
        pairs = [*zip(p[ids[row]], q[ids[row]], strict=True), (p[others].sum(), q[others].sum())]
        nats.append(sum(one * np.log(one / other) for one, other in pairs))
        gap = max(gap, np.abs(exact[row][ids[row]] - values[row]).max())
    assert found.merged_rest
    assert found.kl_nats["T=1"] == pytest.approx(np.mean(nats), rel=1e-3, abs=1e-9)
    assert found.largest_gap == pytest.approx(gap, rel=1e-4)


def test_full_rows_and_images_are_compared_class_by_class(tmp_path, dump):
    full = logitcache.dump_logits(texts.teacher(40), texts.contexts(60), tmp_path / "f.zarr", encoding="full")
    assert not cache_stats(full).probe.merged_rest
    assert not cache_stats(dump(top_k=2, precision="u8")).probe.merged_rest
