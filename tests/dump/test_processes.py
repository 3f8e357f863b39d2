"""Processes: killed at any moment, several at one cache, and those of a DataLoader, forked or spawned."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest
import tiny
from torch.utils.data import DataLoader, Dataset

import logitcache
from logitcache.data import ArrayImages
from logitcache.errors import CacheIncompleteError
from logitcache.store import check_files, open_cache

STARTS = ["fork", "forkserver", pytest.param("spawn", marks=pytest.mark.slow)]  # spawn imports torch in each worker
MIXED = "cifar-strong+mixup+cutmix"


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
    """Dump in a process of its own, until it is done."""
    return tiny.in_a_child(lambda: dumped(path, pause=0.002))


@pytest.mark.parametrize(("processes", "kills"), tiny.usual([(1, 4), (3, 4), (1, 100), (3, 100)], [(3, 4)]))
def test_dumps_killed_at_random_moments_end_in_the_bytes_of_an_unbroken_one(tmp_path, processes, kills):
    """SIGKILL, one process or several that want the same cache; between kills it is refused or whole."""
    tiny.kill_dumps(tmp_path, dumped, child, processes=processes, kills=kills, longest=0.35)


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


@pytest.mark.parametrize("method", STARTS)
def test_a_cache_goes_into_the_workers_of_a_loader(dump, method):
    cache = dump()
    expected = cache.view(1, "sequential")["logits"]  # threads of ours have run before the fork
    context = multiprocessing.get_context(method)
    for index, rows in DataLoader(Rows(cache), batch_size=50, num_workers=2, multiprocessing_context=context):
        assert (rows.numpy() == expected[index.numpy()]).all()


@pytest.mark.parametrize("method", STARTS)
def test_a_dump_is_the_same_whatever_way_its_workers_start(tmp_path, method):
    folder = tiny.folder_of(tmp_path / "images", 60)
    arguments = {
        "teacher": "tiny:net",
        "data": f"imagefolder:{folder}",
        "augment": "imagenet-strong+mixup",
        "image_size": 16,
    }
    arguments |= {"batch_size": 16, "threads": 1}
    multiprocessing.set_start_method(method, force=True)
    try:
        cache = logitcache.dump_logits(**arguments, out=tmp_path / "c.zarr", workers=2)
    finally:
        multiprocessing.set_start_method(None, force=True)
    alone = logitcache.dump_logits(**arguments, out=tmp_path / "alone.zarr", workers=0)
    assert tiny.bytes_of(cache.place.path) == tiny.bytes_of(alone.place.path)


def torchrun(count, npz, out, teacher="tiny:Slow", more=(), restarts=0, augment="pad-crop-flip"):
    words = f"dump --teacher {teacher} --data arrays:{npz} --out {out} --augment {augment} --views 4 --batch-size 16 --threads 1"
    start = f"-m torch.distributed.run --standalone --nproc-per-node {count} --max-restarts {restarts} -m logitcache"
    return [sys.executable, *start.split(), *words.split(), *more]


def in_blocks_of_64(monkeypatch_file):
    """The command line chooses blocks by size; this data would be one."""
    monkeypatch_file.write_text("import logitcache.dump.job\nlogitcache.dump.job.block_rows_for = lambda *_: 64\n")


@pytest.fixture
def environment_of_children(tmp_path):
    (tmp_path / "site").mkdir()
    in_blocks_of_64(tmp_path / "site/sitecustomize.py")
    return {**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}:{tiny.HERE}"}


def alone(npz, out, augment="pad-crop-flip"):
    return logitcache.dump_logits(
        teacher="tiny:Slow", data=f"arrays:{npz}", out=out, augment=augment, views=4, batch_size=16, threads=1, block_rows=64
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_write_what_one_writes(tmp_path, npz, environment_of_children):
    done = subprocess.run(
        torchrun(2, npz, tmp_path / "two.zarr", augment=MIXED),
        env=environment_of_children,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished") == 1
    assert "2 processes" in done.stderr
    assert done.stderr.count("1,200/1,200 rows") == 1
    cache = alone(npz, tmp_path / "one.zarr", augment=MIXED)
    assert cache.manifest.blocks == 5
    assert tiny.bytes_of(tmp_path / "two.zarr") == tiny.bytes_of(cache.place.path)


@pytest.mark.slow
def test_several_dumps_in_one_job(tmp_path, npz):
    (tmp_path / "run.py").write_text(
        "import sys, logitcache\n"
        "for seed in (0, 1):\n"
        "    logitcache.dump_logits(teacher='tiny:net', data='arrays:' + sys.argv[1], out=f'{seed}.zarr', seed=seed, views=2,\n"
        "        augment='pad-crop-flip', threads=1, block_rows=64)\n"
    )
    start = [sys.executable, *["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]]
    subprocess.run(
        [*start, str(tmp_path / "run.py"), str(npz)],
        env={**os.environ, "PYTHONPATH": str(tiny.HERE)},
        cwd=tmp_path,
        check=True,
    )
    for seed in (0, 1):
        cache = open_cache(tmp_path / f"{seed}.zarr")
        assert cache.manifest.views[0]["seed"] == seed
        assert not check_files(cache)


@pytest.mark.slow
def test_a_process_that_dies_is_replaced_and_their_number_may_change(tmp_path, npz, environment_of_children):
    """SIGKILL to one of three: torchrun starts them again; then to all, and one process goes on."""
    out = tmp_path / "c.zarr"
    process = subprocess.Popen(
        torchrun(3, npz, out, restarts=1), env=environment_of_children, stderr=subprocess.PIPE, text=True
    )
    records, deadline = out / ".logitcache/blocks", time.monotonic() + 120

    def wait_for(count):
        while len(list(records.glob("*/[0-9]*.json"))) < count:
            assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
            time.sleep(0.02)

    wait_for(2)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "logitcache"], capture_output=True, text=True, check=True
    )
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    wait_for(6)
    for pid in subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split():
        os.kill(int(pid), signal.SIGKILL)
    process.kill()
    process.communicate()
    with pytest.raises(CacheIncompleteError):
        open_cache(out)
    cache = alone(npz, out)
    assert tiny.bytes_of(out) == tiny.bytes_of(alone(npz, tmp_path / "whole.zarr").place.path)
    assert not check_files(cache)


@pytest.mark.slow
def test_a_process_with_another_teacher_is_refused(tmp_path, npz, environment_of_children):
    done = subprocess.run(
        torchrun(2, npz, tmp_path / "c.zarr", teacher="tiny:of_this_rank"),
        env=environment_of_children, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert (
        "process 1 would write a different cache from process 0; they differ in:\n  teachers.0.weights_sha256"
        in done.stderr
    )


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_dump_that_is_asked_to_stop_finishes_its_block_and_says_how_to_go_on(
    tmp_path, npz, environment_of_children, number
):
    out = tmp_path / "c.zarr"
    line = [sys.executable, "-m", "logitcache", *torchrun(1, npz, out)[10:]]
    process = subprocess.Popen(line, env=environment_of_children, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(out.glob(".logitcache/blocks/*/[0-9]*.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number
    assert "stopping after the current block; repeat to stop at once" in said
    assert (
        "stopped on request: " in said
        and f"of 20 blocks of {out} are committed. Resume with:\n  logitcache dump" in said
    )
    assert "Traceback" not in said
    command = said.strip().splitlines()[-1].split()
    subprocess.run([sys.executable, "-m", *command], env=environment_of_children, check=True, capture_output=True)
    assert tiny.bytes_of(out) == tiny.bytes_of(alone(npz, tmp_path / "whole.zarr").place.path)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_whole_group_that_is_asked_to_stop_finishes_its_block(tmp_path, environment_of_children, number):
    """Ctrl-C, schedulers and torchrun signal the workers of the loader too."""
    out, folder = tmp_path / "c.zarr", tiny.folder_of(tmp_path / "images", 300)
    words = f"dump --teacher tiny:Slow --data imagefolder:{folder} --out {out} --views 3 --batch-size 16 --threads 1"
    words += " --workers 2 --image-size 16"
    process = subprocess.Popen(
        [sys.executable, "-m", "logitcache", *words.split()],
        env=environment_of_children, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(out.glob(".logitcache/blocks/*/[0-9]*.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, number)
    os.killpg(process.pid, number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number, said
    assert "stopped on request" in said
    assert "Traceback" not in said
    assert len(list(out.glob(".logitcache/blocks/*/[0-9]*.json"))) >= 2
