"""Every number that a training takes, out of its range and of other kinds: one sentence each, before anything is opened."""

import math

import pytest

import logitcache
from logitcache import TrainSettings
from logitcache.errors import LogitCacheError
from logitcache.runtime.settings import option_of, options_in

NUMBERS = {"number", "integer", "bytes"}
# Settings whose every finite number is in range, or is only known to be out of it beside data or a method.
LATER = ("ce_weight", "kd_weight", "kd_warmup", "crop_pct", "memory_budget")
FIELDS = {one.name: option_of(one).form for one in options_in(TrainSettings) if option_of(one).form in NUMBERS}


@pytest.mark.parametrize("value", [-1, math.nan, "x", True, [1]], ids=str)
@pytest.mark.parametrize("name", [name for name in FIELDS if name not in LATER])
def test_a_number_out_of_range_is_one_sentence(name, value):
    given = {"amp": True} if name == "amp_dtype" else {}
    with pytest.raises(LogitCacheError, match=rf"^`{name}` must be "):
        TrainSettings(**given, **{name: value})


@pytest.mark.parametrize("value", ["x", True, [1]], ids=str)
@pytest.mark.parametrize("name", LATER)
def test_what_is_no_number_is_one_sentence(name, value):
    with pytest.raises(LogitCacheError, match=rf"^`{name}` must be "):
        TrainSettings(**{name: value})


@pytest.mark.parametrize("value", [-0.5, math.nan, math.inf])
@pytest.mark.parametrize("name", ["ce_weight", "kd_weight", "kd_warmup", "crop_pct"])
def test_the_others_are_refused_before_a_run_is_begun(dump, images, tmp_path, name, value):
    with pytest.raises(LogitCacheError, match=r"must be (0 or more|greater than 0|from 0)"):
        logitcache.train_student(
            dump(views=1), "tiny:still", data=images, image_size=24, out=tmp_path / "run", **{name: value}
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"betas": [0.9]}, "two numbers from 0 to below 1"),
        ({"betas": [0.9, 1.0]}, "two numbers from 0 to below 1"),
        ({"betas": [0.9, math.nan]}, "two numbers from 0 to below 1"),
        ({"decay_milestones": [1.5]}, "a sequence of whole numbers"),
        ({"decay_milestones": [-1]}, "0 or more each"),
        ({"decay_milestones": 3}, "a sequence of whole numbers"),
        ({"mean": ["x"]}, "a sequence of numbers"),
        ({"warmup_epochs": 241}, "from 0 to the number of epochs"),
        ({"seed": 2**63}, "below 2"),
        ({"epochs": 0}, "1 or more"),
        ({"epochs": 2.0}, "a whole number"),
        ({"clip_grad": 0}, "greater than 0"),
        ({"clip_grad": math.nan}, "greater than 0"),
        ({"lr": math.inf}, "greater than 0"),
        ({"label_smoothing": 1}, "from 0 to below 1"),
        ({"momentum": 1.0}, "from 0 to below 1"),
        ({"model_ema_decay": 0.0}, "between 0 and 1"),
        ({"weight_decay": math.inf}, "0 or more"),
        ({"keep_best": "yes"}, "True or False"),
        ({"drop_last": 1}, "True or False"),
    ],
)
def test_edges_of_ranges(changes, words):
    opt = {"opt": "adamw"} if "betas" in changes else {}
    with pytest.raises(LogitCacheError, match=words):
        TrainSettings(**opt, **changes)
