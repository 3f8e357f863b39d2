"""Rendering: which token stands where, which outputs are rows, and in which order, for one context a sequence and for many."""

import numpy as np
import pytest
import texts
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logitcache.data.images.modality import IMAGES
from logitcache.data.optional import arranged, divided, for_training
from logitcache.data.text.documents import Documents
from logitcache.data.text.modality import TEXT
from logitcache.data.text.rendering import TextInputs, TextView
from logitcache.errors import FormatVersionError, InputError, UnknownNameError

LENGTH = 16


def rendered(samples, ids, inputs):
    (batch,) = TEXT.renderer(samples, inputs, with_digests=True).batches(TextView(), [ids])
    return batch


def test_contexts_are_laid_out_one_after_another_and_padding_is_apart():
    samples = Documents(np.array([5, 6, 7, 8, 9, 4]), np.array([0, 3, 5, 6]), 10)
    batch = rendered(samples, np.array([1, 2, 0]), [TextInputs(4, packs=True)])
    (inputs,), (keep,) = batch.inputs, batch.keep
    assert inputs["input_ids"].tolist() == [[8, 9, 4, 0], [5, 6, 7, 0]]
    assert inputs["position_ids"].tolist() == [[0, 1, 0, 0], [0, 1, 2, 0]]
    assert inputs["documents"].tolist() == [[0, 0, 1, -1], [0, 0, 0, -1]]
    assert keep.tolist() == [[True, False, False, False], [True, True, False, False]]
    alone = rendered(samples, np.array([1, 2, 0]), [TextInputs(4)])
    assert alone.inputs[0]["input_ids"].tolist() == [[8, 9, 0, 0], [4, 0, 0, 0], [5, 6, 7, 0]]
    assert alone.inputs[0]["documents"].tolist() == [[0, 0, -1, -1], [0, -1, -1, -1], [0, 0, 0, -1]]


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.booleans(), st.booleans())
def test_rows_are_where_they_say_also_when_several_contexts_share_a_sequence(seed, packs, targets):
    """A network that tells token, position and tokens so far: any shift, any other context and any padded column shows."""
    samples = texts.contexts(30, seed=seed, targets=targets)
    order = np.random.RandomState(seed).permutation(30)
    inputs = TextInputs(LENGTH, packs)
    expected, seen = texts.told(samples), []
    for ids in arranged(TEXT, samples, inputs, order, 3):
        batch, rows = rendered(samples, ids, [inputs]), TEXT.row_labels(samples, TextView(), ids)
        assert len(batch.inputs[0]["input_ids"]) <= 3
        output = texts.Teller()(**batch.inputs[0])
        chunks = list(TEXT.rows(output, batch.kept(rows, 0), classes=texts.VOCABULARY, label="x"))
        found = torch.cat(chunks) if chunks else torch.empty(0, texts.VOCABULARY)
        assert found.shape == (len(rows.ids), texts.VOCABULARY)
        assert np.array_equal(found[:, :3].detach().numpy(), expected[rows.ids])
        assert np.array_equal(samples.labels[rows.ids], rows.labels.numpy())
        assert np.array_equal(batch.digests, samples.row_digests(ids))
        seen += ids.tolist()
    assert sorted(seen) == list(range(30))


def test_teacher_and_student_see_the_same_rows_in_other_arrangements():
    samples = texts.contexts(12, targets=True)
    ids = np.random.RandomState(1).permutation(12)
    batch = rendered(samples, ids, [TextInputs(LENGTH, packs=True), TextInputs(12)])
    rows = TEXT.row_labels(samples, TextView(), ids)
    shapes = [tuple(keep.shape) for keep in batch.keep]
    assert shapes[1] == (12, 12)
    assert shapes[0][0] < 12
    packed, alone = (
        torch.cat(list(TEXT.rows(texts.Teller()(**one), batch.kept(rows, n), classes=40, label="x")))
        for n, one in enumerate(batch.inputs)
    )
    assert torch.equal(packed, alone)


def test_a_batch_is_a_number_of_sequences_and_so_is_a_part_of_it():
    samples, inputs = texts.contexts(200), TextInputs(LENGTH, packs=True)
    order = np.random.RandomState(3).permutation(200)
    batches = arranged(TEXT, samples, inputs, order, 8)
    counts = [int(inputs.sequences(samples, ids)[-1]) + 1 for ids in batches]
    assert set(counts[:-1]) == {8}
    assert samples.lengths.sum() / (sum(counts) * LENGTH) > 0.9
    parts = divided(TEXT, samples, inputs, batches[0], 3)
    assert [int(inputs.sequences(samples, ids)[-1]) + 1 for ids in parts] == [3, 3, 2]
    assert np.array_equal(np.concatenate(parts), batches[0])
    assert sorted(np.concatenate(batches).tolist()) == list(range(200))
    whole = arranged(TEXT, samples, inputs, order, 8, drop_last=True)
    assert len(whole) == len(batches) - (counts[-1] < 8)
    again = arranged(TEXT, samples, inputs, order, 8)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


def test_without_packing_a_batch_is_a_number_of_contexts():
    samples = texts.contexts(10)
    batches = arranged(TEXT, samples, TextInputs(12), np.arange(10)[::-1], 4)
    assert [ids.tolist() for ids in batches] == [[9, 8, 7, 6], [5, 4, 3, 2], [1, 0]]


def test_rows_take_tensors_logits_and_states_with_a_head_and_leave_out_columns():
    states, keep = torch.randn(2, 300, 8), torch.ones(2, 300, dtype=torch.bool)
    head = torch.nn.Linear(8, 20)
    logits = head(states)
    from types import SimpleNamespace

    for output in (logits, {"logits": logits}, SimpleNamespace(states=states, head=head)):
        chunks = list(TEXT.rows(output, keep, classes=15, label="x"))
        assert max(map(len, chunks)) == 256
        assert torch.allclose(torch.cat(chunks), logits.reshape(-1, 20)[:, :15], atol=1e-6)
        assert sum(map(len, TEXT.rows(output, None, classes=15, label="x"))) == 600
    with pytest.raises(InputError, match=r"x has logits for 20 ids, but the vocabulary has 21"):
        list(TEXT.rows(logits, keep, classes=21, label="x"))
    with pytest.raises(InputError, match=r"x must return logits \[2, 300, 15\].* found a tensor \[2, 20\]"):
        list(TEXT.rows(logits[:, 0], keep, classes=15, label="x"))


def test_options_that_text_does_not_have_are_refused():
    samples = texts.contexts(10)
    assert TEXT.choose_inputs(samples, TextView(), {"mean": None}) == TextInputs(samples.longest)
    assert TEXT.choose_inputs(samples, TextView(), {}, {"length": 20, "packs": False}) == TextInputs(20)
    with pytest.raises(InputError, match="`image_size` is for images, but the data is text"):
        TEXT.choose_inputs(samples, TextView(), {"mean": (0.5,), "image_size": 3})
    with pytest.raises(InputError, match="more than `sequence_length` 3"):
        TEXT.choose_inputs(samples, TextView(), {"length": 3})
    with pytest.raises(InputError, match="more than `sequence_length` 3"):
        rendered(samples, np.arange(10), [TextInputs(3, packs=True)])
    with pytest.raises(UnknownNameError, match="unknown augmentation of text 'cifar'"):
        TEXT.make_views("cifar", 1, 0)
    with pytest.raises(FormatVersionError, match="cannot replay"):
        TEXT.read_view({"recipe": "sampled", "index": 0, "group": 0})
    (view,) = TEXT.make_views("none", 1, 0)
    assert TEXT.read_view(view.to_json()) == view
    assert TEXT.read_inputs(TextInputs(9, packs=True).to_json()) == TextInputs(9, packs=True)


def test_a_student_is_given_sequences_of_the_length_that_was_asked_for():
    samples = Documents(np.arange(6), np.array([0, 4, 6]), 10, sequence_length=8)
    chosen = TEXT.choose_inputs(samples, TextView(), {}, {"length": 4, "packs": False})
    assert for_training(TEXT, chosen, samples) == TextInputs(8, packs=True)
    assert for_training(TEXT, chosen, samples, 5) == TextInputs(5, packs=True)
    with pytest.raises(InputError, match="the longest context has 4 tokens, more than `sequence_length` 3"):
        for_training(TEXT, chosen, samples, 3)
    with pytest.raises(InputError, match="is for text, but the data is images"):
        for_training(IMAGES, object(), object(), 3)
    longer = Documents(np.arange(9), np.array([0, 9]), 10)
    assert TEXT.for_evaluation(TextInputs(5, packs=True), longer) == (TextInputs(9, packs=True), TextView())
