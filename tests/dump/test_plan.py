"""What a dump will take, said before it is begun."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import texts
import tiny

import logitcache
from logitcache.dump.dump import probe_rows
from logitcache.errors import InputError


def arguments(images, tmp_path, **changes):
    found = {
        "teacher": tiny.net(tiny.CLASSES),
        "data": images,
        "out": tmp_path / "c.zarr",
        "views": 3,
        "batch_size": 64,
    }
    return found | {"augment": "pad-crop-flip"} | changes


@pytest.mark.parametrize("made", [{}, {"precision": "f32"}, {"top_k": 2, "precision": "u8"}], ids=str)
def test_the_room_it_names_is_what_the_dump_takes(images, tmp_path, made):
    given = arguments(images, tmp_path, **made)
    plan = logitcache.plan_dump(**given)
    assert not list(tmp_path.iterdir())
    cache = logitcache.dump_logits(**given, block_rows=300)
    sizes = cache.place.sizes()
    for name, planned in plan.bytes_by_array.items():
        if name.startswith("teachers/"):
            real = sum(size for file, size in sizes.items() if file.startswith(f"{name}/c/"))
            assert planned == pytest.approx(real, rel=0.35), name  # padding and small blocks of a tiny set
    assert plan.rows == 900
    assert plan.fits


def test_a_slow_teacher_is_measured(images, tmp_path):
    plan = logitcache.plan_dump(**arguments(images, tmp_path, teacher=tiny.Slow(tiny.CLASSES)))
    assert 150 < plan.teacher_rows_per_second < 64 / 0.15  # 64 rows in at least 0.15 s
    assert plan.hours == pytest.approx(900 / plan.teacher_rows_per_second / 3600)
    assert plan.pays_after_epochs == 3


def test_a_plan_of_text_counts_documents_and_tokens_and_the_room_for_both(tmp_path):
    given = {
        "teacher": texts.teacher(40),
        "data": texts.contexts(400, targets=True),
        "out": tmp_path / "c.zarr",
        "top_k": 4,
    }
    plan = logitcache.plan_dump(**given)
    samples = given["data"]
    assert plan.counts == {"documents": 400, "tokens": len(samples.tokens)}
    assert plan.rows == len(samples.labels)
    cache = logitcache.dump_logits(**given)
    sizes = cache.place.sizes()
    for name in ("tokens", "documents", "targets"):
        real = sum(size for file, size in sizes.items() if file.startswith(f"{name}/c/"))
        assert plan.bytes_by_array[name] == pytest.approx(real, rel=0.1), name
    assert plan.bytes_total == sum(plan.bytes_by_array.values()) == pytest.approx(sum(sizes.values()), rel=0.35)
    excluded = logitcache.plan_dump(**given | {"out": tmp_path / "d.zarr", "exclude": [3, 4]})
    assert excluded.counts["documents"] == 398


def test_the_command_line_plans_text(run):
    done = run("dump", "--plan", "--teacher", "texts:teacher", "--data", "texts:make", "--out", "c.zarr")
    assert done.exit_code == 0, done.output
    for word in (
        r"documents +60",
        r"tokens +\d",
        r"rows +\d",
        r"size +\d.*free on the disk",
        r"tokens \d",
        r"time +[\d.]+ s",
        "pays off",
    ):
        assert re.search(word, done.stdout), word


@pytest.mark.parametrize("rows", tiny.usual([20, 64, 84], [84]))  # the full batch and the padded one
def test_a_padded_batch_is_timed_as_a_full_one(images, tmp_path, rows):
    plan = logitcache.plan_dump(**arguments(images, tmp_path, teacher=tiny.Slow(tiny.CLASSES), samples=(0, rows)))
    batches = -(-rows // 64)
    assert 3 * batches * 0.15 < plan.hours * 3600 < 3 * batches * 0.15 * 2


def test_what_does_not_fit_is_refused(run, npz, monkeypatch):
    words = f"dump --teacher tiny:net --data arrays:{npz} --out c.zarr --plan".split()
    done = run(*words)
    assert done.exit_code == 0
    assert re.search(r"rows +300 *\n", done.stdout)
    assert "free on the disk" in done.stdout
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    refused = run(*words)
    assert refused.exit_code == 1
    assert "c.zarr does not fit on its disk" in refused.stderr


def test_what_a_dump_would_refuse_is_refused(images, tmp_path):
    with pytest.raises(InputError, match="logits that are not finite"):
        logitcache.plan_dump(**arguments(images, tmp_path, teacher=tiny.Poisoned(tiny.CLASSES)))


def test_the_probe_of_long_samples_is_of_few_of_them():
    """The teacher runs on whole samples: 256 rows spread over all of them would cost a second dump."""
    offsets = np.concatenate([[0, 0], np.cumsum(np.full(500, 40))])  # the first sample has no rows
    rows = probe_rows(0, 20_000, 512, offsets)
    samples = np.unique(np.searchsorted(offsets, rows, side="right") - 1)
    assert len(rows) == len(np.unique(rows)) == 256
    assert (np.diff(rows) > 0).all()
    assert len(samples) == 16
    assert samples.min() >= 1
    few = np.array([0, 3, 3, 5])
    assert probe_rows(0, 5, 512, few).tolist() == [0, 1, 2, 3, 4]
