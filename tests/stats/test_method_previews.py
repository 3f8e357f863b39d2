"""What methods will do, against the methods themselves on the same rows."""

import numpy as np
import pytest
import torch
from made import CLASSES, ENCODINGS, draw, encode, make
from torch.nn import functional as F

from logitcache.encoding import FullEncoding, TopKEncoding, dense
from logitcache.methods.atkd import adaptive
from logitcache.methods.loca import loca
from logitcache.methods.lskd import standardize
from logitcache.methods.normkd import by_deviation
from logitcache.methods.rld import contradicts
from logitcache.methods.sld import swap
from logitcache.stats import cache_stats, describe
from logitcache.stats.methods import preview_rows
from logitcache.stats.rows import read_rows


def moved(before, after):
    """Total variation distance at temperature 1, row by row."""
    return (F.softmax(before.double(), 1) - F.softmax(after.double(), 1)).abs().sum(1) / 2


def rows_of(encoding, exact, labels):
    """The rows as stats reads them, and as the methods do."""
    columns = encode(encoding, exact, labels)
    tensors = {name: torch.from_numpy(column.copy()) for name, column in columns.items()}
    true = torch.from_numpy(labels).long()
    return read_rows(encoding.to_json(), columns, labels, exact.shape[1]), encoding.decode(
        tensors, true, exact.shape[1]
    )


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_previews_are_what_the_methods_do(encoding):
    """Rows of the largest are completed for the temperature of each step, as in training."""
    (exact,), labels = draw(views=1)
    ours, theirs = rows_of(encoding, exact, labels)
    found, true = preview_rows(ours), torch.from_numpy(labels).long()
    plain, every = dense(theirs, 1.0), torch.arange(len(true))
    wrong = plain.argmax(1) != true
    assert 0.1 < wrong.float().mean() < 0.9
    assert (found["wrong"] == wrong.numpy()).all()
    lifted = plain.clone()
    lifted[every, true] = loca(dense(theirs, 4.0), true)[every, true]
    np.testing.assert_allclose(found["loca"][wrong], moved(plain, lifted)[wrong], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["swap"][wrong], moved(plain, swap(plain, true))[wrong], rtol=1e-4, atol=1e-6)
    ranked = torch.ones_like(wrong) if isinstance(theirs, torch.Tensor) else ~theirs.unranked
    hidden = (plain >= plain[every, true][:, None]).sum(1)
    assert (found["hidden"] == hidden.numpy())[ranked].all()
    assert (found["hidden"] > 1)[ranked].tolist() == contradicts(plain, true)[ranked].tolist()
    for place, temperature in enumerate((1.0, 2.0, 4.0)):
        p = F.softmax(dense(theirs, temperature).double() / temperature, 1)
        kept = 1.0 if isinstance(theirs, torch.Tensor) else p.gather(1, theirs.ids).sum(1).numpy()
        np.testing.assert_allclose(found["outside"][:, place], 1 - kept, rtol=1e-4, atol=1e-6)
    ranks = CLASSES if isinstance(encoding, FullEncoding) else encoding.k
    largest = F.softmax(plain.double(), 1).sort(1, descending=True).values[:, :ranks]
    assert found["by_rank"].shape == largest.shape
    np.testing.assert_allclose(found["by_rank"], largest, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_temperatures_are_the_teachers_own(encoding):
    """Of a top-k row too, from the stored mean, deviation and minimum: within what float16 makes of them."""
    (exact,), labels = draw(views=1)
    found = preview_rows(rows_of(encoding, exact, labels)[0])
    logits = torch.from_numpy(exact)
    scaled = standardize(logits)
    _, atkd = adaptive(scaled, scaled, source="teacher")
    _, normkd = by_deviation(logits, logits)
    rel = {"f32": 1e-5, "f16": 2e-3, "u8": 2e-2}[encoding.dtype]
    rel = max(rel, 2e-3) if isinstance(encoding, TopKEncoding) else rel
    np.testing.assert_allclose(found["atkd"], atkd[:, 0], rtol=rel)
    np.testing.assert_allclose(found["normkd"], normkd[:, 0], rtol=rel)
    np.testing.assert_allclose(found["deviation"], logits.std(1), rtol=rel)


def test_a_constant_row_is_nothing_to_divide_by():
    ours, _ = rows_of(FullEncoding("f32"), np.full((1, 4), 2.5, np.float32), np.zeros(1, np.int32))
    found = preview_rows(ours)
    assert found["deviation"].tolist() == [0]
    assert found["normkd"].tolist() == [2e-7]
    assert found["hidden"].tolist() == [4]
    assert found["atkd"] == pytest.approx(1.366e-7, rel=1e-3)


def test_the_preview_is_over_rows_of_every_view_and_block(tmp_path, monkeypatch):
    logits, labels = draw()
    path = make(tmp_path / "c.zarr", logits, labels)
    whole = cache_stats(path).preview
    assert whole.rows == logits.shape[0] * logits.shape[1]
    wrong = logits.argmax(2) != labels
    assert whole.loca_changed == whole.swap_changed == pytest.approx(wrong.mean())
    assert whole.deviation.median == pytest.approx(np.median(logits.std(2, ddof=1)), rel=1e-5)
    assert (whole.deviation.low, whole.deviation.high) == pytest.approx(
        (logits.std(2, ddof=1).min(), logits.std(2, ddof=1).max()), rel=1e-5
    )
    assert sum(whole.mass_by_rank) == pytest.approx(1)
    assert whole.mass_outside == {"T=1": 0, "T=2": 0, "T=4": 0}
    monkeypatch.setattr(describe, "PREVIEW_ROWS", 100)
    few = cache_stats(path).preview
    assert 50 < few.rows < 200
    assert few.swap_changed == whole.swap_changed  # of all rows


def test_the_rows_looked_at_follow_no_order_of_the_data(tmp_path, monkeypatch):
    """Every second label is wrong: a fixed step of two would see all of them, or none."""
    labels = np.tile([0, 1], 300).astype(np.int32)
    logits = np.zeros((1, 600, 12), np.float32)
    logits[..., 0] = 5
    monkeypatch.setattr(describe, "PREVIEW_ROWS", 300)
    found = cache_stats(make(tmp_path / "c.zarr", logits, labels)).preview
    assert found.loca_changed == pytest.approx(0.5)
    assert 0.3 < found.rld_masked < 0.7


def test_methods_that_read_a_label_are_not_previewed_on_mixed_rows(tmp_path):
    found = cache_stats(make(tmp_path / "c.zarr", *draw(views=1), recipes=("none+mixup",))).preview
    assert found.rows and not found.labelled
    assert found.loca_changed == found.swap_changed == found.rld_masked == 0
    assert found.deviation.median > 0
