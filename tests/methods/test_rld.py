import math

import pytest
import torch
from torch.nn import functional as F

from logitcache.methods.kd import kd
from logitcache.methods.rld import rld


def test_a_case_worked_by_hand():
    """Teacher (ln 4, ln 2, ln 1, ln 1), label 1, all temperatures 1.

    p = (4, 2, 1, 1)/8, so p_max = 1/2. Student (0, ln 3, 0, ln 5): q = (1, 3, 1, 5)/10, q_y = 3/10.
    SCD = 1/2 ln((1/2)/(3/10)) + 1/2 ln((1/2)/(7/10)) = 1/2 ln(25/21).
    The mask holds classes 0 and 1; left are (1, 1)/2 against (1, 5)/6.
    MCD = 1/2 ln(3) + 1/2 ln(3/5) = 1/2 ln(9/5).
    """
    student = torch.tensor([[0, math.log(3), 0, math.log(5)]], dtype=torch.float64)
    teacher = torch.tensor([[math.log(4), math.log(2), 0, 0]], dtype=torch.float64)
    loss = rld(student, teacher, torch.tensor([1]), alpha=2, beta=3, temperature=1, confidence_temperature=1)
    assert loss.item() == pytest.approx(2 * 0.5 * math.log(25 / 21) + 3 * 0.5 * math.log(9 / 5))


def test_a_class_that_ties_with_the_label_is_masked():
    teacher = torch.tensor([[2.0, 2.0, 1.0, 0.0]])
    student = torch.tensor([[0.0, 9.0, 1.0, 0.0]], requires_grad=True)
    rld(student, teacher, torch.tensor([0]), alpha=0).sum().backward()
    assert student.grad[0, :2].tolist() == [0.0, 0.0]


def test_a_label_ranked_last_keeps_nothing_and_has_no_gradient_there():
    student = torch.randn(1, 5, requires_grad=True)
    value = rld(student, torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0]]), torch.tensor([4]), alpha=0)
    value.sum().backward()
    assert value.item() == 0
    assert student.grad.abs().max() == 0


def test_with_a_right_teacher_and_one_temperature_it_is_dkd():
    """DKD with weights 1 and 1 - p_y is KD (Zhao et al., CVPR 2022, Eq. 7), so RLD with those weights must be KD too."""
    random = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(1, 6, generator=random, dtype=torch.float64) for _ in range(2))
    label = teacher.argmax(1)
    other = 1 - F.softmax(teacher / 3, 1)[0, label].item()
    whole = kd(student, teacher, label, temperature=3.0)
    parts = rld(student, teacher, label, alpha=1, beta=other, temperature=3.0, confidence_temperature=3.0)
    torch.testing.assert_close(parts, whole)
