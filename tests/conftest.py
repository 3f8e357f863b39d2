"""What tests share. One thread: tiny networks gain nothing from more, and two busy test runs on one machine lose much."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
if (
    os.environ.get("LOGITCACHE_GPU_TESTS") != "cuda"
):  # tests compare bits, which a GPU computes otherwise: those of tests/gpu alone see one
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as `import logitcache` does, for the tests with two

import functools
import gc
import inspect
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import tiny
import torch
from logitcache.cli.app import app
from typer.main import get_command
from typer.testing import CliRunner, Result

import logitcache
from logitcache.data import ArrayImages
from logitcache.models import hash_weights
from logitcache.store import Cache, open_cache

hypothesis.settings.register_profile("default", deadline=None, max_examples=10)
hypothesis.settings.register_profile("ci", deadline=None, max_examples=10, derandomize=True)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=50)  # of `make test-all`
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")

HERE = Path(__file__).parent
_parser = functools.cache(get_command)  # of every command and option, which typer's runner would build at each line


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--method", help="hold this method, package.module:name, against the contract instead of ours")


def pytest_collection_finish() -> None:
    """Exclude imported objects, half a million, from garbage collection, which would traverse them again and again."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Unfreeze these objects, because extension modules report types that are still alive at exit as leaks."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _no_waiting_for_disks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fsync is for, a loss of power, does not happen here; tests that count or break its calls replace it themselves."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture
def images() -> ArrayImages:
    return ArrayImages(*tiny.arrays())


@pytest.fixture
def test_images() -> ArrayImages:
    return ArrayImages(*tiny.arrays("test"))


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    """The same images as a file."""
    pixels, labels, classes = tiny.arrays()
    path = tmp_path / "data.npz"
    np.savez(path, images=pixels, labels=labels, classes=np.array(classes))
    return path


@pytest.fixture(scope="session")
def server() -> Iterator[tuple[str, int]]:
    """A server that speaks S3, on loopback."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture
def environment(server: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What a user exports."""
    found = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "do-not-write-this-anywhere",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{server[0]}:{server[1]}",
    }
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    return found


@pytest.fixture
def amazon(environment: dict[str, str]) -> Any:
    import boto3

    return boto3.client("s3")


Dump = Callable[..., Cache]
# Tests in these folders are given a cache: what one has dumped is copied for the others. Tests elsewhere, or that patch, dump anew.
COPYING = {"runs", "stats", "train"}
PLAIN = {
    "augment", "batch_size", "block_rows", "encoding", "out", "precision", "seed", "teacher", "threads", "top_k", "views",
}  # fmt: skip


@pytest.fixture(scope="session")
def dumped_before(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], Path]:
    """A path for each request for a cache, by what it asks for."""
    folder, known = tmp_path_factory.mktemp("dumped"), dict[str, Path]()

    def place(changes: dict[str, Any]) -> Path:
        teacher = changes.get("teacher")
        if isinstance(teacher, torch.nn.Module):
            changes = changes | {"teacher": f"{teacher!r} {hash_weights(teacher.state_dict())}"}
        asked = repr(sorted((name, value) for name, value in changes.items() if name != "out"))
        return known.setdefault(asked, folder / f"{len(known)}.zarr")

    return place


@pytest.fixture
def dump(
    request: pytest.FixtureRequest, tmp_path: Path, images: ArrayImages, dumped_before: Callable[[dict[str, Any]], Path]
) -> Dump:
    """Dump the tiny teacher over the tiny data: 300 samples in three blocks, two views, batches of 64."""

    def make(**changes: Any) -> Cache:
        arguments: dict[str, Any] = {
            "teacher": tiny.net(tiny.CLASSES),
            "data": images,
            "out": tmp_path / "c.zarr",
            "augment": "pad-crop-flip",
            "views": 2,
            "precision": "f32",
            "batch_size": 64,
            "block_rows": 128,
        }
        return logitcache.dump_logits(**(arguments | changes))

    def copy(**changes: Any) -> Cache:
        out = Path(changes.get("out", tmp_path / "c.zarr"))
        if not changes.keys() <= PLAIN or out.exists():
            return make(**changes)
        before = dumped_before(changes)
        if before.exists():
            shutil.copytree(before, out)
        else:
            make(**changes)
            shutil.copytree(out, before)
        return open_cache(out)

    patches = "monkeypatch" in inspect.signature(request.function).parameters  # perhaps what a dump is made with
    return copy if request.path.parent.name in COPYING and not patches else make


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Type a command in an empty folder."""
    monkeypatch.setattr("typer.testing._get_command", _parser)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(HERE))

    def type_(*words: str) -> Result:
        return CliRunner().invoke(app, list(words), prog_name="logitcache", catch_exceptions=False)

    return type_
