"""What a dump will take, said before it is begun."""

import re
from types import SimpleNamespace

import pytest
import tiny

import logitcache
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


@pytest.mark.parametrize("rows", [20, 64, 84])
def test_a_padded_batch_is_timed_as_a_full_one(images, tmp_path, rows):
    plan = logitcache.plan_dump(**arguments(images, tmp_path, teacher=tiny.Slow(tiny.CLASSES), samples=(0, rows)))
    batches = -(-rows // 64)
    assert 3 * batches * 0.15 < plan.hours * 3600 < 3 * batches * 0.15 * 2


def test_what_does_not_fit_is_refused(run, npz, monkeypatch):
    words = f"dump --teacher tiny:net --data arrays:{npz} --out c.zarr --plan".split()
    done = run(*words)
    assert done.exit_code == 0
    assert re.search(r"rows +300 *\n", done.stdout)
    assert "are free there" in done.stdout
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    refused = run(*words)
    assert refused.exit_code == 1
    assert "c.zarr does not fit on its disk" in refused.stderr


def test_what_a_dump_would_refuse_is_refused(images, tmp_path):
    with pytest.raises(InputError, match="no numbers"):
        logitcache.plan_dump(**arguments(images, tmp_path, teacher=tiny.Poisoned(tiny.CLASSES)))
