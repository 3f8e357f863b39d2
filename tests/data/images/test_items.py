"""Items that are dictionaries, as those of Hugging Face data sets are."""

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset

import logitcache
from logitcache.data import MappedImages, as_samples
from logitcache.errors import InputError


class Labels:
    """A feature that names classes, as `datasets.ClassLabel` does."""

    names = ("ant", "bee", "cow")


class Table:
    """A data set of columns: a number gives an item, a name gives a column."""

    def __init__(self, features=None, **renamed):
        self.decoded = []
        self._names = {"image": "image", "label": "label"} | renamed
        if features:
            self.features = {"image": object(), self._names["label"]: Labels()}

    def __len__(self):
        return 12

    def __getitem__(self, key):
        if isinstance(key, str):
            return [number % 3 for number in range(12)]
        self.decoded.append(key)
        pixels = Image.fromarray(np.full((16, 16, 3), key * 9, np.uint8))
        return {"id": f"n{key}", self._names["image"]: pixels, self._names["label"]: key % 3}


LABELS = [number % 3 for number in range(12)]


@pytest.mark.parametrize("names", [{}, {"image": "img", "label": "labels"}, {"image": "photo", "label": "species"}])
def test_the_image_and_the_label_are_found_by_name_or_by_content(names):
    data = as_samples(Table(**names))
    assert isinstance(data, MappedImages)
    assert data.labels.tolist() == LABELS
    assert data.image(5).shape == (3, 16, 16)
    assert int(data.image(5)[0, 0, 0]) == 45


@pytest.mark.parametrize("label", ["label", "species"])
def test_a_column_of_labels_is_read_without_decoding_every_image_and_names_the_classes(label):
    table = Table(features=True, label=label)
    data = MappedImages(table)
    assert data.labels.tolist() == LABELS
    assert data.classes == Labels.names
    assert len(table.decoded) == 8
    both = MappedImages(ConcatDataset([Subset(table, [1, 4, 2]), table]))
    assert both.labels.tolist() == [1, 1, 2, *LABELS]
    assert both.classes == Labels.names


class Item:
    """Twelve times one item."""

    def __init__(self, item):
        self.item = item

    def __len__(self):
        return 12

    def __getitem__(self, _):
        return self.item


PICTURE = Image.new("RGB", (16, 16))


@pytest.mark.parametrize(
    ("item", "said"),
    [
        (
            {"img": PICTURE, "fine": 3, "coarse": 1},
            "its columns fine, coarse could each be a label: rename the right one to 'label'",
        ),
        (
            {"left": PICTURE, "right": PICTURE, "label": 1},
            "its columns left, right could each be an image: rename the right one to 'image'",
        ),
        ({"image": PICTURE, "text": "cow"}, "it has no column with a label, only image, text: name it 'label'"),
        ({"bytes": b"", "label": 1}, "it has no column with an image, only bytes, label: name it 'image'"),
        ({"image": PICTURE, "label": None}, "its label is None (NoneType); expected an integer class index"),
        ({}, "it has no column with an image, only an empty dictionary"),
    ],
    ids=["two labels", "two images", "no label", "no image", "null", "empty"],
)
def test_columns_that_cannot_be_told_are_a_sentence(item, said):
    with pytest.raises(InputError) as raised:
        as_samples(Item(item))
    assert str(raised.value).startswith(f"sample 0 of Item cannot be read: {said}")
    assert "\n" not in str(raised.value)


def test_a_dictionary_of_splits_is_no_data_set():
    with pytest.raises(InputError, match=r"^the data set is of type dict with train, test; pass one of its entries$"):
        as_samples({"train": Table(), "test": Table()})


def test_a_table_and_pairs_give_the_same_cache(tmp_path):
    table = Table(features=True)
    pairs = [(table[number]["image"], table[number]["label"]) for number in range(12)]
    for name, data in (("table", table), ("pairs", MappedImages(pairs, Labels.names))):
        logitcache.dump_logits(tiny.net(3), data, tmp_path / name, image_size=16, workers=0)
    assert tiny.bytes_of(tmp_path / "table") == tiny.bytes_of(tmp_path / "pairs")


@pytest.mark.filterwarnings("ignore:Cannot")  # dill, of pyarrow
@pytest.mark.parametrize("form", [None, "torch", "numpy"])
def test_a_data_set_of_the_library_itself(monkeypatch, form):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.arrow_dataset.generate_fingerprint", lambda _: "x")  # dill fails on some pyarrow
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3)).astype(np.uint8)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(Labels.names))})
    content = {"image": [Image.fromarray(one) for one in pixels], "label": LABELS}
    made = datasets.Dataset.from_dict(content, features=features).with_format(form)
    data = as_samples(made)
    assert data.labels.tolist() == LABELS
    assert data.classes == Labels.names
    assert torch.equal(data.image(7), torch.from_numpy(pixels[7]).permute(2, 0, 1))
    with pytest.raises(InputError, match="the data set is of type DatasetDict with train; pass one of its entries"):
        as_samples(datasets.DatasetDict(train=made))
