"""Running the teacher again: what is stored is what it says, or the first row that is not is named."""

import pytest
import tiny
import torch

import logitcache
from logitcache.errors import CacheMismatchError, InputError


@pytest.mark.parametrize("made", [{}, {"precision": "f16"}, {"top_k": 2, "precision": "u8"}], ids=str)
def test_a_replayed_teacher_agrees(dump, images, made):
    report = logitcache.verify_cache(
        dump(**made).place.path, data=images, replay=101, teacher=tiny.net(tiny.CLASSES), device="cpu"
    )
    assert report.ok
    assert (report.replayed, report.replay_gap) == (101, 0.0)


def test_a_replay_is_not_made_unasked_and_takes_all_rows_of_a_small_cache(dump, images):
    path = dump().place.path
    assert logitcache.verify_cache(path, data=images).replayed is None
    assert logitcache.verify_cache(path, data=images, replay=10**6, teacher=tiny.net(tiny.CLASSES)).replayed == 600


class Drifting(torch.nn.Module):
    """Has the same weights, and other code than at the dump."""

    def __init__(self):
        super().__init__()
        inner = tiny.net(tiny.CLASSES)
        for name, part in inner.named_children():
            self.add_module(name, part)
        self.drifts = False

    def forward(self, x):
        for part in self.children():
            x = part(x)
        return x + (x.abs() > x.abs().median()) * 0.5 if self.drifts else x


def test_the_first_row_that_disagrees_is_named(dump, images):
    teacher = Drifting()
    path = dump(teacher=teacher).place.path
    assert logitcache.verify_cache(path, data=images, replay=64, teacher=teacher).ok
    teacher.drifts = True
    report = logitcache.verify_cache(path, data=images, replay=64, teacher=teacher)
    assert not report.ok
    assert report.replay_gap > 0.05
    assert report.replay_problem.startswith(
        "the teacher's output has changed: view 0, sample 0 has a relative difference of "
    )


@pytest.mark.parametrize("made", [{}, {"top_k": 2}], ids=str)
def test_a_teacher_that_answers_nan_disagrees(dump, images, made):
    teacher = Drifting()
    path = dump(teacher=teacher, **made).place.path
    teacher.add_module("last", tiny.Poison())
    report = logitcache.verify_cache(path, data=images, replay=64, teacher=teacher)
    assert not report.ok
    assert "a relative difference of inf" in report.replay_problem


def test_another_teacher_is_refused_before_it_runs(dump, images):
    with pytest.raises(CacheMismatchError, match="has weights sha256 .* was dumped with"):
        logitcache.verify_cache(dump().place.path, data=images, replay=4, teacher=tiny.still(tiny.CLASSES))


def test_the_command_replays(run, npz):
    assert run(*f"dump --teacher tiny:net --data arrays:{npz} --out c.zarr --precision f32".split()).exit_code == 0
    done = run("verify", "c.zarr", "--replay", "50", "--device", "cpu")
    assert done.exit_code == 0
    assert "teacher run again on 50 rows: its logits agree within rounding" in done.stdout


@pytest.mark.parametrize("wrong", [{"check_rows": -1}, {"check_rows": "8"}, {"replay": -1}, {"replay": 0.5}])
def test_a_number_of_rows_that_is_none_is_a_sentence(dump, wrong):
    cache = dump(views=1)
    with pytest.raises(InputError, match=f"`{next(iter(wrong))}` must be a whole number of 0 or more, not "):
        logitcache.verify_cache(cache.place.path, **wrong)
