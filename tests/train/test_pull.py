"""The first batch tells how strongly each term pulls on the student's logits."""

import json
import logging
import re

import pytest

import logitcache


@pytest.fixture
def train(tmp_path, images, dump):
    cache = dump()

    def go(**changes):
        arguments = {"cache": cache, "student": "tiny:still", "data": images, "epochs": 1, "out": tmp_path / "run"}
        return logitcache.train_student(**(arguments | changes))

    return go


def recorded(run):
    return json.loads((run / "run.json").read_text()).get("gradient_norms")


def test_the_pull_of_each_term_is_said_and_recorded(train, tmp_path, caplog):
    caplog.set_level(logging.INFO, "logitcache")
    train(method="rld", ce_weight=0.5)
    norms = recorded(tmp_path / "run")
    assert list(norms) == ["ce", "SCD", "MCD"]
    assert all(value > 0 for value in norms.values())
    said = [one.getMessage() for one in caplog.records if "gradient norms on the student's logits" in one.getMessage()]
    assert len(said) == 1
    assert f"ce {norms['ce']:.3g} (" in said[0]
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"ce_weight": 1e-4}, "the labels have almost no effect: .* `ce_weight` or decrease `kd_weight`"),
        ({"kd_weight": 1e-4}, "the teacher has almost no effect: .* `kd_weight` or decrease `ce_weight`"),
    ],
)
def test_a_term_that_drowns_is_pointed_out(train, caplog, weights, words):
    train(method="kd", **weights)
    (warning,) = [one for one in caplog.records if one.levelno >= logging.WARNING]
    assert re.search(words, warning.getMessage())


def test_labels_alone_have_no_balance(train, tmp_path):
    train(method="ce")
    assert recorded(tmp_path / "run") is None


def test_a_run_that_goes_on_keeps_what_its_first_batch_said(train, tmp_path):
    train(method="kd")
    before = recorded(tmp_path / "run")
    train(method="kd", epochs=2, sched="step", decay_milestones=(9,), resume=True, extend="continue")
    assert recorded(tmp_path / "run") == before
