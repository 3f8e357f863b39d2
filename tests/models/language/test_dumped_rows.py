"""What is dumped of models of transformers is what they say."""

import numpy as np
import pytest
import texts

pytest.importorskip("transformers")

import language_models
import torch

import logitcache
from logitcache.data.text.documents import Documents


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_rows_are_what_transformers_says_of_each_document(tmp_path, family):
    """Called plainly on each, without padding; and the ids of the largest are those of its logits."""
    model, samples = language_models.model(family), texts.contexts(30, longest=12)
    given = {"teacher": model, "data": samples, "batch_size": 7}
    full = logitcache.dump_logits(out=tmp_path / "full.zarr", encoding="full", precision="f32", **given)
    largest = logitcache.dump_logits(out=tmp_path / "top.zarr", top_k=5, precision="f32", **given)
    with torch.inference_mode():
        expected = torch.cat(
            [
                model(input_ids=torch.from_numpy(one.tokens.astype(np.int64))[None]).logits[0, :-1, : texts.VOCABULARY]
                for one in (samples.part(number, number + 1) for number in range(len(samples)))
            ]
        )
    stored = torch.from_numpy(full.view(0, full.teacher)["logits"])
    assert stored.shape == expected.shape
    assert (stored - expected).abs().max() < 1e-5
    rows = logitcache.open(largest).logits(np.arange(len(expected)))
    values, best = expected.topk(6)
    clear = values[:, 4] - values[:, 5] > 1e-5  # a soft cap makes ties
    assert clear.float().mean() > 0.3
    assert (rows.ids[:, None] == best[:, :5, None]).any(2).all(1)[clear].all()


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_change_of_one_document_changes_no_bit_of_others(tmp_path, family):
    """Also of those in the same batch."""
    model, samples = language_models.model(family), texts.contexts(30, longest=12)
    begin, end = samples.documents[4:6]
    assert end - begin > 2
    tokens = samples.tokens.copy()
    tokens[begin:end] = (tokens[begin:end] + 1) % texts.VOCABULARY
    other = Documents(tokens, samples.documents, texts.VOCABULARY)
    given = {"teacher": model, "batch_size": 7, "encoding": "full", "precision": "f32"}
    caches = [
        logitcache.dump_logits(data=one, out=tmp_path / f"{number}.zarr", **given)
        for number, one in enumerate((samples, other))
    ]
    found = [cache.view(0, cache.teacher)["logits"] for cache in caches]
    rows = np.arange(*samples.offsets[4:6])
    assert (found[0][rows] != found[1][rows]).any(1).all()
    others = np.setdiff1d(np.arange(len(samples.labels)), rows)
    assert np.array_equal(found[0][others], found[1][others])


def test_the_probe_holds_the_rows_that_are_stored(tmp_path):
    """Of a batch the head is asked for the rows of the probe alone."""
    model, samples = language_models.model("llama"), texts.contexts(30, longest=40)
    cache = logitcache.dump_logits(
        model, samples, tmp_path / "c.zarr", encoding="full", precision="f32", batch_size=4, seed=3
    )
    rows, stored = cache.array("probe/rows"), cache.view(0, cache.teacher)["logits"]
    assert 16 < len(rows) < len(samples.labels)
    assert np.array_equal(cache.array(f"probe/logits/{cache.teacher}"), stored[rows])
