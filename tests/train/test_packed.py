"""Packed sequences for other loops: rows are those of their tokens, and streams are divided without loss."""

import numpy as np
import pytest
import texts
import tiny
import torch
from torch.utils.data import DataLoader

import logitcache
from logitcache.errors import InputError
from logitcache.train.packed import collate_packed


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Full rows: what a row says names its context and place."""
    path = tmp_path_factory.mktemp("packed") / "c.zarr"
    samples = texts.contexts(40, targets=True)
    return logitcache.dump_logits(texts.Teller(), samples, path, encoding="full", precision="f32")


def tokens_of(items):
    return sorted(tuple(one["input_ids"][one["documents"] >= 0].tolist()) for one in items)


def rows_seen(items):
    return np.sort(np.concatenate([one["rows"][:, 2].numpy() for one in items]))


def test_rows_belong_to_the_outputs_that_are_kept(cache):
    """The teller's first three logits are token, position and sum of the tokens so far."""
    data = logitcache.PackedDataset(cache, sequence_length=24)
    seen = 0
    for number in range(len(data)):
        one = data[number]
        kept = one["keep"]
        assert one["input_ids"].shape == (24,)
        assert torch.equal(one["rows"][:, 0], one["input_ids"][kept].float())
        assert torch.equal(one["rows"][:, 1], one["position_ids"][kept].float())
        after = torch.cat([kept[-1:], kept[:-1]])
        assert torch.equal(one["labels"] != -100, after)
        assert torch.equal(one["labels"][after], one["input_ids"][after])
        assert (one["documents"][after] == one["documents"][kept]).all()
        seen += len(one["rows"])
    assert seen == len(cache.labels())
    assert len(data) < len(texts.contexts(40))


def test_batches_put_rows_one_after_another(cache):
    data = logitcache.PackedDataset(cache, sequence_length=24)
    batch = collate_packed([data[0], data[1]])
    assert batch["input_ids"].shape == (2, 24)
    assert torch.equal(batch["rows"], torch.cat([data[0]["rows"], data[1]["rows"]]))
    assert int(batch["keep"].sum()) == len(batch["rows"])
    assert torch.equal(batch["rows"][:, 0], batch["input_ids"][batch["keep"]].float())


def test_rows_of_the_largest_are_joined_as_what_they_are(tmp_path):
    cache = logitcache.dump_logits(texts.Teller(), texts.contexts(20), tmp_path / "c.zarr", top_k=6)
    data = logitcache.PackedDataset(cache, sequence_length=24)
    batch = next(iter(DataLoader(data, 3, collate_fn=collate_packed)))
    assert type(batch["rows"]).__name__ == "TopKRows"
    assert len(batch["rows"]) == int(batch["keep"].sum())


def test_a_stream_packs_each_epoch_anew(cache):
    data = logitcache.PackedIterableDataset(cache, sequence_length=24)
    first, second = list(data), list(data)
    assert tokens_of(first) != tokens_of(second)
    assert rows_seen(first).tolist() == rows_seen(second).tolist() == sorted(rows_seen(first))
    assert tokens_of(first) == tokens_of(
        [logitcache.PackedDataset(cache, sequence_length=24)[n] for n in range(len(first))]
    )
    data.set_epoch(1)
    assert tokens_of(data) == tokens_of(second)


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_divide_a_pass_and_go_on_to_the_next_epoch(cache, persistent):
    data = logitcache.PackedIterableDataset(cache, sequence_length=24)
    expected = [tokens_of(data), tokens_of(data)]
    data.set_epoch(0)
    loader = DataLoader(data, None, num_workers=2, persistent_workers=persistent)
    assert [tokens_of(loader), tokens_of(loader)] == expected


def test_processes_make_equally_many_items(cache, monkeypatch):
    """And nothing is missing."""
    data = logitcache.PackedIterableDataset(cache, sequence_length=24)
    whole = tokens_of(data)
    shares = []
    for rank in range(3):
        monkeypatch.setattr("logitcache.train.packed.place_in_group", lambda rank=rank: (rank, 3))
        data.set_epoch(0)
        shares.append(tokens_of(data))
    assert len({len(one) for one in shares}) == 1
    assert set(whole) == {one for share in shares for one in share}
    assert sum(map(len, shares)) - len(whole) < 3


def test_epochs_choose_views(tmp_path):
    """Of draws, which each view has its own."""
    cache = logitcache.dump_logits(
        texts.teacher(40), texts.contexts(10), tmp_path / "c.zarr", encoding="sampled", draws=5, views=2
    )
    data = logitcache.PackedDataset(cache, sequence_length=24)
    first = data[0]["rows"].ids
    data.set_epoch(1)
    assert not torch.equal(data[0]["rows"].ids, first)
    data.set_epoch(2)
    assert torch.equal(data[0]["rows"].ids, first)


def test_loss_on_chooses_the_rows(tmp_path):
    cache_of = {"encoding": "full", "precision": "f32"}
    samples = texts.contexts(12)
    answers = np.arange(len(samples.tokens)) % 3 == 0
    samples = texts.Documents(samples.tokens, samples.documents, samples.vocabulary, answers=answers)
    cache = logitcache.dump_logits(texts.Teller(), samples, tmp_path / "c.zarr", **cache_of)
    every, some = (logitcache.PackedDataset(cache, loss_on=one, sequence_length=24) for one in (None, "assistant"))
    counted = [sum(int(one["keep"].sum()) for one in (data[n] for n in range(len(data)))) for data in (every, some)]
    assert counted[1] == int((answers & samples.targets).sum()) < counted[0]


def test_what_is_no_text_is_refused(dump, tmp_path):
    with pytest.raises(InputError, match="is a cache of images, not of text"):
        logitcache.PackedDataset(dump(teacher=tiny.net(tiny.CLASSES)))
