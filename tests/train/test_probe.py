"""What a student refuses is found before the first step, and looking for it changes nothing."""

import json
import random
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import tiny
import torch
from torch import nn

import logitcache
from logitcache.data import ArrayImages
from logitcache.errors import InputError, StoppedError
from logitcache.train.loop import Loop
from logitcache.train.order import Windows
from logitcache.train.probe import _part_sizes
from logitcache.train.replicas import Replicas


class Rows(nn.Module):
    """Batch normalization over [B, C]: it refuses to be trained on one sample."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(tiny.still(tiny.CLASSES), nn.BatchNorm1d(tiny.CLASSES))

    def forward(self, x):
        return self.net(x)


@pytest.fixture
def train(tmp_path, images):
    """Train for two epochs on labels alone: 300 samples."""

    def go(student, data=images, **changes):
        given = {"method": "ce", "data": data, "epochs": 2, "batch_size": 48, "out": tmp_path / "run"} | changes
        steps = []
        try:
            return logitcache.train_student(None, student, on_progress=steps.append, **given)
        except InputError:
            assert not steps
            assert not (tmp_path / "run").exists()
            raise

    return go


def part(count):
    pixels, labels, classes = tiny.arrays()
    return ArrayImages(pixels[:count], labels[:count], classes)


@pytest.mark.parametrize(
    ("count", "changes", "words"),
    [
        (24, {"batch_size": 23}, r"24 images in batches of 23. Leave out the smaller last batch with `drop_last`"),
        (24, {"batch_size": 1}, r"24 images in batches of 1. Choose a larger `batch_size`\.$"),
        (
            24,
            {"batch_size": 8, "grad_accum_steps": 8},
            "batches of 8 of 8 micro-batches. Choose a larger `batch_size` or fewer `grad_accum_steps`",
        ),
        (27, {"batch_size": 4, "grad_accum_steps": 2}, "4 of 2 micro-batches. Leave out the smaller last batch"),
        (25, {"batch_size": 24, "drop_last": False}, "Leave out the smaller last batch with `drop_last`, or choose another"),
    ],
)  # fmt: skip
def test_a_batch_that_batch_normalization_refuses_is_found_before_the_first_step(train, count, changes, words):
    said = r"the student cannot be trained on 1 sample at a time \(ValueError: Expected more than 1 value per channel.*"
    with pytest.raises(InputError, match=said + words):
        train(Rows(), part(count), **changes)


def test_what_the_sentence_advises_works(train):
    found = train(Rows(), part(25), batch_size=24, drop_last=True)
    assert [(one["left_out"], "windows" in one) for one in found.metrics] == [(1, False)] * 2


def test_a_batch_that_is_larger_than_the_data_leaves_nothing(train):
    with pytest.raises(InputError, match="leaves nothing to train on: 25 images are fewer than a batch of 26"):
        train(Rows(), part(25), batch_size=26, drop_last=True)


def test_a_window_whose_last_batch_is_small_is_found(dump, images, tmp_path):
    """Blocks of 49 and one of 6: windows of two blocks hold 98 samples or 55."""
    given = {"cache": dump(block_rows=49), "data": images, "epochs": 2, "memory_budget": 2 * 2 * 49 * 20}
    with pytest.raises(InputError, match=r"300 images in batches of 54 in windows of `memory_budget`. Leave"):
        logitcache.train_student(student=Rows(), batch_size=54, out=tmp_path / "run", **given)
    assert not (tmp_path / "run").exists()
    found = logitcache.train_student(student=Rows(), batch_size=54, drop_last=True, out=tmp_path / "run", **given)
    assert [one["windows"] for one in found.metrics] == [3, 3]
    assert all(one["left_out"] == 300 - 3 * 54 for one in found.metrics)


def test_the_samples_left_out_differ_from_epoch_to_epoch_and_are_in_no_metric(
    dump, images, test_images, tmp_path, monkeypatch
):
    orders, ordered = [], Loop._windows

    def watched(self, epoch):
        found = ordered(self, epoch)
        orders.append(np.concatenate([ids for _, batches in found for ids in batches]))
        return found

    monkeypatch.setattr(Loop, "_windows", watched)
    dump()
    given = {"student": "tiny:still", "data": images, "test_data": test_images, "batch_size": 48, "drop_last": True}
    rate = {"lr": 1e-30, "weight_decay": 0.0}
    found = logitcache.train_student(tmp_path / "c.zarr", epochs=2, out=tmp_path / "run", method="ce", **rate, **given)
    assert [len(order) for order in orders] == [288, 288]
    left = [set(range(300)) - set(order.tolist()) for order in orders]
    assert left[0] != left[1]
    assert [one["left_out"] for one in found.metrics] == [12, 12]
    view = logitcache.open(tmp_path / "c.zarr")
    batches = [view.loader(images, batch_size=300, shuffle=False).epoch(epoch) for epoch in (0, 1)]
    for order, metrics, (batch,) in zip(orders, found.metrics, batches, strict=True):
        with torch.no_grad():
            right = (found.student(batch.images).argmax(1) == batch.labels)[order].float().mean()
        assert metrics["train_accuracy"] == pytest.approx(float(right))


@pytest.mark.parametrize("budget", [None, 20_000])
def test_cached_is_live_and_resumed_is_unbroken_without_last_batches(dump, images, tmp_path, budget):
    teacher = tiny.net(tiny.CLASSES)
    given = {"cache": dump(teacher=teacher, threads=1), "student": "tiny:student", "data": images, "epochs": 3}
    given |= {"batch_size": 49, "drop_last": True, "memory_budget": budget}
    whole = logitcache.train_student(out=tmp_path / "whole", **given)
    live = logitcache.train_student(out=tmp_path / "live", live_teacher=teacher, **given)
    asked = iter([False] * 8 + [True])
    with pytest.raises(StoppedError):
        logitcache.train_student(out=tmp_path / "run", should_stop=lambda: next(asked), **given)
    again = logitcache.train_student(out=tmp_path / "run", resume=True, **given)
    for other in (live, again):
        assert same(whole.student, other.student)
        assert [one["loss"] for one in whole.metrics] == [one["loss"] for one in other.metrics]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_windows_of_kept_samples_are_those_of_all_without_the_others():
    offsets = np.cumsum([0, *np.random.RandomState(0).randint(0, 5, 200)])
    for rows, begins, samples in ((300, None, 300), (int(offsets[-1]), offsets, 200)):
        kept = np.setdiff1d(np.arange(samples), np.arange(0, samples, 7))
        for (blocks, every), (same_blocks, some) in zip(
            Windows(rows, 49, 2, 1, begins).epoch(0), Windows(rows, 49, 2, 1, begins, kept).epoch(0), strict=True
        ):
            assert blocks == same_blocks
            assert set(some.tolist()) == set(every.tolist()) & set(kept.tolist())


@pytest.mark.parametrize("least", [1, 56])
def test_windows_are_as_long_as_they_are_said_to_be(least):
    offsets = np.cumsum([0, *np.random.RandomState(0).randint(0, 5, 200)])
    for epoch in range(4):
        for windows in (
            Windows(300, 49, 2, 1, least=least),
            Windows(int(offsets[-1]), 49, 3, 1, offsets, least=least),
        ):
            lengths = [length for _, length in windows.lengths(epoch) if length >= least]
            assert [len(ids) for _, ids in windows.epoch(epoch)] == lengths
            assert windows.first(epoch) == windows.epoch(epoch)[0][0]


def test_every_process_finds_the_smallest_share(images):
    job = SimpleNamespace(samples=images, inputs=None, window=None)
    settings = logitcache.TrainSettings(batch_size=13)  # 23 batches of 13, and one sample
    assert _part_sizes(job, settings, Replicas(1, 2), drop_last=False) == {7, 6, 1}
    assert _part_sizes(job, settings, Replicas(1, 2), drop_last=True) == {7, 6}


class Moody(nn.Module):
    """Draws from every generator, counts its calls, and has batch normalization and dropout."""

    def __init__(self):
        super().__init__()
        self.net, self.calls, self.table = tiny.student(tiny.CLASSES), 0, None

    def forward(self, x):
        self.calls += 1
        if self.table is None:
            self.table = torch.full((), float(np.random.rand() + random.random()))  # noqa: NPY002
        return self.net(x) * self.table


class Uncopied(Moody):
    """The same, which cannot be copied."""

    def __deepcopy__(self, memo):
        raise TypeError("cannot pickle")

    def forward(self, x):
        return self.net(x)


@pytest.mark.parametrize("student", [Moody, Uncopied])
def test_looking_changes_nothing(dump, images, test_images, tmp_path, monkeypatch, student):
    """The same weights, running means and random numbers as without looking."""

    def trained(out):
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002
        random.seed(1)
        given = {"data": images, "test_data": test_images, "epochs": 2, "batch_size": 49}
        found = logitcache.train_student(cache, student(), out=tmp_path / out, **given)
        return found, torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002

    cache = dump()
    ours, *numbers = trained("looked")
    monkeypatch.setattr("logitcache.train.train.refuse_unfit_student", lambda *_: None)
    theirs, *others = trained("not")
    assert same(ours.student, theirs.student)
    assert ours.student.calls == theirs.student.calls
    assert numbers == others


class Flat(nn.Module):
    """Takes images of 16 pixels alone."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, tiny.CLASSES))

    def forward(self, x):
        return self.net(x)


def test_test_data_that_the_student_cannot_take_is_found_before_the_first_epoch(train, tmp_path):
    pixels, labels, classes = tiny.arrays("test")
    small = ArrayImages(pixels[:, :12, :12].copy(), labels, classes)
    with pytest.raises(
        InputError,
        match=r"inputs of shape \[3, 16, 16\].* fails on those of the test data, \[3, 12, 12\] \(RuntimeError: .* pass test",
    ):
        train(Flat(), test_data=small)
    coloured = ArrayImages(pixels, labels, classes)
    shown, named, _ = tiny.arrays()
    grey = ArrayImages(shown[..., 0].copy(), named, classes)
    student = nn.Sequential(nn.Conv2d(1, tiny.CLASSES, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(InputError, match="on the test data, the network takes images with one channel"):
        train(student, grey, test_data=coloured)


class Pair(NamedTuple):
    scores: torch.Tensor
    features: torch.Tensor


class Outputs(nn.Module):
    """Returns one thing in training mode and another in evaluation mode."""

    def __init__(self, training, evaluation):
        super().__init__()
        self.net, self.shapes = tiny.still(tiny.CLASSES), {True: training, False: evaluation}

    def forward(self, x):
        return self.shapes[self.training](self.net(x), x)


SHAPES = {
    "tensor": lambda logits, _: logits,
    "tuple": lambda logits, x: (logits, x),
    "list": lambda logits, x: [logits, x],
    "named tuple": Pair,
    "dict": lambda logits, x: {"features": x, "logits": logits},
    "object": lambda logits, x: SimpleNamespace(loss=None, logits=logits, features=x),
}


@pytest.mark.parametrize("evaluation", SHAPES)
@pytest.mark.parametrize("training", ["tensor", "named tuple", "object"])
def test_a_student_may_return_other_things_in_each_mode(train, test_images, training, evaluation):
    torch.manual_seed(0)
    plain = tiny.still(tiny.CLASSES)
    student = Outputs(SHAPES[training], SHAPES[evaluation])
    student.net.load_state_dict(plain.state_dict())
    given = {"test_data": test_images, "epochs": 1, "batch_size": 100}
    found = train(student, **given)
    expected = train(plain, out=found.path.with_name("plain"), **given)
    assert same(found.student, expected.student)
    assert found.results["test_accuracy"] == expected.results["test_accuracy"]


@pytest.mark.parametrize(
    ("training", "evaluation", "words"),
    [
        (lambda z, x: (x.flatten(1), z), SHAPES["tensor"], r"must return logits \[B, 5\], one for each .* found a tensor \[12, 768\]"),
        (SHAPES["tensor"], lambda _, x: {"features": x}, r"^in evaluation mode, the student must return logits \[B, 5\], found dict"),
        (SHAPES["tensor"], lambda *_: None, "^in evaluation mode, the student must return logits .* found NoneType"),
        (lambda z, _: z.repeat(2, 1), SHAPES["tensor"], r"with 12 rows, found a tensor \[24, 5\]"),
        (lambda *_: (), SHAPES["tensor"], "must return logits .* found tuple"),
    ],
)  # fmt: skip
def test_a_student_without_logits_in_either_mode_is_one_sentence(train, training, evaluation, words):
    with pytest.raises(InputError, match=words):
        train(Outputs(training, evaluation))


class Second(nn.Module):
    """Fails in the second step."""

    def __init__(self):
        super().__init__()
        self.net, self.calls = tiny.student(tiny.CLASSES), 0

    def forward(self, x):
        self.calls += 1
        if self.calls > 2:  # one is a trial in evaluation mode, on the same copy
            raise FloatingPointError("later")
        return self.net(x)


def test_a_training_that_is_refused_or_fails_gives_modules_back_as_they_were(dump, images, tmp_path):
    teacher, student = tiny.net(tiny.CLASSES).train(), Second().eval()
    given = {"cache": dump(teacher=teacher), "data": images, "live_teacher": teacher, "out": tmp_path / "run"}
    with pytest.raises(InputError, match="FloatingPointError: later"):
        logitcache.train_student(student=student, epochs=1, **given)
    assert not any(part.training for part in student.modules())
    assert all(part.training for part in teacher.modules())
    with pytest.raises(InputError, match="already holds a run"):
        logitcache.train_student(student="tiny:student", epochs=1, **given)
    assert all(part.training for part in teacher.modules())


def test_a_run_from_before_a_switch_existed_is_resumed_and_compared(train, tmp_path):
    with pytest.raises(StoppedError):
        train("tiny:still", should_stop=lambda: True)
    file = tmp_path / "run/run.json"
    record = json.loads(file.read_text())
    del record["settings"]["drop_last"]
    file.write_text(json.dumps(record))
    assert logitcache.train_student(
        None, "tiny:still", method="ce", data=part(300), epochs=2, batch_size=48, out=tmp_path / "run", resume=True
    ).results
    train("tiny:still", out=tmp_path / "other", seed=1)
    assert len({run.settings for run in logitcache.compare_runs([tmp_path / "run", tmp_path / "other"])}) == 1
