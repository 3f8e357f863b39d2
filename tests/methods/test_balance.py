"""How strongly each term of a loss pulls on the student."""

import math

import pytest
import torch
from torch.nn import functional as F

from logitcache.errors import InputError
from logitcache.methods import METHODS, describe_norms, drowned_terms, get_loss, gradient_norms, make_objective

DIVIDED = sorted(name for name, method in METHODS.items() if method.parts)


def draw(rows=6, classes=9, seed=0):
    random = torch.Generator().manual_seed(seed)
    student, teacher = (3 * torch.randn(rows, classes, generator=random, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.randint(0, classes, (rows,), generator=random)


def test_the_norms_are_those_of_the_gradients_and_nothing_changes():
    student, _, labels = draw()
    weight = torch.eye(9, dtype=torch.float64, requires_grad=True)
    logits = student @ weight
    terms = {"ce": 0.1 * F.cross_entropy(logits, labels), "square": logits.square().sum(), "none": torch.tensor(3.0)}
    norms = gradient_norms(logits, terms)
    one_hot = F.one_hot(labels, 9)
    assert norms["ce"] == pytest.approx(0.1 * ((student.softmax(1) - one_hot) / 6).norm().item())
    assert norms["square"] == pytest.approx(2 * student.norm().item())
    assert norms["none"] == 0
    assert weight.grad is None
    terms["ce"].backward()  # the graph is still there


@pytest.mark.parametrize(
    ("logits", "terms", "words"),
    [
        (
            torch.ones(2, 3),
            {"ce": torch.tensor(1.0)},
            "logits that require a gradient; pass them as the network returned them",
        ),
        (torch.ones(2, 3, requires_grad=True), {"kd": torch.ones(2)}, r"term kd must be 0-dim, not a tensor \[2\]"),
        (torch.ones(2, 3, requires_grad=True), {"kd": 1.0}, "term kd must be 0-dim, not a float"),
    ],
)
def test_what_has_no_norm_is_refused(logits, terms, words):
    with pytest.raises(InputError, match=words):
        gradient_norms(logits, terms)


@pytest.mark.parametrize("name", DIVIDED)
def test_the_parts_of_a_method_add_up_to_it(name):
    student, teacher, labels = draw()
    whole = get_loss(name)
    parts = sum(part(student, teacher, labels).mean() for part in whole.parts.values())
    torch.testing.assert_close(parts, whole(student, teacher, labels).mean())
    assert all(part(student, teacher, labels).mean().abs() > 0 for part in whole.parts.values())


def test_an_objective_measures_its_terms_with_their_weights_as_after_the_warm_up():
    student, teacher, labels = draw()
    objective = make_objective("dkd", {"beta": 2.0}, ce_weight=0.5, kd_weight=3.0)
    norms = objective.gradient_norms(student, teacher, labels, progress=1 / 240)  # the ramp is at one twentieth
    logits = student.clone().requires_grad_()
    nckd = 3 * get_loss("dkd", alpha=0.0, beta=2.0)(logits, teacher, labels).mean()
    expected = gradient_norms(logits, {"ce": 0.5 * F.cross_entropy(logits, labels), "NCKD": nckd})
    assert list(norms) == ["ce", "TCKD", "NCKD"]
    assert norms["ce"] == pytest.approx(expected["ce"])
    assert norms["NCKD"] == pytest.approx(expected["NCKD"])


def test_terms_without_a_weight_are_left_out():
    student, teacher, labels = draw()
    assert list(make_objective("swap", {}).gradient_norms(student, teacher, labels, 1.0)) == ["distillation"]
    assert list(make_objective("ce", {}).gradient_norms(student, None, labels, 1.0)) == ["ce"]


def test_norms_are_written_with_their_shares_and_small_ones_are_named():
    norms = {"ce": 0.004, "SCD": 0.3, "MCD": 0.7}
    assert describe_norms(norms) == "ce 0.004 (0.398 %), SCD 0.3 (29.9 %), MCD 0.7 (69.7 %)"
    assert drowned_terms(norms) == ["ce"]
    assert drowned_terms({"ce": 0.0, "kd": 0.0}) == []
    assert math.isnan(float(describe_norms({"ce": 0.0}).split("(")[1].split()[0]))
