import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from logitcache.runtime.philox import integers, philox4x32, uniforms, words

# Random123's known answers for philox4x32-10: counter, key, result.
PUBLISHED = [
    ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), PUBLISHED)
def test_the_published_vectors_come_out(counter, key, expected):
    assert philox4x32(np.array(counter, np.uint32), key).tolist() == expected


def test_seed_view_and_sample_fill_key_and_counter():
    sample, seed = 5 + (3 << 32), 9 + (4 << 32)
    expected = philox4x32(np.array([2, 5, 3, 7], np.uint32), (9, 4))
    assert (words(seed, 2, np.array([sample]), 7)[0] == expected).all()


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=20), st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_a_samples_words_do_not_depend_on_its_neighbours(samples, seed, view):
    together = words(seed, view, np.array(samples), 0)
    alone = np.concatenate([words(seed, view, np.array([sample]), 0) for sample in samples])
    assert (together == alone).all()


@given(st.integers(1, 2**31))
def test_integers_stay_below_their_bound(bound):
    random = np.array([0, 1, 2**31, 2**32 - 1], np.uint32)
    drawn = integers(random, bound)
    assert drawn[0] == 0
    assert drawn[-1] == bound - 1
    assert (np.diff(drawn) >= 0).all()


def test_uniforms_never_reach_zero_or_one():
    drawn = uniforms(np.array([0, 2**32 - 1], np.uint32))
    assert 0 < drawn[0] < drawn[1] < 1
