"""What every distillation loss keeps, whatever its paper: one table of methods, one set of properties."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from logitcache import METHODS, get_loss
from logitcache.errors import InputError, UnknownNameError
from logitcache.methods import make_objective, parameters_of

LOSSES = sorted(name for name, method in METHODS.items() if method.loss)
VARIANTS = [(name, standardize) for name in LOSSES for standardize in (False, True)]
shapes = st.tuples(st.integers(1, 6), st.integers(2, 9), st.integers(0, 2**31 - 1))


def draw(batch, classes, seed, scale=3.0, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    student = scale * torch.randn(batch, classes, generator=random, dtype=torch.float64)
    teacher = scale * torch.randn(batch, classes, generator=random, dtype=torch.float64)
    return student.to(dtype), teacher.to(dtype), torch.randint(0, classes, (batch,), generator=random)


@pytest.mark.parametrize(("name", "standardize"), VARIANTS)
@given(shape=shapes)
def test_one_finite_value_a_sample_and_never_negative(name, standardize, shape):
    value = get_loss(name, standardize=standardize)(*draw(*shape))
    assert value.shape == (shape[0],)
    assert (value > -1e-9).all()


@pytest.mark.parametrize(("name", "standardize"), VARIANTS)
@given(shape=shapes)
def test_rows_do_not_see_each_other(name, standardize, shape):
    student, teacher, labels = draw(*shape)
    loss = get_loss(name, standardize=standardize)
    together = loss(student, teacher, labels)
    for row in range(shape[0]):
        one = slice(row, row + 1)
        torch.testing.assert_close(together[one], loss(student[one], teacher[one], labels[one]))


@pytest.mark.parametrize(("name", "standardize"), VARIANTS)
@given(shape=shapes, shift=st.floats(-50, 50))
def test_a_constant_added_to_a_row_changes_nothing(name, standardize, shape, shift):
    student, teacher, labels = draw(*shape)
    loss = get_loss(name, standardize=standardize)
    torch.testing.assert_close(
        loss(student + shift, teacher - shift, labels), loss(student, teacher, labels), atol=1e-7, rtol=1e-7
    )


@pytest.mark.parametrize("name", LOSSES)
@given(shape=shapes)
def test_a_perfect_student_of_a_teacher_that_is_right_costs_nothing(name, shape):
    _, teacher, labels = draw(*shape)
    teacher = teacher.scatter(1, labels[:, None], float(teacher.max()) + 1)
    assert get_loss(name)(teacher + 3, teacher, labels).abs().max() < 1e-9


@pytest.mark.parametrize(("name", "standardize"), VARIANTS)
def test_the_gradient_is_that_of_the_value(name, standardize):
    student, teacher, labels = draw(4, 5, 0)
    loss = get_loss(name, standardize=standardize)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, labels), student.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "standardize"), VARIANTS)
@pytest.mark.parametrize("winner", ["label", "other"])
def test_value_and_gradient_are_finite_at_gaps_of_ten_thousand(name, standardize, winner, dtype):
    student, teacher, labels = draw(6, 7, 1, dtype=dtype)
    pushed = labels if winner == "label" else (labels + 1) % 7
    teacher = teacher.scatter(1, labels[:, None], 1e4)
    student = student.scatter(1, pushed[:, None], 1e4).requires_grad_()
    value = get_loss(name, standardize=standardize)(student, teacher, labels)
    value.sum().backward()
    assert value.isfinite().all()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(("name", "standardize"), VARIANTS)
def test_rows_of_equal_logits_are_finite(name, standardize):
    student = torch.zeros(3, 4, requires_grad=True)
    value = get_loss(name, standardize=standardize)(student, torch.zeros(3, 4), torch.tensor([0, 1, 3]))
    value.sum().backward()
    assert value.isfinite().all()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("rank", ["first", "last"])
@pytest.mark.parametrize("name", LOSSES)
def test_the_true_class_may_rank_first_or_last(name, rank):
    student, teacher, labels = draw(5, 6, 2)
    teacher = teacher.scatter(1, labels[:, None], 99.0 if rank == "first" else -99.0)
    value = get_loss(name)(student.requires_grad_(), teacher, labels)
    value.sum().backward()
    assert value.isfinite().all()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize(("name", "standardize"), VARIANTS)
def test_arguments_stay_as_they_were_and_the_teacher_gets_no_gradient(name, standardize):
    student, teacher, labels = draw(3, 4, 3)
    before = student.clone(), teacher.clone(), labels.clone()
    get_loss(name, standardize=standardize)(student.requires_grad_(), teacher, labels).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(before, (student, teacher, labels), strict=True))
    assert teacher.grad is None


@pytest.mark.parametrize("name", LOSSES)
def test_an_objective_computes_half_precision_students_in_float32(name):
    student, teacher, labels = draw(4, 5, 4, dtype=torch.float32)
    objective = make_objective(name, {})
    total, _, _ = objective(student.bfloat16(), teacher, labels, 1.0)
    exact, _, _ = objective(student.bfloat16().float(), teacher, labels, 1.0)
    assert total.dtype == torch.float32
    assert torch.equal(total, exact)


def test_the_distillation_term_grows_over_the_warm_up():
    student, teacher, labels = draw(4, 5, 5)
    objective = make_objective("rld", {}, warmup=0.5)
    total, cross_entropy, distillation = (float(x) for x in objective(student, teacher, labels, 0.125))
    assert total == pytest.approx(cross_entropy + 0.25 * distillation)
    assert float(objective(student, teacher, labels, 0.75)[0]) == pytest.approx(cross_entropy + distillation)


def test_the_papers_warm_up_is_twenty_of_240_epochs():
    student, teacher, labels = draw(4, 5, 5)
    objective = make_objective("rld", {})
    total, cross_entropy, distillation = (float(x) for x in objective(student, teacher, labels, 5 / 240))
    assert total == pytest.approx(cross_entropy + 0.25 * distillation)


def test_an_unknown_method_is_refused_with_a_suggestion():
    with pytest.raises(UnknownNameError, match=r"unknown method 'rdl'; did you mean 'rld'\? Known: ce, kd, rld"):
        make_objective("rdl", {})


def test_an_unknown_parameter_is_refused_with_those_there_are():
    with pytest.raises(UnknownNameError, match="rld has no parameter 'gamma'; it takes alpha, beta, temperature"):
        get_loss("rld", gamma=1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "4", True, None])
def test_a_parameter_must_be_a_finite_number(value):
    with pytest.raises(InputError, match="rld: beta must be a finite number"):
        get_loss("rld", beta=value)


@pytest.mark.parametrize("value", [0, -1.0])
def test_a_temperature_must_be_positive(value):
    with pytest.raises(InputError, match="temperature must be greater than 0"):
        get_loss("kd", temperature=value)


@pytest.mark.parametrize("weights", [{"ce_weight": -1.0}, {"kd_weight": float("nan")}, {"warmup": 1.5}])
def test_weights_that_mean_nothing_are_refused(weights):
    with pytest.raises(InputError, match="kd: weights must be 0 or more"):
        make_objective("kd", {}, **weights)


def test_labels_alone_take_no_distillation_settings():
    with pytest.raises(InputError, match="ce has no distillation term"):
        make_objective("ce", {"temperature": 4.0})


def test_parameters_are_those_of_the_signature():
    assert parameters_of("rld") == {"alpha": 1.0, "beta": 8.0, "temperature": 4.0, "confidence_temperature": 1.0}
