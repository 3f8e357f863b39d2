"""What every distillation loss keeps, whatever its paper. `pytest --method package.module:name` holds somebody's own against it too.

A test is one property of one method: it goes through the method's variants and every case (shapes, gaps, degenerate batches, dtypes), and
fails with a list of the cases that fail.
"""

import contextlib
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from logitcache.methods import METHODS, find_method, get_loss, make_objective

# Properties that are not every method's, with the reason.
NOT_SHIFT_INVARIANT = {
    "clkd": "norms and dot products of raw logits",
    "rc": "adds the largest logit to the label's",
    "revision": "squared error of raw logits",
}
MINIMUM = {  # what a perfect student of a right teacher still pays
    "dist": "its correlation has 1e-8 in the denominator, as released",
    "rc": "the student's own answer is lifted",
    "revision": "cross-entropy is part of it",
    "ttm": "the softened teacher is another distribution",
    "wsld": "its cross-entropy has the teacher's entropy as minimum",
    "wttm": "as ttm",
}
STOPPED = {"rc", "wsld"}  # a factor without gradient stands in the value, so finite differences are not the gradient
BEGUN = {"sld": {"student_swap": True}}  # terms that begin during a training are tested switched on too
# Variants that torch.compile traces in the default run, half a second each; the other ones are marked slow.
COMPILED = {"kd plain", "rld adaptive"}


def pytest_generate_tests(metafunc):
    own = metafunc.config.getoption("--method")
    names = [own] if own else sorted(name for name, method in METHODS.items() if method.divergence)
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", names)
    if "compiled" in metafunc.fixturenames:
        found = [variant for name in names for variant in variants(name)]
        marks = [[] if own or " ".join(one) in COMPILED else [pytest.mark.slow] for one in found]
        cases = [pytest.param(one, marks=mark, id=" ".join(one)) for one, mark in zip(found, marks, strict=True)]
        metafunc.parametrize("compiled", cases)


def variants(name):
    """A method as it is, with other pieces where they mean something, and with what begins later."""
    refuses, words = find_method(name).refuses, ["plain"]
    words += ["standardize"] * ("standardize" not in refuses and find_method(name).temperature != "deviation")
    words += ["loca", "swap"] * ("refine" not in refuses)
    words += ["adaptive"] * ("temperature" in parameters(name) and "standardize" not in refuses)
    words += ["deviation"] * (
        "temperature" in parameters(name) and "deviation" not in refuses and not find_method(name).standardize
    )
    words += ["begun"] * (name in BEGUN)
    return [(name, word) for word in words]


def parameters(name):
    from logitcache.methods import parameters_of

    return parameters_of(name)


def loss_of(variant):
    name, word = variant
    changes = {
        "plain": {},
        "standardize": {"standardize": True},
        "loca": {"refine": "loca", "calibration_temperature": 2.0},
        "swap": {"refine": "swap"},
        "adaptive": {"temperature": "adaptive"},
        "deviation": {"temperature": "deviation"},
        "begun": BEGUN.get(name, {}),
    }[word]
    if word in ("adaptive", "deviation", "standardize") and find_method(name).refine == "loca":
        changes = changes | {"calibration_temperature": 2.0}
    return get_loss(name, **changes)


shapes = st.tuples(st.integers(1, 6), st.integers(2, 9), st.integers(0, 2**31 - 1))


def draw(batch, classes, seed, scale=3.0, dtype=torch.float64):
    random = torch.Generator().manual_seed(seed)
    student = scale * torch.randn(batch, classes, generator=random, dtype=torch.float64)
    teacher = scale * torch.randn(batch, classes, generator=random, dtype=torch.float64)
    return student.to(dtype), teacher.to(dtype), torch.randint(0, classes, (batch,), generator=random)


def finite(loss, student, teacher, labels):
    student = student.clone().requires_grad_()
    value = loss(student, teacher, labels)
    value.sum().backward()
    return bool(value.isfinite().all() and student.grad.isfinite().all())


class Cases:
    """Runs the cases of a test and collects those that fail, so that one does not hide the others."""

    def __init__(self):
        self._count, self._failed = 0, []

    @contextlib.contextmanager
    def case(self, *words):
        """Run one case; `words` name it."""
        self._count += 1
        try:
            yield
        except Exception as error:  # noqa: BLE001 - what it raises is reported with the case
            self._failed.append(f"{', '.join(map(str, words))}: {type(error).__name__}: {error}")

    def check(self):
        """Fail if any case did."""
        if self._failed:
            listed = "\n\n".join(self._failed)
            raise AssertionError(f"{len(self._failed)} of {self._count} cases fail:\n{listed}")


def each(name, *values):
    """Yield every variant of a method with its loss and every combination of values."""
    for variant in variants(name):
        loss = loss_of(variant)
        for case in itertools.product(*values):
            yield (variant, loss, *case)


@given(shape=shapes)
def test_one_finite_value_a_sample_or_one_a_batch_and_never_negative(name, shape):
    cases = Cases()
    for variant, loss in each(name):
        with cases.case(*variant):
            value = loss(*draw(*shape))
            assert value.shape == (() if loss.couples_batch else (shape[0],))
            assert value.isfinite().all()
            assert (value > -1e-9).all()
    cases.check()


@given(shape=shapes)
def test_rows_do_not_see_each_other_unless_declared(name, shape):
    student, teacher, labels = draw(*shape)
    cases = Cases()
    for variant, loss in each(name):
        with cases.case(*variant):
            if not loss.couples_batch:
                together = loss(student, teacher, labels)
                for row in range(shape[0]):
                    one = slice(row, row + 1)
                    torch.testing.assert_close(together[one], loss(student[one], teacher[one], labels[one]))
    cases.check()


def test_what_is_declared_to_couple_the_batch_does(name):
    student, teacher, labels = draw(6, 5, 0)
    loss = get_loss(name)
    if loss.couples_batch:
        apart = torch.stack([loss(student[i : i + 1], teacher[i : i + 1], labels[i : i + 1]) for i in range(6)]).mean()
        assert not torch.isclose(loss(student, teacher, labels), apart)


def test_what_is_declared_to_ignore_labels_does_and_nothing_else(name):
    cases = Cases()
    student, teacher, labels = draw(40, 6, 1)
    for variant, loss in each(name):
        with cases.case(*variant):
            same = torch.equal(loss(student, teacher, labels), loss(student, teacher, labels.roll(1)))
            assert same or loss.needs_label
            assert not same or not loss.needs_label or name not in METHODS  # a stranger's may leave it unsaid
    cases.check()


@given(shape=shapes, shift=st.floats(-50, 50))
def test_a_constant_added_to_a_row_changes_nothing(name, shape, shift):
    student, teacher, labels = draw(*shape)
    cases = Cases()
    for variant, loss in each(name):
        if name not in NOT_SHIFT_INVARIANT or variant[1] in ("standardize", "adaptive"):
            with cases.case(*variant):
                torch.testing.assert_close(
                    loss(student + shift, teacher - shift, labels), loss(student, teacher, labels), atol=1e-7, rtol=1e-6
                )
    cases.check()


def test_what_is_not_shift_invariant_is_named(name):
    student, teacher, labels = draw(5, 6, 3)
    teacher = teacher.scatter(1, labels[:, None], float(teacher.max()) + 1)
    same = torch.allclose(
        get_loss(name)(student + 5, teacher - 5, labels), get_loss(name)(student, teacher, labels), rtol=1e-6
    )
    assert same == (name not in NOT_SHIFT_INVARIANT)


@given(shape=shapes)
def test_a_perfect_student_of_a_teacher_that_is_right_costs_nothing(name, shape):
    _, teacher, labels = draw(*shape)
    teacher = teacher.scatter(1, labels[:, None], float(teacher.max()) + 1)
    cases = Cases()
    for variant, loss in each(name):
        with cases.case(*variant):
            value = loss(teacher, teacher, labels)
            if name in MINIMUM:
                assert (value >= 0).all()
            else:
                assert value.abs().max() < 1e-9
    cases.check()


def test_what_a_perfect_student_still_pays_is_named(name):
    _, teacher, labels = draw(5, 6, 4)
    teacher = teacher.scatter(1, labels[:, None], float(teacher.max()) + 1)
    assert (get_loss(name)(teacher, teacher, labels).max() > 1e-6) == (name in MINIMUM)


def test_the_gradient_is_that_of_the_value(name):
    if name in STOPPED | {"atkd"}:
        pytest.skip("the golden numbers hold its gradient")
    student, teacher, labels = draw(4, 5, 0)
    student.requires_grad_()
    cases = Cases()
    for variant, loss in each(name):
        if variant[1] != "adaptive":  # the golden numbers hold that gradient
            with cases.case(*variant):
                assert torch.autograd.gradcheck(lambda s, loss=loss: loss(s, teacher, labels), student)
    cases.check()


def test_value_and_gradient_are_finite_at_gaps_of_ten_thousand(name):
    cases = Cases()
    dtypes = [torch.float32, torch.float64, torch.bfloat16]
    for variant, loss, dtype, winner, gap in each(name, dtypes, ["label", "other"], [1e4, -1e4]):
        student, teacher, labels = draw(6, 7, 1, dtype=dtype)
        pushed = labels if winner == "label" else (labels + 1) % 7
        teacher = teacher.scatter(1, labels[:, None], gap)
        student = student.scatter(1, pushed[:, None], gap)
        with cases.case(*variant, dtype, winner, gap):
            assert finite(loss, student, teacher, labels)
        with cases.case(*variant, dtype, winner, gap, "student and teacher swapped"):
            assert finite(loss, teacher, student, labels)
    cases.check()


def test_half_precision_is_computed_on_in_float32(name):
    student, teacher, labels = draw(4, 5, 4, dtype=torch.bfloat16)
    value = get_loss(name)(student, teacher, labels)
    assert value.dtype == torch.float32
    assert torch.equal(value, get_loss(name)(student.float(), teacher.float(), labels))
    assert make_objective(name, {})(student, teacher, labels, 1.0).total.dtype == torch.float32


def test_small_and_degenerate_batches_are_finite(name):
    cases = Cases()
    kinds = ["random", "equal", "one value", "teacher equal", "student equal"]
    for variant, loss, (batch, classes), rows in each(name, [(1, 2), (1, 5), (3, 2)], kinds):
        student, teacher, labels = draw(batch, classes, 5)
        if rows in ("equal", "teacher equal"):
            teacher = torch.zeros_like(teacher)
        if rows in ("equal", "student equal"):
            student = torch.zeros_like(student)
        if rows == "one value":
            student, teacher = torch.full_like(student, 3.7), torch.full_like(teacher, -1.3)
        for dtype in (torch.float64, torch.float32):
            with cases.case(*variant, f"batch {batch}, {classes} classes", rows, dtype):
                assert finite(loss, student.to(dtype), teacher.to(dtype), labels)
    cases.check()


def test_the_true_class_may_rank_first_or_last_or_tie(name):
    cases = Cases()
    for variant, loss, rank in each(name, ["first", "last", "tied"]):
        student, teacher, labels = draw(5, 6, 2)
        chosen = {"first": 99.0, "last": -99.0, "tied": float(teacher.max())}[rank]
        teacher = teacher.scatter(1, labels[:, None], chosen)
        if rank == "tied":
            teacher = teacher.scatter(1, ((labels + 1) % 6)[:, None], chosen)
        with cases.case(*variant, rank):
            assert finite(loss, student, teacher, labels)
    cases.check()


def test_arguments_stay_as_they_were_and_the_teacher_gets_no_gradient(name):
    cases = Cases()
    for variant, loss in each(name):
        student, teacher, labels = draw(3, 4, 3)
        before = student.clone(), teacher.clone(), labels.clone()
        student.requires_grad_(), teacher.requires_grad_()
        with cases.case(*variant):
            loss(student, teacher, labels).sum().backward()
            with torch.no_grad():
                assert all(torch.equal(a, b) for a, b in zip(before, (student, teacher, labels), strict=True))
            assert teacher.grad is None
            assert student.grad.abs().sum() > 0
    cases.check()


def test_torch_compile_traces_it_whole(compiled):
    student, teacher, labels = draw(4, 5, 6, dtype=torch.float32)
    torch._dynamo.reset()
    loss = loss_of(compiled)
    traced = torch.compile(loss, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(traced(student, teacher, labels), loss(student, teacher, labels))
