"""Workers that die, fail or cannot be built: one sentence, at once, and nobody else is blamed or interrupted."""

import gc
import os
import queue
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset

import logitcache
from logitcache.data.images.rendering import Renderer, preprocessing_for
from logitcache.data.images.sets import MappedImages
from logitcache.data.images.views import make_views
from logitcache.errors import InputError
from logitcache.runtime.workers import Failure, _end_processes, pack, unpack

ENDED = r"^a worker process that decodes images has ended \(.*--shm-size.*`workers` 0 decodes in this process\.$"


class Pictures(Dataset):
    """Sixty images of three classes; while item 37 is made, something happens."""

    classes = ("ant", "bee", "cow")

    def __init__(self, event=lambda: None):
        self.event, self.main = event, os.getpid()
        self.targets = [number % 3 for number in range(60)]

    def __len__(self):
        return 60

    def __getitem__(self, index):
        if index == 37 and os.getpid() != self.main:
            self.event()
        return Image.fromarray(np.full((16, 16, 3), index, np.uint8)), index % 3


def killed():
    """Die while the network is at work on an earlier batch."""
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGKILL)


class Slow(nn.Module):
    """A network that is at work most of the time."""

    def __init__(self, pause=0.15):
        super().__init__()
        self.net, self.pause = tiny.net(3), pause

    def forward(self, x):
        time.sleep(self.pause)
        return self.net(x)


SETTINGS = {"image_size": 16, "batch_size": 8, "workers": 2}


@pytest.fixture
def cache(tmp_path):
    return logitcache.dump_logits(tiny.net(3), Pictures(), tmp_path / "c.zarr", **SETTINGS | {"workers": 0})


@pytest.fixture
def others_loader():
    """Torch's handler of dead workers in force all the time, as it is for whoever has a loader of their own."""
    before = signal.getsignal(signal.SIGCHLD)
    list(DataLoader(range(4), num_workers=1))
    if signal.getsignal(signal.SIGCHLD) is before:  # torch has set it once already, in this process
        from logitcache.runtime import workers

        signal.signal(signal.SIGCHLD, workers._report_deaths)
    yield
    signal.signal(signal.SIGCHLD, before)


def check_ended_in_time(began, raised):
    assert "\n" not in str(raised.value)
    assert time.monotonic() - began < 10


def test_a_worker_that_dies_while_the_teacher_runs_is_not_the_teachers_fault_and_nothing_is_lost(tmp_path):
    began, place = time.monotonic(), tmp_path / "c.zarr"
    with pytest.raises(InputError, match=ENDED) as raised:
        logitcache.dump_logits(Slow(), Pictures(killed), place, **SETTINGS, block_rows=8)
    check_ended_in_time(began, raised)
    assert signal.getsignal(signal.SIGCHLD) in (signal.SIG_DFL, None)
    logitcache.dump_logits(Slow(0), Pictures(), place, **SETTINGS | {"workers": 0}, block_rows=8)
    logitcache.dump_logits(Slow(0), Pictures(), tmp_path / "whole.zarr", **SETTINGS | {"workers": 0}, block_rows=8)
    assert tiny.bytes_of(place) == tiny.bytes_of(tmp_path / "whole.zarr")


@pytest.mark.usefixtures("others_loader")
def test_where_torch_interrupts_the_teacher_the_worker_is_named_all_the_same(tmp_path):
    with pytest.raises(InputError, match=ENDED):
        logitcache.dump_logits(Slow(), Pictures(killed), tmp_path / "c.zarr", **SETTINGS)


@pytest.mark.parametrize("where", ["training", "evaluation"])
def test_a_worker_that_dies_while_the_student_runs_is_not_the_students_fault(tmp_path, cache, where):
    data = {where: Pictures(killed)}
    began = time.monotonic()
    with pytest.raises(InputError, match=ENDED) as raised:
        logitcache.train_student(
            cache,
            Slow(),
            data=data.get("training", Pictures()),
            test_data=data.get("evaluation", Pictures()),
            epochs=1,
            out=tmp_path / "run",
            **SETTINGS,
        )
    check_ended_in_time(began, raised)


class Odd(Exception):
    """An exception that cannot be built again from its message."""

    def __init__(self, code, *, place):
        super().__init__(code, place)


def odd():
    raise Odd(7, place="there")


def many_lines():
    raise RuntimeError("\n\n  first\nInputError: second\n")


def nothing_said():
    raise AssertionError


class Mute(Exception):
    """An exception that cannot say what it is."""

    def __str__(self):
        raise RuntimeError


def mute():
    raise Mute


def recurse():
    recurse()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("event", "said"),
    [
        (odd, "Odd: (7, 'there')"),
        (many_lines, "RuntimeError: first"),
        (nothing_said, "AssertionError"),
        (mute, "Mute"),
        (recurse, "RecursionError: maximum recursion depth exceeded"),
        (sys.exit, "SystemExit"),
        (lambda: next(iter([])), "StopIteration"),
        (lambda: bytearray(1 << 62), "MemoryError"),
    ],
    ids=["odd", "lines", "empty", "mute", "recursion", "exit", "stop", "memory"],
)
def test_whatever_an_item_raises_is_one_sentence_with_its_sample(tmp_path, event, said, workers):
    data = Pictures(event)
    data.main = None
    with pytest.raises(InputError) as raised:
        logitcache.dump_logits(tiny.net(3), data, tmp_path / "c.zarr", **SETTINGS | {"workers": workers})
    assert str(raised.value).startswith(f"sample 37 of Pictures cannot be read: {said}. Fix it, or leave it out: ")
    assert "\n" not in str(raised.value)


def interrupt():
    raise KeyboardInterrupt


def test_an_interrupt_that_an_item_raises_in_a_worker_is_a_failure_of_that_item(tmp_path):
    with pytest.raises(InputError) as raised:
        logitcache.dump_logits(tiny.net(3), Pictures(interrupt), tmp_path / "c.zarr", **SETTINGS)
    assert str(raised.value) == "samples 32 to 39 cannot be rendered: KeyboardInterrupt"


def test_workers_that_are_collected_late_end_at_once_and_forked_processes_leave_them_alone(capfd):
    data = MappedImages(Pictures())
    renderer = Renderer(data, [preprocessing_for(data, "none", {"image_size": 16})], workers=2)
    view = make_views("none", 1, 0)[0]
    next(batches := renderer.batches(view, [np.arange(8)] * 6))
    cycle = [renderer, batches]
    cycle.append(cycle)
    gc.disable()
    try:
        del renderer, batches, cycle
        child = os.fork()
        if child == 0:
            gc.collect()
            os._exit(0)
        began = time.monotonic()
        assert os.waitpid(child, 0)[1] == 0
        gc.collect()
    finally:
        gc.enable()
    assert time.monotonic() - began < 3
    assert capfd.readouterr() == ("", "")


def test_a_worker_killed_while_it_holds_a_lock_holds_up_nobody():
    """A worker asks every few seconds whether the parent is done, and holds the lock of that event meanwhile."""
    data = MappedImages(Pictures())
    renderer = Renderer(data, [preprocessing_for(data, "none", {"image_size": 16})], workers=2)
    next(renderer.batches(make_views("none", 1, 0)[0], [np.arange(8)] * 6))
    stream = renderer._processes._loader._iterator
    stream._workers_done_event._cond._lock.acquire()  # as a dead worker, which never releases it
    closing = threading.Thread(target=renderer._processes.close, daemon=True)
    closing.start()
    closing.join(5)
    assert not closing.is_alive()
    assert not any(process.is_alive() for process in stream._workers)


def test_what_is_packed_comes_back_or_says_why_not():
    assert unpack(pack({"a": 1}), "it cannot be built") == {"a": 1}
    found = unpack(pack({"a": 1})[:-3], "it cannot be built")
    assert isinstance(found, Failure)
    assert str(found.error()).startswith("it cannot be built: ")
    assert "Traceback" in found.error().__notes__[0]


def test_no_shared_memory_is_a_sentence_that_names_the_remedy(tmp_path, monkeypatch):
    def full(_):
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_7>: No space left on device (28)\nat 0x7"
        )

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(
        InputError, match=r"no shared memory left \(unable .* \(28\)\)\. Enlarge it \(in Docker: `--shm-size 8g`\)"
    ):
        logitcache.dump_logits(tiny.net(3), Pictures(), tmp_path / "c.zarr", **SETTINGS)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["64m", "1m"])
def test_a_small_device_for_shared_memory_ends_with_a_result_or_a_sentence(tmp_path, size):
    """Docker's default is 64 MB; batches of 150 kB an image pass it with eight workers."""
    pixels = np.random.default_rng(0).integers(0, 256, (96, 224, 224, 3)).astype(np.uint8)
    np.savez(tmp_path / "d.npz", images=pixels, labels=np.arange(96) % 5)
    words = "--data arrays:d.npz --image-size 448 --augment random-resized-crop-flip --batch-size 48 --workers 4 --out c.zarr"
    script = f"mount -t tmpfs -o size={size} tmpfs /dev/shm || exit 99; exec {sys.executable} -m logitcache dump --teacher tiny:net {words}"
    began = time.monotonic()
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tiny.HERE)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("no right to mount here")
    assert time.monotonic() - began < 40
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 1)
    assert ("finished" in done.stdout) if done.returncode == 0 else ("--shm-size" in done.stderr)


def test_memory_that_processes_share_holds_a_batch():
    data = MappedImages(Pictures())
    renderer = Renderer(data, [preprocessing_for(data, "none", {"image_size": 16})], workers=1)
    (batch,) = renderer.batches(make_views("none", 1, 0)[0], [np.arange(8)])
    assert batch.inputs[0].is_shared()
    assert torch.equal(batch.inputs[0][3], data.image(3))


@pytest.mark.parametrize("inside", [False, True])
def test_the_thread_that_pins_memory_ends_before_the_workers_that_it_listens_to(inside):
    """As on a GPU, with a stand-in for torch's iterator: the thread would print a traceback and be waited for."""
    alive_at_kill, closed = [], []

    class Process:
        def kill(self):
            alive_at_kill.append(thread.is_alive())

        def join(self, _timeout):
            pass

    class Queue(queue.Queue):
        def cancel_join_thread(self):
            pass

        def close(self):
            closed.append(self)

    class Stream:
        _worker_pids_set = False
        _workers = (Process(), Process())
        _worker_result_queue = Queue()
        _index_queues = (Queue(), Queue())
        _pin_memory_thread_done_event = threading.Event()

    stream = Stream()

    def listen():
        if inside:  # Python collects circles whenever it likes
            _end_processes(stream, os.getpid())
        while stream._worker_result_queue.get() != (None, None):
            pass

    stream._pin_memory_thread = thread = threading.Thread(target=listen)
    thread.start()
    if not inside:
        _end_processes(stream, os.getpid())
    thread.join(5)
    assert not thread.is_alive()
    assert alive_at_kill == [inside, inside]
    assert closed == [*stream._index_queues, *([] if inside else [stream._worker_result_queue])]
    assert stream._shutdown
    assert stream._pin_memory_thread_done_event.is_set()
