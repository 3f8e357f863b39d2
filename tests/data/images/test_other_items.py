"""What items of other people's data sets are: what works, and one sentence for what does not."""

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import logitcache
from logitcache.data import as_samples
from logitcache.errors import InputError, UnreadableError


def image(number: int) -> Image.Image:
    return Image.fromarray(np.full((16, 16, 3), number, np.uint8))


class Items(Dataset):
    def __init__(self, make, count=12):
        self.make, self.count = make, count

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        return self.make(number)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(image(0), 0)])

    def __len__(self):
        return 1


class Unsure(Items):
    def __len__(self):
        raise TypeError("who knows")


class Features:
    names = ("ant", "bee", "cow")


class HuggingFace(Items):
    features = {"label": Features()}

    def __getitem__(self, number):
        return [0, 1, 2] * 4 if number == "label" else super().__getitem__(number)


@pytest.mark.parametrize(
    "label",
    [int, np.int64, np.uint8, torch.tensor, lambda n: torch.tensor([n]), np.array, float, np.float32],
    ids=["int", "int64", "uint8", "tensor", "tensor of one", "array", "float", "float32"],
)
def test_a_label_is_any_whole_number(label):
    found = as_samples(Items(lambda n: (image(n), label(n % 3))))
    assert found.labels.tolist() == [0, 1, 2] * 4


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ("cat", "its label is 'cat' (str); expected an integer class index"),
        (0.7, "its label is 0.7 (float)"),
        (float("nan"), "its label is nan (float)"),
        (None, "its label is None (NoneType)"),
        (np.eye(3)[1], "its label is an array of shape [3] (ndarray)"),
        (torch.eye(3)[1], "its label is an array of shape [3] (Tensor)"),
    ],
)
def test_a_label_that_is_no_number_of_a_class_is_named(label, said):
    with pytest.raises(UnreadableError) as raised:
        as_samples(Items(lambda n: (image(n), label)))
    assert f"sample 0 of Items cannot be read: {said}" in str(raised.value)


def test_a_label_beyond_all_classes_takes_no_memory():
    with pytest.raises(
        InputError, match="sample 5 has label 1,000,000,000,000, which would make more than 1,000,000,000,000 classes"
    ):
        as_samples(Items(lambda n: (image(n), 10**12 * (n == 5))))


def test_items_by_name_as_hugging_face_gives_them():
    found = as_samples(HuggingFace(lambda n: {"image": image(n), "label": n % 3}))
    assert found.classes == ("ant", "bee", "cow")
    assert found.labels.tolist() == [0, 1, 2] * 4
    assert found.image(7)[0, 0, 0] == 7
    with pytest.raises(
        UnreadableError, match="its columns y, z could each be a label: rename the right one to 'label'"
    ):
        as_samples(Items(lambda n: {"pixels": image(n), "y": 0, "z": 1}))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (Stream(), "the data set is of type Stream; expected a map-style data set"),
        (DataLoader(TensorDataset(torch.zeros(3, 1))), "of type DataLoader; .* For a loader, pass its data set"),
        ((one for one in ()), "of type generator"),
        (Unsure(image), "cannot read the length, labels or class names of data set Unsure: TypeError: who knows"),
        (Items(image, 0), "Items is empty"),
        (Items(lambda n: (image(n),)), "the item is a tuple of length 1; expected"),
        (Items(image), "the item is a Image; expected"),
    ],
    ids=["stream", "loader", "generator", "unsure", "empty", "short", "alone"],
)
def test_what_is_no_data_set_of_images_and_labels_is_one_sentence(data, said):
    with pytest.raises(InputError, match=said) as raised:
        as_samples(data)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.zeros((0, 16, 3), np.uint8), "it has no pixels"),
        (Image.fromarray(np.full((16, 16), 40_000, np.uint16)), "more than 8 bits per channel"),
        (torch.rand(3, 16, 16), "must be a PIL image or uint8 pixels, found torch.float32"),
        (np.zeros((16, 16, 4), np.uint8), r"found torch.uint8 \[4, 16, 16\]"),
    ],
    ids=["empty", "deep", "float", "four channels"],
)
def test_pixels_that_cannot_be_used_are_one_sentence(tmp_path, pixels, said):
    with pytest.raises(UnreadableError, match=said):
        logitcache.dump_logits(
            tiny.net(3), Items(lambda n: (pixels, n % 3)), tmp_path / "c.zarr", image_size=16, workers=0
        )


def broken(_split):
    raise RuntimeError("no such\nfolder")


def test_a_factory_that_fails_is_one_sentence(monkeypatch):
    monkeypatch.setattr(tiny, "broken", broken, raising=False)
    with pytest.raises(InputError, match="data set tiny:broken cannot be created: RuntimeError: no such$"):
        as_samples("tiny:broken")
