"""What a training of text does where nobody says it."""

import json
import logging

import pytest

import logitcache

pytest.importorskip("transformers")
STUDENT = "llama:hidden=16,layers=1,heads=2"


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    """A cache of six stories: every token; and one of the 16 largest."""
    folder = tmp_path_factory.mktemp("stories")
    for name, changes in (("full", {}), ("top", {"top_k": 16})):
        logitcache.dump_logits("hf:stories-mini", "stories-mini", folder / f"{name}.zarr", samples=(0, 6), **changes)
    return folder


def recorded(run):
    return json.loads((run / "run.json").read_text())["settings"]


def test_text_is_trained_with_what_is_usual_for_it_and_that_is_said(stories, tmp_path, caplog):
    caplog.set_level(logging.INFO, "logitcache")
    logitcache.train_student(stories / "top.zarr", STUDENT, method="kd", epochs=1, out=tmp_path / "run")
    found = recorded(tmp_path / "run")
    assert (found["opt"], found["lr"], found["sched"], found["clip_grad"]) == ("adamw", 5e-4, "cosine", 1.0)
    assert (found["preset"], found["tail"], found["norm_weight_decay"]) == ("language", "bucket", 0.0)
    said = next(one.getMessage() for one in caplog.records if "defaults for this data" in one.getMessage())
    assert "--opt adamw" in said
    (summary,) = logitcache.compare_runs(tmp_path / "run")
    assert (summary.method, summary.changes) == ("kd", "")  # what is usual is no change of the method
    assert "--epochs" not in said


def test_what_was_asked_for_stays(stories, tmp_path):
    """Also where it is what images have by default."""
    logitcache.train_student(
        stories / "full.zarr",
        STUDENT,
        method="kd",
        epochs=1,
        opt="sgd",
        sched="step",
        temperature=2.0,
        out=tmp_path / "run",
    )
    found = recorded(tmp_path / "run")
    assert (found["opt"], found["lr"], found["sched"], found["betas"]) == ("sgd", 0.05, "step", None)
    assert found["preset"] == "language"  # whose weights stay; what is given beside a preset wins
    assert found["temperature"] == 2.0


def test_the_command_line_tells_what_was_asked_for(stories, tmp_path, run):
    words = [
        "train",
        str(stories / "full.zarr"),
        "--student",
        STUDENT,
        "--method",
        "rld",
        "--epochs",
        "1",
        "--opt",
        "sgd",
    ]
    assert run(*words, "--out", str(tmp_path / "run")).exit_code == 0
    found = recorded(tmp_path / "run")
    assert (found["opt"], found["sched"], found["temperature"]) == ("sgd", "cosine", 1.0)
    again = run("train", "--resume", "--out", str(tmp_path / "run"))
    assert again.exit_code == 0, again.stderr


def test_students_with_weights_take_smaller_steps(stories, tmp_path):
    logitcache.train_student(
        stories / "full.zarr", "hf:stories-mini?layers=0,4", method="kd", epochs=1, out=tmp_path / "run"
    )
    assert recorded(tmp_path / "run")["lr"] == 2e-5


def test_images_are_trained_as_ever(dump, images, tmp_path, caplog):
    caplog.set_level(logging.INFO, "logitcache")
    logitcache.train_student(dump(), "tiny:still", data=images, epochs=1, out=tmp_path / "run")
    assert recorded(tmp_path / "run")["opt"] == "sgd"
    assert not any("defaults for this data" in one.getMessage() for one in caplog.records)
