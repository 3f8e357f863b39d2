"""How a step is taken: optimizers, schedules, parts of a batch, running means, half precision; and stopping between two steps."""

import copy
import itertools
import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import warm
from torch.nn import functional as F

import logitcache
from logitcache import TrainSettings
from logitcache.data import Renderer, preprocessing_for
from logitcache.data.images.views import make_views
from logitcache.errors import InputError, StoppedError
from logitcache.train.evaluate import Subject, evaluate
from logitcache.train.optimize import OPTIMIZERS, learning_rate, make_optimizer
from logitcache.train.replicas import Replicas


@pytest.fixture
def train(tmp_path, images, test_images, dump):
    """Train a student without dropout or batch normalisation for two epochs of the tiny cache."""
    cache = dump()

    def go(**changes):
        arguments = {
            "cache": cache, "student": "tiny:still", "data": images, "test_data": test_images, "epochs": 2, "batch_size": 48,
            "out": tmp_path / "run",
        }  # fmt: skip
        return logitcache.train_student(**(arguments | changes))

    return go


def weights(result):
    return torch.cat([value.flatten() for value in result.student.state_dict().values()])


def metrics_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["kd", "rld"])
def test_a_batch_in_parts_is_the_same_step(train, tmp_path, method):
    whole = train(method=method, out=tmp_path / "whole")
    parts = train(method=method, grad_accum_steps=5, out=tmp_path / "parts")
    assert torch.allclose(weights(whole), weights(parts), atol=1e-6)
    assert parts.results["loss"] == pytest.approx(whole.results["loss"], rel=1e-5)
    with pytest.raises(InputError, match="`grad_accum_steps` must be 1 or more, not 0"):
        train(grad_accum_steps=0, out=tmp_path / "none")


def test_a_running_mean_of_the_weights_is_kept_evaluated_and_saved(train, tmp_path):
    from safetensors.torch import load_file

    slow = train(model_ema_decay=0.999999, out=tmp_path / "slow")
    start = train(lr=1e-30, weight_decay=0.0, out=tmp_path / "start").student.state_dict()
    average = load_file(tmp_path / "slow/student-ema.safetensors")
    mean, begin, end = (
        torch.cat([of[name].flatten() for name in average]) for of in (average, start, slow.student.state_dict())
    )
    assert 0 < (mean - begin).norm() < 0.2 * (end - begin).norm()  # it begins with the weights after the first step
    assert "ema_test_accuracy" in metrics_of(tmp_path / "slow")[0]
    assert not (tmp_path / "start/student-ema.safetensors").exists()


class Indexed(torch.nn.Module):
    """A student that looks something up in a buffer of integers, as Swin does."""

    def __init__(self):
        super().__init__()
        self.net = tiny.still(tiny.CLASSES)
        self.register_buffer("index", torch.arange(1000))

    def forward(self, x):
        return self.net(x)


def test_a_running_mean_leaves_integers_alone(train, tmp_path):
    from safetensors.torch import load_file

    train(student=Indexed(), model_ema_decay=0.9999, epochs=4)
    assert torch.equal(load_file(tmp_path / "run/student-ema.safetensors")["index"], torch.arange(1000))


def test_a_running_mean_counts_batches_as_the_student_does(train, tmp_path):
    """Batch normalisation counts its batches in an integer buffer: 7 steps in each of two epochs."""
    from safetensors.torch import load_file

    student = train(student="tiny:student", model_ema_decay=0.9).student.state_dict()
    average = load_file(tmp_path / "run/student-ema.safetensors")
    assert student["1.num_batches_tracked"] == average["1.num_batches_tracked"] == 14
    assert not torch.equal(student["1.running_mean"], average["1.running_mean"])


def test_gradients_that_a_student_is_given_with_are_not_used(train, tmp_path):
    torch.manual_seed(4)
    clean = tiny.still(tiny.CLASSES)
    stale = copy.deepcopy(clean)
    for parameter in stale.parameters():
        parameter.grad = torch.full_like(parameter, 10.0)
    expected = weights(train(student=clean, out=tmp_path / "clean"))
    assert torch.equal(weights(train(student=stale, out=tmp_path / "stale")), expected)


class Watched(torch.nn.Module):
    """Remembers the mode of its batch normalisation in each pass of a training step."""

    def __init__(self):
        super().__init__()
        self.net, self.modes = tiny.student(tiny.CLASSES), []

    def forward(self, x):
        if torch.is_grad_enabled():
            self.modes.append(self.net[1].training)
        return self.net(x)


@pytest.mark.parametrize("tested", [False, True], ids=["not evaluated", "evaluated"])
def test_frozen_batch_normalisation_stays_frozen(train, test_images, tested):
    """A student in training mode, but for a part that was put in evaluation mode: it is trained so, and given back so."""
    student = Watched()
    student.net[1].eval()
    before = student.net[1].running_mean.clone()
    found = train(student=student, test_data=test_images if tested else None).student
    assert student.modes == [False] * 14
    assert torch.equal(found.net[1].running_mean, before)


def test_an_evaluation_leaves_the_mode_of_every_part(images):
    network = tiny.net(tiny.CLASSES).train()
    network[1].eval()
    eyes, (whole,) = preprocessing_for(images, "none"), make_views("none", 1, 0)
    subject = Subject(images, whole, eyes, Renderer(images, [eyes]))
    evaluate(network, subject, lambda network, inputs, _: [network(inputs)], torch.device("cpu"), Replicas())
    assert [part.training for part in network] == [True, False, *[True] * 5]


def test_no_part_of_a_batch_is_a_single_row(train, tmp_path, monkeypatch):
    """300 rows in batches of 49 leave one of 6, in eight parts of 7: it is one part."""
    from logitcache.train.step import Stepper

    seen, step = [], Stepper.step

    def watched(self, parts, *more):
        seen.append([len(part[0].labels) for part in parts])
        return step(self, parts, *more)

    monkeypatch.setattr(Stepper, "step", watched)
    train(batch_size=49, grad_accum_steps=8, epochs=1)
    assert seen[0] == [7] * 7
    assert seen[-1] == [6]


def test_a_stop_is_heard_between_epochs_of_one_step(train, tmp_path):
    arguments = {"batch_size": 300, "epochs": 3}
    whole = train(out=tmp_path / "whole", **arguments)
    with pytest.raises(StoppedError, match=r"stopped on request after epoch 1 of 3. Resume with:"):
        train(should_stop=lambda: True, **arguments)
    assert len(metrics_of(tmp_path / "run")) == 1
    assert torch.equal(weights(train(resume=True, **arguments)), weights(whole))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clip_grad": -1.0}, "`clip_grad` must be greater than 0, not -1"),
        ({"model_ema_decay": 1.0}, "`model_ema_decay` must be between 0 and 1"),
        ({"amp_dtype": "float16"}, "`amp_dtype` must be left out without `amp`"),
        ({"nesterov": True, "momentum": 0.0}, "`nesterov` requires SGD with momentum"),
        ({"sched": "onecycle", "warmup_epochs": 1}, "`warmup_epochs` must be left out"),
    ],
)
def test_settings_that_mean_nothing_are_refused(train, changes, words):
    with pytest.raises(InputError, match=words):
        train(**changes)


def test_a_checkpoint_of_another_network_is_one_sentence(train, tmp_path):
    with pytest.raises(StoppedError):
        train(should_stop=lambda: True)
    torch.save({"student": {}, "optimizer": {}, "history": []}, tmp_path / "run/checkpoint.pt")
    with pytest.raises(InputError, match="damaged or from another version"):
        train(resume=True)


def test_the_norm_of_a_gradient_is_bounded(train, tmp_path):
    start = train(lr=1e-30, weight_decay=0.0, epochs=1, out=tmp_path / "start")
    one_step = {"epochs": 1, "batch_size": 300, "momentum": 0.0, "weight_decay": 0.0, "lr": 1.0}
    clipped = train(clip_grad=1e-3, out=tmp_path / "clipped", **one_step)
    free = train(out=tmp_path / "free", **one_step)
    assert (weights(clipped) - weights(start)).norm() == pytest.approx(1e-3, rel=1e-2)
    assert (weights(free) - weights(start)).norm() > 1e-2


def test_labels_are_smoothed_in_cross_entropy_alone(train, images, tmp_path):
    torch.manual_seed(2)
    student = tiny.still(tiny.CLASSES)
    eyes = preprocessing_for(images, "cifar")
    (shown,) = Renderer(images, [eyes]).batches(logitcache.open(tmp_path / "c.zarr").views[0], [np.arange(300)])
    with torch.no_grad():
        expected = F.cross_entropy(
            student(eyes.normalize(shown.inputs[0])), torch.from_numpy(images.labels), label_smoothing=0.3
        )
    arguments = {"student": student, "epochs": 1, "batch_size": 300, "lr": 1e-30}
    train(label_smoothing=0.3, out=tmp_path / "smooth", **arguments)
    train(out=tmp_path / "plain", **arguments)
    smooth, plain = metrics_of(tmp_path / "smooth")[0], metrics_of(tmp_path / "plain")[0]
    assert smooth["ce"] == pytest.approx(float(expected), rel=1e-5)
    assert smooth["kd"] == plain["kd"]
    with pytest.raises(InputError, match="`label_smoothing`"):
        train(label_smoothing=1.0, out=tmp_path / "none")


SETTINGS = TrainSettings(lr=0.1, weight_decay=0.01, sched="onecycle", epochs=4)


def test_biases_and_normalisation_may_decay_apart():
    groups = make_optimizer(tiny.net(5), replace(SETTINGS, norm_weight_decay=0.0)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    assert [{parameter.ndim for parameter in group["params"]} for group in groups] == [{2, 4}, {1}]
    assert len(make_optimizer(tiny.net(5), SETTINGS).param_groups) == 1


@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_every_optimizer_learns(train, tmp_path, opt):
    rates = {"sgd": 0.05, "rmsprop": 1e-3}
    momentum = {"momentum": 0.5} if "momentum" in OPTIMIZERS[opt] else {}
    train(opt=opt, lr=rates.get(opt, 5e-3), **momentum, epochs=4, out=tmp_path / "run")
    losses = [epoch["loss"] for epoch in metrics_of(tmp_path / "run")]
    assert losses[-1] < losses[0]


def test_nesterov_is_sgds(train, tmp_path):
    assert not torch.equal(weights(train(nesterov=True, out=tmp_path / "n")), weights(train(out=tmp_path / "p")))
    with pytest.raises(InputError, match="`nesterov` requires SGD"):
        train(opt="adamw", nesterov=True, out=tmp_path / "none")


@pytest.mark.parametrize("steps", [1, 3, 25])
def test_one_cycle_is_torchs(steps):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=4 * steps, cycle_momentum=False)
    for number in range(4 * steps):
        rate = learning_rate(SETTINGS, number // steps, number % steps, steps)
        assert rate == pytest.approx(theirs.get_last_lr()[0], rel=1e-9), number
        optimizer.step()
        if number + 1 < 4 * steps:
            theirs.step()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_trains_and_resumes(train, tmp_path, dtype):
    arguments = {"amp": True, "amp_dtype": dtype, "epochs": 4}
    whole = train(out=tmp_path / "whole", **arguments)
    assert metrics_of(tmp_path / "whole")[-1]["loss"] < metrics_of(tmp_path / "whole")[0]["loss"]
    _stop_and_resume(train, tmp_path / "broken", 9, arguments)
    assert torch.equal(weights(train(out=tmp_path / "broken", resume=True, **arguments)), weights(whole))
    with pytest.raises(InputError, match="`amp_dtype` must be bfloat16 or float16"):
        train(amp=True, amp_dtype="half", out=tmp_path / "none")


def test_channels_last_is_a_matter_of_layout(train, tmp_path):
    last = weights(train(channels_last=True, out=tmp_path / "last"))
    assert torch.allclose(last, weights(train(out=tmp_path / "first")), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["kd", "rld"])
def test_a_compiled_student_learns_the_same(train, tmp_path, method):
    compiled = train(method=method, compiled=True, out=tmp_path / "compiled")
    plain = train(method=method, out=tmp_path / "plain")
    assert torch.allclose(weights(compiled), weights(plain), atol=1e-4)
    for one, other in zip(metrics_of(tmp_path / "compiled"), metrics_of(tmp_path / "plain"), strict=True):
        assert one["kd"] == pytest.approx(other["kd"], rel=1e-4)
    assert logitcache.train_student(
        cache=tmp_path / "c.zarr", student="tiny:still", student_weights=str(tmp_path / "compiled/student.safetensors"),
        data=tiny_images(), epochs=1, out=tmp_path / "again",
    )  # fmt: skip


def tiny_images():
    from logitcache.data import ArrayImages

    return ArrayImages(*tiny.arrays())


def _stop_and_resume(train, out, steps, arguments):
    asked = iter([False] * (steps - 1) + [True] * 1000)
    with pytest.raises(
        StoppedError, match=rf"stopped on request after step \d+ of 7.*\n  logitcache train --resume --out {out}"
    ):
        train(out=out, should_stop=lambda: next(asked), **arguments)


@pytest.mark.parametrize(
    ("steps", "budget"),
    tiny.usual(
        itertools.product([[1], [3, 9], [6, 1]], [None, 20_000]), [([3, 9], None), ([1], 20_000), ([6, 1], 20_000)]
    ),
)
def test_a_run_stopped_between_two_steps_ends_like_an_unbroken_one(train, tmp_path, steps, budget):
    """Weights, bit for bit, and metrics: with dropout, batch normalisation, a running mean, momentum, and in windows."""
    arguments = {
        "student": "tiny:student", "epochs": 3, "opt": "adamw", "lr": 0.01, "model_ema_decay": 0.9, "memory_budget": budget,
    }  # fmt: skip
    whole = train(out=tmp_path / "whole", **arguments)
    for number, count in enumerate(steps):
        asked = iter([False] * (count - 1) + [True] * 1000)
        with pytest.raises(StoppedError):
            train(out=tmp_path / "run", should_stop=lambda asked=asked: next(asked), resume=number > 0, **arguments)
    again = train(out=tmp_path / "run", resume=True, **arguments)
    assert torch.equal(weights(again), weights(whole))
    for name in ("student", "student-ema"):
        files = [tmp_path / folder / f"{name}.safetensors" for folder in ("run", "whole")]
        assert files[0].read_bytes() == files[1].read_bytes()
    times = ("seconds", "images_per_second")
    ours, theirs = (
        [{k: v for k, v in one.items() if k not in times} for one in metrics_of(tmp_path / f)] for f in ("run", "whole")
    )
    assert ours == theirs


@pytest.mark.parametrize("number", tiny.usual([signal.SIGINT, signal.SIGTERM], [signal.SIGTERM]))
def test_a_training_that_is_asked_to_stop_saves_and_says_how_to_go_on(tmp_path, npz, dump, run, monkeypatch, number):
    dump(data=f"arrays:{npz}")
    words = ["train", "c.zarr", "--student", "tiny:Unhurried", "--batch-size", "20", "--epochs", "3"]
    command = warm.Command("logitcache", [*words, "--out", "run"], tmp_path)
    metrics = tmp_path / "run/metrics.jsonl"
    command.wait_until(lambda: metrics.exists() and metrics.stat().st_size > 0)  # it is empty until a step was taken
    command.send_signal(number)
    code, said = command.end()
    assert code == 128 + number, said
    assert "stopping after the current step" in said
    assert "Resume with:\n  logitcache train --resume --out run" in said
    monkeypatch.setattr(tiny.Unhurried, "pause", 0)
    assert run("train", "--resume", "--out", "run").exit_code == 0
    assert run(*words, "--out", "whole").exit_code == 0
    files = [tmp_path / folder / "student.safetensors" for folder in ("run", "whole")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_agreement_with_the_teacher_is_measured_in_every_epoch(train, dump, images, tmp_path):
    torch.manual_seed(2)
    arguments = {"student": tiny.still(tiny.CLASSES), "epochs": 1, "batch_size": 300, "lr": 1e-30}
    train(out=tmp_path / "full", **arguments)
    cache = logitcache.open(tmp_path / "c.zarr")
    eyes = preprocessing_for(images, "cifar")
    (shown,) = Renderer(images, [eyes]).batches(cache.views[0], [np.arange(300)])
    with torch.no_grad():
        predicted = arguments["student"](eyes.normalize(shown.inputs[0])).argmax(1)
    expected = float((predicted == cache.logits(range(300)).argmax(1)).float().mean())
    assert metrics_of(tmp_path / "full")[0]["teacher_agreement"] == pytest.approx(expected)
    top = dump(encoding="topk", top_k=2, out=tmp_path / "top.zarr")
    train(cache=top, out=tmp_path / "top", **arguments)
    assert metrics_of(tmp_path / "top")[0]["teacher_agreement"] == pytest.approx(expected)
    train(cache=None, method="ce", augment="cifar", out=tmp_path / "ce", **arguments)
    assert "teacher_agreement" not in metrics_of(tmp_path / "ce")[0]


@pytest.mark.parametrize("scale", [1, 60])
def test_the_calibration_error_is_guos(train, images, test_images, scale):
    """Of a network that is unsure, and of one that is quite sure of most images, to a confidence of 1 after rounding."""
    torch.manual_seed(6)
    student = tiny.still(tiny.CLASSES)
    with torch.no_grad():
        student[-1].weight *= scale
    found = train(student=student, epochs=1, lr=1e-30, weight_decay=0.0)
    mean, std = (torch.tensor(x)[:, None, None] for x in images.normalization)
    with torch.no_grad():
        p = found.student.eval()((test_images.images.float() / 255 - mean) / std).softmax(1).numpy()
    confidence, right = p.max(1), p.argmax(1) == test_images.labels
    assert ((confidence > 14 / 15).mean() > 0.5) == (scale > 1) == (confidence.max() == 1)
    expected = 0.0
    for low in np.arange(15) / 15:
        here = (confidence >= low) & ((confidence < low + 1 / 15) | (low == 14 / 15))
        if here.any():
            expected += here.mean() * abs(right[here].mean() - confidence[here].mean())
    assert found.results["test_ece"] == pytest.approx(expected, abs=1e-6)
