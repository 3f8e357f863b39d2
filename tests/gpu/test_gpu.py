"""What only a GPU can show. `make test-gpu` runs these; elsewhere they are skipped, and say so.

`LOGITCACHE_GPU_TESTS=cpu` rehearses them on a CPU, where steps are called instead of replayed.
"""

import copy
import logging
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from functools import partial

import graphs
import numpy as np
import pytest
import texts
import tiny
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

import logitcache
from logitcache.data import ArrayImages
from logitcache.data.images.views.crops import Boxes
from logitcache.data.images.views.render import cut_batch, cut_out
from logitcache.encoding import TopKEncoding
from logitcache.encoding.largest import largest
from logitcache.errors import InputError
from logitcache.methods import METHODS, gradient_norms, make_objective
from logitcache.runtime import graphs as captures
from logitcache.runtime.graphs import Replay

ASKED = os.environ.get("LOGITCACHE_GPU_TESTS")
DEVICE = torch.device("cpu" if ASKED == "cpu" else "cuda")
REPLAYS = DEVICE.type == "cuda"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(ASKED is None, reason="GPUs are hidden from tests: `make test-gpu` runs those that need one"),
    pytest.mark.skipif(REPLAYS and ASKED is not None and not torch.cuda.is_available(), reason="there is no GPU here"),
]
only_on_a_gpu = pytest.mark.skipif(not REPLAYS, reason="a rehearsal on a CPU has nothing of this")


@pytest.fixture(scope="module")
def data():
    return ArrayImages(*tiny.arrays())


@pytest.fixture(scope="module")
def cache(data, tmp_path_factory):
    """Two views of the tiny data, lossless, dumped on the GPU."""
    return dumped(tmp_path_factory, data, precision="f32")


def dumped(folders, data, **changes):
    arguments = {
        "teacher": tiny.net(tiny.CLASSES), "data": data, "out": folders.mktemp("cache") / "c.zarr", "augment": "pad-crop-flip",
        "views": 2, "batch_size": 64, "block_rows": 128, "device": str(DEVICE), "deterministic": True,
    }  # fmt: skip
    return logitcache.dump_logits(**(arguments | changes))


@pytest.fixture
def train(tmp_path, data, cache):
    """Train the tiny student for two epochs, with deterministic algorithms: six batches of 48 and one of 12."""

    def go(**changes):
        arguments = {
            "cache": cache, "student": "tiny:student", "data": data, "epochs": 2, "batch_size": 48, "device": str(DEVICE),
            "out": tmp_path / f"run{len(list(tmp_path.iterdir()))}", "deterministic": True,
        }  # fmt: skip
        return logitcache.train_student(**(arguments | changes))

    return go


@pytest.fixture
def replays(monkeypatch):
    """How often steps were replayed; a capture that fails is an error."""
    found = []
    if not REPLAYS:
        return found
    replay = torch.cuda.CUDAGraph.replay
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda self: (found.append(1), replay(self))[1])

    def refuse(message, reason):
        pytest.fail(message % reason)

    monkeypatch.setattr(captures._LOG, "warning", refuse)
    return found


@contextmanager
def called(monkeypatch):
    """Run steps eagerly instead of replaying them."""
    with monkeypatch.context() as patch:
        patch.setattr(Replay, "run", lambda _self, _key, function: function())
        yield


def weights(run):
    return torch.cat([x.double().flatten().cpu() for x in run.student.state_dict().values()])


def losses(run):
    return [one["loss"] for one in run.metrics]


@pytest.mark.parametrize("method", ["ce", "kd", "rld", "dkd", "sld"])
def test_replayed_steps_give_the_bits_of_called_ones(train, replays, monkeypatch, method):
    replayed = train(method=method, cuda_graph="on")
    assert len(replays) >= 6 * REPLAYS
    with called(monkeypatch):
        others = train(method=method, cuda_graph="on")
    assert torch.equal(weights(replayed), weights(others))
    assert losses(replayed) == losses(others)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_replayed_and_learns_as_the_usual_steps_do(train, replays, method):
    """The optimizer's last bits differ, so weights agree to rounding that a few steps have enlarged."""
    replayed, usual = train(method=method, cuda_graph="on", lr=0.01), train(method=method, cuda_graph="off", lr=0.01)
    assert len(replays) >= 6 * REPLAYS
    assert losses(replayed) == pytest.approx(losses(usual), rel=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"grad_accum_steps": 3, "clip_grad": 0.1, "model_ema_decay": 0.9, "norm_weight_decay": 0.0},
        {"amp": True, "channels_last": True},
        {"amp": True, "amp_dtype": "float16", "clip_grad": 1.0},
        {"amp": True, "amp_dtype": "float16", "opt": "adamw", "lr": 1e-3},
        *({"opt": name, "lr": 1e-3} for name in ("adam", "adamax", "adamw", "nadam", "radam", "rmsprop")),
        {"sched": "cosine", "warmup_epochs": 1},
        {"drop_last": True},
    ],
    ids=str,
)
def test_whatever_a_step_does_besides_is_replayed(train, replays, monkeypatch, changes):
    replayed = train(cuda_graph="on", **changes)
    assert len(replays) >= 6 * REPLAYS
    with called(monkeypatch):
        others = train(cuda_graph="on", **changes)
    assert torch.equal(weights(replayed), weights(others))


@pytest.mark.parametrize("stored", [{"precision": "u8"}, {"top_k": 2}, {"top_k": 1, "precision": "u8"}], ids=str)
def test_rows_of_every_encoding_are_decoded_in_the_graph(train, replays, data, tmp_path_factory, stored):
    train(cache=dumped(tmp_path_factory, data, **stored), method="rld", cuda_graph="on")
    assert len(replays) >= 6 * REPLAYS


def test_both_views_of_a_pair_are_in_one_graph(train, replays, data, tmp_path_factory):
    train(cache=dumped(tmp_path_factory, data, augment="pad-crop-flip,none"), method="mlkd", cuda_graph="on")
    assert len(replays) >= 6 * REPLAYS


@pytest.mark.parametrize("augment", ["pad-crop-flip+mixup+cutmix", "random-resized-crop-flip", "cifar-strong+mixup"])
def test_mixed_images_and_batches_from_the_host_are_replayed(train, replays, monkeypatch, augment):
    """Rendered on the device, or by worker processes and copied one batch ahead."""
    go = partial(train, cache=None, method="ce", augment=augment, workers=2, cuda_graph="on")
    replayed = go()
    assert len(replays) >= 6 * REPLAYS
    with called(monkeypatch):
        others = go()
    assert torch.equal(weights(replayed), weights(others))
    assert losses(replayed) == losses(others)


@pytest.mark.skipif(ASKED == "cpu", reason="compiling takes a minute, and shows nothing on a CPU")
def test_a_compiled_student_and_loss_are_in_the_graph(train, replays):
    train(method="rld", compiled=True, cuda_graph="on", deterministic=False)
    assert len(replays) >= 6


@only_on_a_gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("how", ["on", "off"])
def test_no_step_waits_for_the_device(train, how):
    """In the second epoch, from the first step to the last; in the first one the pull of each term is read."""

    def watch(progress):
        inside = progress.task.startswith("epoch 2") and progress.done < progress.total
        torch.cuda.set_sync_debug_mode("error" if inside else "default")

    try:
        train(cuda_graph=how, on_progress=watch, epochs=2, test_data=None)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_student_that_cannot_be_captured_is_trained_all_the_same(train, caplog):
    caplog.set_level(logging.WARNING)
    run = train(student=graphs.Asking(), cuda_graph="on")
    said = [record.getMessage() for record in caplog.records if record.name == captures.__name__]
    assert len(said) == REPLAYS
    usual = train(student=graphs.Asking(), cuda_graph="off")
    assert losses(run) == pytest.approx(losses(usual), rel=1e-3)


def test_two_deterministic_runs_have_the_same_bits(train):
    one, other = (train(method="rld") for _ in range(2))
    assert torch.equal(weights(one), weights(other))


def test_cached_is_live_with_deterministic_algorithms(train):
    cached, live = train(method="rld"), train(method="rld", live_teacher=tiny.net(tiny.CLASSES))
    assert torch.equal(weights(cached), weights(live))


def test_boxes_are_cut_as_on_the_cpu():
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.integers(0, 256, (64, 3, 32, 32), np.uint8))
    top, left = (random.integers(-4, 5, 64) for _ in range(2))
    flip, side = random.integers(0, 2, 64), np.full(64, 32)
    expected = cut_batch(images, torch.arange(64), Boxes(top, left, side, side, flip == 1))
    numbers = (torch.from_numpy(one).to(DEVICE) for one in (top, left, flip))
    assert torch.equal(cut_out(images.to(DEVICE), *numbers).cpu(), expected)
    there = copy.copy(images).to(DEVICE)
    found = cut_batch(there, torch.arange(64, device=DEVICE), Boxes(top, left, side, side, flip == 1))
    assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("classes", [100, 50_257])
def test_the_largest_are_those_of_the_cpu(classes):
    """Also where some are equal: the first of them."""
    values = torch.randn(32, classes, generator=torch.Generator().manual_seed(0)).mul(4).round()
    assert torch.equal(largest(values.to(DEVICE), 17).cpu(), largest(values, 17))
    labels = torch.arange(32)
    encoding = TopKEncoding(16, "f16")
    here, there = encoding.encode(values, labels), encoding.encode(values.to(DEVICE), labels.to(DEVICE))
    assert torch.equal(here["ids"], there["ids"].cpu())
    assert torch.equal(here["values"], there["values"].cpu())
    assert torch.allclose(here["rest"].float(), there["rest"].cpu().float(), atol=0.02)


def test_a_dump_chooses_the_size_of_its_batches(data, tmp_path_factory):
    cache = dumped(tmp_path_factory, data, batch_size="auto" if REPLAYS else 256)
    size = cache.manifest.batch_size
    assert size & (size - 1) == 0
    assert np.isfinite(cache.view(0, cache.teacher)["logits"]).all()


class Hungry(nn.Module):
    """A student that takes 16 GB for each image."""

    def __init__(self):
        super().__init__()
        self.net = tiny.net(tiny.CLASSES)

    def forward(self, x):
        return self.net(x) + torch.empty(len(x), 1 << 32, device=x.device)[:, :1] * 0


@only_on_a_gpu
def test_memory_that_runs_out_is_a_sentence(train):
    with pytest.raises(InputError, match=r"memory ran out with batches of \d+: lower `batch_size`"):
        train(student=Hungry(), epochs=1)
    torch.cuda.empty_cache()


class Pictures(Dataset):
    """Sixty images; the process that makes item 37 is killed."""

    classes = ("ant", "bee", "cow")

    def __init__(self, dies):
        self.dies, self.main = dies, os.getpid()
        self.targets = [number % 3 for number in range(60)]

    def __len__(self):
        return 60

    def __getitem__(self, index):
        if self.dies and index == 37 and os.getpid() != self.main:
            os.kill(os.getpid(), signal.SIGKILL)
        return Image.fromarray(np.full((16, 16, 3), index, np.uint8)), index % 3


def test_a_worker_that_is_killed_while_a_thread_pins_its_batches_is_a_sentence(tmp_path):
    go = partial(logitcache.dump_logits, tiny.net(3), image_size=16, batch_size=8, workers=2, device=str(DEVICE))
    with pytest.raises(InputError, match="a worker process that decodes images has ended"):
        go(Pictures(dies=True), tmp_path / "killed.zarr")
    whole = go(Pictures(dies=False), tmp_path / "whole.zarr")
    assert whole.manifest.samples == 60


def test_torchrun(cache, tmp_path):
    """One process on each GPU, at most two; with several, steps are called, and a line says why."""
    processes = min(max(torch.cuda.device_count(), 1), 2)
    np.savez(
        tmp_path / "data.npz", images=tiny.arrays()[0], labels=tiny.arrays()[1], classes=np.array(tiny.arrays()[2])
    )
    words = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"),
        *("-m", "logitcache", "train", str(cache.place), "--data", f"arrays:{tmp_path}/data.npz", "--student", "tiny:student"),
        *("--epochs", "1", "--device", DEVICE.type, "--cuda-graph", "on", "--out", str(tmp_path / "run")),
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(tiny.HERE)}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "steps are" in done.stdout + done.stderr
    assert (tmp_path / "run/student.safetensors").exists()


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    pytest.importorskip("transformers")
    place = tmp_path_factory.mktemp("stories") / "c.zarr"
    given = {"data": texts.stories(20, 24), "block_rows": 128, "device": str(DEVICE), "top_k": 16}
    return logitcache.dump_logits("hf:stories-mini", out=place, **given)


@pytest.mark.parametrize("method", ["ce", "kd", "rld", "dkd", "skew_kl", "tad"])
def test_text_is_dumped_and_learned(stories, tmp_path, method):
    given = {
        "student": "llama:hidden=16,layers=1,heads=2",
        "epochs": 2,
        "batch_size": 4,
        "sequence_length": 64,
        "lr": 1e-2,
    }
    runs = [
        logitcache.train_student(
            stories, method=method, data=texts.stories(20, 24), device=device, out=tmp_path / str(number), **given
        )
        for number, device in enumerate(("cpu", str(DEVICE)))
    ]
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), rel=1e-2)
    assert losses(runs[1])[1] < losses(runs[1])[0]


@pytest.mark.parametrize("method", METHODS)
def test_a_loss_is_that_of_the_cpu_and_asks_the_host_for_nothing(method):
    random = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(64, 100, generator=random) for _ in range(2))
    labels, found = torch.randint(0, 100, (64,), generator=random), []
    objective = make_objective(method, {})
    for device in ("cpu", DEVICE):
        logits = student.to(device).requires_grad_()
        rows = None if method == "ce" else teacher.to(device)
        targets = labels.to(device)
        objective(logits, rows, targets, 1.0)  # constants are made once
        with graphs.OnlyWhatAGraphHolds():
            total = objective(logits, rows, targets, 1.0).total
        found.append((float(total.detach()), gradient_norms(logits, {"all": total})["all"]))
    assert found[0] == pytest.approx(found[1], rel=1e-4)
