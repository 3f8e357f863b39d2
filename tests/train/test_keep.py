"""What an evaluation measures and keeps: the best epoch beside the last, and the five largest logits."""

import json

import numpy as np
import pytest
import tiny
import torch
from safetensors import safe_open

import logitcache
from logitcache.data import ArrayImages
from logitcache.errors import StoppedError
from logitcache.models import load_network

NAMES = ("student-best.safetensors", "student-ema-best.safetensors")


@pytest.fixture
def train(tmp_path, images, test_images):
    """Train on labels alone, at a rate at which accuracy goes up and down, with a running mean."""

    def go(**changes):
        given = {
            "cache": None, "student": "tiny:student", "method": "ce", "data": images, "test_data": test_images, "epochs": 5,
            "batch_size": 60, "lr": 0.3, "model_ema_decay": 0.5, "out": tmp_path / "run",
        }  # fmt: skip
        return logitcache.train_student(**(given | changes))

    return go


def notes_of(path):
    with safe_open(path, "pt") as file:
        return json.loads(next(iter(file.metadata().values())))


def accuracy(weights, test_images):
    network = load_network("tiny:student", tiny.CLASSES, str(weights))
    values = [torch.tensor(network.preprocessing[name])[:, None, None] for name in ("mean", "std")]
    with torch.no_grad():
        found = network.module.eval()((test_images.images.float() / 255 - values[0]) / values[1]).argmax(1)
    return float((found == torch.from_numpy(test_images.labels)).float().mean())


def test_the_best_epoch_is_kept_beside_the_last(train, tmp_path, test_images):
    found = train()
    for prefix, name in zip(("", "ema_"), NAMES, strict=True):
        every = [one[f"{prefix}test_accuracy"] for one in found.metrics]
        assert len(set(every)) > 1
        notes = notes_of(tmp_path / "run" / name)
        assert notes["epoch"] == found.results[f"best_{prefix}epoch"] == 1 + every.index(max(every))
        assert notes[f"{prefix}test_accuracy"] == max(every) == found.results[f"best_{prefix}test_accuracy"]
        assert accuracy(tmp_path / "run" / name, test_images) == pytest.approx(max(every))
    assert found.best == tmp_path / "run" / NAMES[0]
    again = train(student_weights=str(found.best), epochs=1, lr=1e-30, out=tmp_path / "from-best")
    assert again.results["train_accuracy"] > 0.2


def test_it_is_not_kept_without_test_data_or_where_it_is_not_wanted(train, tmp_path):
    assert train(test_data=None, epochs=1).best is None
    assert train(keep_best=False, epochs=1, out=tmp_path / "other").best is None
    assert not list(tmp_path.glob("*/*best*"))


class Stopped(Exception):
    pass


@pytest.mark.parametrize("every", [1, 3])
def test_a_run_that_was_broken_off_keeps_the_same_best(train, tmp_path, every):
    """Broken off in an epoch whose state was not saved, stopped between two steps, resumed, and trained on."""

    def stop(metrics):
        if metrics["epoch"] == 2:
            raise Stopped

    train(out=tmp_path / "whole", decay_rate=1.0)
    more = {"checkpoint_every": every, "decay_rate": 1.0}
    with pytest.raises(Stopped):
        train(epochs=3, on_epoch=stop, **more)
    asked = iter([False] * 2 + [True])
    with pytest.raises(StoppedError):
        train(epochs=3, resume=True, should_stop=lambda: next(asked), **more)
    train(epochs=3, resume=True, **more)
    train(resume=True, **more)
    for name in NAMES:
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_data_that_is_judged_by_its_loss_keeps_the_lowest(run, tmp_path):
    import sequences

    given = {"student": sequences.Net(5), "method": "ce", "data": sequences.make("train"), "epochs": 3, "lr": 0.1}
    given |= {"test_data": sequences.make("test"), "model_ema_decay": 0.5, "out": tmp_path / "run", "batch_size": 30}
    found = logitcache.train_student(None, **given)
    for prefix, name in zip(("", "ema_"), NAMES, strict=True):
        every = [one[f"{prefix}test_loss"] for one in found.metrics]
        assert notes_of(tmp_path / "run" / name)["epoch"] == 1 + every.index(min(every))
    assert not any("top5" in name for name in found.metrics[0])


def wide(classes=8):
    """The tiny data with more classes than a top-5 needs."""
    pixels, _, _ = tiny.arrays()
    labels = np.random.RandomState(0).randint(0, classes, len(pixels))
    return ArrayImages(pixels, labels, [f"class {i}" for i in range(classes)])


def test_the_five_largest_logits_are_counted_where_there_are_more_classes(train, tmp_path, run):
    data = wide()
    found = train(data=data, test_data=data, epochs=2)
    mean, std = (torch.tensor(x)[:, None, None] for x in data.normalization)
    with torch.no_grad():
        largest = found.student((data.images.float() / 255 - mean) / std).topk(5).indices
    expected = float((largest == torch.from_numpy(data.labels)[:, None]).any(1).float().mean())
    assert 0 < expected < 1
    assert found.results["test_top5_accuracy"] == pytest.approx(expected)
    assert found.metrics[-1]["ema_test_top5_accuracy"] == found.results["ema_test_top5_accuracy"]
    shown = run("compare", "run").stdout
    assert "top-5" in shown and f"{expected:.2%}" in shown
    (group,) = json.loads(run("compare", "run", "--json").stdout)["groups"]
    assert group["test_top5_accuracy"] == pytest.approx(expected)
    train(epochs=1, out=tmp_path / "five")
    assert "top-5" not in run("compare", "five").stdout
