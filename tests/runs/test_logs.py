"""Where else metrics go: a table, TensorBoard, Weights & Biases; also of a run that was stopped and taken up."""

import csv
import json
import sys
from types import SimpleNamespace

import pytest
import tiny

import logitcache
from logitcache.data import ArrayImages
from logitcache.errors import InputError, StoppedError, UnknownNameError


@pytest.fixture
def train(tmp_path, images, dump):
    cache = dump()

    def go(*log, **changes):
        log = log or None
        given = {
            "epochs": 3,
            "batch_size": 100,
            "test_data": ArrayImages(*tiny.arrays("test")),
            "out": tmp_path / "run",
        }
        return logitcache.train_student(cache=cache, student="tiny:still", data=images, log_to=log, **(given | changes))

    return go


def metrics_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def stopped_once(train, *log):
    """Train with a stop after the first epoch's last step, and go on."""
    asked = iter([False] * 3 + [True])
    with pytest.raises(StoppedError):
        train(*log, should_stop=lambda: next(asked))
    return train(resume=True)  # which logs, the run remembers


def test_a_table_has_a_line_an_epoch(train, tmp_path):
    stopped_once(train, "csv")
    with (tmp_path / "run/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [{name: float(value) for name, value in row.items()} for row in rows] == metrics_of(tmp_path / "run")
    assert {"loss", "ce", "kd", "lr", "train_accuracy", "teacher_agreement", "test_ece", "images_per_second"} <= rows[
        0
    ].keys()


def test_tensorboard_shows_every_epoch_once(train, tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    stopped_once(train, "tensorboard")
    events = reader.EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    for name in ("loss", "test_accuracy", "lr"):
        found = [(one.step, one.value) for one in events.Scalars(name)]
        assert found == [(m["epoch"], pytest.approx(m[name])) for m in metrics_of(tmp_path / "run")]


def test_weights_and_biases_goes_on_with_the_same_run(train, tmp_path, monkeypatch):
    """Its client, as far as we use it."""
    runs = []

    def init(**given):
        sent = []
        runs.append((given, sent))
        return SimpleNamespace(
            log=lambda values, step: sent.append((step, values)), finish=lambda: sent.append("finished")
        )

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    stopped_once(train, "wandb")
    (first, before), (second, after) = runs
    assert first["id"] == second["id"]
    assert first["resume"] == "allow"
    assert first["config"]["method"] == "kd"
    assert before[-1] == after[-1] == "finished"
    assert [step for step, _ in after[:-1]] == [1, 2, 3]
    assert after[-2][1]["loss"] == metrics_of(tmp_path / "run")[-1]["loss"]


def test_what_is_not_there_is_named(train, monkeypatch, tmp_path):
    with pytest.raises(UnknownNameError, match=r"unknown log 'tensorbord'; did you mean 'tensorboard'"):
        train("tensorbord")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"pip install 'logitcache\[wandb\]'"):
        train("wandb")
    assert not (tmp_path / "run").exists()


def test_the_command_line_goes_on_with_the_logs_of_a_run(run, npz, tmp_path):
    """`--log-to` left out says nothing: a resumed run writes where it wrote."""
    cache = logitcache.dump_logits("tiny:net", f"arrays:{npz}", tmp_path / "c.zarr")
    asked = iter([False] * 4)
    with pytest.raises(StoppedError):
        logitcache.train_student(
            cache,
            "tiny:still",
            epochs=3,
            batch_size=100,
            log_to=["csv"],
            out=tmp_path / "r",
            should_stop=lambda: next(asked, True),
        )
    record = json.loads((tmp_path / "r/run.json").read_text())
    record["report_to"] = record.pop("log_to")  # as 0.1.0 wrote it
    record["cache"]["bytes_per_row"] = record["cache"].pop("memory_bytes_per_row")
    (tmp_path / "r/run.json").write_text(json.dumps(record))
    assert run("train", "--resume", "--out", "r").exit_code == 0
    assert len((tmp_path / "r/metrics.csv").read_text().splitlines()) == 4
