"""TAD against its equations in full, row by row in float64, and over sequences that are divided in any way."""

import numpy as np
import pytest
import texts
import torch

import logitcache
from logitcache.encoding import SampledEncoding, TopKEncoding, encode_rows
from logitcache.errors import InputError
from logitcache.methods import get_loss, linear_loss, make_objective
from logitcache.methods.tad import tad, tail_mass
from logitcache.store import row_uniforms

K, BETA, CLASSES = 3, 2.0, 12


def draw(rows=9, classes=CLASSES, seed=0):
    random = torch.Generator().manual_seed(seed)
    student, teacher = 2 * torch.randn(2, rows, classes, generator=random, dtype=torch.float64)
    return student, teacher, torch.randint(0, classes, (rows,), generator=random)


def by_the_equations(student, teacher, sequences, k=K, beta=BETA):
    """The mean over rows of D1 + beta / mean(alpha) · alpha · D2, with probabilities, a row at a time."""
    rows = []
    for z, s in zip(teacher, student, strict=True):
        p, q = z.softmax(0), s.softmax(0)
        order = z.argsort(descending=True)
        head, tail = order[:k], order[k:]
        alpha, rest = p[tail].sum(), q[tail].sum()
        d1 = (p[head] * (p[head] / q[head]).log()).sum() + alpha * (alpha / rest).log()
        d2 = (p[tail] / alpha * ((p[tail] / alpha) / (q[tail] / rest)).log()).sum()
        rows.append((d1, alpha, d2))
    d1, alpha, d2 = (torch.stack(column) for column in zip(*rows, strict=True))
    means = torch.stack([alpha[sequences == number].mean() for number in sequences])
    return (d1 + beta / means * alpha * d2).mean()


def means_of(loss, teacher, labels, sequences):
    return loss.sequence_means([(teacher, labels)], sequences)


@pytest.mark.parametrize("sequences", [[0] * 9, [3, 3, 1, 1, 1, 1, 7, 7, 7], list(range(9))], ids=str)
def test_value_and_gradient_are_those_of_the_equations(sequences):
    student, teacher, labels = draw()
    sequences = torch.tensor(sequences)
    student.requires_grad_()
    loss = get_loss("tad", k=K)
    value = loss(student, teacher, labels, means=means_of(loss, teacher, labels, sequences))
    expected = by_the_equations(student, teacher, sequences)
    torch.testing.assert_close(value, expected)
    gradients = [torch.autograd.grad(one, student)[0] for one in (value, expected)]
    torch.testing.assert_close(*gradients)


def test_without_sequences_all_rows_are_one():
    student, teacher, labels = draw()
    one = torch.zeros(9, dtype=torch.int64)
    torch.testing.assert_close(get_loss("tad", k=K)(student, teacher, labels), by_the_equations(student, teacher, one))


def test_where_beta_is_the_mean_mass_of_the_tail_it_is_kl():
    student, teacher, labels = draw()
    beta = float(tail_mass(teacher, k=K).mean())
    expected = get_loss("kd", temperature=1.0)(student, teacher, labels).mean()
    torch.testing.assert_close(tad(student, teacher, labels, k=K, beta=beta), expected)


def test_by_hand():
    """p = (.6, .3, .1), q = (.5, .25, .25), K = 1, beta = 2, one row: D1 + 2 D2.

    D1 = .6 ln(.6/.5) + .4 ln(.4/.5) = .109393 - .089257 = .020136; D2 = .75 ln(.75/.5) + .25 ln(.25/.5) = .304099 - .173287 = .130812.
    """
    p, q = torch.tensor([[0.6, 0.3, 0.1]]).double().log(), torch.tensor([[0.5, 0.25, 0.25]]).double().log()
    found = get_loss("tad", k=1)(q, p, torch.tensor([0]))
    assert float(found) == pytest.approx(0.020136 + 2 * 0.130812, abs=2e-6)


@pytest.mark.parametrize("chunk_rows", [1, 4, 100])
@pytest.mark.parametrize("kept", [None, 6], ids=["every class", "top 6"])
def test_neither_chunks_nor_the_order_of_rows_change_it(chunk_rows, kept):
    _, teacher, labels = draw()
    sequences = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])
    random = torch.Generator().manual_seed(3)
    hidden = torch.randn(9, 5, generator=random, dtype=torch.float64, requires_grad=True)
    head = torch.randn(CLASSES, 5, generator=random, dtype=torch.float64, requires_grad=True)
    rows = teacher.float()
    if kept:
        encoding = TopKEncoding(kept, "f32")
        rows = encoding.decode(encoding.encode(rows, labels), labels, CLASSES)
    loss = get_loss("tad", k=K)
    means = means_of(loss, rows, labels, sequences)
    expected = loss(hidden @ head.T, rows, labels, means=means)
    objective = make_objective("tad", {"k": K}, ce_weight=0.0)
    order = torch.randperm(9, generator=random)
    found = linear_loss(
        objective, hidden[order], head, rows[order], labels[order], chunk_rows=chunk_rows, sequences=sequences[order]
    )
    torch.testing.assert_close(found.total, expected.to(found.total.dtype), rtol=1e-6, atol=1e-8)
    gradients = [torch.autograd.grad(one, [hidden, head], retain_graph=True) for one in (found.total, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


def test_the_tail_of_rows_of_the_largest_is_known_down_to_what_was_kept():
    """The mass of the tail is exact; only its shape below the kept logits is completed, evenly."""
    student, teacher, labels = draw()
    encoding = TopKEncoding(6, "f32")
    rows = encoding.decode(encoding.encode(teacher.float(), labels), labels, CLASSES)
    completed = rows.at(1.0).double()
    found = get_loss("tad", k=K)(student, rows, labels)
    one = torch.zeros(9, dtype=torch.int64)
    torch.testing.assert_close(found, by_the_equations(student, completed, one), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(tail_mass(completed, k=K), tail_mass(teacher, k=K), rtol=2e-3, atol=1e-5)
    with pytest.raises(InputError, match="does not support tail 'bucket'"):
        get_loss("tad", k=K, tail="bucket")


def test_no_row_that_counts_is_no_loss_and_draws_are_refused():
    student, teacher, labels = draw()
    head = torch.eye(CLASSES, dtype=torch.float64)
    found = linear_loss("tad", student, head, teacher, torch.full_like(labels, -100))
    assert float(found.total) == 0
    encoding = SampledEncoding(4)
    random = row_uniforms(encoding.to_json(), 0, np.arange(9), None, 0)
    rows = encoding.decode(encode_rows(encoding, teacher.float(), labels, random), labels, CLASSES)
    with pytest.raises(InputError, match="tad is not linear"):
        linear_loss("tad", student, head, rows, labels)


def test_a_training_on_text_does_not_depend_on_micro_batches(tmp_path):
    """Gradients of a batch in parts add up to those of the batch, because no context is divided."""
    cache = logitcache.dump_logits(
        texts.teacher(texts.VOCABULARY), texts.contexts(24), tmp_path / "c.zarr", encoding="full", precision="f32"
    )
    found = [
        logitcache.train_student(
            cache,
            "texts:Student",
            out=tmp_path / str(parts),
            method="tad",
            parameters={"k": K},
            epochs=2,
            batch_size=6,
            lr=0.05,
            grad_accum_steps=parts,
        ).student.state_dict()
        for parts in (1, 3)
    ]
    for one, other in zip(*(state.values() for state in found), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_pieces_that_have_another_tail_are_refused():
    for pieces in ({"standardize": True}, {"temperature": (1.0, 2.0)}, {"temperature": "deviation"}):
        with pytest.raises(InputError, match="its tail is weighted by a mass"):
            get_loss("tad", **pieces)
