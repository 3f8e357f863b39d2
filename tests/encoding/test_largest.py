"""The columns of the largest values of a row, of equal ones the first."""

import pytest
import torch

from logitcache.encoding import FullEncoding, TopKEncoding
from logitcache.encoding.largest import _on_device, largest

ROWS = 40


def drawn(columns, kind):
    values = 3 * torch.randn(ROWS, columns, generator=torch.Generator().manual_seed(columns))
    return {"distinct": values, "bfloat16": values.bfloat16().float(), "whole": values.round(), "equal": values * 0}[
        kind
    ]


@pytest.mark.parametrize("way", [largest, _on_device])
@pytest.mark.parametrize("kind", ["distinct", "bfloat16", "whole", "equal"])
@pytest.mark.parametrize(
    ("columns", "width"),
    [(10, 10), (100, 7), (512, 17), (512, 4), (525, 4), (5000, 17), (20_000, 1)],  # from the fourth on in blocks
)
def test_the_largest_are_those_of_a_stable_sort(way, columns, width, kind):
    values = drawn(columns, kind)
    expected = values.sort(dim=1, descending=True, stable=True).indices[:, :width].sort(1).values
    assert torch.equal(way(values, width), expected)


@pytest.mark.parametrize("columns", [100, 5000])
def test_what_is_no_number_is_among_the_largest_so_that_a_dump_refuses_it(columns):
    values = drawn(columns, "distinct")
    values[3, 50], values[4, :60], values[5, 7] = torch.nan, torch.nan, torch.inf
    found = largest(values, 5)
    kept = values.gather(1, found)
    assert kept[3].isnan().sum() == 1
    assert kept[4].isnan().all()
    assert kept[5].isinf().sum() == 1
    rest = torch.arange(ROWS) > 5
    assert torch.equal(found[rest], largest(values[rest], 5))


@pytest.mark.parametrize("dtype", ["u8", "f16"])
def test_columns_of_a_row_depend_on_that_row_alone(dtype):
    """Rows are gone through in parts; how many there are, and where a row is among them, changes no bit."""
    logits = drawn(30_000, "bfloat16")
    labels = torch.where(torch.arange(ROWS) % 2 == 0, logits.argmax(1), torch.arange(ROWS))
    encoding = TopKEncoding(16, dtype)
    together = encoding.encode(logits, labels)
    apart = [encoding.encode(logits[n : n + 1], labels[n : n + 1]) for n in range(ROWS)]
    for name, column in together.items():
        assert torch.equal(column, torch.cat([one[name] for one in apart]))


@pytest.mark.parametrize("dtype", ["f32", "f16", "u8"])
@pytest.mark.parametrize("kind", ["distinct", "bfloat16", "equal"])
def test_the_class_of_the_largest_logit_is_read_off_what_is_stored(kind, dtype):
    logits = drawn(100, kind)
    labels = torch.where(torch.arange(ROWS) % 2 == 0, logits.argmax(1), torch.arange(ROWS))
    for encoding in (TopKEncoding(5, dtype), FullEncoding(dtype)):
        assert torch.equal(encoding.top_classes(encoding.encode(logits, labels)), logits.argmax(1))
