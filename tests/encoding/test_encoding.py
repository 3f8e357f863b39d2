"""Rows and back: what survives, what is lost, and that numpy alone reads the same."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from logitcache.encoding import FullEncoding, TopKEncoding, dense, encode_rows, read_encoding, rows_of_logprobs
from logitcache.errors import InputError, UnknownNameError
from logitcache.methods import METHODS, get_loss
from logitcache.store import compressed_bytes, decode_rows, kept_values, rounding

ENCODINGS = [
    *(FullEncoding(dtype) for dtype in ("f32", "f16", "u8")),
    *(TopKEncoding(k, dtype) for k in (1, 5) for dtype in ("f32", "f16", "u8")),
]


def draw(batch=64, classes=30, seed=0, scale=3.0, wrong=0.5):
    """Logits with a few large classes; labels that are the argmax, or any class."""
    random = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(batch, classes, generator=random)
    logits[:, :4] += 4
    labels = torch.randint(0, classes, (batch,), generator=random)
    return logits, torch.where(torch.rand(batch, generator=random) < wrong, labels, logits.argmax(1))


def stored(encoding, logits, labels):
    """Encode, and cast as the arrays do."""
    columns = encoding.encode(logits, labels)
    specs = encoding.columns(logits.shape[1])
    assert columns.keys() == specs.keys()
    found = {name: column.numpy().astype(specs[name].dtype) for name, column in columns.items()}
    assert all(found[name].shape[1:] == specs[name].shape for name in found)
    return found


def decoded(encoding, columns, labels, classes):
    return encoding.decode({name: torch.from_numpy(column) for name, column in columns.items()}, labels, classes)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_what_is_kept_is_within_its_rounding_and_numpy_reads_the_same(encoding):
    logits, labels = draw()
    columns = stored(encoding, logits, labels)
    rows = decoded(encoding, columns, labels, 30)
    entry = encoding.to_json()
    assert read_encoding(entry) == encoding
    ids, values = kept_values(entry, columns)
    exact = logits.numpy() if ids is None else np.take_along_axis(logits.numpy(), ids, 1)
    assert (np.abs(values - exact) <= rounding(entry, columns, exact)).all()
    for temperature in (0.5, 1.0, 2.0, 4.0):
        completed = decode_rows(entry, columns, 30, temperature)
        np.testing.assert_allclose(completed, dense(rows, temperature).numpy(), rtol=1e-5, atol=1e-5)
    if encoding.dtype == "f32":
        assert (values == exact).all()


@pytest.mark.parametrize("dtype", ["f32", "f16", "u8"])
def test_the_largest_and_the_label_are_kept(dtype):
    logits, labels = draw()
    rows = decoded(TopKEncoding(5, dtype), stored(TopKEncoding(5, dtype), logits, labels), labels, 30)
    assert (rows.ids.diff(dim=1) > 0).all()
    assert (rows.ids == labels[:, None]).any(1).all()
    largest = logits.topk(5, 1).indices
    assert (largest[:, :, None] == rows.ids[:, None, :]).any(2).all()
    expected = (logits > logits.gather(1, labels[:, None])).sum(1) >= 5
    assert 0 < expected.sum() < 64
    assert torch.equal(rows.unranked, expected)


@given(seed=st.integers(0, 2**31 - 1), classes=st.integers(3, 40), scale=st.sampled_from([1e-3, 0.1, 3.0, 1e3]))
@pytest.mark.parametrize("dtype", ["f16", "u8"])
@pytest.mark.parametrize("k", [None, 1, 4])
def test_rounding_keeps_the_first_class_and_the_labels_order(k, dtype, seed, classes, scale):
    """The mask of RLD depends on >=: rounding may neither make a tie with the label nor break one."""
    logits, labels = draw(16, classes, seed, scale)
    logits[::2] = (logits[::2] * 2 / scale).round() * scale / 2  # ties
    logits[1::4] = logits[1::4] * 1e-2 + torch.randn(len(logits[1::4]), 1)  # rows that hardly differ
    if k is None:
        encoding = FullEncoding(dtype)
        values, exact, own = (
            decoded(encoding, stored(encoding, logits, labels), labels, classes),
            logits,
            labels[:, None],
        )
    else:
        k = min(k, classes - 2)
        encoding = TopKEncoding(k, dtype)
        rows = decoded(encoding, stored(encoding, logits, labels), labels, classes)
        values, exact = rows.values, logits.gather(1, rows.ids)
        own = (rows.ids == labels[:, None]).int().argmax(1, keepdim=True)
    assert torch.equal(values >= values.gather(1, own), exact >= exact.gather(1, own))
    first = exact.argmax(1, keepdim=True)
    assert torch.equal(values == values.amax(1, keepdim=True), exact == exact.gather(1, first))


@pytest.mark.parametrize("dtype", ["f32", "f16", "u8"])
def test_the_rest_keeps_its_mass_at_one_and_nearly_at_other_temperatures(dtype):
    logits, labels = draw(256, 100, scale=1.7)
    encoding = TopKEncoding(10, dtype)
    rows = decoded(encoding, stored(encoding, logits, labels), labels, 100)
    out = logits.scatter(1, rows.ids, -torch.inf)
    for temperature, most in ((1.0, 0.01), (2.0, 0.08), (4.0, 0.02)):
        exact = (out / temperature).logsumexp(1)
        found = rows.rest_logit(temperature)[:, 0] / temperature + math.log(89)
        assert (found - exact).abs().max() < most
        completed = rows.at(temperature)
        assert torch.equal(completed.gather(1, rows.ids), rows.values)
    mean = (rows.rest[:, 0] - logits.scatter(1, rows.ids, 0).sum(1) / 89).abs().max()
    lowest = (rows.rest[:, 3] - logits.scatter(1, rows.ids, torch.inf).amin(1)).abs().max()
    assert max(mean, lowest) < 0.02


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("name", sorted(name for name, one in METHODS.items() if one.takes_bucket and not one.refine))
def test_one_bucket_is_the_rest_divided_as_the_student_divides_it(name, temperature):
    """A method over the kept classes and one bucket for the rest, in value and gradient."""
    logits, labels = draw(32, 20)
    encoding = TopKEncoding(4, "f32")
    rows = decoded(encoding, stored(encoding, logits, labels), labels, 20)
    student = torch.randn(32, 20, generator=torch.Generator().manual_seed(1), requires_grad=True)
    more = {"confidence_temperature": temperature} if name == "rld" else {}

    def bucket(scores):
        others = scores.scatter(1, rows.ids, -torch.inf) / temperature
        return torch.cat([scores.gather(1, rows.ids), temperature * others.logsumexp(1, keepdim=True)], 1)

    place = torch.searchsorted(rows.ids, labels[:, None]).squeeze(1)
    few = bucket(rows.at(temperature))
    words = {**more, **({"order": few.index_fill(1, torch.tensor([5]), -torch.inf)} if name == "rld" else {})}
    expected = METHODS[name].divergence(bucket(student), few, place, temperature=temperature, **words)
    if name == "rld":
        without = METHODS[name].divergence(bucket(student), few, place, temperature=temperature, beta=0.0, **words)
        expected = torch.where(rows.unranked, without, expected)
    ours = get_loss(name, temperature=temperature, tail="bucket", **more)(student, rows, labels)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
    gradients = [torch.autograd.grad(value.sum(), student)[0] for value in (ours, expected)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_losses_take_rows_completed_for_their_own_temperatures():
    logits, labels = draw()
    encoding = TopKEncoding(5, "f32")
    rows = decoded(encoding, stored(encoding, logits, labels), labels, 30)
    student = torch.randn(64, 30, generator=torch.Generator().manual_seed(1))
    both = get_loss("kd", temperature=(1.0, 4.0))(student, rows, labels)
    apart = [get_loss("kd", temperature=t)(student, rows.at(t), labels) for t in (1.0, 4.0)]
    torch.testing.assert_close(both, apart[0] + apart[1])
    swapped = get_loss("swap", temperature=2.0)(student, rows, labels)
    torch.testing.assert_close(swapped, get_loss("swap", temperature=2.0)(student, rows.at(2.0), labels))


def test_rld_learns_no_relations_from_rows_whose_label_has_no_rank():
    logits, labels = draw()
    encoding = TopKEncoding(5, "f32")
    rows = decoded(encoding, stored(encoding, logits, labels), labels, 30)
    student = torch.randn(64, 30, generator=torch.Generator().manual_seed(1))
    found = get_loss("rld")(student, rows, labels)
    whole, confidence = (get_loss("rld", beta=beta)(student, rows.at(4.0), labels) for beta in (8.0, 0.0))
    torch.testing.assert_close(found, torch.where(rows.unranked, confidence, whole))
    assert torch.equal(get_loss("rld").refined_rows(rows, labels), logits.argmax(1) != labels)


def test_with_little_left_out_losses_are_nearly_exact():
    logits, labels = draw(256, 40, wrong=0.1)
    student = torch.randn(256, 40, generator=torch.Generator().manual_seed(1))
    for name in ("kd", "dkd", "rld", "loca", "sld", "wsld"):
        exact = get_loss(name)(student, logits, labels).mean()
        gaps = []
        for k in (5, 20, 38):
            encoding = TopKEncoding(k, "f32")
            rows = decoded(encoding, stored(encoding, logits, labels), labels, 40)
            gaps.append(float((get_loss(name)(student, rows, labels).mean() - exact).abs() / exact))
        assert gaps[2] < gaps[0]
        assert gaps[2] < 0.02, name


@pytest.mark.parametrize("name", ["clkd", "dist", "mlkd", "ldrld", "revision", "ttm", "lskd", "atkd", "normkd"])
def test_methods_that_need_every_class_refuse_rows_of_the_largest(name):
    logits, labels = draw()
    encoding = TopKEncoding(5, "f32")
    rows = decoded(encoding, stored(encoding, logits, labels), labels, 30)
    with pytest.raises(InputError, match="cannot be computed from top-k rows"):
        get_loss(name)(logits, rows, labels)


@pytest.mark.parametrize("dtype", ["f32", "f16", "u8"])
def test_rows_whose_rest_is_known_by_its_mass_are_complete_at_temperature_one_alone(dtype):
    """From logits, and from log-probabilities that somebody gave: in any order, with more than are kept, and with none beside."""
    logits, labels = draw(classes=40)
    logprobs, encoding = logits.double().log_softmax(1), TopKEncoding(5, dtype, mass_only=True)
    assert read_encoding(encoding.to_json()) == encoding
    columns = stored(encoding, logprobs.float(), labels)
    rows = encoding.decode({name: torch.from_numpy(one) for name, one in columns.items()}, labels, 40)
    like = TopKEncoding(5, dtype)
    shaped = like.decode(like.encode(logprobs.float(), labels), labels, 40)
    assert torch.equal(rows.at(1.0), shaped.at(1.0))
    assert np.allclose(decode_rows(encoding.to_json(), columns, 40), rows.at(1.0).numpy(), atol=1e-5)
    assert np.isnan(decode_rows(encoding.to_json(), columns, 40, 2.0)).any()
    with pytest.raises(InputError, match="unknown at temperature 2"):
        rows.at(2.0)
    with pytest.raises(InputError, match="only the mass of the dropped classes"):
        like.narrow(rows, labels)
    ids = torch.cat([logprobs.topk(7).indices, labels[:, None]], 1)
    ids[(ids[:, :-1] == labels[:, None]).any(1), -1] = -1  # named once
    given = torch.where(ids >= 0, logprobs.gather(1, ids.clamp(min=0)), -torch.inf)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(1))
    found = rows_of_logprobs(ids[:, order].numpy(), given[:, order].numpy(), labels.numpy(), 5, 40)
    assert torch.equal(found.ids, shaped.ids)
    assert torch.equal(found.unranked, shaped.unranked)
    again = {name: column.numpy() for name, column in encode_rows(encoding, found, labels).items()}
    assert all(np.allclose(again[name], columns[name], rtol=1e-3, atol=1e-3) for name in columns)


def test_log_probabilities_that_are_none_are_refused_by_row():
    ids, labels = np.arange(6)[None].repeat(3, 0), np.array([0, 1, 2])
    good = np.log(np.full((3, 6), 0.1))

    def refuses(says, k=4, **changes):
        given = {"ids": ids.copy(), "logprobs": good.copy(), "labels": labels} | changes
        with pytest.raises(InputError, match=says):
            rows_of_logprobs(k=k, classes=50, **given)

    refuses(r"row 1 does not list its label exactly once", labels=np.array([0, 40, 2]))
    refuses(r"row 0 has fewer than 8 classes \(6\)", k=7)
    refuses(r"row 0 has probabilities that sum to more than 1 \(1.5", logprobs=np.log(np.full((3, 6), 0.3)))
    refuses(r"row 2 has log-probabilities above 0", logprobs=good + np.array([[0], [0], [9.0]]))
    refuses(r"row 1 has a log-probability that is not finite", logprobs=good * np.array([[1], [np.nan], [1.0]]))
    beyond = rows_of_logprobs(ids + np.array([0, 0, 0, 0, 0, 900]), good, labels, 4, 50)
    assert np.allclose(beyond.values.exp().numpy(), 0.1 / 0.9)


def test_ids_that_no_dump_wrote_are_found():
    logits, labels = draw()
    encoding = TopKEncoding(5, "f32")
    columns = stored(encoding, logits, labels)
    assert encoding.check(columns, 30) is None
    beyond, twice = ({"ids": columns["ids"].copy()} for _ in range(2))
    beyond["ids"][3, 5] += 30
    assert "classes beyond 29" in encoding.check(beyond, 30)
    twice["ids"][3, 2] = 0
    assert "a class twice" in encoding.check(twice, 30)


def test_what_cannot_be_encoded_is_refused():
    with pytest.raises(InputError, match="top-k 9 of 10 classes leaves no rest"):
        TopKEncoding(9, "f16").columns(10)
    with pytest.raises(InputError, match="top-k must be 1 or more, not 0"):
        TopKEncoding(0, "f16")
    with pytest.raises(UnknownNameError, match=r"unknown precision 'f8'"):
        FullEncoding("f8")
    with pytest.raises(UnknownNameError, match=r"unknown encoding 'sparse'; expected full, topk"):
        read_encoding({"kind": "sparse"})


def test_ids_are_as_wide_as_the_classes_need():
    widths = [TopKEncoding(5, "f16").columns(classes)["ids"].dtype for classes in (256, 257, 65536, 65537)]
    assert widths == ["|u1", "<u2", "<u2", "<u4"]


def test_ids_of_a_vocabulary_are_compressed_harder():
    column = TopKEncoding(50, "u8").columns(128_256)["ids"]
    steps = np.random.default_rng(0).geometric(1 / (1 + np.arange(51.0) ** 2), (4096, 51)).astype(column.dtype)
    assert compressed_bytes(column, steps) < 0.98 * compressed_bytes(column._replace(compression=1), steps)
    assert TopKEncoding(50, "u8").columns(1000)["ids"].compression == 1


def test_the_next_float16_below_is_the_next():
    """Every finite float16 in turn."""
    from logitcache.encoding.quantize import _next_below

    values = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    values = values[np.isfinite(values)]
    below = _next_below(torch.from_numpy(values)).numpy()
    with np.errstate(over="ignore"):
        expected = np.nextafter(values, np.float16(-np.inf))
    expected[~np.isfinite(expected)] = values[~np.isfinite(expected)]
    assert (below == expected).all()


@pytest.mark.parametrize("low", [-1e4, -6e4])
@pytest.mark.parametrize("dtype", ["f32", "u8"])
def test_the_mass_of_the_rest_is_right_beside_classes_that_were_masked_away(dtype, low):
    logits, labels = draw(32, 60)
    logits[:, 30:] = low
    labels = labels % 30
    encoding = TopKEncoding(5, dtype)
    rows = decoded(encoding, stored(encoding, logits, labels), labels, 60)
    exact = logits.scatter(1, rows.ids, -torch.inf).logsumexp(1)
    assert (rows.rest_logit(1.0)[:, 0] + math.log(54) - exact).abs().max() < 0.01
    at_four = (logits.scatter(1, rows.ids, -torch.inf) / 4).logsumexp(1)
    assert (rows.rest_logit(4.0)[:, 0] / 4 + math.log(54) - at_four).abs().max() < math.log(
        54 / 24
    ) + 1  # chord at worst


def test_a_label_beyond_float16_below_the_top_is_not_stored():
    logits, labels = draw(16, 12)
    logits[:, 3], labels[:] = -1e5, 3
    assert TopKEncoding(4, "u8").encode(logits, labels)["label"].isinf().all()


def test_of_equal_logits_the_first_columns_are_kept():
    """A teacher in bfloat16 has equal logits at the end of the list in most rows; torch.topk takes any of them."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 500, generator=random).bfloat16().float()
    labels = torch.randint(0, 500, (500,), generator=random)
    kept = TopKEncoding(16, "f32").encode(logits, labels)["ids"].cumsum(1)
    lifted = logits.scatter(1, labels[:, None], torch.inf)
    expected = lifted.sort(dim=1, descending=True, stable=True).indices[:, :17].sort(1).values
    assert torch.equal(kept, expected)
    ranked = lifted.sort(dim=1, descending=True).values
    assert (ranked[:, 16] == ranked[:, 17]).sum() > 5


def test_rows_are_printed_as_one_line():
    logits, labels = draw()
    rows = decoded(TopKEncoding(5, "f16"), stored(TopKEncoding(5, "f16"), logits, labels), labels, 30)
    assert repr(rows) == "TopKRows(shape=[64, 30], k=5, dtype=torch.float32, device='cpu')"
    assert repr(rows[3]) == "TopKRows(shape=[30], k=5, dtype=torch.float32, device='cpu')"
