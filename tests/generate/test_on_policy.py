"""Rows of a teacher on a student's own text: exact tokens, and a check that teacher and student are those of before."""

import json
import logging

import numpy as np
import pytest
import torch

import logitcache
from logitcache.data import Documents
from logitcache.data.text.origin import warn_of_other_teacher
from logitcache.errors import InputError
from logitcache.methods import get_loss
from logitcache.store import open_cache

pytest.importorskip("transformers")

HOW = {"method": "kd", "epochs": 1, "batch_size": 2, "lr": 1e-3}
TEACHER = "hf:stories-mini"


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A student that learned from the teacher that ships, and its own completions."""
    folder = tmp_path_factory.mktemp("policy")
    logitcache.dump_logits(TEACHER, "stories-mini:test", folder / "sft.zarr", samples=(0, 4), top_k=16)
    logitcache.train_student(folder / "sft.zarr", f"{TEACHER}?layers=0,4", out=folder / "sft", **HOW)
    how = {"samples": (0, 4), "prompt_tokens": 8, "max_new_tokens": 12, "temperature": 1.0}
    logitcache.generate_completions(folder / "sft", "stories-mini", out=folder / "own.npz", **how)
    return folder


def dumped(folder, out, teacher=TEACHER):
    return logitcache.dump_logits(teacher, f"tokens:{folder / 'own.npz'}", out, top_k=16)


def warnings(caplog):
    return [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]


def test_a_student_learns_from_its_teacher_on_its_own_text(begun, tmp_path, caplog):
    cache = dumped(begun, tmp_path / "own.zarr")
    with np.load(begun / "own.npz") as file:
        assert cache.array("tokens").tolist() == file["tokens"].tolist()
        assert cache.array("targets").tolist() == file["targets"].tolist()
    assert len(cache.labels()) == 4 * 12
    run = json.loads((begun / "sft/run.json").read_text())
    assert run["taught_by"] == [
        {"name": TEACHER, "weights_sha256": open_cache(begun / "sft.zarr").manifest.teachers[0]["weights_sha256"]}
    ]
    found = logitcache.train_student(
        cache, f"hf:{begun}/sft/student-hf", out=tmp_path / "opd", **(HOW | {"method": "reverse_kl", "epochs": 3})
    )
    assert found.metrics[-1]["kd"] < found.metrics[0]["kd"]
    facts = json.loads((tmp_path / "opd/run.json").read_text())["on_policy"]
    assert facts == {"generated_by": f"hf:{begun}/sft/student-hf", "same_teacher": True, "same_student": True}
    assert not warnings(caplog)


def test_another_teacher_is_warned_of_at_the_dump(begun, tmp_path, caplog):
    """Its run says whom the student learned from."""
    cache = dumped(begun, tmp_path / "own.zarr", teacher=f"{TEACHER}?layers=0,1,2")
    assert "which learned from hf:stories-mini (weights " in warnings(caplog)[0]
    assert "but the teacher here is hf:stories-mini?layers=0,1,2 (weights " in warnings(caplog)[0]
    logitcache.train_student(cache, f"hf:{begun}/sft/student-hf", out=tmp_path / "opd", **HOW)
    assert json.loads((tmp_path / "opd/run.json").read_text())["on_policy"]["same_teacher"] is False


def test_another_student_is_warned_of(begun, tmp_path, caplog):
    cache = dumped(begun, tmp_path / "own.zarr")
    logitcache.train_student(cache, f"{TEACHER}?layers=0,4", out=tmp_path / "opd", **HOW)
    assert "this student starts from other weights" in warnings(caplog)[0]
    assert json.loads((tmp_path / "opd/run.json").read_text())["on_policy"]["same_student"] is False


def test_of_a_model_that_nobody_trained_here_the_teacher_is_not_known(tmp_path, caplog):
    how = {"samples": (0, 2), "prompt_tokens": 8, "max_new_tokens": 4, "out": tmp_path / "own.npz"}
    logitcache.generate_completions(TEACHER, "stories-mini", **how)
    cache = dumped(tmp_path, tmp_path / "own.zarr")
    assert cache.manifest.data["generated"]["taught_by"] is None
    logitcache.train_student(cache, TEACHER, out=tmp_path / "r", **HOW)
    facts = json.loads((tmp_path / "r/run.json").read_text())["on_policy"]
    assert facts == {"generated_by": TEACHER, "same_teacher": None, "same_student": True}
    assert not warnings(caplog)


def test_a_teacher_behind_a_server_is_known_by_its_name(caplog):
    """Nobody can hash its weights."""
    origin = {"model": "m", "weights_sha256": "0", "taught_by": [{"name": "vllm:one", "weights_sha256": None}]}
    samples = Documents(np.arange(4), np.array([0, 4]), 9, facts={"generated": origin})
    assert warn_of_other_teacher(samples, [{"name": "vllm:one", "weights_sha256": None}])
    assert not warnings(caplog)
    assert warn_of_other_teacher(samples, [{"name": "vllm:two", "weights_sha256": None}]) is False
    assert "which learned from vllm:one, but the teacher here is vllm:two." in warnings(caplog)[0]


def test_a_damaged_origin_is_refused(begun, tmp_path):
    with np.load(begun / "own.npz") as file:
        np.savez(tmp_path / "own.npz", **(dict(file) | {"generated": '{"taught_by": 3}'}))
    with pytest.raises(InputError, match="own.npz: cannot read from `generated` which model generated the tokens"):
        dumped(tmp_path, tmp_path / "c.zarr")


def test_reverse_kl_is_what_the_policy_gradient_is_on_average():
    """In float64, of two rows: sum over tokens y of q(y) (log q(y) - log p(y)) d log q(y), the form with draws, has this mean exactly."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    student = torch.randn(2, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    log_p, log_q = teacher.log_softmax(1), student.log_softmax(1)
    advantage = (log_p - log_q).detach()
    surrogate = -(log_q.exp().detach() * advantage * log_q).sum()
    (expected,) = torch.autograd.grad(surrogate, student)
    loss = get_loss("reverse_kl", temperature=1.0)(student, teacher, torch.zeros(2, dtype=torch.int64)).sum()
    (found,) = torch.autograd.grad(loss, student)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
