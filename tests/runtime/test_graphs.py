"""When a function is called, captured and replayed; torch's part of it is stood in for, because it needs a GPU."""

import contextlib
import logging

import pytest
import torch

from logitcache.runtime.graphs import Replay


class Stream:
    device = torch.device("cuda:0")

    def __init__(self, _device=None):
        pass

    def wait_stream(self, other):
        pass


@pytest.fixture
def said(monkeypatch):
    """What happens: called, captured, replayed."""
    found = []

    class Graph:
        def replay(self):
            found.append("replayed")

    @contextlib.contextmanager
    def capture(graph, stream, capture_error_mode):
        assert isinstance(graph, Graph)
        assert isinstance(stream, Stream)
        found.append("captured")
        yield
        assert found.pop() == "called"  # kernels are noted, not run

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    return found


def test_a_function_is_captured_after_three_calls_and_replayed(said):
    runner = Replay(torch.device("cuda:0"), lambda: pytest.fail("nothing is to be recovered"), captures=True)
    for _ in range(5):
        runner.run("key", lambda: said.append("called"))
    assert said == ["called"] * 3 + ["captured", "replayed", "replayed"]


def test_with_other_numbers_of_the_host_it_is_captured_again(said):
    runner = Replay(torch.device("cuda:0"), lambda: None, captures=True)
    for key in ["one"] * 5 + ["other"] * 4:
        runner.run(key, lambda: said.append("called"))
    assert said[6:] == ["called"] * 3 + ["captured", "replayed"]


def test_without_captures_every_run_is_a_call(said):
    runner = Replay(torch.device("cpu"), lambda: None, captures=False)
    for _ in range(5):
        runner.run("key", lambda: said.append("called"))
    assert said == ["called"] * 5


def test_what_cannot_be_captured_is_recovered_from_and_called(said, caplog):
    runner, recovered = Replay(torch.device("cuda:0"), lambda: recovered.append(True), captures=True), []

    def function():
        if said[-1:] == ["captured"] and not recovered:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        said.append("called")

    with caplog.at_level(logging.WARNING):
        for _ in range(6):
            runner.run("key", function)
    assert said == ["called"] * 3 + ["captured"] + ["called"] * 3
    assert recovered == [True]
    assert [record.getMessage() for record in caplog.records] == [
        "steps are called, not replayed: they cannot be captured (operation not permitted when stream is capturing)"
    ]
