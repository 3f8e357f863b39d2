"""Processes: killed at any moment, several at one cache, and those of a DataLoader, forked or spawned."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from torch.utils.data import DataLoader, Dataset

import logitcache
from logitcache.data import ArrayImages
from logitcache.errors import CacheIncompleteError, CacheNotFoundError, InputError
from logitcache.store import check_files, open_cache

HERE = Path(__file__).parent


def dumped(path, pause=0.0):
    arguments = {
        "augment": "pad-crop-flip",
        "views": 3,
        "batch_size": 32,
        "block_rows": 64,
        "precision": "u8",
        "top_k": 2,
    }
    images = ArrayImages(*tiny.arrays())
    return logitcache.dump_logits(
        teacher=tiny.net(tiny.CLASSES), data=images, out=path, on_progress=lambda _: time.sleep(pause), **arguments
    )


def child(path):
    """Dump in a process of its own, again and again while another one has the lock."""
    process = os.fork()
    if process:
        return process
    try:
        while True:
            try:
                dumped(path, pause=0.002)
            except InputError:
                time.sleep(0.01)
            else:
                os._exit(0)
    finally:
        os._exit(1)


@pytest.mark.parametrize("processes", [1, 3])
@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_dumps_killed_at_random_moments_end_in_the_bytes_of_an_unbroken_one(tmp_path, processes, kills):
    """SIGKILL, one process or several that want the same cache; between kills it is refused or whole."""
    dumped(tmp_path / "whole.zarr")
    whole, moments, caches, killed = tiny.bytes_of(tmp_path / "whole.zarr"), random.Random(processes), 0, 0
    while killed < kills:
        path = tmp_path / f"{caches}.zarr"
        running = [child(path) for _ in range(processes)]
        time.sleep(moments.uniform(0, 0.35))
        for process in running:
            os.kill(process, signal.SIGKILL)
            killed += os.waitpid(process, 0)[1] == signal.SIGKILL
        try:
            assert not check_files(open_cache(path))
        except (CacheIncompleteError, CacheNotFoundError):
            continue
        assert tiny.bytes_of(path) == whole
        caches += 1
    dumped(path)
    assert tiny.bytes_of(path) == whole


class Rows(Dataset):
    """A cache in somebody's own loader: opened before the workers start."""

    def __init__(self, cache):
        self.cache = cache

    def __len__(self):
        return self.cache.manifest.samples

    def __getitem__(self, index):
        if not hasattr(self, "rows"):
            self.rows = self.cache.view(1, "sequential")["logits"]
        return index, self.rows[index]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_cache_goes_into_the_workers_of_a_loader(dump, method):
    cache = dump()
    expected = cache.view(1, "sequential")["logits"]  # threads of ours have run before the fork
    context = multiprocessing.get_context(method)
    for index, rows in DataLoader(Rows(cache), batch_size=50, num_workers=2, multiprocessing_context=context):
        assert (rows.numpy() == expected[index.numpy()]).all()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_dump_is_the_same_whatever_way_its_workers_start(tmp_path, method):
    folder = tmp_path / "images"
    from PIL import Image

    pixels, labels, classes = tiny.arrays()
    for number in range(60):
        place = folder / classes[labels[number]]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(pixels[number])).save(place / f"{number}.png")
    code = (
        "import multiprocessing, sys, logitcache\n"
        "if __name__ == '__main__':\n"
        f"    multiprocessing.set_start_method({method!r})\n"
        "    logitcache.dump_logits(teacher='tiny:net', data='imagefolder:' + sys.argv[1], out=sys.argv[2], workers=2,\n"
        "        augment='random-resized-crop-flip', batch_size=16, threads=1, image_size=16)\n"
    )
    (tmp_path / "run.py").write_text(code)
    line = [sys.executable, str(tmp_path / "run.py"), str(folder), str(tmp_path / "c.zarr")]
    subprocess.run(line, env={**os.environ, "PYTHONPATH": str(HERE)}, check=True, cwd=tmp_path)
    alone = logitcache.dump_logits(
        teacher="tiny:net", data=f"imagefolder:{folder}", out=tmp_path / "alone.zarr", workers=0,
        augment="random-resized-crop-flip", batch_size=16, threads=1, image_size=16,
    )  # fmt: skip
    assert tiny.bytes_of(tmp_path / "c.zarr") == tiny.bytes_of(alone.place.path)
