"""A loss from hidden states is the loss of all logits: value, gradients, and what is counted."""

import itertools
from dataclasses import replace

import pytest
import tiny
import torch
from torch import nn
from torch.autograd import DeviceType

from logitcache.encoding import TopKEncoding
from logitcache.errors import InputError
from logitcache.methods import METHODS, get_loss, linear_loss, make_objective

CONDENSED = ("ce", "kd", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "dkd", "loca", "swap", "sld", "rld")
ON_THE_LARGEST = ("rc", "wsld")  # rows of the largest are completed for them
CLASSES, HIDDEN = 20, 7


class Head:
    """A last layer as a language model has it."""

    def __init__(self, weight, bias=None, scale=1.0, soft_cap=None):
        self.weight, self.bias, self.scale, self.soft_cap = weight, bias, scale, soft_cap

    def __call__(self, hidden):
        logits = nn.functional.linear(hidden, self.weight, self.bias) * self.scale
        return logits if self.soft_cap is None else self.soft_cap * torch.tanh(logits / self.soft_cap)


def draw(seed, count=8, k=5, *, classes=CLASSES, columns=None, dtype=torch.float64, ties=False, precision="f32"):
    """Hidden states, weight, bias, rows of the k largest, all logits of the teacher, labels.

    Some labels are the teacher's first class, some are not among the k largest. With ties most logits are equal to others, and one row
    of the teacher is constant.
    """
    random = torch.Generator().manual_seed(seed)
    teacher = 3 * torch.randn(count, classes, generator=random)
    hidden, weight, bias = (
        torch.randn(*shape, generator=random, dtype=torch.float64)
        for shape in ((count, HIDDEN), (columns or classes, HIDDEN), (columns or classes,))
    )
    labels = torch.randint(0, classes, (count,), generator=random)
    if ties:
        teacher, hidden, weight, bias = teacher.round(), hidden.round(), weight.round(), bias * 0
        teacher[:1] = 0
    labels = torch.where(torch.rand(count, generator=random) < 0.4, teacher.argmax(1), labels)
    encoding = TopKEncoding(k, precision)
    rows = encoding.decode(encoding.encode(teacher, labels), labels, classes)
    given = [one.to(dtype).requires_grad_() for one in (hidden, weight, bias)]
    return *given, rows, teacher, labels


def of_all_logits(objective, head, hidden, rows, labels, *, classes=CLASSES, progress=1.0):
    """Evaluate at once, and count."""
    logits = head(hidden)[:, :classes]
    terms = objective(logits, rows, labels, progress)
    return terms, logits.argmax(1)


def top_of(teacher):
    if isinstance(teacher, torch.Tensor):
        return teacher.argmax(1)
    return teacher.ids.gather(1, teacher.values.argmax(1, keepdim=True)).squeeze(1)


def check(objective, drawn, teacher, *, tolerance=1e-10, make_head=Head, classes=CLASSES, progress=1.0, **words):
    """Compare with all logits at once: terms, counts, gradients."""
    hidden, weight, bias, _, _, labels = drawn
    expected, predicted = of_all_logits(
        objective, make_head(weight, bias), hidden, teacher, labels, classes=classes, progress=progress
    )
    wanted = torch.autograd.grad(expected.total, (hidden, weight, bias))
    found = linear_loss(
        objective, hidden, make_head(weight, bias), teacher, labels, classes=classes, progress=progress, **words
    )
    gradients = torch.autograd.grad(found.total, (hidden, weight, bias))
    for name in ("total", "ce", "kd", "refined", "unranked"):
        one, other = getattr(found, name).detach(), getattr(expected, name).detach()
        torch.testing.assert_close(one, other.to(one.dtype), rtol=tolerance, atol=tolerance, equal_nan=True, msg=name)
    for one, other in zip(gradients, wanted, strict=True):
        assert one.dtype == other.dtype
        assert (one - other).abs().max() <= tolerance * other.abs().max().clamp_min(1e-3)
    assert found.right == (predicted == labels).sum()
    assert found.agreed == (predicted == top_of(teacher)).sum()
    assert found.rows == len(labels)


def settings_of(name, temperatures=(None, 0.5, 1, 2, 4)):
    """Every temperature and tail that a method takes."""
    method = METHODS[name]
    if name == "ce":
        return [{}]
    temperatures = [*temperatures] + [(1.0, 2.0, 4.0)] * ("several" not in method.refuses)
    tails = ["uniform"] + ["bucket"] * method.takes_bucket
    found = []
    for temperature, tail in itertools.product(temperatures, tails):
        more = {} if temperature is None else {"temperature": temperature}
        if method.refine == "loca" and isinstance(temperature, tuple):
            more["calibration_temperature"] = 3.0
        found.append({"tail": tail, **more})
    return found


@pytest.fixture
def never_completed(monkeypatch):
    """Make a loss from condensed rows fail where it completes them."""

    def complete(*_):
        raise AssertionError("rows were completed")

    monkeypatch.setattr("logitcache.methods.linear._Task._completed", complete)


@pytest.mark.parametrize("name", CONDENSED)
@pytest.mark.parametrize("ties", [False, True], ids=["plain", "ties"])
def test_condensed_rows_give_what_completed_rows_give(name, ties, never_completed):
    for number, (settings, k) in enumerate(itertools.product(settings_of(name, [None, 1, 2]), (1, 5, CLASSES - 3))):
        check(
            make_objective(name, settings, ce_weight=0.7), draws := draw(number, k=k, ties=ties), draws[3], chunk_rows=3
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", CONDENSED)
@pytest.mark.parametrize("precision", ["f32", "f16", "u8"])
def test_condensed_rows_give_what_completed_rows_give_for_many_rows(name, precision, never_completed):
    for seed, settings, k in itertools.product(range(5), settings_of(name), (1, 2, 5, 12, CLASSES - 3)):
        drawn = draw(seed, 12, k, ties=bool(seed % 2), precision=precision)
        check(make_objective(name, settings, ce_weight=0.3), drawn, drawn[3], chunk_rows=5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["reverse_kl", "jsd", "skew_kl", "skew_reverse_kl"])
@pytest.mark.parametrize("tail", ["uniform", "bucket"])
def test_terms_of_the_rest_stay_finite_at_extreme_logits(tail, name, dtype, never_completed):
    """Probabilities that are 0, of one network or of both, have no part in the loss; the completed row says the same."""
    for seed, scale in itertools.product(range(3), (1e2, 1e4)):
        hidden, weight, bias, _, teacher, labels = draw(seed, dtype=dtype)
        encoding = TopKEncoding(5, "f32")
        rows = encoding.decode(encoding.encode(scale * teacher, labels), labels, CLASSES)
        hidden = (scale * hidden).detach().requires_grad_()
        objective = make_objective(name, {"temperature": 1.0, "tail": tail})
        if dtype is torch.float64:
            check(objective, (hidden, weight, bias, rows, teacher, labels), rows, chunk_rows=3, tolerance=1e-9)
        found = linear_loss(objective, hidden, weight, rows, labels, bias=bias, classes=CLASSES)
        gradients = torch.autograd.grad(found.total, (hidden, weight, bias))
        assert all(one.isfinite().all() for one in (found.total, *gradients))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sld", {"student_swap": False}),
        ("sld", {"student_swap": True, "detach": True}),
        ("sld", {"student_swap": True, "tail": "bucket"}),
        ("dkd", {"refine": "loca"}),
        ("dkd", {"refine": "swap", "alpha": 3.0, "beta": 0.5}),
        ("kd", {"refine": "loca", "calibration_temperature": 1.5, "temperature": 3, "tail": "bucket"}),
        ("jsd", {"skew": 0.3}),
        ("skew_kl", {"refine": "swap", "skew": 0.4}),
        ("rld", {"confidence_temperature": 4.0}),
        ("lskd", {"standardize": False}),
    ],
)
def test_parameters_and_refinements_reach_condensed_rows(name, settings, never_completed):
    for seed in range(4):
        check(make_objective(name, settings), drawn := draw(seed), drawn[3], chunk_rows=4)


def test_what_changes_over_a_training_changes(never_completed):
    for name, progress in (("dkd", 0.01), ("sld", 0.1), ("sld", 0.9)):
        check(make_objective(name, {}), drawn := draw(1), drawn[3], progress=progress)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_full_rows_serve_every_method(name):
    if name == "ce":
        return
    drawn = draw(3)
    objective = make_objective(name, {})
    whole = objective.loss.couples_batch
    teacher = drawn[4].double()
    check(objective, drawn, teacher, tolerance=1e-9, chunk_rows=8 if whole else 3)
    check(objective, drawn, teacher, tolerance=1e-9, chunk_rows=100)


@pytest.mark.parametrize("name", ON_THE_LARGEST)
def test_methods_without_a_condensed_form_complete_rows_chunk_by_chunk(name):
    check(make_objective(name, {}), drawn := draw(4), drawn[3], chunk_rows=3)


def test_a_label_that_was_not_kept_is_found_on_completed_rows():
    *given, rows, teacher, labels = draw(5)
    others = (labels + 7) % CLASSES
    assert not (rows.ids == others[:, None]).any(1).all()
    check(make_objective("kd", {}), (*given, rows, teacher, others), rows, chunk_rows=3)


def squared(student, teacher, labels):
    return (student - teacher).square().mean(1)


def test_a_function_of_ones_own_sees_chunks_of_full_rows():
    drawn = draw(6)
    check(make_objective(squared, {}), drawn, drawn[4].double(), chunk_rows=3)
    with pytest.raises(InputError, match="every logit"):
        linear_loss(squared, *drawn[:2], drawn[3], drawn[5])


def test_a_method_that_couples_rows_couples_those_of_a_chunk():
    hidden, weight, bias, _, teacher, labels = draw(7)
    loss = get_loss("dist")
    found = linear_loss(loss, hidden, weight, teacher, labels, bias=bias, chunk_rows=4)
    logits = hidden @ weight.T + bias
    parts = [loss(logits[at], teacher[at].double(), labels[at]) for at in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(found.kd, (sum(parts) / 2).detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["kd", "rld", "rc"])
def test_the_teacher_may_be_a_function_of_positions(name):
    hidden, weight, bias, rows, _, labels = draw(8)
    asked = []

    def teacher(positions):
        asked.append(positions.tolist())
        return rows[positions]

    labels = labels.clone()
    labels[2] = -100
    found = linear_loss(name, hidden, weight, teacher, labels, bias=bias, chunk_rows=4)
    expected = linear_loss(name, hidden, weight, rows, labels, bias=bias)
    torch.testing.assert_close(found.total, expected.total, rtol=1e-12, atol=0)
    assert asked == [[0, 1, 3, 4], [5, 6, 7]]
    with pytest.raises(InputError, match="returned 8 rows of 20 classes"):
        linear_loss(name, hidden, weight, lambda _: rows, labels)


@pytest.mark.parametrize("name", ["ce", "kd", "jsd", "rc"])
def test_rows_that_do_not_count_are_left_out(name):
    hidden, weight, bias, rows, _, labels = draw(9)
    keep = torch.tensor([True, False, True, True, False, False, True, True])
    marked = labels.masked_fill(~keep, -100)
    hidden.data[~keep] = torch.nan  # never looked at
    found = linear_loss(name, hidden, weight, rows, marked, bias=bias, chunk_rows=3)
    expected = linear_loss(name, hidden[keep], weight, rows[keep], labels[keep], bias=bias)
    of_found, of_expected = (torch.autograd.grad(one.total, (hidden, weight, bias)) for one in (found, expected))
    torch.testing.assert_close(found.total, expected.total, rtol=1e-12, atol=0)
    for one, other in zip(of_found, of_expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert not of_found[0][~keep].any()
    assert (found.rows, float(found.right)) == (5, float(expected.right))


@pytest.mark.parametrize("name", ["ce", "kd", "rc", "dist"])
@pytest.mark.parametrize("count", [0, 3])
def test_no_rows_are_worth_nothing(name, count):
    hidden, weight, bias, rows, teacher, labels = draw(10, 3)
    labels = torch.full_like(labels, -100)[:count]
    rows = teacher[:count] if name == "dist" else rows[:count]
    hidden = hidden.detach()[:count].requires_grad_()
    found = linear_loss(name, hidden, weight, rows, labels, bias=bias)
    gradients = torch.autograd.grad(found.total, (hidden, weight, bias))
    assert [float(one.detach()) for one in (found.total, found.ce, found.kd, found.right, found.agreed)] == [0] * 5
    assert found.rows == 0
    assert not any(one.any() for one in gradients)


@pytest.mark.parametrize("name", ["kd", "skew_kl", "sld", "rc"])
@pytest.mark.parametrize(("scale", "soft_cap"), [(0.25, None), (1.0, 5.0), (2.0, 3.0)])
def test_heads_with_a_scale_and_a_cap(name, scale, soft_cap):
    drawn = draw(11)
    check(
        make_objective(name, {}),
        drawn,
        drawn[3],
        make_head=lambda weight, bias: Head(weight, bias, scale, soft_cap),
        chunk_rows=3,
    )


@pytest.mark.parametrize("name", ["ce", "kd", "rld", "reverse_kl", "rc"])
def test_columns_beyond_the_classes_get_no_mass_and_no_gradient(name):
    drawn = draw(12, columns=CLASSES + 4)
    check(make_objective(name, {}), drawn, drawn[3], chunk_rows=3)
    hidden, weight, bias, rows, _, labels = drawn
    linear_loss(name, hidden, weight, rows, labels, bias=bias, classes=CLASSES).total.backward()
    assert not weight.grad[CLASSES:].any()
    assert not bias.grad[CLASSES:].any()
    assert weight.grad[:CLASSES].any()


@pytest.mark.parametrize("name", ["ce", "kd", "rc"])
def test_smoothing_and_class_weights_are_those_of_an_objective(name):
    drawn = draw(13)
    weights = torch.linspace(0.5, 2, CLASSES)
    for smoothing, class_weights in ((0.1, None), (0.0, weights), (0.1, weights)):
        objective = replace(make_objective(name, {}), label_smoothing=smoothing, class_weights=class_weights)
        check(objective, drawn, drawn[3], chunk_rows=3)


@pytest.mark.parametrize("name", ["kd", "rld", "jsd", "sld", "wsld"])
def test_the_size_of_a_chunk_changes_nothing(name):
    hidden, weight, bias, rows, _, labels = draw(14, 11)
    found = [linear_loss(name, hidden, weight, rows, labels, bias=bias, chunk_rows=n).total for n in (1, 4, 11, 500)]
    assert max(found) - min(found) <= 1e-12 * found[0]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 0.04), (torch.float16, 5e-3)])
@pytest.mark.parametrize("name", ["kd", "rld", "skew_kl", "rc"])
def test_narrower_numbers(name, dtype, tolerance):
    hidden, weight, bias, rows, _, labels = draw(15, dtype=dtype)
    found = linear_loss(name, hidden, weight, rows, labels, bias=bias, chunk_rows=3)
    gradients = torch.autograd.grad(found.total, (hidden, weight, bias))
    wide = [one.detach().double().requires_grad_() for one in (hidden, weight, bias)]
    expected = make_objective(name, {})(wide[0] @ wide[1].T + wide[2], rows, labels, 1.0)
    assert found.total.dtype is torch.float32
    assert abs(found.total - expected.total) <= tolerance * abs(expected.total)
    for one, other in zip(gradients, torch.autograd.grad(expected.total, wide), strict=True):
        assert one.dtype is dtype
        assert (one - other).norm() <= tolerance * other.norm()


def test_under_autocast_the_projection_is_in_half_precision():
    hidden, weight, bias, rows, _, labels = draw(16, dtype=torch.float32)
    plain = linear_loss("kd", hidden, weight, rows, labels, bias=bias)
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_loss("kd", hidden.bfloat16(), weight, rows, labels, bias=bias)
    gradients = torch.autograd.grad(found.total, (weight, bias))
    assert all(one.dtype is torch.float32 for one in gradients)
    assert 0 < abs(found.total - plain.total) < 0.02 * plain.total


def test_gradients_are_those_that_are_asked_for_and_once():
    hidden, weight, bias, rows, _, labels = draw(17)
    frozen = weight.detach()
    found = linear_loss("kd", hidden, frozen, rows, labels)
    (3 * found.total).backward(retain_graph=True)
    expected = make_objective("kd", {})(hidden @ frozen.T, rows, labels, 1.0)
    torch.testing.assert_close(hidden.grad, 3 * torch.autograd.grad(expected.total, hidden)[0])
    with pytest.raises(InputError, match="one backward pass"):
        found.total.backward()
    with torch.no_grad():
        assert not linear_loss("kd", hidden, weight, rows, labels, bias=bias).total.requires_grad
    assert not linear_loss("kd", hidden.detach(), frozen, rows, labels).total.requires_grad


def test_rows_and_weights_do_not_change():
    hidden, weight, bias, rows, _, labels = draw(18)
    before = [one.clone() for one in (hidden, weight, bias, rows.ids, rows.values, rows.rest)]
    linear_loss("rld", hidden, Head(weight, bias, 2.0, 4.0), rows, labels).total.backward()
    after = (hidden, weight, bias, rows.ids, rows.values, rows.rest)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(7, dtype=torch.int64)}, r"labels \[R\], got \[8, 7\], \[20, 7\] and \[7\]"),
        ({"labels": torch.full((8,), 20)}, "labels must be between 0 and 19, or -100"),
        ({"labels": torch.zeros(8, dtype=torch.int32)}, "labels must be int64, not int32"),
        ({"bias": torch.zeros(3)}, r"the bias of a weight \[20, 7\] must be \[20\], not \[3\]"),
        ({"classes": 21}, "between 1 and the 20 columns of the head, not 21"),
        ({"classes": 19}, "must have the same number of classes, not 20 and 19"),
        ({"chunk_rows": 0}, "chunk_rows must be 1 or more"),
        ({"hidden": torch.zeros(8, 7)}, "hidden states are float32 and the head's weight is float64"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    hidden, weight, _, rows, _, labels = draw(19)
    given = {"hidden": hidden, "head": weight, "teacher": rows, "labels": labels} | change
    with pytest.raises(InputError, match=message):
        linear_loss("kd", **given)
    with pytest.raises(InputError, match="got 8 hidden states and 5 teacher rows"):
        linear_loss("kd", hidden, weight, rows[:5], labels)


def largest_allocation(run):
    """Return the bytes of the largest block of memory, and of the largest sum of blocks, that are allocated while something runs."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        run()
    events = [one for one in profile.profiler.kineto_results.events() if one.name() == "[memory]"]
    assert all(one.device_type() == DeviceType.CPU for one in events)
    sizes = [one.nbytes() for one in sorted(events, key=lambda one: one.start_ns())]
    return max(sizes), max(itertools.accumulate(sizes))


@pytest.mark.parametrize("name", tiny.usual(["ce", "kd", "rld", "jsd", "rc"], ["kd", "rc"]))
def test_the_matrix_of_all_logits_is_never_formed(name):
    count, classes, chunk = 512, 4_000, 16
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(count, 8, generator=random).requires_grad_()
    weight = torch.randn(classes, 8, generator=random).requires_grad_()
    teacher, labels = torch.randn(count, classes, generator=random), torch.arange(count)
    encoding = TopKEncoding(8, "f16")
    rows = encoding.decode(encoding.encode(teacher, labels), labels, classes)

    def step():
        linear_loss(name, hidden, weight, rows, labels, chunk_rows=chunk).total.backward()

    block, total = largest_allocation(step)
    of_chunk = chunk * classes * 4
    assert block <= 2 * of_chunk  # int64 where rows are completed
    assert total <= (16 if name in ("jsd", "rc") else 6) * of_chunk < count * classes * 4
