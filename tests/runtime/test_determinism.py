"""Deterministic algorithms: switched on for a while, restored, and explained where there is none."""

import os

import pytest
import tiny
import torch
from torch import nn

from logitcache.errors import CacheMismatchError, InputError
from logitcache.runtime.determinism import deterministic_algorithms


def modes() -> tuple[bool, bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
    )


@pytest.fixture
def _no_cublas_setting(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")


@pytest.mark.usefixtures("_no_cublas_setting")
def test_deterministic_algorithms_are_used_for_a_while_and_restored(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = modes()
    with deterministic_algorithms("it"):
        assert modes() == (True, False, False)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert modes() == before
    with pytest.raises(ZeroDivisionError), deterministic_algorithms("it"):
        raise ZeroDivisionError
    assert modes() == before


@pytest.mark.usefixtures("_no_cublas_setting")
def test_nothing_changes_where_they_are_not_asked_for():
    before = modes()
    with deterministic_algorithms("it", enabled=False):
        assert modes() == before
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


def test_an_operation_without_a_deterministic_implementation_is_named():
    expected = (
        "the student uses put_, which has no deterministic implementation on this device; leave out `deterministic`"
    )
    with pytest.raises(InputError, match=expected), deterministic_algorithms("the student"):
        torch.zeros(4).put_(torch.tensor([1]), torch.ones(1))


def test_a_setting_of_cublas_that_came_too_late_is_explained(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    said = "this operation is not deterministic because it uses CuBLAS: set CUBLAS_WORKSPACE_CONFIG=:4096:8"
    with pytest.raises(InputError, match=r"is ':0:0' or was set after"), deterministic_algorithms("the student"):
        raise RuntimeError(said)


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match="^no such thing$"), deterministic_algorithms("it"):
        raise RuntimeError("no such thing")


class Watching(nn.Module):
    """The tiny teacher; notes whether it runs with deterministic algorithms."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.seen = tiny.net(tiny.CLASSES), set[bool]()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        self.seen.add(torch.are_deterministic_algorithms_enabled())
        return self.net(pixels)


@pytest.mark.parametrize("asked", [False, True])
def test_a_dump_records_the_algorithms_its_teacher_ran_with(dump, asked):
    teacher = Watching()
    cache = dump(teacher=teacher, deterministic=asked)
    assert teacher.seen == {asked}
    assert cache.manifest.forward.get("deterministic") is (True if asked else None)


def test_a_dump_goes_on_only_with_the_algorithms_it_was_begun_with(dump):
    dump(deterministic=True)
    with pytest.raises(CacheMismatchError, match=r"forward\.deterministic"):
        dump()


def test_a_teacher_that_cannot_be_deterministic_is_refused(dump):
    class Putting(Watching):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return super().forward(pixels).put_(torch.tensor([0]), torch.zeros(1))

    with pytest.raises(InputError, match=r"teacher Putting uses put_, which has no deterministic implementation"):
        dump(teacher=Putting(), deterministic=True)
