"""Several processes that train one student, as torchrun starts them."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny
import torch
import warm
from filelock import FileLock
from safetensors.torch import load_file
from torch.distributed import HashStore, TCPStore

import logitcache
from logitcache.runtime import processes as ranks
from logitcache.train.replicas import Replicas

JOB = """
import logging, os, pathlib, sys
import tiny, torch, logitcache
from logitcache.data import ArrayImages
from logitcache.errors import CacheMismatchError, StoppedError

rank, folder = int(os.environ["RANK"]), pathlib.Path(sys.argv[1])
images = ArrayImages(*tiny.arrays())

def train(name, cache="plain.zarr", **changes):
    given = {"student": "tiny:student", "epochs": 2, "batch_size": 48, "test_data": ArrayImages(*tiny.arrays("test"))} | changes
    return logitcache.train_student(cache=folder / cache, data=images, out=folder / name, **given)

for cache in ("plain", "mixed"):
    for live in (False, True):
        train(f"{cache}-{'live' if live else 'cached'}", f"{cache}.zarr", live_teacher=tiny.net(5) if live else False)
class Dropping(torch.nn.Module):  # keeps what its dropout leaves of each batch of ones
    def __init__(self):
        super().__init__()
        self.net, self.drawn = tiny.still(5), []
    def forward(self, x):
        kept = torch.nn.functional.dropout(torch.ones(len(x), 5), 0.5, self.training)
        if self.training:
            self.drawn.append(kept)
        return self.net(x) * kept

dropping = Dropping()
train("dropping", student=dropping)
torch.save(dropping.drawn, folder / f"drawn-{rank}.pt")
much = {"student": "tiny:still", "batch_size": 299, "grad_accum_steps": 2, "clip_grad": 1.0, "model_ema_decay": 0.9}
train("still", **much)
train("still-static", cuda_graph="on", **much)
train("mixed-static", "mixed.zarr", cuda_graph="on")

asked_in_second = 0
def asked():  # by the second process alone, in the second epoch
    global asked_in_second
    asked_in_second += (folder / "broken/metrics.jsonl").read_text().count("\\n") == 1
    return rank == 1 and asked_in_second > 1
train("whole", batch_size=8)
try:
    train("broken", batch_size=8, should_stop=asked)
except StoppedError as error:
    (folder / f"stopped-{rank}").write_text(str(error))
resumed = train("broken", batch_size=8, resume=True)
(folder / f"weights-{rank}").write_text(str(sum(float(value.double().sum()) for value in resumed.student.state_dict().values())))
try:
    train("unlike", lr=0.01 * (rank + 1))
except (CacheMismatchError, StoppedError) as error:
    (folder / f"refused-{rank}").write_text(str(error))
"""


def test_a_batch_is_divided_and_every_process_takes_part():
    batch = np.arange(10, 15)
    shares = [Replicas(rank, 3).share(batch) for rank in range(3)]
    assert [samples.tolist() for samples, _ in shares] == [[10, 11, 12], [13, 14], [10, 11]]  # none is a single row
    assert [counted for _, counted in shares] == [3, 2, 0]
    assert Replicas(0, 3).share(batch[:1])[0].tolist() == [10]
    assert Replicas().share(batch)[0] is not None
    assert Replicas().share(batch)[1] == 5


def test_a_job_remembers_which_runs_it_began(tmp_path):
    store = HashStore()
    Replicas(0, 2, store).begin(tmp_path / "ours")
    assert Replicas(0, 2, store).began(tmp_path / "ours")
    assert not Replicas(0, 2, store).began(tmp_path / "theirs")
    assert not Replicas().began(tmp_path / "ours")


def test_what_was_said_before_a_restart_is_not_heard_after_it(monkeypatch):
    """torchrun's store outlives a restart: a dead process's words, and how many had met, would be taken for those of now."""
    monkeypatch.setattr(ranks, "_joined", (HashStore(), 0, itertools.count()))
    for name, value in (("TORCHELASTIC_RUN_ID", "x"), ("WORLD_SIZE", "2"), ("RANK", "0")):
        monkeypatch.setenv(name, value)
    before = ranks.join_ranks(lambda: False)
    before.share("complete", value=True)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setattr(ranks, "_joined", (ranks._joined[0], 0, itertools.count()))
    store, _ = ranks.join_store()
    assert not store.check(["complete"])


def torchrun(count, *words, restarts=0):
    start = f"-m torch.distributed.run --standalone --nproc-per-node {count} --max-restarts {restarts}"
    return [sys.executable, *start.split(), *map(str, words)]


def train_words(cache, words):
    return ["-m", "logitcache", "train", cache.place.path, *words.split()]


ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(tiny.HERE), os.environ.get("PYTHONPATH", "")]),
    "OMP_NUM_THREADS": "1",
}


@pytest.fixture(scope="module")
def job(tmp_path_factory, worker_id):
    """What two processes leave behind; of several workers of pytest-xdist one runs them, and the others wait for it."""
    if worker_id == "master":
        return made(tmp_path_factory.mktemp("job"))
    shared = tmp_path_factory.getbasetemp().parent / "job"
    with FileLock(f"{shared}.lock"):
        if not shared.exists():
            shared.mkdir()
            made(shared)
    return shared


def made(folder):
    images = logitcache.data.ArrayImages(*tiny.arrays())
    for name, augment in (("plain", "pad-crop-flip"), ("mixed", "pad-crop-flip+mixup+cutmix")):
        logitcache.dump_logits(
            teacher=tiny.net(5), data=images, out=folder / f"{name}.zarr", augment=augment, views=2, precision="f32", threads=1,
            batch_size=32,
        )  # fmt: skip
    (folder / "job.py").write_text(JOB)
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    job = [folder / "job.py", folder]
    for process in [warm.Command("python", job, folder, told_by_torchrun(rank, 2, store)) for rank in range(2)]:
        code, said = process.end()
        assert code == 0, said
    return folder


def told_by_torchrun(rank, world, store):
    """What a process finds in its environment; the slow tests start torchrun itself."""
    found = {
        "MASTER_ADDR": "localhost", "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_RESTART_COUNT": 0, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world,
    }  # fmt: skip
    return {name: str(value) for name, value in found.items()}


def weights(folder, file="student"):
    return torch.cat([value.flatten().double() for value in load_file(folder / f"{file}.safetensors").values()])


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("cache", ["plain", "mixed"])
def test_cached_is_live_in_two_processes(job, cache):
    assert torch.equal(weights(job / f"{cache}-cached"), weights(job / f"{cache}-live"))
    assert json.loads((job / f"{cache}-live/run.json").read_text())["hardware"]["processes"] == 2


def test_every_process_draws_its_own_dropout(job):
    """In each of 14 steps; a process that drew what another does would drop the same of other rows."""
    first, second = (torch.load(job / f"drawn-{rank}.pt") for rank in (0, 1))
    assert [len(kept) for kept in first] == [len(kept) for kept in second] == [*[24] * 6, 6] * 2
    assert all((one != other).any() for one, other in zip(first, second, strict=True))
    assert all((one != other).any() for drawn in (first, second) for one, other in itertools.combinations(drawn[:6], 2))


def test_two_processes_take_the_steps_of_one(job, tmp_path):
    """In other sums, so to rounding; with micro-batches, and a last batch of one row, which leaves a process without."""
    logitcache.train_student(
        cache=job / "plain.zarr", data=logitcache.data.ArrayImages(*tiny.arrays()), student="tiny:still", epochs=2,
        test_data=logitcache.data.ArrayImages(*tiny.arrays("test")), batch_size=299, grad_accum_steps=2, clip_grad=1.0,
        model_ema_decay=0.9, out=tmp_path / "alone",
    )  # fmt: skip
    for file in ("student", "student-ema"):
        assert torch.allclose(weights(job / "still", file), weights(tmp_path / "alone", file), atol=1e-6)
    for two, one in zip(metrics(job / "still"), metrics(tmp_path / "alone"), strict=True):
        for name in ("loss", "ce", "kd", "train_accuracy", "teacher_agreement", "test_accuracy", "test_ece"):
            assert two[name] == pytest.approx(one[name], rel=1e-4), name


@pytest.mark.parametrize(
    ("static", "usual", "files"),
    [("mixed-static", "mixed-cached", ["student"]), ("still-static", "still", ["student", "student-ema"])],
)
def test_static_steps_average_gradients_and_share_buffers_as_torch_does(job, static, usual, files):
    for file in files:
        assert torch.equal(weights(job / static, file), weights(job / usual, file))
    timed = {"seconds": 0, "images_per_second": 0}
    assert [one | timed for one in metrics(job / static)] == [one | timed for one in metrics(job / usual)]


def test_a_stop_that_one_process_hears_stops_all_and_goes_on_as_if_unbroken(job):
    for rank in (0, 1):
        assert re.search(r"stopped on request after step \d+ of 38 of epoch 2", (job / f"stopped-{rank}").read_text())
    assert torch.equal(weights(job / "whole"), weights(job / "broken"))
    assert (job / "weights-0").read_text() == (job / "weights-1").read_text()
    unbroken, resumed = (
        [{**one, "seconds": 0, "images_per_second": 0} for one in metrics(job / name)] for name in ("whole", "broken")
    )
    assert unbroken == resumed


def test_processes_that_would_train_something_else_are_refused(job):
    for rank in (0, 1):
        said = (job / f"refused-{rank}").read_text()
        assert (
            "process 1 would train something else than process 0; they differ in:\n  lr: there 0.01, here 0.02\n"
            in said
        )
    assert not (job / "unlike").exists()


@pytest.mark.slow
def test_a_process_that_dies_is_replaced_and_the_run_goes_on(tmp_path, npz):
    """SIGKILL to one of two: torchrun starts both again, with the same words; the end is that of an unbroken run."""
    cache = logitcache.dump_logits(
        teacher="tiny:net", data=f"arrays:{npz}", out=tmp_path / "c.zarr", views=2, augment="pad-crop-flip", threads=1
    )
    words = train_words(cache, "--student tiny:Slow --epochs 3 --batch-size 32 --out")
    process = subprocess.Popen(
        torchrun(2, *words, tmp_path / "run", restarts=1), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "run/checkpoint.pt").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.02)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid), "-f", "logitcache"], capture_output=True, text=True, check=True
    )
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    said = process.communicate(timeout=180)[1]
    assert process.returncode == 0, said
    whole = subprocess.run(
        torchrun(2, *words, tmp_path / "whole"), env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert whole.stdout.count("tiny:Slow") == 1  # one process speaks
    assert "find_unused_parameters" not in whole.stderr
    assert torch.equal(weights(tmp_path / "run"), weights(tmp_path / "whole"))


@pytest.mark.parametrize("command", ["train", "dump"])
def test_torchrun_lets_every_option_of_ours_through(command):
    """Its parser takes what could be short for two of its own options for an error, wherever it stands."""
    from logitcache.cli.app import app
    from torch.distributed.run import get_args_parser
    from typer.main import get_command

    options = [
        option for one in get_command(app).commands[command].params for option in one.opts if option.startswith("--")
    ]
    assert len(options) > 20
    for option in options:
        found = get_args_parser().parse_args(["--nproc-per-node", "2", "-m", "logitcache", command, option, "1"])
        assert found.training_script_args == [command, option, "1"]


ODD = """
import os, pathlib, sys
import tiny, torch, logitcache
from logitcache.data import ArrayImages
from logitcache.errors import StoppedError

rank, folder = int(os.environ["RANK"]), pathlib.Path(sys.argv[1])

class Odd(torch.nn.Module):  # a layer that is never used, and batch normalisation that refuses a single row
    def __init__(self):
        super().__init__()
        self.net, self.idle, self.norm = tiny.still(16), torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(16)
        self.head = torch.nn.Linear(16, 5)
    def forward(self, x):
        return self.head(self.norm(self.net(x)))

def train(name, **changes):  # 300 rows in batches of 99 leave 3 for three processes
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student = Odd()
    return logitcache.train_student(
        cache=folder / "c.zarr", data=ArrayImages(*tiny.arrays()), student=student, epochs=3, batch_size=99, out=folder / name, **changes
    )

train("whole")
try:
    train("broken", should_stop=lambda: rank == 2)
except StoppedError:
    train("broken", resume=True)
"""


@pytest.mark.slow
def test_three_processes_resume_bit_for_bit_with_a_layer_that_is_not_used(tmp_path):
    """Three terms depend on the order in which they are added, and torch may change it after the first step."""
    logitcache.dump_logits(
        teacher=tiny.net(5), data=logitcache.data.ArrayImages(*tiny.arrays()), out=tmp_path / "c.zarr", threads=1
    )
    (tmp_path / "odd.py").write_text(ODD)
    done = subprocess.run(
        torchrun(3, tmp_path / "odd.py", tmp_path), env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert torch.equal(weights(tmp_path / "whole"), weights(tmp_path / "broken"))


@pytest.mark.slow
def test_a_restart_does_not_take_up_a_run_that_was_there_before(tmp_path, npz):
    cache = logitcache.dump_logits(teacher="tiny:net", data=f"arrays:{npz}", out=tmp_path / "c.zarr", threads=1)
    words = train_words(cache, "--student tiny:still --epochs 1 --out run")
    before = logitcache.train_student(cache=cache, student="tiny:still", epochs=1, out=tmp_path / "run")
    done = subprocess.run(
        torchrun(2, *words, restarts=1), env=ENVIRONMENT, capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode != 0
    assert done.stderr.count("already holds a run; nothing in it was touched") == 2
    assert done.stderr.count("process 1 stopped because process 0 failed; see its error") == 2
    assert before.results == json.loads((tmp_path / "run/run.json").read_text())["results"]


@pytest.mark.slow
def test_torchrun_that_is_asked_to_stop_saves_the_run(tmp_path, npz):
    cache = logitcache.dump_logits(teacher="tiny:net", data=f"arrays:{npz}", out=tmp_path / "c.zarr", threads=1)
    words = train_words(cache, "--student tiny:Slow --epochs 2 --batch-size 8 --out run")
    process = subprocess.Popen(torchrun(2, *words), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run/run.json").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.02)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert re.search(r"stopped on request after step \d+ of 38 of epoch 1", said)
    assert (tmp_path / "run/checkpoint.pt").exists()
