"""Weights of classes in cross-entropy."""

import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from torch.nn import functional as F

import logitcache
from logitcache.data import ArrayImages
from logitcache.errors import CacheMismatchError, InputError, LogitCacheError, StoppedError
from logitcache.methods import SecondLabels, make_objective
from logitcache.train.weighting import weights_of_classes

NAMES = [f"class {i}" for i in range(tiny.CLASSES)]


@pytest.fixture
def skewed(images):
    """The tiny data without most of its first class, and without the last."""
    labels = images.labels.copy()
    kept = (labels != 4) & ((labels != 0) | (np.arange(len(labels)) < 60))
    return ArrayImages(images.images.permute(0, 2, 3, 1).numpy()[kept], labels[kept], NAMES)


@pytest.fixture
def train(tmp_path, skewed):
    """One epoch on labels alone."""

    def go(**changes):
        given = {
            "cache": None,
            "student": "tiny:still",
            "method": "ce",
            "data": skewed,
            "epochs": 1,
            "out": tmp_path / "run",
        }
        return logitcache.train_student(**(given | changes))

    return go


def test_balanced_weights_give_every_class_the_same_part_of_the_loss(skewed):
    found = weights_of_classes("balanced", skewed)
    counts = np.bincount(skewed.labels, minlength=5)
    assert found[:4] == pytest.approx(len(skewed) / (4 * counts[:4]))  # scikit-learn's, over the classes that occur
    assert found[4] == 0
    assert found[skewed.labels].mean() == pytest.approx(1)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_is_torchs_over_rows(smoothing):
    """torch divides by the weights of the batch; here it is the number of rows, whatever the batch."""
    torch.manual_seed(0)
    student, labels, weights = torch.randn(7, 5), torch.randint(0, 5, (7,)), torch.rand(5)
    plain = make_objective("ce", {}, label_smoothing=smoothing)
    weighted = replace(plain, class_weights=weights)
    theirs = F.cross_entropy(student, labels, weight=weights, label_smoothing=smoothing, reduction="sum") / 7
    assert float(weighted(student, None, labels, 1.0).total) == pytest.approx(float(theirs), rel=1e-6)
    ones = replace(plain, class_weights=torch.ones(5))
    assert float(ones(student, None, labels, 1.0).ce) == pytest.approx(float(plain(student, None, labels, 1.0).ce))
    share, others = torch.rand(7), torch.randint(0, 5, (7,))
    mixed = weighted(student, None, labels, 1.0, SecondLabels(others, share)).total
    own, other = (
        F.cross_entropy(student, of, weight=weights, label_smoothing=smoothing, reduction="none")
        for of in (labels, others)
    )
    assert float(mixed) == pytest.approx(float((share * own + (1 - share) * other).mean()), rel=1e-6)


def test_the_distillation_term_is_not_weighted():
    torch.manual_seed(0)
    student, teacher, labels = torch.randn(7, 5), torch.randn(7, 5), torch.randint(0, 5, (7,))
    plain = make_objective("kd", {})
    found = replace(plain, class_weights=torch.tensor([5.0, 1, 1, 1, 1]))(student, teacher, labels, 1.0)
    assert torch.equal(found.kd, plain(student, teacher, labels, 1.0).kd)
    assert not torch.equal(found.ce, plain(student, teacher, labels, 1.0).ce)


def test_every_way_to_say_them_is_the_same(train, tmp_path):
    numbers = [8.0, 1.0, 1.0, 2.0, 1.0]
    (tmp_path / "list.json").write_text(json.dumps(numbers))
    (tmp_path / "names.json").write_text(json.dumps(dict(zip(reversed(NAMES), reversed(numbers), strict=True))))
    (tmp_path / "lines.txt").write_text("\n".join(map(str, numbers)))
    ways = [
        numbers,
        [2 * one for one in numbers],
        np.array(numbers),
        torch.tensor(numbers),
        dict(zip(NAMES, numbers, strict=True)),
    ]
    ways += [str(tmp_path / name) for name in ("list.json", "names.json", "lines.txt")]
    found = [train(class_weights=way, out=tmp_path / str(place)).student.state_dict() for place, way in enumerate(ways)]
    plain = train(out=tmp_path / "plain").student.state_dict()
    for one in found:
        assert all(torch.equal(one[name], found[0][name]) for name in one)
        assert not torch.equal(one["4.weight"], plain["4.weight"])
    record = json.loads((tmp_path / "0/run.json").read_text())
    assert record["settings"]["class_weights"] == numbers
    assert len(record["class_weights"]) == 5


def test_a_batch_in_parts_is_the_same_step(train, tmp_path):
    whole = train(class_weights="balanced", out=tmp_path / "whole").student.state_dict()
    parts = train(class_weights="balanced", grad_accum_steps=4, out=tmp_path / "parts").student.state_dict()
    assert all(torch.allclose(whole[name], parts[name], atol=1e-6) for name in whole)


def test_a_file_that_changes_is_noticed(train, tmp_path):
    file = tmp_path / "w.json"
    file.write_text("[1, 2, 3, 4, 5]")
    with pytest.raises(StoppedError):
        train(class_weights=str(file), epochs=2, should_stop=lambda: True)
    file.write_text("[5, 4, 3, 2, 1]")
    with pytest.raises(CacheMismatchError, match="was started with other class weights"):
        train(class_weights=str(file), epochs=2, resume=True)
    train(class_weights=str(file), epochs=2, out=tmp_path / "other")
    assert len({run.settings for run in logitcache.compare_runs([tmp_path / "run", tmp_path / "other"])}) == 2


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([1, 2], r"must be 5 numbers, one per class in the order of the classes; found 1, 2 \(2\)"),
        ([1, 2, 3, 4, "x"], "must be 5 numbers, one per class"),
        ([1, 2, 3, 4, -1], "must be finite and non-negative"),
        ([1, 2, 3, 4, float("nan")], "must be finite and non-negative"),
        ([0, 0, 0, 0, 1], "greater than 0 for a class of the training data"),
        (3.0, "must be 5 numbers, one per class"),
        ({"class 1": 1}, r"has no weight for class 0, class 2, class 3, class 4 \(4 of 5 classes\)"),
        (dict.fromkeys([*NAMES, "clas 1"], 1.0), "unknown class in `class_weights` 'clas 1'; did you mean 'class 1'"),
        ("balance", "'balance' is neither balanced nor a readable file"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_one_sentence(train, tmp_path, given, words):
    with pytest.raises(LogitCacheError, match=words):
        train(class_weights=given)
    assert not (tmp_path / "run").exists()


def test_they_need_cross_entropy(dump, images, tmp_path):
    with pytest.raises(InputError, match="whose weight is 0 with method kd; set `ce_weight`"):
        logitcache.train_student(
            dump(), "tiny:still", data=images, ce_weight=0.0, class_weights="balanced", out=tmp_path / "run"
        )


def test_the_command_line_takes_names_numbers_and_files(run, npz, tmp_path):
    (tmp_path / "bad.json").write_text("one")
    words = f"train --method ce --data arrays:{npz} --student tiny:still --epochs 1 --class-weights".split()
    assert run(*words, "balanced", "--out", "a").exit_code == 0
    assert run(*words, "1,2,3,4,5", "--out", "b").exit_code == 0
    assert run("train", "--resume", "--out", "b").exit_code == 0
    assert "holds neither JSON nor numbers" in run(*words, "bad.json", "--out", "c").stderr
