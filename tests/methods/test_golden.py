"""Value and gradient against the authors' released code (tests/golden/README.md)."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from logitcache import METHODS, get_loss

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = json.loads((GOLDEN / "golden.json").read_text())
WITHOUT = {
    "ce",
    "jsd",
    "mlkd",
    "reverse_kl",
    "skew_kl",
    "skew_reverse_kl",
    "tad",
}  # no numbers from a release; see test_papers.py and test_tad.py

READINGS = {  # cases of papers without a release, whose default here is another reading than the one that was computed
    "clkd": "mean",
    "clkd-thirdparty": "malware-kd",
}


@pytest.fixture(scope="module")
def numbers():
    with np.load(GOLDEN / "golden.npz") as file:
        return dict(file)


def test_every_method_has_a_case_or_is_named_here():
    assert len(CASES) == 25
    assert METHODS.keys() - {case["method"] for case in CASES.values()} == WITHOUT


@pytest.mark.parametrize("batch", [0, 1, 2])
@pytest.mark.parametrize("name", sorted(CASES))
def test_value_and_gradient_are_the_authors(name, batch, numbers):
    student, teacher, labels = (
        torch.from_numpy(numbers[f"inputs/{batch}/{part}"]) for part in ("student", "teacher", "labels")
    )
    student.requires_grad_()
    composed = get_loss(CASES[name]["method"], preset=READINGS.get(name), **CASES[name]["parameters"])
    loss = composed(student, teacher, labels).mean()
    loss.backward()
    expected, gradient = float(numbers[f"{name}/{batch}/loss"]), numbers[f"{name}/{batch}/grad"]
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert np.abs(student.grad.numpy() - gradient).max() <= 1e-9 * np.abs(gradient).max()
