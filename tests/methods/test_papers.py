"""What the papers' equations imply, and where we depart from a release, as numbers."""

import math

import pytest
import torch
from torch.nn import functional as F

from logitcache.methods import get_loss, make_objective
from logitcache.methods._ops import binary_kl, gram_distance, kl, masked_kl, split_class
from logitcache.methods.dkd import dkd
from logitcache.methods.kd import kd
from logitcache.methods.loca import loca
from logitcache.methods.normkd import by_deviation
from logitcache.methods.rld import rld
from logitcache.methods.sld import sld, swap


def draw(batch=8, classes=7, seed=0, scale=3.0):
    random = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(batch, classes, generator=random, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.randint(0, classes, (batch,), generator=random)


def right(teacher, labels):
    return teacher.scatter(1, labels[:, None], teacher.amax(1, keepdim=True) + 1)


def probabilities(logits, temperature):
    return F.softmax(logits / temperature, 1)


def test_rld_worked_by_hand():
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


def test_rld_masks_a_class_that_ties_with_the_label():
    teacher = torch.tensor([[2.0, 2.0, 1.0, 0.0]])
    student = torch.tensor([[0.0, 9.0, 1.0, 0.0]], requires_grad=True)
    rld(student, teacher, torch.tensor([0]), alpha=0).sum().backward()
    assert student.grad[0, :2].tolist() == [0.0, 0.0]


def test_rld_keeps_nothing_of_a_row_whose_label_is_last():
    student = torch.randn(1, 5, requires_grad=True)
    value = rld(student, torch.tensor([[4.0, 3.0, 2.0, 1.0, 0.0]]), torch.tensor([4]), alpha=0)
    value.sum().backward()
    assert value.item() == 0
    assert student.grad.abs().max() == 0


def test_rld_is_dkd_on_right_rows_at_one_temperature():
    student, teacher, labels = draw()
    teacher = right(teacher, labels)
    ours = rld(student, teacher, labels, temperature=3.0, confidence_temperature=3.0)
    torch.testing.assert_close(ours, dkd(student, teacher, labels, temperature=3.0))


def test_kd_is_dkd_with_the_teachers_own_weights():
    """KD = TCKD + (1 - p_y) NCKD (Zhao et al., CVPR 2022, Eq. 7)."""
    student, teacher, labels = draw()
    target = dkd(student, teacher, labels, alpha=1.0, beta=0.0)
    rest = dkd(student, teacher, labels, alpha=0.0, beta=1.0)
    unsure = 1 - probabilities(teacher, 4.0).gather(1, labels[:, None]).squeeze(1)
    torch.testing.assert_close(target + unsure * rest, kd(student, teacher, labels))


def test_normkd_is_lskd_times_the_teachers_variance():
    student, teacher, labels = draw()
    lskd = get_loss("lskd", temperature=2.0)(student, teacher, labels)
    ours = get_loss("normkd", temperature=2.0)(student, teacher, labels)
    torch.testing.assert_close(ours, teacher.var(1) * lskd, rtol=1e-6, atol=0)  # LSKD adds 1e-7 to the deviation


def test_the_temperatures_of_normkd_are_the_deviations():
    student, teacher, _ = draw()
    of_student, of_teacher = by_deviation(student, teacher, base=3.0)
    torch.testing.assert_close(of_student, 3 * student.std(1, keepdim=True))
    torch.testing.assert_close(of_teacher, 3 * teacher.std(1, keepdim=True))


@pytest.mark.parametrize("alpha", [0.05, 0.5, 0.95, 0.999])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_loca_keeps_the_ratios_of_the_others_and_makes_the_label_win(alpha, temperature):
    _, teacher, labels = draw(64)
    wrong = teacher.argmax(1) != labels
    assert 0 < wrong.sum() < 64
    edited = loca(teacher, labels, alpha=alpha, calibration_temperature=temperature)
    assert torch.equal(edited[~wrong], teacher[~wrong])
    assert (edited.argmax(1) == labels).all()
    p, calibrated = probabilities(teacher, temperature)[wrong], probabilities(edited, temperature)[wrong]
    true = labels[wrong][:, None]
    of_label, of_winner = p.gather(1, true), p.amax(1, keepdim=True)
    shrink = alpha / (1 - of_label + of_winner)
    expected = (shrink * p).scatter(1, true, 1 - shrink * (1 - of_label))  # the paper's own form
    torch.testing.assert_close(calibrated, expected)


def test_loca_at_one_ties_and_at_zero_is_one_hot():
    teacher, labels = torch.tensor([[3.0, 1.0, 0.0]], dtype=torch.float64), torch.tensor([1])
    tie = loca(teacher, labels, alpha=1 - 1e-12, calibration_temperature=1.0)
    assert tie[0, 1].item() == pytest.approx(tie[0, 0].item())
    sure = loca(teacher, labels, alpha=1e-12, calibration_temperature=1.0)
    assert probabilities(sure, 1.0)[0, 1].item() == pytest.approx(1.0)


def test_loca_leaves_a_confident_right_row_alone():
    """Two third parties calibrate every row: p_y = 0.99, p_k = 0.006 would fall to 0.41."""
    teacher = torch.tensor([[0.99, 0.006, 0.004]], dtype=torch.float64).log()
    assert torch.equal(loca(teacher, torch.tensor([0])), teacher)


def test_swap_keeps_every_statistic_of_a_row():
    _, teacher, labels = draw(32)
    swapped = swap(teacher, labels)
    assert torch.equal(swapped.sort(1).values, teacher.sort(1).values)
    assert (swapped.argmax(1) == labels).all()
    changed = (swapped != teacher).sum(1)
    assert changed.tolist() == [2 if wrong else 0 for wrong in (teacher.argmax(1) != labels).tolist()]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_pseudo_teacher_of_sld_has_a_closed_form(temperature):
    """T (q_max - q_y) (s_max - s_y), and T Δq more of a gradient than when swap(s) is detached."""
    student, teacher, labels = draw()

    def own(scores, **changes):
        both = sld(scores, teacher, labels, student_swap=True, temperature=temperature, **changes)
        return both - sld(scores, teacher, labels, temperature=temperature)

    q, true = probabilities(student, temperature), labels[:, None]
    gap_q, gap_s = (x.amax(1) - x.gather(1, true).squeeze(1) for x in (q, student))
    torch.testing.assert_close(own(student), temperature * gap_q * gap_s)
    student.requires_grad_()
    (whole,) = torch.autograd.grad(own(student).sum(), student)
    (detached,) = torch.autograd.grad(own(student, detach=True).sum(), student)
    difference = (F.one_hot(student.argmax(1), 7) - F.one_hot(labels, 7)).double()
    torch.testing.assert_close(detached, temperature * gap_q[:, None] * difference)
    assert not torch.allclose(whole, detached)


def test_adaptive_temperatures_keep_the_taylor_series_inside_its_circle():
    """|x + x²/2| <= 1 for every x = z-score / T, with equality somewhere for the largest negative one (Equation of ATKD)."""
    from logitcache.methods.atkd import adaptive
    from logitcache.methods.lskd import standardize

    student, teacher, _ = draw(64)
    s, z = standardize(student), standardize(teacher)
    both, _ = adaptive(s, z)
    alone, _ = adaptive(s, z, source="teacher")
    assert (alone <= both).all()
    x = torch.cat([s, z], 1) / both
    assert ((x + x**2 / 2).abs() <= 1 + 1e-12).all()
    x = x.abs().amax(1)
    torch.testing.assert_close(x + x**2 / 2, torch.ones(64, dtype=torch.float64))


def test_jensen_shannon_is_symmetric_at_a_half_and_bounded():
    student, teacher, labels = draw(scale=30.0)
    one = get_loss("jsd", preset="language", skew=0.5)(student, teacher, labels)
    torch.testing.assert_close(one, get_loss("jsd", preset="language", skew=0.5)(teacher, student, labels))
    assert (one <= math.log(2)).all()


def test_skew_kl_goes_to_kl_and_its_release_drops_a_constant():
    student, teacher, labels = draw()
    close = get_loss("skew_kl", preset="language", skew=1e-9)(student, teacher, labels)
    torch.testing.assert_close(close, kd(student, teacher, labels, temperature=1.0), atol=1e-5, rtol=1e-5)
    p, q = probabilities(teacher, 1.0), probabilities(student, 1.0)
    released = -(p * (0.1 * p + 0.9 * q).log()).sum(1)
    entropy = -(p * p.log()).sum(1)
    torch.testing.assert_close(get_loss("skew_kl", preset="language")(student, teacher, labels), released - entropy)
    reverse = get_loss("skew_reverse_kl", preset="language", skew=1e-9)(student, teacher, labels)
    torch.testing.assert_close(
        reverse, get_loss("reverse_kl", preset="language")(student, teacher, labels), atol=1e-6, rtol=1e-6
    )


def test_mlkd_is_its_papers_three_terms_and_not_its_releases_mask():
    """The release multiplies a mean by the share of rows its mask keeps: half of our first term, to the digit."""
    student, teacher, labels = draw(8, 5)
    expected = torch.zeros((), dtype=torch.float64)
    for temperature in (4.0, 2.0, 3.0, 5.0, 6.0):
        p, q = probabilities(teacher, temperature), probabilities(student, temperature)
        expected += temperature**2 * (p * (p / q).log()).sum(1).mean()
        expected += (p @ p.T - q @ q.T).square().sum() / 8 + (p.T @ p - q.T @ q).square().sum() / 5
    ours = get_loss("mlkd", preset="as-published")(student, teacher, labels)
    torch.testing.assert_close(ours, expected)
    confidence = probabilities(teacher, 1.0).amax(1)
    mask = (confidence >= confidence.quantile(0.5)).double()
    instance = sum(kd(student, teacher, labels, temperature=t).mean() for t in (4.0, 2.0, 3.0, 5.0, 6.0))
    released = sum(
        (kd(student, teacher, labels, temperature=t).mean() * mask).mean() for t in (4.0, 2.0, 3.0, 5.0, 6.0)
    )
    assert (released / instance).item() == pytest.approx(0.5)


def test_the_likeness_terms_of_mlkd_weigh_what_they_do_in_the_papers_setting():
    """Twice the batch and twice the classes leave r as it is; a batch of 64 with 10 classes gives them a tenth and a hundredth."""
    student, teacher, labels = draw(64, 10)
    p, q = probabilities(teacher, 4.0), probabilities(student, 4.0)
    samples, classes = (p @ p.T - q @ q.T).square().sum() / 64, (p.T @ p - q.T @ q).square().sum() / 10
    instance = kd(student, teacher, labels, temperature=4.0).mean()
    torch.testing.assert_close(
        get_loss("mlkd", temperature=4.0)(student, teacher, labels), instance + 0.1 * samples + 0.01 * classes
    )


def test_clkd_worked_by_hand():
    """Two samples of two classes; the student is the teacher with its classes exchanged, and one row twice as long.

    Teacher rows (3, 4), (4, -3); student rows (4, 3), (-6, 8): unit rows (.6, .8), (.8, -.6) and (.8, .6), (-.6, .8).
    INS = mean of (.04 + .04) and (1.96 + 1.96) = 2.
    Columns: teacher (3, 4)/5, (4, -3)/5; student (4, -6)/√52, (3, 8)/√73: chords 2 - 2 cos with cos = -12/(5√52), -12/(5√73).
    Centred logits are ±(-.5, 3.5) and ±(5, -2.5), so both covariances have rank 1, and the angle between them is that between
    these vectors, squared: cos = (-2.5 - 8.75)² / (12.5 · 31.25) = 0.324.
    """
    teacher = torch.tensor([[3.0, 4.0], [4.0, -3.0]], dtype=torch.float64)
    student = torch.tensor([[4.0, 3.0], [-6.0, 8.0]], dtype=torch.float64)
    columns = 2 + 12 / (5 * math.sqrt(52)) + 12 / (5 * math.sqrt(73))
    expected = math.sqrt(2) * (0.5 * (2 + 2 * columns) + 0.4 * (2 - 2 * 0.324))
    assert get_loss("clkd")(student, teacher, torch.tensor([0, 1])).item() == pytest.approx(expected)


@pytest.mark.parametrize("batch", [64, 512])
@pytest.mark.parametrize("classes", [10, 100, 1000])
def test_clkd_pulls_as_strongly_as_cross_entropy_whatever_the_batch_and_the_classes(batch, classes):
    student, teacher, labels = draw(batch, classes)
    norms = make_objective("clkd", {}).gradient_norms(student, teacher, labels, 1.0)
    assert 0.7 < norms["INS + CLA"] / norms["ce"] < 1.1
    assert 0.05 < norms["CC"] / norms["ce"] < 0.35
    larger = make_objective("clkd", {}).gradient_norms(10 * student, teacher, labels, 1.0)
    assert larger["CC"] == pytest.approx(
        norms["CC"] / 10
    )  # as the other terms; that of raw covariances is a thousand times as large


def test_the_correlation_of_clkd_has_no_direction_where_a_batch_is_constant():
    student, teacher, labels = draw(4, 3)
    student = student[:1].expand(4, 3).clone().requires_grad_()
    get_loss("clkd", mu=0.0)(student, teacher, labels).backward()
    assert student.grad.isfinite().all()


def test_where_releases_are_not_finite_in_float32_we_are():
    """TCKD and SCD as released take log(1 - p) of a sum: at a gap of 120 and T = 1 that is inf; ours is the gap."""
    student = torch.tensor([[120.0, 0.0, 0.0]])
    teacher, labels = torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([0])
    q = F.softmax(student, 1)[0, 1:].sum()
    assert q.log() == -math.inf
    p = F.softmax(teacher, 1)[0, 0].item()
    expected = p * math.log(p) + (1 - p) * (math.log(1 - p) + 120 - math.log(2))
    assert dkd(student, teacher, labels, alpha=1.0, beta=0.0, temperature=1.0).item() == pytest.approx(
        expected, rel=1e-6
    )
    teacher = right(teacher, labels)
    p = F.softmax(teacher, 1)[0, 0].item()
    expected = p * math.log(p) + (1 - p) * (math.log(1 - p) + 120 - math.log(2))
    assert rld(student, teacher, labels, beta=0.0).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5)])
def test_the_distance_of_gram_matrices_is_exact_on_either_side(shape):
    random = torch.Generator().manual_seed(0)
    one, other = (torch.randn(*shape, generator=random, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(gram_distance(one, other), (one.T @ one - other.T @ other).square().sum())


def test_the_distance_of_near_matrices_is_not_rounded_away():
    """‖A‖⁴ + ‖B‖⁴ - 2 ‖ABᵀ‖² would be noise here: a relative difference of 1e-6 in float32."""
    random = torch.Generator().manual_seed(0)
    one = torch.randn(8, 500, generator=random, dtype=torch.float64)
    other = one * (1 + 1e-6 * torch.randn(8, 500, generator=random, dtype=torch.float64))
    one, other = one.float().double(), other.float().double()
    exact = (one.T @ one - other.T @ other).square().sum()
    torch.testing.assert_close(gram_distance(one.float(), other.float()).double(), exact, rtol=1e-3, atol=0)


def test_masked_kl_is_kl_over_the_kept_classes():
    student, teacher, labels = draw()
    drop = torch.arange(7) == labels[:, None]
    for row in range(8):
        kept = ~drop[row]
        expected = kl(F.log_softmax(teacher[row, kept], 0), F.log_softmax(student[row, kept], 0))
        assert masked_kl(teacher, student, drop)[row].item() == pytest.approx(expected.item())


def test_a_row_parts_into_one_class_and_the_rest():
    student, teacher, labels = draw()
    gap, others, rest = split_class(teacher, labels)
    p, q = (F.softmax(scores, 1).gather(1, labels[:, None]).squeeze(1) for scores in (teacher, student))
    torch.testing.assert_close(gap.sigmoid(), p)
    alone = (F.softmax(teacher, 1) / (1 - p[:, None])).scatter(1, labels[:, None], 0)
    torch.testing.assert_close((others - rest).exp(), alone)
    expected = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(binary_kl(gap, split_class(student, labels)[0]), expected)
