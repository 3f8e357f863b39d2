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
from logitcache.runs.metrics import ACCURACY, LOSS
from logitcache.runs.sweep import plan_sweep, read_reason, run_sweep


def made(folder, accuracies, method="kd", headline=None, **settings):
    """Write runs as `train` leaves them: one for each seed."""
    name, named = (headline.name, {"headline": headline.to_json()}) if headline else ("test_accuracy", {})
    for seed, accuracy in enumerate(accuracies):
        path = folder / f"{method}-{'-'.join(map(str, settings.values()))}-{seed}"
        path.mkdir(parents=True)
        asked = {"method": method, "student": "s", "epochs": 2, "seed": seed, "parameters": None, "lr": 0.1, **settings}
        results = {name: accuracy, "seconds_per_epoch": 2.0, **named}
        (path / "run.json").write_text(json.dumps({"settings": asked, "results": results, "cache": None}))
        lines = [{"epoch": 1, name: accuracy / 2}, {"epoch": 2, name: accuracy}]
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
    groups = group_runs(compare_runs(str(tmp_path)))  # one path is enough
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


def test_a_headline_that_should_be_low_is_compared_the_other_way_round(tmp_path, run):
    """Of a loss the best epoch is the lowest, and a method that lowers it has a positive gain."""
    made(tmp_path / "runs", [2.0, 2.2], "ce", LOSS)
    made(tmp_path / "runs", [1.7, 2.0], "kd", LOSS)
    one = compare_runs([tmp_path / "runs"])[0]
    assert (one.headline, one.value, one.best, one.test_accuracy) == (LOSS, 2.0, 1.0, None)
    ce, kd = group_runs(compare_runs([tmp_path / "runs"]))
    assert (kd.headline, kd.mean, kd.test_accuracy) == (LOSS, pytest.approx(1.85), None)
    assert kd.over["ce"] == (pytest.approx(0.25), pytest.approx(0.05))
    assert ce.over["kd"] == (pytest.approx(-0.25), pytest.approx(0.05))
    shown = run("compare", "runs").stdout
    for words in ("test loss (nats)", "1.8500 ± 0.2121", "gain over ce", "+0.2500 ± 0.0500", "-0.2500 ± 0.0500"):
        assert words in " ".join(shown.split()), words
    assert "accuracy" not in shown and "%" not in shown
    table = run("compare", "runs", "--markdown").stdout.splitlines()
    assert table[0].startswith("| method | settings | seeds | test loss (nats) | gain over ce |")
    found = json.loads(run("compare", "runs", "--json").stdout)
    assert found["runs"][0]["headline"] == LOSS.to_json() | {"value": 2.0, "best": 1.0}
    assert found["groups"][1]["headline"] == LOSS.to_json() | {"mean": pytest.approx(1.85)}
    assert run("compare", "runs", "--picture", "p.svg").exit_code == 0
    drawn = (tmp_path / "p.svg").read_text()
    assert "test loss (nats)" in drawn and "Test loss of runs" in drawn and "kd: 1.7000 nats" in drawn
    assert "accuracy" not in drawn and "%<" not in drawn


def test_runs_of_different_headlines_are_not_mixed(tmp_path, run):
    made(tmp_path / "runs", [0.7, 0.9], "ce")
    made(tmp_path / "runs", [1.5, 1.7], "kd", LOSS)
    groups = group_runs(compare_runs([tmp_path / "runs"]))
    assert [(group.method, group.headline, group.over) for group in groups] == [("ce", ACCURACY, {}), ("kd", LOSS, {})]
    sentence = (
        "these runs have different headline metrics (test accuracy, higher is better; test loss (nats), lower is better); each "
        "metric has its own table\n"
    )
    for words in ([], ["--markdown"]):
        done = run("compare", "runs", *words)
        assert done.stderr == sentence
        assert "80.00% ± 14.14" in done.stdout and "1.6000 ± 0.1414" in done.stdout
    assert run("compare", "runs", "--markdown").stdout.count("| method |") == 2
    done = run("compare", "runs", "--picture", "p.svg")
    assert done.exit_code == 1
    assert "(test accuracy, test loss (nats)) and cannot share an axis" in done.stderr
    assert not (tmp_path / "p.svg").exists()


def test_runs_without_a_headline_are_judged_by_accuracy(tmp_path, run):
    made(tmp_path / "runs", [0.7], "ce")
    made(tmp_path / "runs", [0.7], "kd", ACCURACY)
    assert {run.headline for run in compare_runs([tmp_path / "runs"])} == {ACCURACY}
    assert len(group_runs(compare_runs([tmp_path / "runs"]))[1].over) == 1
    made(tmp_path / "more", [1.5], "kd", LOSS)
    file = tmp_path / "more/kd--0/run.json"
    content = json.loads(file.read_text())
    del content["results"]
    file.write_text(json.dumps(content))
    (unfinished,) = compare_runs([tmp_path / "more"])
    assert (unfinished.headline, unfinished.value, unfinished.best, unfinished.finished) == (LOSS, 1.5, None, False)
    for wrong in ({"name": "x"}, {"name": "x", "unit": "nats", "better": "up"}):
        file.write_text(json.dumps(content | {"results": {"headline": wrong}}))
        assert "metric" in run("compare", "more").stderr


def test_a_metric_knows_its_unit_and_direction():
    assert (ACCURACY.cell(0.71), ACCURACY.text(0.71), ACCURACY.spread(0.0141)) == ("71.00%", "71.00%", "1.41")
    assert (LOSS.cell(1.2345678), LOSS.text(1.2345678), LOSS.spread(0.01)) == ("1.2346", "1.2346 nats", "0.0100")
    assert (ACCURACY.difference(0.06), LOSS.difference(-0.06), LOSS.cell(None)) == ("+6.00", "-0.0600", "-")
    assert (ACCURACY.best([0.1, 0.3, 0.2]), LOSS.best([0.1, 0.3, 0.2])) == (0.3, 0.1)
    assert (ACCURACY.gain(0.5, 0.25), LOSS.gain(0.5, 0.25)) == (0.25, -0.25)


def test_a_picture_survives_odd_runs():
    for curves in ({"<&>": [[0.5]]}, {"a": [[0.5, 0.5], [0.5]]}, {str(n): [[0.1 * n, 0.2]] for n in range(9)}):
        ET.fromstring(draw_runs(curves))


def test_every_combination_is_planned_once(tmp_path, dump):
    cache = str(dump().place)
    planned = plan_sweep(
        cache, tmp_path, methods=["ce", "kd"], seeds=[0, 1], vary={"lr": ["0.1", "0.2"], "set.temperature": ["4"]},
        options=["--student", "s"],
    )  # fmt: skip
    assert len(planned) == 8
    assert planned[-1].out.name == "kd-lr=0.2-set.temperature=4-seed1"
    assert planned[-1].words == (
        cache, "--method", "kd", "--student", "s", "--lr", "0.2", "--set", "temperature=4", "--seed", "1",
    )  # fmt: skip
    for wrong, words in (
        ({"methods": []}, "needs at least one method"),
        ({"seeds": [0, 0]}, "the same run twice"),
        ({"options": ["--seed", "3"]}, "`--seed` is set by the sweep"),
        ({"vary": {"lr": ["1"]}, "options": ["--lr=3"]}, "`--lr` is set by the sweep"),
    ):
        with pytest.raises(InputError, match=words):
            plan_sweep(
                **(
                    {"cache": cache, "out": tmp_path, "methods": ["kd"], "seeds": [0], "options": ["--student=s"]}
                    | wrong
                )
            )


def test_all_stands_for_every_method(run, monkeypatch):
    from logitcache.methods import METHODS

    def refuse(*_, methods, **__):
        raise InputError(" ".join(methods))

    monkeypatch.setattr("logitcache.runs.sweep.plan_sweep", refuse)
    done = run("sweep", "c.zarr", "--method", "rld", "--method", "all")
    rest = [name for name in METHODS if name != "rld"]
    assert done.stderr.split() == ["error:", "rld", *rest]


def test_a_sweep_without_a_student_is_refused_before_any_run(tmp_path, dump, run):
    dump()
    done = run("sweep", "c.zarr", "--method", "kd", "--seeds", "0", "--out", "s", "--", "--epochs", "1")
    assert done.exit_code == 1
    assert (
        "a sweep needs a student; add it after `--`, as in `logitcache sweep CACHE -- --student resnet8`" in done.stderr
    )
    assert not (tmp_path / "s").exists()
    asked = {"out": tmp_path, "methods": ["kd"], "seeds": [0]}
    for named in ({"vary": {"student": ["a", "b"]}}, {"options": ["--config", "x.toml"]}, {"options": ["--student=a"]}):
        assert plan_sweep(None, **asked, **named)


def test_the_reason_of_a_failed_run_is_reported(tmp_path, dump, run):
    """Of a usage error, which Typer prints in a box; its last line was taken for the reason."""
    dump()
    words = [
        "sweep",
        "c.zarr",
        "--method",
        "kd",
        "--seeds",
        "0",
        "--out",
        "s",
        "--",
        "--student",
        "resnet8",
        "--epochs",
    ]
    done = run(*words, "none")
    assert done.exit_code == 1
    assert "kd-seed0: failed: Invalid value for '--epochs': " in done.stderr
    assert "╰" not in done.stderr


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("epoch 1\nerror: no cache at x. Check it:\n  logitcache dump\n", "no cache at x. Check it:"),
        (
            "Usage: logitcache train\n\nError: Invalid value for --student: missing; add --student NAME.\n",
            "Invalid value for --student: missing; add --student NAME.",
        ),
        ("╭─ Error ───────╮\n│ Invalid value │\n│ for --lr: x   │\n╰───────────────╯\n", "Invalid value for --lr: x"),
        ("Traceback (most recent call last):\n  File\nZeroDivisionError: division by zero\n", "ZeroDivisionError: division by zero"),
        ("", "it printed nothing"),
    ],
)  # fmt: skip
def test_the_reason_is_found_in_the_output(output, reason):
    assert read_reason(output) == reason


def test_a_killed_run_names_the_signal(tmp_path, monkeypatch):
    start = subprocess.Popen
    monkeypatch.setattr(
        subprocess,
        "Popen",
        lambda words, **rest: start([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], **rest),
    )
    planned = plan_sweep(None, tmp_path, methods=["kd"], seeds=[0], options=["--student", "s"])
    assert run_sweep(planned).failed == {tmp_path / "kd-seed0": "killed by SIGKILL"}


def test_runs_that_were_trained_otherwise_are_not_taken_for_those_asked_for(tmp_path, dump):
    made(tmp_path, [0.5])  # kd--0, by hand
    (tmp_path / "kd--0").rename(tmp_path / "kd-seed0")
    asked = {"out": tmp_path, "methods": ["kd"], "seeds": [0], "options": ["--student", "s"]}
    with pytest.raises(
        InputError, match=r"kd-seed0 was trained with other arguments:\n  then by hand\n  now  --method kd"
    ):
        run_sweep(plan_sweep(None, **asked))
    (ours,) = plan_sweep(None, **asked)
    (tmp_path / "kd-seed0.json").write_text(json.dumps({"words": ours.words, "cache": None}))
    assert run_sweep([ours]).runs == [tmp_path / "kd-seed0"]
    for other in ({"options": ["--student", "s", "--lr", "1"]}, {"cache": str(dump().place)}):
        with pytest.raises(InputError, match=r"then --method kd --student s --seed 0 \(cache None\)\n  now"):
            run_sweep(plan_sweep(**({"cache": None} | asked | other)))


def lengthened(folder, *parts):
    """Make a run into one that was trained on."""
    content = json.loads((folder / "run.json").read_text())
    content["segments"] = list(parts)
    content["settings"]["epochs"] = parts[-1]["epochs"]
    (folder / "run.json").write_text(json.dumps(content))


def test_a_sweep_that_asks_for_more_epochs_trains_its_runs_on(tmp_path):
    made(tmp_path, [0.5])
    ours = (tmp_path / "kd--0").rename(tmp_path / "kd-seed0")
    asked = {"out": tmp_path, "methods": ["kd"], "seeds": [0]}

    def plan(*words):
        (planned,) = plan_sweep(None, **asked, options=["--student", "s", *words])
        return planned

    (tmp_path / "kd-seed0.json").write_text(json.dumps({"words": plan("--epochs", "2").words, "cache": None}))
    plan("--epochs", "2").begin()
    assert plan("--epochs", "2").finished
    for words in (("--epochs=4",), ("--epochs", "4", "--extend", "stretch")):  # train refused the first, and asked how
        more = plan(*words)
        more.begin()
        assert not more.finished
    plan("--epochs", "2").begin()  # as it still is
    more.begin()
    lengthened(ours, {"epochs": 2}, {"epochs": 4, "extend": "stretch"})
    assert more.finished
    with pytest.raises(InputError, match="was extended to 4 epochs, but the sweep requests 2. Request as many"):
        plan("--epochs", "2").begin()
    with pytest.raises(InputError, match="trained with other arguments"):
        plan("--epochs", "6", "--lr", "1").begin()


def test_a_run_that_was_trained_on_is_compared_as_such(tmp_path, run):
    made(tmp_path / "runs", [0.5, 0.6])
    made(tmp_path / "runs", [0.7], method="ce")
    lengthened(tmp_path / "runs/kd--1", {"epochs": 1}, {"epochs": 2, "extend": "stretch"})
    one, other = compare_runs([tmp_path / "runs/kd--0", tmp_path / "runs/kd--1"])
    assert (one.extended, other.extended, other.epochs) == ("", "1 + 1, stretch", 2)
    assert [group.seeds for group in group_runs([one, other])] == [1, 1]
    assert "2 (1 + 1, stretch)" in " ".join(run("compare", "runs").stdout.split())
    lengthened(tmp_path / "runs/kd--1", {"epochs": 1}, {"epochs": 2})  # the same as one that had them from the start
    assert [group.seeds for group in group_runs(compare_runs([tmp_path / "runs"]))] == [1, 2]


def places(picture):
    """The circles of a picture on the right, from left to right: x of each."""
    marks = ET.fromstring(picture).iter("{http://www.w3.org/2000/svg}circle")
    return sorted(float(mark.get("cx")) for mark in marks)


def test_a_difference_of_one_seed_is_no_cliff():
    """0.2 points are 2 % of the axis at most; the picture says that one seed was run."""
    drawn = draw_runs({"ce": [[0.5, 0.900]], "kd": [[0.5, 0.902]]})
    left, right = places(drawn)
    assert right - left < 0.02 * 450
    assert "one seed each, differences may be noise" in drawn
    assert "polygon" not in drawn
    lines = re.findall(r'polyline points="([^"]*)"', drawn)
    ends = [float(line.split()[-1].split(",")[1]) for line in lines[-2:]]
    assert abs(ends[0] - ends[1]) < 0.02 * 320


def test_the_axis_shows_what_seeds_do():
    """With several seeds it spans eight deviations at least, and the curves have their band."""
    drawn = draw_runs({"ce": [[0.5, 0.90], [0.5, 0.92]], "kd": [[0.5, 0.91], [0.5, 0.93]]})
    marks = places(drawn)
    assert (marks[-1] - marks[0]) < 0.3 * 450
    assert drawn.count("<polygon") == 2
    mixed = draw_runs({"ce": [[0.5, 0.90], [0.5, 0.92]], "kd": [[0.5, 0.91]]})
    assert "std over seeds (if several)" in mixed


@pytest.mark.parametrize("value", [0.0, 0.001, 0.5, 0.999, 1.0])
def test_an_axis_of_shares_ends_at_none_and_all(value):
    drawn = draw_runs({"ce": [[value]]})
    labels = re.findall(r">(-?[0-9.]+)%</text>", drawn)
    assert labels and all(0 <= float(label) <= 100 for label in labels)


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
    assert "4 of 4 runs finished already" in run(*words, *options).stderr
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
    assert "running runs were saved" in said
    assert list((tmp_path / "t").glob("*/checkpoint.pt"))
    assert run("sweep", "c.zarr", "--seeds", "5", "--out", "t", *options, "--batch-size", "1").exit_code == 0


def test_jobs_must_be_one_or_more():
    with pytest.raises(InputError, match="`jobs`"):
        run_sweep([], jobs=0)


RECIPES = sorted((tiny.HERE.parent / "recipes").rglob("*.toml"))
EXPECTED = [path for path in RECIPES if path.parent.name == "expected"]  # tasks of our own, without published numbers
RECIPES = [
    path for path in RECIPES if path not in EXPECTED and path.parent.name != "dolly"
]  # of text, without a student


@pytest.mark.parametrize("recipe", tiny.usual(RECIPES, RECIPES[::4]), ids=lambda path: path.stem)
def test_a_recipe_is_read_by_train_and_by_compare(recipe, run):
    from logitcache.methods import METHODS
    from logitcache.models import load_network

    assert run("train", "--config", str(recipe), "--help").exit_code == 0
    settings, theirs = tomllib.loads(recipe.read_text()), read_published(recipe)
    assert (theirs.epochs, theirs.student, theirs.data) == (settings["epochs"], settings["student"], recipe.parent.name)
    published = theirs.accuracies
    assert load_network(settings["student"], 100).module
    assert settings["student"].rpartition(":")[2] == recipe.stem[-len(settings["student"].rpartition(":")[2]) :]
    assert published and set(published) <= set(METHODS)
    assert all(60 < number < 80 for number in published.values())
    for preset in re.findall(r"--method (\S+) --preset (\S+)", recipe.read_text()):
        assert preset[1] in METHODS[preset[0]].presets


@pytest.mark.parametrize("recipe", EXPECTED, ids=lambda path: path.stem)
def test_a_task_that_methods_are_measured_on_is_read_by_train(recipe, run):
    assert run("train", "--config", str(recipe), "--help").exit_code == 0
    assert f"recipes/expected/{recipe.name}" in recipe.read_text()


def test_published_numbers_stand_beside_ours(tmp_path, run):
    made(tmp_path / "runs", [0.70], "kd")
    recipe = next(path for path in RECIPES if path.stem == "resnet56-resnet20")
    shown = run("compare", "runs", "--published", str(recipe)).stdout
    assert "70.66%" in shown
    assert "| 70.66% |" in run("compare", "runs", "--published", str(recipe), "--markdown").stdout
    (tmp_path / "bad.toml").write_text("published = 3")
    assert "cannot be read as a recipe" in run("compare", "runs", "--published", "bad.toml").stderr
    (tmp_path / "bad.toml").write_text('epochs = "many"')
    assert "cannot be read as a recipe" in run("compare", "runs", "--published", "bad.toml").stderr


def test_published_numbers_of_other_conditions_are_named_as_such(tmp_path, run):
    made(tmp_path / "runs", [0.70], "kd")
    made(tmp_path / "same", [0.70], "kd", epochs=240, student="resnet20")
    recipe = next(path for path in RECIPES if path.stem == "resnet56-resnet20")
    file = tmp_path / "runs/kd--0/run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"trained_on": {"data": "fashion-mnist-mini:train"}}))
    sentence = (
        "the published numbers were measured under different conditions (240 epochs, here 2; student resnet20, here s; data cifar100, here "
        "fashion-mnist-mini) and are no baseline for these runs\n"
    )
    for words in ([], ["--markdown"]):
        done = run("compare", "runs", "--published", str(recipe), *words)
        assert done.stderr == sentence
        assert "published (best of 240 epochs)" in " ".join(done.stdout.split())
        assert "s, 2 epochs" in done.stdout
    told = json.loads(run("compare", "runs", "--published", str(recipe), "--json").stdout)
    assert len(told["published_under_other_conditions"]) == 3
    assert not run("compare", "same", "--published", str(recipe)).stderr
    assert not run("compare", "runs").stderr


def test_a_sweep_on_labels_alone_needs_no_cache(run, npz, monkeypatch):
    def refuse(planned, **_):
        raise InputError(f"planned without a cache: {planned[0].cache is None}")

    monkeypatch.setattr("logitcache.runs.sweep.run_sweep", refuse)
    words = ["sweep", "--method", "ce", "--seeds", "0", "--", "--student", "s", "--data", f"arrays:{npz}"]
    assert "planned without a cache: True" in run(*words).stderr
    assert "there is no finished cache" in run("sweep", "--method", "kd", *words[3:]).stderr


def test_an_unfinished_run_is_listed_with_its_epoch_and_compared_with_none(tmp_path, run):
    made(tmp_path / "runs", [0.6, 0.7], "kd", ACCURACY)
    file = tmp_path / "runs/kd--1/run.json"
    content = json.loads(file.read_text())
    del content["results"]
    content["settings"]["epochs"] = 9
    file.write_text(json.dumps(content))
    done = run("compare", "runs", "--picture", "p.svg")
    assert "runs/kd--1 is unfinished: it has done 2 of 9 epochs." in done.stderr
    assert "2 of 9" in done.stdout
    assert "over seeds" not in done.stdout
    only = run("compare", "runs/kd--1", "--picture", "q.svg")
    assert only.exit_code == 1
    assert "none of these runs has finished with a test result" in only.stderr
