"""Other people's map-style data sets: where labels come from, and what happens when items fail."""

import os
import signal
import time

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset

import logitcache
from logitcache.data import MappedImages
from logitcache.errors import InputError


class Pictures(Dataset):
    """Sixty images of three classes; item 37 may do something else."""

    classes = ("ant", "bee", "cow")

    def __init__(self, odd=None, target_transform=None, listed="targets"):
        self.odd, self.target_transform, self.read = odd, target_transform, []
        self.truth = [number % 3 for number in range(60)]
        if listed:
            setattr(self, listed, self.truth)

    def __len__(self):
        return 60

    def __getitem__(self, index):
        self.read.append(index)
        if index == 37 and self.odd:
            return self.odd()
        label = self.truth[index]
        image = Image.fromarray(np.full((16, 16, 3), index, np.uint8))
        return image, self.target_transform(label) if self.target_transform else label


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def fail():
    raise KeyError("annotation\nmissing")


def nothing():
    return None


def dump(data, tmp_path, **more):
    return logitcache.dump_logits(tiny.net(3), data, tmp_path / "c.zarr", image_size=16, batch_size=16, **more)


@pytest.mark.parametrize("listed", ["targets", "labels"])
def test_a_list_of_labels_saves_a_pass_over_the_items(listed):
    data = Pictures(listed=listed)
    assert MappedImages(data).labels.tolist() == data.truth
    assert len(data.read) == 8


def test_without_a_list_the_items_are_asked():
    data = Pictures(listed=None)
    assert MappedImages(data).labels.tolist() == data.truth
    assert data.read == list(range(60))


@pytest.mark.parametrize("kind", [np.int64, torch.tensor, np.uint8], ids=["int64", "tensor", "uint8"])
def test_a_label_is_any_integer(kind):
    assert MappedImages(Pictures(target_transform=kind)).labels[4] == 1


def test_a_target_transform_that_the_list_does_not_know_is_refused():
    with pytest.raises(InputError, match="Pictures has two labels for sample 0: 0 in its list .*, 2 in its item"):
        MappedImages(Pictures(target_transform=lambda label: 2 - label))
    data = MappedImages(Pictures(target_transform=lambda label: 2 - label, listed=None))
    assert data.labels[:3].tolist() == [2, 1, 0]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_label_that_differs_deep_inside_is_refused_when_it_is_read(tmp_path, workers):
    odd = Pictures(odd=lambda: (Image.new("RGB", (16, 16)), 0))
    with pytest.raises(InputError, match="has two labels for sample 37: 1 in its list .*, 0 in its item"):
        dump(odd, tmp_path, workers=workers)


def test_subsets_and_concatenations_keep_their_labels_and_classes():
    data = Pictures()
    part = Subset(data, [5, 3, 1, 40])
    found = MappedImages(part)
    assert found.labels.tolist() == [2, 0, 1, 1]
    assert found.classes == Pictures.classes
    both = MappedImages(ConcatDataset([part, Pictures()]))
    assert both.labels.tolist() == [2, 0, 1, 1, *data.truth]
    assert both.classes == Pictures.classes
    nested = MappedImages(Subset(ConcatDataset([part, Pictures(listed=None)]), [3, 4, 6]))
    assert nested.labels.tolist() == [1, 0, 2]


class Shuffled(Dataset):
    """A wrapper that passes every attribute on, and so lists labels in another order than its items have."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.__dict__["inner"], name)

    def __len__(self):
        return 60

    def __getitem__(self, index):
        return self.inner[59 - index]


def test_a_wrapper_with_the_list_of_another_order_is_refused():
    with pytest.raises(InputError, match="has two labels for sample 0: 0 in its list .*, 2 in its item"):
        MappedImages(Shuffled(Pictures()))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (fail, "sample 37 of Pictures cannot be read: KeyError: 'annotation"),
        (nothing, "sample 37 of Pictures cannot be read: the item is a NoneType; expected (image, label). Fix it"),
    ],
    ids=["raises", "nothing"],
)
def test_an_item_that_fails_is_one_sentence_with_its_sample(tmp_path, odd, said, workers):
    with pytest.raises(InputError) as raised:
        dump(Pictures(odd), tmp_path, workers=workers)
    assert str(raised.value).startswith(said)
    assert "\n" not in str(raised.value)


def test_a_worker_that_is_killed_ends_the_dump_with_a_sentence_and_loses_nothing(tmp_path):
    began = time.monotonic()
    with pytest.raises(
        InputError, match=r"a worker process that decodes images has ended .*`workers` 0 decodes in this"
    ):
        dump(Pictures(kill), tmp_path, workers=2, block_rows=16)
    assert time.monotonic() - began < 20
    cache = dump(Pictures(), tmp_path, workers=2, block_rows=16)
    assert cache.manifest.samples == 60


@pytest.mark.parametrize("broken", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_batch_whose_worker_died_before_it_was_fetched_is_the_same_sentence(tmp_path, monkeypatch, broken):
    def detach(_):
        raise broken

    monkeypatch.setattr("multiprocessing.resource_sharer.DupFd.detach", detach)
    with pytest.raises(InputError, match=r"a worker process that decodes images has ended \(.+\)") as raised:
        dump(Pictures(), tmp_path, workers=2, block_rows=16)
    assert "\n" not in str(raised.value)


@pytest.mark.slow
def test_what_cannot_be_sent_to_a_spawned_worker_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.multiprocessing, "get_start_method", lambda *_: "spawn")
    start = torch.multiprocessing.get_context("spawn")
    loader = torch.utils.data.DataLoader
    monkeypatch.setattr(
        "logitcache.runtime.workers.DataLoader",
        lambda *args, **more: loader(*args, multiprocessing_context=start, **more),
    )
    with pytest.raises(InputError, match="the data set cannot be sent to worker processes .* or use `workers` 0"):
        dump(Pictures(target_transform=lambda label: label), tmp_path, workers=1)
