"""Small networks and data for the tests; named on command lines as tiny:NAME."""

import os
import random
import signal
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from logitcache.errors import CacheIncompleteError, CacheNotFoundError, InputError
from logitcache.store import check_files, open_cache

SAMPLES, SIZE, CLASSES = 300, 16, 5
HERE = Path(__file__).parent  # the folder to put on PYTHONPATH of a child that names tiny:NAME


def usual(every: Iterable[Any], some: Collection[Any]) -> list[Any]:
    """Return cases for pytest, of which only some belong to the default run; the others are slow tests.

    Args:
        every: The cases; one of several values is a tuple.
        some: Those of them that the default run takes, together with each value at least once.
    """
    return [
        pytest.param(*(one if isinstance(one, tuple) else [one]), marks=() if one in some else pytest.mark.slow)
        for one in every
    ]


def net(classes: int) -> nn.Module:
    """A network with batch normalisation and dropout, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return _layers(classes)


def _layers(classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(32, classes),
    )


def student(classes: int) -> nn.Module:
    """The same with weights from the global generator, as real students have."""
    return _layers(classes)


def still(classes: int) -> nn.Module:
    """A student whose answer depends on nothing but its weights and the image: no dropout, no batch normalisation."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, classes)
    )


class Slow(nn.Module):
    """Takes its time, so that a test can kill it in the middle."""

    pause = 0.15

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.net = net(classes)

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.pause)
        return self.net(x)


class Unhurried(Slow):
    """The same, where only one process has to be met in the middle."""

    pause = 0.05


class Poisoned(nn.Module):
    """Answers NaN for bright images."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.net = net(classes)

    def forward(self, x: Tensor) -> Tensor:
        bright = x.mean((1, 2, 3)) > x.mean((1, 2, 3)).median()
        return self.net(x).masked_fill(bright[:, None], torch.nan)


class Loud(nn.Module):
    """Answers beyond float16."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.net = net(classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * 1e6


class Wrapped(nn.Module):
    """Answers in some other shape: as a tuple, a dict, an object with logits, or with nothing of the kind."""

    shape = "tuple"

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.net = net(classes)

    def forward(self, x: Tensor) -> object:
        logits = self.net(x)
        return {
            "tuple": (logits, x),
            "dict": {"features": x, "logits": logits},
            "object": SimpleNamespace(logits=logits, hidden_states=x),
            "nothing": {"features": x},
        }[self.shape]


def seven(_classes: int) -> nn.Module:
    """A teacher of seven classes, whatever it is asked for."""
    return net(7)


def arrays(split: str = "train") -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Coloured noise; the colour says the class."""
    samples = SAMPLES if split == "train" else 60
    random = np.random.RandomState(len(split))
    labels = random.randint(0, CLASSES, samples)
    images = random.randint(0, 120, (samples, SIZE, SIZE, 3)) + (labels * 25)[:, None, None, None] * np.array([1, 0, 1])
    return images.clip(0, 255).astype(np.uint8), labels, [f"class {i}" for i in range(CLASSES)]


def bytes_of(path: Path) -> dict[str, bytes]:
    """Every file of a cache but what the format leaves outside of every comparison."""
    outside = {".logitcache/history.jsonl", ".logitcache/lock"}
    files = {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    return {name: data for name, data in files.items() if name not in outside}


def folder_of(path: Path, count: int) -> Path:
    """The first images as files, in a folder a class."""
    pixels, labels, classes = arrays()
    for number in range(count):
        place = path / classes[labels[number]]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(pixels[number])).save(place / f"{number:03}.png")
    return path


def columns_of(cache, view: int = 0, slug: str = "sequential") -> dict[str, np.ndarray]:
    """Each column of a view, [N, ...]."""
    rows = cache.view(view, slug)
    return {name: rows[name] for name in rows.dtype.names}


def of_this_rank(classes: int) -> nn.Module:
    """A teacher that is another in every process of a job."""
    network = net(classes)
    with torch.no_grad():
        network[0].bias += float(os.environ.get("RANK", "0"))
    return network


def without_logits(classes: int) -> nn.Module:
    """A teacher that answers with features alone."""
    network = Wrapped(classes)
    network.shape = "nothing"
    return network


class Poison(nn.Module):
    """A part without weights that turns what it is given into NaN."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.nan


def kill_dumps(folder, dumped, child, *, processes, kills, longest):
    """Kill dumps at random moments; between kills a cache is refused or whole, and a finished one has the bytes of an unbroken dump.

    Args:
        folder: Folder for the caches.
        dumped: Dumps into a path, to the end.
        child: Does so in a process of its own; returns its id.
        processes: Processes that want the same cache.
        kills: Processes to kill.
        longest: Most seconds before they are killed.
    """
    dumped(folder / "whole.zarr")
    whole, moments, caches, killed = bytes_of(folder / "whole.zarr"), random.Random(processes), 0, 0
    while killed < kills:
        path = folder / f"{caches}.zarr"
        running = [child(path) for _ in range(processes)]
        time.sleep(moments.uniform(0, longest))
        for process in running:
            os.kill(process, signal.SIGKILL)
            killed += os.waitpid(process, 0)[1] == signal.SIGKILL
        try:
            assert not check_files(open_cache(path))
        except (CacheIncompleteError, CacheNotFoundError):
            continue
        # A kill after the mark may leave records of single blocks, which nobody reads: the next dump removes them.
        dumped(path)
        assert bytes_of(path) == whole
        caches += 1
    dumped(path)
    assert bytes_of(path) == whole


def in_a_child(dump):
    """Call `dump` in a process of its own, again and again while another one has the lock; return the process id."""
    process = os.fork()
    if process:
        return process
    try:
        while True:
            try:
                dump()
            except InputError:
                time.sleep(0.01)
            else:
                os._exit(0)
    finally:
        os._exit(1)
