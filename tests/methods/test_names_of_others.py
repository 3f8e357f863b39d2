"""What docs/coming-from.md says of other libraries' losses, each written here as that library defines it."""

import pytest
import torch
from torch.nn import functional as F

from logitcache.methods import make_objective

T = 2.0


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 16, 7, generator=generator, dtype=torch.float64) * 3
    return student, teacher, torch.randint(0, 7, (16,), generator=generator)


def kl(p, q):
    return (p * (p.log() - q.log())).sum(1).mean()


def ours(method, logits, ce_weight, kd_weight, **settings):
    student, teacher, labels = logits
    return make_objective(method, settings, ce_weight=ce_weight, kd_weight=kd_weight)(
        student, teacher, labels, 1.0
    ).total


def test_torchdistill_alpha_and_beta_are_the_two_weights(logits):
    student, teacher, labels = logits
    alpha = 0.3
    soft = F.kl_div(F.log_softmax(student / T, 1), F.softmax(teacher / T, 1), reduction="batchmean")
    theirs = alpha * F.cross_entropy(student, labels) + (1 - alpha) * T**2 * soft
    torch.testing.assert_close(ours("kd", logits, temperature=T, ce_weight=alpha, kd_weight=1 - alpha), theirs)


def test_torchtune_kd_ratio_differs_by_the_entropy_of_the_teacher(logits):
    student, teacher, labels = logits
    ratio, p = 0.25, teacher.softmax(1)
    forward_kl = -(p * student.log_softmax(1)).sum(1).mean()
    theirs = (1 - ratio) * F.cross_entropy(student, labels) + ratio * forward_kl
    entropy = -(p * p.log()).sum(1).mean()
    found = ours("kd", logits, temperature=1.0, ce_weight=1 - ratio, kd_weight=ratio)
    torch.testing.assert_close(found, theirs - ratio * entropy)


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_trl_beta_is_one_minus_the_skew(logits, beta):
    student, teacher, _ = logits
    p, q = (teacher / T).softmax(1), (student / T).softmax(1)
    mixture = beta * p + (1 - beta) * q
    theirs = beta * kl(p, mixture) + (1 - beta) * kl(q, mixture)
    found = ours("jsd", logits, temperature=T, skew=1 - beta, ce_weight=0.0, kd_weight=1 / T**2)
    torch.testing.assert_close(found, theirs)


@pytest.mark.parametrize(("method", "beta"), [("kd", 0), ("reverse_kl", 1)])
def test_the_ends_of_trl_beta_are_forward_and_reverse_kl(logits, method, beta):
    student, teacher, _ = logits
    p, q = (teacher / T).softmax(1), (student / T).softmax(1)
    found = ours(method, logits, temperature=T, ce_weight=0.0, kd_weight=1 / T**2)
    torch.testing.assert_close(found, kl(q, p) if beta else kl(p, q))
