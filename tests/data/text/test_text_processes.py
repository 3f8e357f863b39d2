"""Packed training by two processes: the same step as one process takes, whatever sequences their contexts are put into."""

import numpy as np
import pytest
import texts
import torch

from logitcache.data.optional import arranged, divided
from logitcache.data.text.modality import TEXT
from logitcache.data.text.rendering import TextInputs, TextView
from logitcache.train.replicas import Replicas


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_shares_of_a_batch_are_all_of_its_rows_and_fit_into_sequences(parts):
    samples, inputs = texts.contexts(80, targets=True), TextInputs(16, packs=True)
    network = texts.teacher(texts.VOCABULARY)
    order = np.random.RandomState(0).permutation(80)
    for batch in arranged(TEXT, samples, inputs, order, 6):
        whole = found_of(network, samples, inputs, batch)
        seen = {}
        for micro in divided(TEXT, samples, inputs, batch, -(-6 // parts)):
            for rank in range(2):
                ids, counted = Replicas(rank, 2).share(micro)
                if counted:
                    seen |= found_of(network, samples, inputs, ids)
        assert seen.keys() == whole.keys()
        assert all(torch.allclose(seen[row], whole[row], atol=1e-5) for row in whole)


def found_of(network, samples, inputs, ids):
    """Logits of each row of a batch, by row id."""
    (batch,) = TEXT.renderer(samples, [inputs]).batches(TextView(), [ids])
    rows = TEXT.row_labels(samples, TextView(), ids)
    logits = torch.cat(
        [torch.empty(0, 40), *TEXT.rows(network(**batch.inputs[0]), batch.kept(rows, 0), classes=40, label="x")]
    )
    assert len(logits) == len(rows.ids)
    return dict(zip(rows.ids.tolist(), logits.detach(), strict=True))
