"""Packing: every context once, none beyond a sequence, and the list alone says where sequences begin."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcache.data.text.packing import best_fit, next_fit

LENGTHS = st.integers(1, 40).flatmap(
    lambda length: st.tuples(st.just(length), st.lists(st.integers(1, length), min_size=1, max_size=60))
)


@given(LENGTHS)
def test_best_fit_holds_every_context_once_and_fills_no_sequence_beyond_its_end(case):
    length, lengths = case
    found = best_fit(np.array(lengths), length)
    assert sorted(one for sequence in found for one in sequence) == list(range(len(lengths)))
    assert all(sum(lengths[one] for one in sequence) <= length for sequence in found)


@given(LENGTHS)
def test_next_fit_finds_the_sequences_of_best_fit_again(case):
    length, lengths = case
    found = best_fit(np.array(lengths), length)
    listed = np.array([lengths[one] for sequence in found for one in sequence])
    expected = np.repeat(np.arange(len(found)), [len(sequence) for sequence in found])
    assert np.array_equal(next_fit(listed, length), expected)


@given(LENGTHS)
def test_next_fit_of_any_order_holds(case):
    length, lengths = case
    sequence = next_fit(np.array(lengths), length)
    assert (np.bincount(sequence, weights=lengths) <= length).all()
    assert (np.diff(sequence) <= 1).all()
    assert (np.diff(sequence) >= 0).all()


def test_the_least_room_is_left_over_and_among_equals_the_oldest_is_filled():
    assert best_fit(np.array([6, 7, 3, 4]), 10) == [[0, 3], [1, 2]]
    assert best_fit(np.array([6, 6, 4]), 10) == [[0, 2], [1]]
    assert best_fit(np.array([10, 1, 10]), 10) == [[0], [1], [2]]


@pytest.mark.parametrize("length", [64, 2048])
def test_best_fit_wastes_little(length):
    lengths = np.random.RandomState(0).randint(1, length + 1, 3000)
    assert lengths.sum() / (length * len(best_fit(lengths, length))) > 0.95
