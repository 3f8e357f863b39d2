"""A step as one function of static tensors: it gives the bits of the eager step, and asks the host for nothing.

Without a GPU it is called where it would be replayed; what a graph could not hold is refused (`graphs.py`).
"""

import contextlib
import copy
import dataclasses
import json
import logging
from functools import partial

import graphs
import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import logitcache
from logitcache.data import ArrayImages, modality_of
from logitcache.data.images.resident import ResidentImages
from logitcache.data.images.views import preprocessing
from logitcache.errors import InputError, StoppedError
from logitcache.methods import METHODS
from logitcache.runtime.graphs import Replay
from logitcache.train import replay, step_plan
from logitcache.train.job import prepare, targets_of
from logitcache.train.optimize import OPTIMIZERS, is_capturable, make_optimizer, set_rate
from logitcache.train.replicas import Replicas
from logitcache.train.step import Stepper
from logitcache.train.targets import Stretch

CUDA = torch.device("cuda:0")
SOME = ("clkd", "dist", "dkd", "kd", "mlkd", "rld", "sld", "tad")  # methods of the default run


@pytest.fixture(scope="module")
def data():
    pixels, labels, classes = tiny.arrays()
    return ArrayImages(pixels[:108], labels[:108], classes)


@pytest.fixture(scope="module")
def cache(data, tmp_path_factory):
    """Two views of the tiny data, lossless."""
    return dumped(tmp_path_factory, data, precision="f32")


def dumped(folders, data, **changes):
    arguments = {
        "teacher": tiny.net(tiny.CLASSES), "data": data, "out": folders.mktemp("cache") / "c.zarr", "augment": "pad-crop-flip",
        "views": 2, "batch_size": 64, "block_rows": 32, "device": "cpu",
    }  # fmt: skip
    return logitcache.dump_logits(**(arguments | changes))


@pytest.fixture
def train(tmp_path, data, cache):
    """Train the tiny student for two epochs: two batches of 48 and one of 12."""

    def go(**changes):
        arguments = {
            "cache": cache, "student": "tiny:student", "data": data, "epochs": 2, "batch_size": 48, "device": "cpu",
            "out": tmp_path / f"run{len(list(tmp_path.iterdir()))}",
        }  # fmt: skip
        return logitcache.train_student(**(arguments | changes))

    return go


def outcome(run):
    """Weights, and metrics but for the clock."""
    timed = ("seconds", "images_per_second")
    metrics = [{name: value for name, value in one.items() if name not in timed} for one in run.metrics]
    return torch.cat([x.double().flatten() for x in run.student.state_dict().values()]), metrics


def assert_same(one, other):
    (weights, metrics), (others, other_metrics) = outcome(one), outcome(other)
    assert torch.equal(weights, others)
    assert metrics == other_metrics


@pytest.mark.parametrize("method", ["ce", "kd", "rld", "dkd", "sld"])
def test_steps_of_a_graph_give_the_bits_of_the_eager_loop(train, method):
    assert_same(train(method=method, cuda_graph="on"), train(method=method, cuda_graph="off"))


@pytest.mark.parametrize(
    "changes",
    [
        {"grad_accum_steps": 3, "clip_grad": 0.1, "model_ema_decay": 0.9, "norm_weight_decay": 0.0},
        {"amp": True, "channels_last": True, "sched": "cosine", "warmup_epochs": 1.5},
        {"opt": "adamw", "label_smoothing": 0.1, "drop_last": True, "class_weights": "balanced"},
        {"student": "tiny:still", "nesterov": True, "exclude": [3, 5, 107], "batch_size": 400},
        {"kd_warmup": 1.0, "seed": 3, "opt": "rmsprop", "lr": 0.001},
    ],
    ids=["parts", "amp", "adamw", "excluded", "warm-up"],
)
def test_whatever_a_step_does_besides(train, changes):
    """With dropout and batch normalization."""
    assert_same(train(cuda_graph="on", **changes), train(**changes))


@pytest.mark.parametrize(
    "stored",
    [
        {"precision": "f16"},
        {"precision": "u8"},
        {"top_k": 2},
        {"top_k": 1, "precision": "u8"},
        {"encoding": "sampled", "draws": 8},
    ],
    ids=lambda stored: "-".join(map(str, stored.values())),
)
def test_rows_of_every_encoding_are_decoded_in_the_step(train, data, tmp_path_factory, stored):
    go = partial(train, cache=dumped(tmp_path_factory, data, **stored), temperature=1.0)
    assert_same(go(cuda_graph="on"), go())


@pytest.mark.parametrize("method", ["sld", "mlkd"])
def test_both_views_of_a_pair_are_in_one_step(train, data, tmp_path_factory, method):
    pairs = dumped(tmp_path_factory, data, augment="pad-crop-flip,none", views=2)
    assert_same(train(cache=pairs, method=method, cuda_graph="on"), train(cache=pairs, method=method))


@pytest.mark.parametrize("augment", ["pad-crop-flip,none", "pad-crop-flip+mixup,none"])
def test_pairs_that_the_host_renders(train, data, tmp_path_factory, augment):
    """One of the two mixes images, or none; each step has three micro-batches of two views."""
    pairs = dumped(tmp_path_factory, data, augment=augment, views=2)
    go = partial(train, cache=pairs, method="mlkd", image_size=20, workers=0, grad_accum_steps=3)
    assert_same(go(cuda_graph="on"), go())


def test_a_folder_of_images(train, tmp_path):
    """Decoded by worker processes; the last batch of an epoch is smaller, so it is a step of its own."""
    pixels, labels, _ = tiny.arrays()
    for number in range(40):
        folder = tmp_path / f"images/{labels[number] % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[number]).save(folder / f"{number}.png")
    go = partial(train, cache=None, method="ce", data=f"imagefolder:{tmp_path}/images", augment="none", workers=1)
    assert_same(go(batch_size=12, cuda_graph="on"), go(batch_size=12))


def test_grey_images_and_a_stretch_of_a_data_set(train, tmp_path_factory):
    pixels, labels, classes = tiny.arrays()
    grey = ArrayImages(pixels[..., 0], labels, classes)
    stretch = modality_of(grey).part(grey, 40, 140)
    of_grey = dumped(tmp_path_factory, stretch, views=1)
    assert_same(train(cache=of_grey, data=stretch, cuda_graph="on"), train(cache=of_grey, data=stretch))


def test_without_a_teacher(train):
    go = partial(train, cache=None, method="ce", augment="pad-crop-flip")
    assert_same(go(cuda_graph="on"), go())


def test_a_run_that_is_stopped_in_the_middle_of_an_epoch_goes_on(train, tmp_path):
    whole, asked = train(cuda_graph="on"), iter(range(100))
    with pytest.raises(StoppedError, match="step 1 of 3 of epoch 2"):
        train(cuda_graph="on", out=tmp_path / "stopped", should_stop=lambda: next(asked) == 3)
    assert_same(train(cuda_graph="on", out=tmp_path / "stopped", resume=True), whole)


@pytest.fixture
def guarded(monkeypatch):
    """Use the capturable form of the optimizer, and from the second step on refuse operations that a graph cannot hold."""
    found = {"guarded": 0, "keys": []}

    def run(self, key, function):
        found["keys"].append(key)
        if len(found["keys"]) == 1:  # measures the pull of each term
            function()
            return
        found["guarded"] += 1
        with graphs.OnlyWhatAGraphHolds():
            function()

    def capturable(self, *arguments, **more):
        made(self, *arguments, **more | {"capturable": True})

    made = Stepper.__init__
    monkeypatch.setattr(Replay, "run", run)
    monkeypatch.setattr(Stepper, "__init__", capturable)
    return found


@pytest.mark.parametrize("method", tiny.usual(METHODS, SOME))
def test_no_method_asks_the_host(train, guarded, method):
    train(method=method, epochs=1, cuda_graph="on")
    assert guarded["guarded"] == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"grad_accum_steps": 3, "clip_grad": 0.1, "model_ema_decay": 0.9, "norm_weight_decay": 0.0},
        {"amp": True, "channels_last": True},
        {"amp": True, "amp_dtype": "float16", "clip_grad": 1.0},
        {"opt": "adam", "sched": "onecycle"},
        {"opt": "adamw"},
        {"opt": lambda weights: torch.optim.SGD(weights, 0.1, fused=True)},
    ],
    ids=["parts", "bfloat16", "float16", "adam", "adamw", "an optimizer of one's own"],
)
def test_nothing_else_in_a_step_asks_the_host(train, guarded, changes):
    found = train(cuda_graph="on", method="rld", **changes)
    assert guarded["guarded"] == 3
    assert len(set(guarded["keys"])) == 1  # the warm-up of rld is over after the first of two epochs
    assert np.isfinite(found.results["loss"])


@pytest.mark.parametrize("augment", ["pad-crop-flip+mixup+cutmix", "random-resized-crop-flip+mixup"])
def test_mixing_and_batches_from_the_host_ask_the_host_for_nothing(train, guarded, augment):
    train(cache=None, method="ce", augment=augment, workers=0, epochs=1, cuda_graph="on")
    assert guarded["guarded"] == 1


@pytest.mark.parametrize("stored", [{"precision": "u8"}, {"top_k": 2}, {"top_k": 1, "precision": "u8"}], ids=str)
def test_no_encoding_asks_the_host(train, guarded, data, tmp_path_factory, stored):
    train(cache=dumped(tmp_path_factory, data, **stored), epochs=1, method="rld", cuda_graph="on")
    assert guarded["guarded"] == 1


@pytest.mark.parametrize("name", ["adamax", "nadam", "radam", "rmsprop"])
def test_optimizers_that_only_a_gpu_captures_ask_the_host_for_nothing(name):
    settings = logitcache.TrainSettings(opt=name, momentum=0.9 if "momentum" in OPTIMIZERS[name] else None)
    with FakeTensorMode(allow_non_fake_inputs=True):
        network, rate = nn.Linear(4, 3, device=CUDA), torch.zeros((), device=CUDA)
        optimizer = make_optimizer(network, settings, capturable=True)
        assert is_capturable(optimizer)
        set_rate(optimizer, rate)
        for turn in range(3):
            for parameter in network.parameters():
                parameter.grad = torch.empty_like(parameter)
            with graphs.OnlyWhatAGraphHolds() if turn else contextlib.nullcontext():
                optimizer.step()


@pytest.mark.parametrize("method", tiny.usual(METHODS, SOME))
def test_a_step_copies_nothing_to_a_gpu(data, cache, method, monkeypatch):
    """Tensors that say they lie on a GPU, up to the loss: the backward pass needs a driver."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    settings = logitcache.TrainSettings(method=method, data=data, batch_size=48, device="cpu")
    job = prepare(cache, tiny.student(tiny.CLASSES), settings)
    with FakeTensorMode(allow_non_fake_inputs=True):
        job, there = dataclasses.replace(job, device=CUDA), copy.copy(data)
        there.images = torch.empty(data.images.shape, dtype=torch.uint8, device=CUDA)
        images = ResidentImages(there, [view for shown in job.epoch_views for view in shown], job.inputs)
        with CUDA:
            network = tiny.student(tiny.CLASSES)
        stepper = Stepper(network, job.objective, settings, CUDA, Replicas(), data)
        targets = targets_of(job, settings, in_place=True)
        plan = step_plan.StepPlan(static=True, captures=False, reason="", resident=images)
        sums = torch.zeros(7, dtype=torch.float64, device=CUDA)
        steps = replay.StaticSteps(job, settings, stepper, targets, Replicas(), plan, sums)
        views, stepper.norms = job.epoch_views[0], {}
        targets.begin(Stretch(views), Stretch(views))
        steps._fill(views, np.arange(48), [0.1])
        for _ in range(2):  # constants are made once
            with graphs.OnlyWhatAGraphHolds() if _ else contextlib.nullcontext():
                batch = steps._micro_batch(0, 0, steps._place + steps._offsets, 48, [False])
                total, *_ = stepper._forward(batch, 0.5)
        assert total.device == batch.labels.device == CUDA
        targets.close()
    preprocessing._constant.cache_clear()


def test_the_guard_sees_a_host_that_reads(train, guarded):
    with pytest.raises(InputError, match="_local_scalar_dense"):
        train(student=graphs.Asking(), epochs=1, cuda_graph="on")


def test_a_step_is_captured_again_when_the_objective_changes(train, guarded):
    """SLD swaps the student's logits after 150 of 240 epochs; the weight of RLD's term grows over 20."""
    train(method="sld", epochs=4, cuda_graph="on")
    assert len(set(guarded["keys"])) == 2
    guarded["keys"].clear()
    train(method="rld", epochs=4, kd_warmup=0.75, cuda_graph="on")
    assert len(set(guarded["keys"])) == 3


@pytest.mark.parametrize("changes", [{}, {"amp": True, "amp_dtype": "float16"}], ids=["float32", "float16"])
def test_a_capture_that_fails_leaves_nothing_behind(train, monkeypatch, changes):
    """Its second step ends in the optimizer, with gradients that must not be added to those of the step that is called instead."""
    turns = []

    def fail(_self):
        raise RuntimeError

    def run(self, _key, function):
        turns.append(1)
        if len(turns) == 2:
            with monkeypatch.context() as patch, pytest.raises(RuntimeError):
                patch.setattr(torch.optim.SGD, "step", fail)
                function()
            self._recover()
        function()

    go = partial(train, student="tiny:still", cuda_graph="on", **changes)
    usual = go()
    monkeypatch.setattr(Replay, "run", run)
    assert_same(go(), usual)


RESIDENT = "the device is cpu; steps use static tensors, images are rendered on the device"
STAGED = "the device is cpu; steps use static tensors, batches are copied to the device"


def lines(caplog):
    return [record.getMessage() for record in caplog.records if record.name == step_plan.__name__]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, RESIDENT),
        ({"live_teacher": tiny.net(tiny.CLASSES)}, "the live teacher runs in every step"),
        ({"memory_budget": 2_600}, "--memory-budget reads rows in windows"),
        ({"image_size": 20}, f"{STAGED} (views are rendered by the host)"),
    ],
    ids=["cpu", "live", "windows", "resized"],
)
def test_one_line_says_how_steps_are_taken_and_why(train, caplog, changes, reason):
    caplog.set_level(logging.INFO)
    run = train(epochs=1, cuda_graph="on", **changes)
    assert lines(caplog) == [f"steps are run eagerly: {reason}"]
    assert json.loads((run.path / "run.json").read_text())["settings"]["cuda_graph"] == "on"


@pytest.mark.parametrize(
    ("augment", "where"),
    [
        ("cifar-strong", f"{STAGED} (views are rendered by the host)"),
        ("random-resized-crop-flip", f"{STAGED} (views are rendered by the host)"),
        ("pad-crop-flip+mixup", RESIDENT),
        ("pad-crop-flip+cutmix(p=0.5)+mixup", RESIDENT),
        ("random-resized-crop-flip+cutmix", f"{STAGED} (views are rendered by the host)"),
    ],
)
def test_every_augmentation_is_trained_on_in_static_steps(train, caplog, augment, where):
    go = partial(train, cache=None, method="ce", augment=augment, workers=0, grad_accum_steps=2)
    usual = go()
    caplog.set_level(logging.INFO)
    assert_same(go(cuda_graph="on"), usual)
    assert lines(caplog) == [f"steps are run eagerly: {where}"]


def test_nothing_is_said_where_nobody_asked(train, caplog):
    caplog.set_level(logging.INFO)
    run = train(epochs=1)
    assert not lines(caplog)
    assert "cuda_graph" not in json.loads((run.path / "run.json").read_text())["settings"]
    with pytest.raises(InputError, match="`cuda_graph` must be auto, on or off, not 'yes'"):
        train(cuda_graph="yes")
