"""Many runs: what is run, what is not run again, and what is said of them together."""

import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time
import tomllib
import xml.etree.ElementTree as ET

import pytest
import tiny

from logitcache.errors import InputError
from logitcache.report import draw_runs
from logitcache.runs.compare import compare_runs, group_runs, read_published
from logitcache.runs.sweep import plan_sweep, run_sweep


def made(folder, accuracies, method="kd", **settings):
    """Write runs as `train` leaves them: one for each seed."""
    for seed, accuracy in enumerate(accuracies):
        path = folder / f"{method}-{'-'.join(map(str, settings.values()))}-{seed}"
        path.mkdir(parents=True)
        asked = {"method": method, "student": "s", "epochs": 2, "seed": seed, "parameters": None, "lr": 0.1, **settings}
        results = {"test_accuracy": accuracy, "seconds_per_epoch": 2.0}
        (path / "run.json").write_text(json.dumps({"settings": asked, "results": results, "cache": None}))
        lines = [{"epoch": 1, "test_accuracy": accuracy / 2}, {"epoch": 2, "test_accuracy": accuracy}]
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_means_deviations_and_what_is_gained_over_seeds(tmp_path):
    ce, kd, rld = [0.70, 0.72, 0.74], [0.75, 0.74, 0.79], [0.76, 0.80]
    for method, values in (("ce", ce), ("kd", kd), ("rld", rld)):
        made(tmp_path, values, method)
    groups = {group.method: group for group in group_runs(compare_runs([tmp_path]))}
    assert groups["kd"].test_accuracy == pytest.approx(statistics.fmean(kd))
    assert groups["kd"].deviation == pytest.approx(statistics.stdev(kd))
    gap, error = groups["kd"].over["ce"]  # the same seeds: paired
    assert gap == pytest.approx(statistics.fmean(kd) - statistics.fmean(ce))
    assert error == pytest.approx(statistics.stdev([b - a for a, b in zip(ce, kd, strict=True)]) / math.sqrt(3))
    gap, error = groups["rld"].over["kd"]  # other seeds: of independent means
    assert error == pytest.approx(math.sqrt(statistics.variance(rld) / 2 + statistics.variance(kd) / 3))
    assert groups["ce"].over == {"kd": (-groups["kd"].over["ce"][0], pytest.approx(groups["kd"].over["ce"][1]))}


def test_runs_of_other_settings_are_not_put_together(tmp_path):
    made(tmp_path, [0.5, 0.6], lr=0.1)
    made(tmp_path, [0.7, 0.8], lr=0.2)
    made(tmp_path, [0.6], lr=0.2, method="ce")
    groups = group_runs(compare_runs([tmp_path]))
    assert sorted((group.method, group.differs, group.seeds) for group in groups) == [
        ("ce", "lr=0.2", 1),
        ("kd", "lr=0.1", 2),
        ("kd", "lr=0.2", 2),
    ]
    over = {group.differs: group.over for group in groups if group.method == "kd"}
    assert over["lr=0.1"] == {}
    assert over["lr=0.2"]["ce"] == (pytest.approx(0.15), None)


def test_runs_of_other_images_are_not_put_together_and_a_repeated_seed_counts_once(tmp_path):
    made(tmp_path, [0.5, 0.6], method="ce")
    made(tmp_path / "more", [0.5, 0.7], method="kd")
    for run, fingerprint in (("kd--0", "a" * 16), ("kd--1", "b" * 16)):
        file = tmp_path / "more" / run / "run.json"
        content = json.loads(file.read_text()) | {"cache": {"fingerprint": fingerprint, "logits": "unused"}}
        content["settings"]["seed"] = 0
        file.write_text(json.dumps(content))
    groups = group_runs(compare_runs([tmp_path, tmp_path / "more"]))
    assert [(group.method, group.seeds, group.over) for group in groups] == [
        ("ce", 2, {}),
        ("kd", 1, {}),
        ("kd", 1, {}),
    ]
    assert "cache=bbbbbbbb" in groups[2].differs
    again = compare_runs([tmp_path / "ce--0", tmp_path / "ce--1", tmp_path / "ce--0"])
    (group,) = group_runs(again)
    assert (group.seeds, group.test_accuracy, group.repeats) == (2, pytest.approx(0.55), [str(tmp_path / "ce--0")])


def test_tables_and_pictures(tmp_path, run):
    made(tmp_path / "runs", [0.70, 0.72], "ce")
    made(tmp_path / "runs", [0.75, 0.79], "kd")
    shown = run("compare", "runs").stdout
    assert "71.00% ± 1.41" in shown
    assert "+6.00 ± 1.00" in shown
    table = run("compare", "runs", "--markdown").stdout.splitlines()
    assert len(table) == 4 and len({line.count("|") for line in table}) == 1
    groups = json.loads(run("compare", "runs", "--json").stdout)["groups"]
    assert groups[1]["over"]["ce"] == pytest.approx([0.06, 0.01])
    assert run("compare", "runs", "--picture", "p.svg").exit_code == 0
    root = ET.fromstring((tmp_path / "p.svg").read_text())
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "kd (2 seeds)" in texts
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 4


def test_a_picture_survives_odd_runs():
    for curves in ({"<&>": [[0.5]]}, {"a": [[0.5, 0.5], [0.5]]}, {str(n): [[0.1 * n, 0.2]] for n in range(9)}):
        ET.fromstring(draw_runs(curves))


def test_every_combination_is_planned_once(tmp_path, dump):
    cache = str(dump().place)
    planned = plan_sweep(
        cache, tmp_path, methods=["ce", "kd"], seeds=[0, 1], vary={"lr": ["0.1", "0.2"], "set.temperature": ["4"]},
        options=["--epochs", "2"],
    )  # fmt: skip
    assert len(planned) == 8
    assert planned[-1].out.name == "kd-lr=0.2-set.temperature=4-seed1"
    assert planned[-1].words == (
        cache, "--method", "kd", "--epochs", "2", "--lr", "0.2", "--set", "temperature=4", "--seed", "1",
    )  # fmt: skip
    for wrong, words in (
        ({"methods": []}, "needs a method"),
        ({"seeds": [0, 0]}, "the same run twice"),
        ({"options": ["--seed", "3"]}, "--seed is the sweep's own"),
        ({"vary": {"lr": ["1"]}, "options": ["--lr=3"]}, "--lr is the sweep's own"),
    ):
        with pytest.raises(InputError, match=words):
            plan_sweep(**({"cache": cache, "out": tmp_path, "methods": ["kd"], "seeds": [0]} | wrong))


def test_runs_that_were_trained_otherwise_are_not_taken_for_those_asked_for(tmp_path, dump):
    made(tmp_path, [0.5])  # kd--0, by hand
    (tmp_path / "kd--0").rename(tmp_path / "kd-seed0")
    asked = {"out": tmp_path, "methods": ["kd"], "seeds": [0]}
    with pytest.raises(
        InputError, match=r"kd-seed0 was trained otherwise than it would be now:\n  then by hand\n  now  --method kd"
    ):
        run_sweep(plan_sweep(None, **asked))
    (ours,) = plan_sweep(None, **asked)
    (tmp_path / "kd-seed0.json").write_text(json.dumps({"words": ours.words, "cache": None}))
    assert run_sweep([ours]).runs == [tmp_path / "kd-seed0"]
    for other in ({"options": ["--lr", "1"]}, {"cache": str(dump().place)}):
        with pytest.raises(InputError, match=r"then --method kd --seed 0 \(cache None\)\n  now"):
            run_sweep(plan_sweep(**({"cache": None} | asked | other)))


@pytest.mark.slow
def test_a_sweep_runs_compares_and_goes_on(tmp_path, npz, dump, run, monkeypatch):
    """Two at a time; one method fails and stops no other; what is finished is not run again; a stop saves what is in hand."""
    monkeypatch.setenv("PYTHONPATH", str(tiny.HERE))
    dump(data=f"arrays:{npz}")
    words = ["sweep", "c.zarr", "--method", "ce", "--method", "kd", "--seeds", "0,1", "--jobs", "2", "--out", "s"]
    options = ["--", "--student", "tiny:student", "--epochs", "2", "--batch-size", "50", "--test-data", f"arrays:{npz}"]
    done = run(*words, "--method", "loca", "--vary", "set.alpha=0.9", *options)
    assert done.exit_code == 1
    assert "failed" in done.stderr
    done = run(*words, *options)
    assert done.exit_code == 0, done.stderr
    assert "over seeds" in done.stdout and " ± " in done.stdout
    before = {file: file.read_bytes() for file in (tmp_path / "s").glob("*/run.json")}
    assert len([file for file in before if "alpha" not in file.parent.name]) == 4
    assert "4 of 4 runs are finished already" in run(*words, *options).stderr
    assert all(file.read_bytes() == content for file, content in before.items())

    line = [
        sys.executable,
        "-m",
        "logitcache",
        "sweep",
        "c.zarr",
        "--seeds",
        "5",
        "--out",
        "t",
        *options,
        "--batch-size",
        "1",
    ]
    process = subprocess.Popen(line, cwd=tmp_path, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    deadline = time.monotonic() + 120
    while not list((tmp_path / "t").glob("*/metrics.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 143, said
    assert "the runs in hand were saved" in said
    assert list((tmp_path / "t").glob("*/checkpoint.pt"))
    assert run("sweep", "c.zarr", "--seeds", "5", "--out", "t", *options, "--batch-size", "1").exit_code == 0


def test_jobs_must_be_one_or_more():
    with pytest.raises(InputError, match="--jobs"):
        run_sweep([], jobs=0)


RECIPES = sorted((tiny.HERE.parent / "recipes").rglob("*.toml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_read_by_train_and_by_compare(recipe, run):
    from logitcache.methods import METHODS
    from logitcache.models import load_network

    assert run("train", "--config", str(recipe), "--help").exit_code == 0
    settings, published = tomllib.loads(recipe.read_text()), read_published(recipe)
    assert load_network(settings["student"], 100).module
    assert settings["student"].rpartition(":")[2] == recipe.stem[-len(settings["student"].rpartition(":")[2]) :]
    assert published and set(published) <= set(METHODS)
    assert all(60 < number < 80 for number in published.values())
    for preset in re.findall(r"--method (\S+) --preset (\S+)", recipe.read_text()):
        assert preset[1] in METHODS[preset[0]].presets


def test_published_numbers_stand_beside_ours(tmp_path, run):
    made(tmp_path / "runs", [0.70], "kd")
    recipe = next(path for path in RECIPES if path.stem == "resnet56-resnet20")
    shown = run("compare", "runs", "--published", str(recipe)).stdout
    assert "70.66%" in shown
    assert "| 70.66% |" in run("compare", "runs", "--published", str(recipe), "--markdown").stdout
    (tmp_path / "bad.toml").write_text("published = 3")
    assert "cannot be read as a recipe" in run("compare", "runs", "--published", "bad.toml").stderr
