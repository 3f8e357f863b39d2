"""`logitcache stats` as it is typed."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from made import draw, make

import logitcache.caches.fidelity
from logitcache.encoding import TopKEncoding
from logitcache.stats import cache_stats

SHORT = ["logits", "state", "accuracy", "worst", "label-aware", "label", "duplicates", "--all"]


def test_four_numbers_come_first_and_fit_a_few_lines(run, tmp_path):
    make(tmp_path / "c.zarr", *draw(), TopKEncoding(4, "u8"))
    found = cache_stats(tmp_path / "c.zarr")
    lines = [" ".join(line.split()) for line in run("stats", "c.zarr").stdout.splitlines()]
    assert len(lines) == 13
    assert lines[0] == "c.zarr: T on x, 600 samples x 3 views"
    assert lines[1].startswith(f"teacher accuracy {found.mean('accuracy'):.2%}, top-5 ")
    assert lines[2].startswith(f"calibration error {found.mean('calibration_error'):.2%}; ")
    assert lines[3] == f"view agreement {found.agreement_of_all:.2%} of samples have the same top class in all 3 views"
    assert lines[4].startswith(f"size {found.bytes_per_row:.1f} bytes per row, ")
    make(tmp_path / "d.zarr", *draw(views=1))
    assert "only one view" in run("stats", "d.zarr").stdout


def test_a_usual_cache_fits_a_screen_or_two_and_says_what_is_asked(run, tmp_path):
    logits, labels = draw()
    labels[7] = 10
    logits[:, 7] = 0
    logits[:, 7, 2] = 9
    digests = np.arange(1800, dtype=np.uint64).reshape(3, 600)
    digests[0, 9] = digests[0, 3]
    make(tmp_path / "c.zarr", logits, labels, TopKEncoding(4, "u8"), digests=digests)
    done = run("stats", "c.zarr", "--all")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert len(lines) <= 76
    assert [line.split()[0] for line in run("stats", "c.zarr").stdout.splitlines()] == [
        line.split()[0] for line in lines[:5]
    ] + SHORT
    words = done.stdout
    assert "same top class in every view: " in words
    assert "class 10 > class 2" in words or "class 2 " in words
    for part in (
        "Rank of the true class",
        "Calibration (accuracy by confidence)",
        "Most confused classes",
        "worst classes",
        "; outside the top k, about ",
    ):
        assert part in words
    for method in ("loca", "sld, swap", "rld", "atkd", "normkd"):
        assert f"\n{method} " in words
    assert [line.split()[1] for line in lines if line.startswith("│ 7 ")] == ["7"]
    assert "│ 3, 9" in words
    sure = [re.search(r"([0-9.]+)% accuracy, .* ([0-9,]+) rows", line) for line in lines if "% confidence" in line]
    assert sum(int(one[2].replace(",", "")) for one in sure) == 1800
    right = sum(float(one[1]) * int(one[2].replace(",", "")) for one in sure) / 1800
    assert right == pytest.approx(100 * cache_stats("c.zarr").mean("accuracy"), abs=0.1)
    assert "█" in words


def test_many_views_are_folded(run, tmp_path):
    make(tmp_path / "c.zarr", *draw(views=9))
    shown = run("stats", "c.zarr", "--all").stdout
    assert [line.split()[1] for line in shown.splitlines() if line.endswith("% │")] == ["0", "1", "2", "3", "all"]
    found = json.loads(run("stats", "c.zarr", "--json").stdout)
    mean = np.mean([view["accuracy"] for view in found["views"]])
    assert f"{mean:.2%}" in next(line for line in shown.splitlines() if "│ all 9" in line)


def test_what_is_wrong_is_said_first(run, tmp_path):
    make(tmp_path / "c.zarr", *draw(), leave_out=((1, 2),), finish=False)
    done = run("stats", "c.zarr")
    assert done.exit_code == 0
    assert done.stdout.splitlines()[:2] == [
        "c.zarr: the dump is unfinished; run the same command again to resume it",
        "c.zarr: missing, of 9 blocks: view 1, block 2",
    ]
    found = json.loads(run("stats", "c.zarr", "--json").stdout)
    assert found["health"]["missing"] == ["view 1, block 2"]
    everything = tuple((view, block) for view in range(3) for block in range(3))
    make(tmp_path / "d.zarr", *draw(), leave_out=everything, finish=False)
    done = run("stats", "d.zarr")
    assert done.exit_code == 0
    assert "view 0, block 0; view 0, block 1" in done.stdout
    assert "and 5 more" in done.stdout
    assert "advice: not available until the cache is finished" in run("stats", "d.zarr", "--advise").stdout
    assert json.loads(run("stats", "d.zarr", "--advise", "--json").stdout)["advice"] is None


def test_names_of_classes_are_printed_and_obeyed_by_nobody(run, tmp_path):
    hostile = tuple(f"[red]{i}[/] \x1b[2J{'x' * 40}" for i in range(12))
    make(tmp_path / "c.zarr", *draw(), names=hostile)
    done = run("stats", "c.zarr", "--all")
    assert done.exit_code == 0
    assert "[red]" in done.stdout
    assert "\x1b" not in done.stdout
    assert "x" * 30 not in done.stdout


def test_a_terminal_without_blocks_gets_signs_it_has(tmp_path):
    make(tmp_path / "c.zarr", *draw())
    line = [sys.executable, "-m", "logitcache", "stats", "c.zarr", "--all"]
    done = subprocess.run(
        line, capture_output=True, cwd=tmp_path, env=os.environ | {"PYTHONIOENCODING": "ascii"}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "#####" in done.stdout.decode("ascii")


def test_torch_stays_out(tmp_path):
    make(tmp_path / "c.zarr", *draw(), TopKEncoding(3, "u8"))
    code = "import sys; from logitcache.cli.app import app\n"
    for words in (["info", "c.zarr"], ["stats", "c.zarr", "--all"], ["stats", "c.zarr", "c.zarr"]):
        code += f"app({words!r}, standalone_mode=False); print('torch' in sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert [line for line in done.stdout.splitlines() if line in ("True", "False")] == ["False"] * 3


def test_two_caches_side_by_side(run, tmp_path):
    logits, labels = draw()
    make(tmp_path / "a.zarr", logits, labels)
    make(tmp_path / "b.zarr", logits, labels, TopKEncoding(3, "u8"))
    done = run("stats", "a.zarr", "b.zarr")
    assert done.exit_code == 0
    assert "Comparison over 1,800 shared rows" in done.stdout
    assert re.search("same top class +█{24} 100.00%", done.stdout)
    assert "advice: a.zarr keeps every class" in done.stdout
    found = json.loads(run("stats", "a.zarr", "b.zarr", "--json", "--cached-teacher", "t").stdout)
    assert (found["rows"], found["top1_agreement"]) == (1800, 1.0)
    assert [side["encoding"] for side in found["sides"]] == ["full f32", "top-3 u8"]
    assert run("stats", "a.zarr", "b.zarr", "--cached-teacher", "t,nobody").exit_code == 1


@pytest.mark.parametrize(
    ("encoding", "says"), [(TopKEncoding(1, "u8"), "rld at T=4 loses "), (None, "none; the encoding costs")]
)
def test_advice_names_the_method_and_what_to_dump(run, tmp_path, encoding, says):
    make(tmp_path / "c.zarr", *draw(), encoding)
    lines = [line for line in run("stats", "c.zarr", "--advise").stdout.splitlines() if line.startswith("advice: ")]
    assert any(line.startswith(f"advice: {says}") for line in lines)
    advice = json.loads(run("stats", "c.zarr", "--advise", "--json").stdout)["advice"]
    assert advice == [line.removeprefix("advice: ") for line in lines if "none; " not in line]
    assert "advice" not in json.loads(run("stats", "c.zarr", "--json").stdout)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("folder", "folder is a folder; name a file in it"),
        ("no/a.html", "no is not a folder"),
        ("s3://b/a.html", "address"),
    ],
)
def test_a_page_that_cannot_be_written_is_refused_before_anything_is_read(run, tmp_path, target, says):
    (tmp_path / "folder").mkdir()
    done = run("stats", "no-such-cache.zarr", "--report", target)
    assert done.exit_code == 1
    assert says in done.stderr


def test_a_page_that_may_not_be_written_is_refused(run, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "is not writable" in run("stats", "no-such-cache.zarr", "--report", "a.html").stderr


def test_the_page_says_what_the_terminal_says_and_is_measured_once(run, tmp_path, monkeypatch):
    make(tmp_path / "c.zarr", *draw(), TopKEncoding(1, "u8"))
    asked, ask = [], logitcache.caches.fidelity.cache_fidelity
    monkeypatch.setattr(logitcache.caches.fidelity, "cache_fidelity", lambda *a, **k: asked.append(1) or ask(*a, **k))
    plain = run("stats", "c.zarr", "--advise").stdout
    asked.clear()
    done = run("stats", "c.zarr", "--advise", "--report", "a.html", "--data", "fashion-mnist-mini")
    assert done.stdout == plain
    assert len(asked) == 1
    assert "\nwrote a.html. There are no images here: " in done.stderr
    page = (tmp_path / "a.html").read_text()
    for line in plain.splitlines():
        if line.startswith("advice: "):
            assert line[8:40] in page
    run("stats", "c.zarr", "c.zarr", "--report", "b.html")
    assert "Two caches of one data set" in (tmp_path / "b.html").read_text()


@pytest.mark.parametrize("place", ["c.zarr/zarr.json", "c.zarr/labels/c/0", "c.zarr/page.html", "-"])
def test_a_report_is_never_written_into_a_cache(run, tmp_path, place):
    path = make(tmp_path / "c.zarr", *draw())
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    done = run("stats", "c.zarr", "--report", place)
    assert done.exit_code == 1
    assert "name" in done.stderr
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before


def test_a_path_is_no_markup(run, tmp_path):
    make(tmp_path / "q[/red].zarr", *draw())
    done = run("stats", "q[/red].zarr")
    assert done.exit_code == 0
    assert "q[/red].zarr" in done.stdout


def test_of_two_caches_options_that_mean_nothing_are_refused(run, tmp_path):
    for name in ("a.zarr", "b.zarr"):
        make(tmp_path / name, *draw())
    for words in (["--advise"], ["--data", "x"], ["--cached-teacher", "t,t,t"]):
        assert run("stats", "a.zarr", "b.zarr", *words).exit_code == 2


def test_what_no_sample_has_is_not_called_zero(run, tmp_path):
    """Of the last view no block is there: nothing is known of samples in all views."""
    make(tmp_path / "c.zarr", *draw(), leave_out=((2, 0), (2, 1), (2, 2)), finish=False)
    found = json.loads(run("stats", "c.zarr", "--json").stdout)
    assert found["agreement_of_all"] is None
    assert found["agreement"][0][2] is None
    assert found["agreement"][0][1] is not None
    assert found["bytes_per_row"] > 0
    assert "in every view" not in run("stats", "c.zarr").stdout
    done = run("stats", "c.zarr", "--report", "page.html")
    assert done.exit_code == 0
    assert "No sample has all views." in (tmp_path / "page.html").read_text()
