"""Training with deterministic algorithms: asked for, recorded, and refused where a student has none."""

import json

import pytest
import tiny
import torch
from torch import nn

import logitcache
from logitcache.errors import CacheMismatchError, InputError


class Watching(nn.Module):
    """The tiny student; notes whether it runs with deterministic algorithms."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = tiny.net(tiny.CLASSES), set()

    def forward(self, x):
        self.seen.add(torch.are_deterministic_algorithms_enabled())
        return self.net(x)


@pytest.fixture
def train(tmp_path, images):
    def go(student=None, **changes):
        arguments = {"data": images, "method": "ce", "epochs": 1, "batch_size": 150, "out": tmp_path / "run"}
        return logitcache.train_student(None, student or tiny.net(tiny.CLASSES), **(arguments | changes))

    return go


@pytest.mark.parametrize("asked", [False, True])
def test_a_training_records_the_algorithms_it_ran_with(train, asked):
    student = Watching()
    run = train(student, deterministic=asked)
    assert student.seen == {asked}
    assert not torch.are_deterministic_algorithms_enabled()
    assert json.loads((run.path / "run.json").read_text())["settings"]["deterministic"] is asked


def test_a_run_goes_on_only_with_the_algorithms_it_was_begun_with(train):
    train(deterministic=True)
    with pytest.raises(CacheMismatchError, match="deterministic: there True, requested False"):
        train(resume=True)


def test_a_run_of_an_earlier_version_goes_on_without(train, tmp_path):
    train()
    file = tmp_path / "run/run.json"
    record = json.loads(file.read_text())
    del record["settings"]["deterministic"]
    file.write_text(json.dumps(record))
    assert train(resume=True).results == record["results"]


def test_a_student_that_cannot_be_deterministic_is_refused_before_a_run_begins(train, tmp_path):
    class Putting(Watching):
        def forward(self, x):
            return super().forward(x).put_(torch.tensor([0]), torch.zeros(1))

    with pytest.raises(InputError, match=r"the student uses put_, which has no deterministic implementation"):
        train(Putting(), deterministic=True)
    assert not (tmp_path / "run").exists()
