"""Draws: right on average, exact where the teacher is sure, the same for a row wherever it is drawn."""

import math

import numpy as np
import pytest
import torch

from logitcache.encoding import DrawnRows, SampledEncoding, dense, encode_rows, read_encoding, top_classes
from logitcache.errors import InputError
from logitcache.methods import METHODS, find_method, get_loss, linear_loss, serves_draws
from logitcache.store import compressed_bytes, decode_rows, draw_gaps, drawn_targets, row_uniforms

CLASSES = 40


def rows_of_teacher(count=8, classes=CLASSES, seed=0, scale=2.0):
    random = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(count, classes, generator=random)
    return logits, torch.randint(0, classes, (count,), generator=random)


def stored(encoding, logits, labels, view=0, rows=None, **where):
    """Encode, and cast as the arrays do."""
    rows = np.arange(len(logits)) if rows is None else rows
    random = row_uniforms(encoding.to_json(), view, rows, where.get("offsets"), where.get("first", 0))
    columns = encode_rows(encoding, logits, labels, random)
    specs = encoding.columns(logits.shape[1])
    assert columns.keys() == specs.keys()
    return {name: column.numpy().astype(specs[name].dtype) for name, column in columns.items()}, random


def decoded(encoding, columns, labels, classes=CLASSES):
    return encoding.decode({name: torch.from_numpy(one) for name, one in columns.items()}, labels, classes)


def drawn(encoding, logits, labels, view=0, **more) -> DrawnRows:
    return decoded(encoding, stored(encoding, logits, labels, view, **more)[0], labels, logits.shape[1])


def targets_of(rows: DrawnRows):
    return torch.zeros(len(rows), rows.classes).scatter_add(1, rows.ids, rows.targets)


def gradient(student, teacher, labels, loss=None):
    student = student.detach().clone().requires_grad_()
    value = (loss or get_loss("kd", temperature=1.0))(student, teacher, labels)
    return torch.autograd.grad(value.sum(), student)[0]


@pytest.mark.parametrize("tempered", [1.0, 0.7, 1.5])
def test_the_mean_over_draws_converges_to_the_full_gradient_at_one_over_the_root(tempered):
    logits, labels = rows_of_teacher()
    student, _ = rows_of_teacher(seed=1)
    exact = gradient(student, logits, labels)
    errors = {}
    for draws in (16, 256):
        encoding = SampledEncoding(draws, proposal_temperature=tempered)
        found = torch.stack([gradient(student, drawn(encoding, logits, labels, v), labels) - exact for v in range(48)])
        errors[draws] = found.square().mean().sqrt()
        assert found.mean(0).norm() < 1.2 * (found.var(0).sum() / 48).sqrt() + 2e-3  # float16 rounds ratios
    assert errors[16] / errors[256] == pytest.approx(4, rel=0.12)


def test_a_plain_draw_has_the_variance_of_a_multinomial():
    logits, labels = rows_of_teacher(count=2)
    p, encoding = logits.double().softmax(1), SampledEncoding(32)
    found = torch.stack([targets_of(drawn(encoding, logits, labels, view)) for view in range(400)]).double()
    torch.testing.assert_close(found.var(0).sum(1), (p * (1 - p) / 32).sum(1), rtol=0.15, atol=0)


@pytest.mark.parametrize("tempered", [1.0, 2.0])
def test_a_teacher_that_is_sure_is_exact(tempered):
    logits, labels = rows_of_teacher()
    logits[torch.arange(8), labels] = 200.0
    student, _ = rows_of_teacher(seed=1)
    rows = drawn(SampledEncoding(5, proposal_temperature=tempered), logits, labels)
    assert torch.equal(gradient(student, rows, labels), gradient(student, logits, labels))
    loss = get_loss("kd", temperature=1.0)
    torch.testing.assert_close(loss(student, rows, labels), loss(student, logits, labels))


def test_the_value_is_unbiased_too():
    logits, labels = rows_of_teacher()
    student, _ = rows_of_teacher(seed=1)
    loss, encoding = get_loss("kd", temperature=1.0), SampledEncoding(64)
    found = torch.stack([loss(student, drawn(encoding, logits, labels, view), labels) for view in range(64)])
    deviation = found.std(0) / 8
    assert ((found.mean(0) - loss(student, logits, labels)).abs() < 5 * deviation + 2e-3).all()


def test_what_is_said_of_a_row_is_exact_up_to_rounding():
    logits, labels = rows_of_teacher()
    rows = drawn(SampledEncoding(3), logits, labels)
    log_p = logits.log_softmax(1)
    assert torch.equal(rows.first, logits.argmax(1))
    assert torch.equal(top_classes(rows), logits.argmax(1))
    torch.testing.assert_close(rows.log_prob_first, log_p.amax(1), rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(rows.log_prob_label, log_p.gather(1, labels[:, None])[:, 0], rtol=2e-3, atol=1e-4)
    torch.testing.assert_close(rows.entropy, -(log_p.exp() * log_p).sum(1), rtol=2e-3, atol=1e-4)


def test_a_draw_depends_on_seed_view_and_row_alone():
    logits, labels = rows_of_teacher(count=12)
    encoding, offsets = SampledEncoding(20, seed=3), np.array([0, 4, 4, 12])
    whole, _ = stored(encoding, logits, labels, offsets=offsets)
    last, _ = stored(encoding, logits[4:], labels[4:], offsets=np.array([0, 8]), first=2)
    some = np.array([10, 1])
    few, _ = stored(encoding, logits[some], labels[some], rows=some, offsets=offsets)
    for name, column in whole.items():
        assert np.array_equal(last[name], column[4:])
        assert np.array_equal(few[name], column[some])
    assert not np.array_equal(stored(encoding, logits, labels, 1, offsets=offsets)[0]["draws"], whole["draws"])
    other = stored(SampledEncoding(20, seed=4), logits, labels, offsets=offsets)[0]
    assert not np.array_equal(other["draws"], whole["draws"])


def test_random_numbers_are_uniform_and_ascend():
    found = row_uniforms(SampledEncoding(7).to_json(), 0, np.arange(2000), None, 0)
    assert found.shape == (2000, 7)
    assert (np.diff(found, axis=1) >= 0).all()
    assert found.mean() == pytest.approx(0.5, abs=0.01)
    assert len(np.unique(found)) == found.size
    assert row_uniforms({"kind": "topk"}, 0, np.arange(3), None, 0) is None


def test_numpy_reads_the_same():
    logits, labels = rows_of_teacher()
    encoding = SampledEncoding(50, seed=9, proposal_temperature=1.5)
    columns, _ = stored(encoding, logits, labels)
    entry = encoding.to_json()
    assert read_encoding(entry) == encoding
    ids, targets = drawn_targets(entry, columns)
    rows = decoded(encoding, columns, labels)
    assert np.array_equal(ids, rows.ids)
    np.testing.assert_allclose(targets, rows.targets, rtol=1e-6)
    with pytest.raises(InputError, match="cannot be converted to logits"):
        decode_rows(entry, columns, CLASSES)


@pytest.mark.parametrize("tempered", [1.0, 2.0])
def test_draws_are_found_again_from_exact_logits_and_others_are_not(tempered):
    logits, labels = rows_of_teacher()
    encoding = SampledEncoding(50, proposal_temperature=tempered)
    columns, random = stored(encoding, logits, labels)
    arguments = encoding.to_json(), columns, random, logits.numpy(), labels.numpy()
    assert draw_gaps(*arguments).max() == 0
    moved = logits.numpy().copy()
    moved[3, 5] += 3
    assert np.flatnonzero(draw_gaps(*arguments[:3], moved, labels.numpy()) > 1e-3).tolist() == [3]
    columns["draws"][2] = 0  # all of them class 0
    assert draw_gaps(*arguments)[2] > 1e-3
    columns["first"][1] = (columns["first"][1] + 1) % CLASSES
    assert draw_gaps(*arguments)[1] > 1e-3
    moved[0, 0] = np.nan
    assert np.isinf(draw_gaps(*arguments[:3], moved, labels.numpy())[0])


def test_classes_that_do_not_exist_are_found():
    encoding = SampledEncoding(5)
    columns, _ = stored(encoding, *rows_of_teacher())
    assert encoding.check(columns, CLASSES) is None
    columns["draws"][0, 0] = 200
    assert "beyond 39" in encoding.check(columns, CLASSES)


@pytest.mark.parametrize(("classes", "dtype"), [(200, "|u1"), (1000, "<u2"), (70_000, "<u4")])
def test_the_last_class_can_be_drawn_whatever_holds_the_ids(classes, dtype):
    logits = torch.full((2, classes), -50.0)
    logits[:, -1] = 10
    encoding, labels = SampledEncoding(4), torch.tensor([0, classes - 1])
    columns, _ = stored(encoding, logits, labels)
    assert columns["draws"].dtype == np.dtype(dtype)
    assert (decoded(encoding, columns, labels, classes).ids == classes - 1).all()


def test_a_row_of_a_large_vocabulary_takes_little_room():
    classes, count = 128_256, 512
    random = torch.Generator().manual_seed(0)
    ranked = -1.7 * torch.arange(1, 2001).log()  # a Zipf tail; 12 distinct ids of 50 draws
    logits = torch.full((count, classes), -30.0)
    ids = torch.randint(0, classes, (count, 2000), generator=random)
    logits.scatter_(1, ids, ranked.expand(count, -1))
    encoding = SampledEncoding(50)
    columns, _ = stored(encoding, logits, ids[:, 0])
    specs = encoding.columns(classes)
    distinct = np.mean([len(np.unique(row)) for row in drawn_targets(encoding.to_json(), columns)[0]])
    assert 10 < distinct < 16
    sizes = {name: compressed_bytes(specs[name], column) / count for name, column in columns.items()}
    assert sizes["draws"] < 36
    assert sum(sizes.values()) < 42


def test_rows_move_and_stack_like_tensors_and_are_none():
    logits, labels = rows_of_teacher()
    rows = drawn(SampledEncoding(5), logits, labels)
    assert len(rows) == 8
    again = DrawnRows.stack([rows[position] for position in range(8)]).to("cpu")
    assert torch.equal(again.ids, rows.ids)
    assert torch.equal(again.entropy, rows.entropy)
    with pytest.raises(InputError, match="5 classes sampled from a distribution over 40"):
        torch.softmax(rows, 1)
    with pytest.raises(AttributeError, match="cannot be completed"):
        _ = rows.shape
    with pytest.raises(InputError, match="sampled rows cannot be converted to logits"):
        dense(rows, 1.0)


@pytest.mark.parametrize("name", [name for name, one in METHODS.items() if one.divergence])
def test_methods_take_draws_or_say_why_not(name):
    logits, labels = rows_of_teacher()
    student, _ = rows_of_teacher(seed=1)
    rows = drawn(SampledEncoding(5), logits, labels)
    if serves_draws(name, find_method(name)):
        assert name in ("kd", "rc")
        assert get_loss(name, temperature=1.0)(student, rows, labels).shape == (8,)
        with pytest.raises(InputError, match="sampled at temperature 1, not 2"):
            get_loss(name, temperature=2.0)(student, rows, labels)
        return
    with pytest.raises(InputError, match="cannot be computed from sampled rows"):
        get_loss(name)(student, rows, labels)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"refine": "swap"}, "swap edits the teacher's probabilities"),
        ({"standardize": True}, "z-scoring needs every logit of a row"),
    ],
)
def test_pieces_that_change_the_probabilities_are_refused(settings, reason):
    logits, labels = rows_of_teacher()
    rows = drawn(SampledEncoding(5), logits, labels)
    with pytest.raises(InputError, match=reason):
        get_loss("kd", temperature=1.0, **settings)(logits, rows, labels)


@pytest.mark.parametrize("name", ["kd", "rc"])
def test_from_hidden_states_it_is_the_same(name):
    logits, labels = rows_of_teacher(count=10)
    rows = drawn(SampledEncoding(50), logits, labels)
    random = torch.Generator().manual_seed(2)
    hidden = torch.randn(10, 6, generator=random, dtype=torch.float64, requires_grad=True)
    head = torch.randn(CLASSES, 6, generator=random, dtype=torch.float64, requires_grad=True)
    loss = get_loss(name, temperature=1.0)
    found = linear_loss(loss, hidden, head, rows, labels, chunk_rows=4)
    gradients = torch.autograd.grad(found.total, [hidden, head])
    student = hidden @ head.T
    value = torch.nn.functional.cross_entropy(student, labels) + loss(student, rows, labels).mean()
    torch.testing.assert_close(found.total, value)
    torch.testing.assert_close(gradients, torch.autograd.grad(value, [hidden, head]))
    assert found.agreed == (student.argmax(1) == rows.first).sum()


@pytest.mark.parametrize(("draws", "tempered"), [(0, 1.0), (70_000, 1.0), (5, 0.2), (5, 9.0), (5, math.nan)])
def test_draws_that_mean_nothing_are_refused(draws, tempered):
    with pytest.raises(InputError, match="must be from"):
        SampledEncoding(draws, proposal_temperature=tempered)


def test_rows_are_printed_as_one_line():
    logits, labels = torch.zeros(4, 9), torch.zeros(4, dtype=torch.long)
    rows = drawn(SampledEncoding(3), logits, labels)
    assert repr(rows) == "DrawnRows(shape=[4, 9], draws=3, dtype=torch.float32, device='cpu')"
