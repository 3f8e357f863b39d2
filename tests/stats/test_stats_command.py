"""`logitcache stats` as it is typed."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from made import draw, make

from logitcache.encoding import TopKEncoding


def test_a_usual_cache_fits_a_screen_or_two_and_says_what_is_asked(run, tmp_path):
    logits, labels = draw()
    labels[7] = 10
    logits[:, 7] = 0
    logits[:, 7, 2] = 9
    digests = np.arange(1800, dtype=np.uint64).reshape(3, 600)
    digests[0, 9] = digests[0, 3]
    make(tmp_path / "c.zarr", logits, labels, TopKEncoding(4, "u8"), digests=digests)
    done = run("stats", "c.zarr")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert len(lines) <= 64
    assert lines[0].strip() == "c.zarr"
    words = done.stdout
    assert "one largest class in every view: " in words
    assert "class 10 > class 2" in words or "class 2 " in words
    for part in (
        "where the true class ranks",
        "how often it is right",
        "what it confuses",
        "worst classes",
        "; not kept: ",
    ):
        assert part in words
    for method in ("loca", "sld, swap", "rld", "atkd", "normkd"):
        assert f"\n{method} " in words
    assert [line.split()[1] for line in lines if line.startswith("│ 7 ")] == ["7"]
    assert "│ 3, 9" in words
    assert "█" in words


def test_many_views_are_folded(run, tmp_path):
    make(tmp_path / "c.zarr", *draw(views=9))
    shown = run("stats", "c.zarr").stdout
    assert [line.split()[1] for line in shown.splitlines() if line.endswith("% │")] == ["0", "1", "2", "3", "all"]
    found = json.loads(run("stats", "c.zarr", "--json").stdout)
    mean = np.mean([view["accuracy"] for view in found["views"]])
    assert f"{mean:.2%}" in next(line for line in shown.splitlines() if "all 9" in line)


def test_what_is_wrong_is_said_first(run, tmp_path):
    make(tmp_path / "c.zarr", *draw(), leave_out=((1, 2),), finish=False)
    done = run("stats", "c.zarr")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[:2] == [
        "c.zarr: its dump has not finished: the same command goes on",
        "c.zarr: missing of 9 blocks: view 1, block 2",
    ]
    found = json.loads(run("stats", "c.zarr", "--json").stdout)
    assert found["health"]["missing"] == ["view 1, block 2"]
    everything = tuple((view, block) for view in range(3) for block in range(3))
    make(tmp_path / "d.zarr", *draw(), leave_out=everything, finish=False)
    done = run("stats", "d.zarr")
    assert done.exit_code == 0
    assert "view 0, block 0, view 0, block 1" in done.stdout
    assert "and 5 more" in done.stdout


def test_names_of_classes_are_printed_and_obeyed_by_nobody(run, tmp_path):
    hostile = tuple(f"[red]{i}[/] \x1b[2J{'x' * 40}" for i in range(12))
    make(tmp_path / "c.zarr", *draw(), names=hostile)
    done = run("stats", "c.zarr")
    assert done.exit_code == 0
    assert "[red]" in done.stdout
    assert "\x1b" not in done.stdout
    assert "x" * 30 not in done.stdout


def test_a_terminal_without_blocks_gets_signs_it_has(tmp_path):
    make(tmp_path / "c.zarr", *draw())
    line = [sys.executable, "-m", "logitcache", "stats", "c.zarr"]
    done = subprocess.run(
        line, capture_output=True, cwd=tmp_path, env=os.environ | {"PYTHONIOENCODING": "ascii"}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "#####" in done.stdout.decode("ascii")


def test_torch_stays_out(tmp_path):
    make(tmp_path / "c.zarr", *draw(), TopKEncoding(3, "u8"))
    code = "import sys; from logitcache.cli.app import app\n"
    for words in (["stats", "c.zarr"], ["stats", "c.zarr", "c.zarr"]):
        code += f"app({words!r}, standalone_mode=False); print('torch' in sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert [line for line in done.stdout.splitlines() if line in ("True", "False")] == ["False", "False"]


def test_two_caches_side_by_side(run, tmp_path):
    logits, labels = draw()
    make(tmp_path / "a.zarr", logits, labels)
    make(tmp_path / "b.zarr", logits, labels, TopKEncoding(3, "u8"))
    done = run("stats", "a.zarr", "b.zarr")
    assert done.exit_code == 0
    assert "two caches, over 1,800 rows that both hold" in done.stdout
    assert "same largest class  ████████████████████████ 100.00%" in done.stdout
    assert "advice: a.zarr keeps every class" in done.stdout
    found = json.loads(run("stats", "a.zarr", "b.zarr", "--json", "--teacher", "t").stdout)
    assert (found["rows"], found["top1_agreement"]) == (1800, 1.0)
    assert [side["encoding"] for side in found["sides"]] == ["full f32", "top-3 u8"]
    assert run("stats", "a.zarr", "b.zarr", "--teacher", "t,nobody").exit_code == 1


@pytest.mark.parametrize(
    ("encoding", "says"), [(TopKEncoding(1, "u8"), "rld at T=4 loses "), (None, "what is stored is a good stand-in")]
)
def test_advice_names_the_method_and_what_to_dump(run, tmp_path, encoding, says):
    make(tmp_path / "c.zarr", *draw(), encoding)
    lines = [line for line in run("stats", "c.zarr", "--advise").stdout.splitlines() if line.startswith("advice: ")]
    assert any(line.startswith(f"advice: {says}") for line in lines)
    advice = json.loads(run("stats", "c.zarr", "--advise", "--json").stdout)["advice"]
    assert advice == [line.removeprefix("advice: ") for line in lines if "stand-in" not in line]
    assert "advice" not in json.loads(run("stats", "c.zarr", "--json").stdout)
