"""Contexts of tokens: what a row is, what is refused, and digests."""

import copy

import numpy as np
import pytest
import texts

from logitcache.data import as_samples, leave_out, modality_of, part_of, whole_of
from logitcache.data.text.documents import Documents
from logitcache.data.text.modality import TEXT
from logitcache.errors import InputError


def test_a_row_is_a_target_and_never_the_first_of_a_context():
    found = Documents(np.array([5, 6, 7, 8, 9]), np.array([0, 3, 3, 5]), 10)
    assert found.labels.tolist() == [6, 7, 9]
    assert found.offsets.tolist() == [0, 2, 2, 3]
    assert found.tokens.dtype == np.uint16
    assert len(found) == 3
    assert found.longest == 3
    some = Documents(np.array([5, 6, 7, 8, 9]), np.array([0, 3, 5]), 70_000, np.array([1, 0, 1, 1, 0], bool))
    assert some.labels.tolist() == [7]
    assert some.offsets.tolist() == [0, 1, 1]
    assert some.tokens.dtype == np.uint32


def test_it_is_text():
    samples = texts.contexts(5)
    assert modality_of(samples) is TEXT
    assert as_samples(samples) is samples
    assert len(samples.classes) == texts.VOCABULARY


@pytest.mark.parametrize(
    ("tokens", "documents", "message"),
    [
        ([1, 2, 40], [0, 1, 3], r"token 2 \(in context 1\) has id 40, but the vocabulary has ids 0 to 39"),
        ([1, -2, 3], [0, 3], "has id -2"),
        ([1, 2, 3], [0, 2], r"from 0 to 3, not 0, 2 \.\.\. 2"),
        ([1, 2, 3], [1, 3], "from 0 to 3, not 1, 3"),
        ([1, 2, 3], [0, 2, 1, 3], "document 1 ends before it begins"),
        ([1.0, 2.0], [0, 2], "tokens must be a one-dimensional array of integers, not float64"),
        ([[1, 2]], [0, 1], r"int64 \[1, 2\]"),
    ],
)
def test_what_is_no_text_is_refused(tokens, documents, message):
    with pytest.raises(InputError, match=message):
        Documents(np.array(tokens), np.array(documents), 40)


def test_digests_of_rows_are_those_of_the_tokens_before_them():
    samples = Documents(np.array([5, 6, 7, 5, 6, 8, 6, 5, 7, 5]), np.array([0, 3, 6, 9, 10]), 10)
    a, b, c = np.split(samples.row_digests(np.arange(4)), 3)
    assert np.array_equal(a, b)  # of "5" and "5 6"
    assert len({*a.tolist(), *c.tolist()}) == 4
    other = samples.row_digests(np.array([3, 2, 0]))
    assert np.array_equal(other, np.concatenate([c, a]))


def test_any_token_before_changes_the_digest_and_none_after():
    samples = texts.contexts(1, 1)
    tokens = np.arange(30)
    for place in range(30):
        changed = tokens.copy()
        changed[place] += 1
        a, b = (Documents(one, np.array([0, 30]), 40).row_digests(np.array([0])) for one in (tokens, changed))
        assert (a == b).tolist() == [row < place for row in range(29)]
    assert len(samples) == 1


def test_a_data_set_is_known_by_its_tokens_contexts_targets_and_vocabulary():
    tokens, documents = np.array([1, 2, 3, 4]), np.array([0, 2, 4])
    whole = Documents(tokens, documents, 10).digest()
    assert whole == Documents(tokens.astype(np.uint16), documents.astype(np.int32), 10).digest()
    others = [
        Documents(tokens + 1, documents, 10),
        Documents(tokens, np.array([0, 1, 4]), 10),
        Documents(tokens, documents, 11),
        Documents(tokens, documents, 10, np.array([0, 0, 0, 1], bool)),
    ]
    assert len({whole, *(one.digest() for one in others)}) == 5


def test_a_stretch_is_a_data_set_of_its_own():
    samples = texts.contexts(20, targets=True)
    part = part_of(part_of(samples, (3, 15)), (2, 9))
    assert whole_of(part) == (samples, 5)
    assert len(part) == 7
    assert np.array_equal(part.labels, samples.labels[samples.offsets[5] : samples.offsets[12]])
    assert np.array_equal(part.row_digests(np.arange(7)), samples.row_digests(np.arange(5, 12)))
    without = leave_out(part, [6])
    assert whole_of(without)[0].excluded.tolist() == [6]
    assert copy.copy(part).digest() == part.digest()
