import hashlib
import json
from importlib import resources

import numpy as np
import pytest
import tiny

from logitcache.data import ArrayImages, held_out_split, load_data
from logitcache.data.images import sources
from logitcache.errors import InputError, UnknownNameError


def test_the_data_that_ships_is_what_its_checksums_say():
    home = resources.files("logitcache.demo_data")
    expected = json.loads((home / "checksums.json").read_text())
    for split, count in (("train", 1000), ("test", 200)):
        images = load_data(f"fashion-mnist-mini:{split}")
        assert np.bincount(images.labels).tolist() == [count] * 10
        assert hashlib.sha256(images.images.numpy().tobytes()).hexdigest() == expected[split]["images"]
        assert hashlib.sha256(images.labels.tobytes()).hexdigest() == expected[split]["labels"]


def test_arrays_are_read_from_a_file(npz):
    images = load_data(f"arrays:{npz}")
    assert images.digest() == ArrayImages(*tiny.arrays()).digest()


def test_a_factory_is_called_with_its_split():
    assert len(load_data("tiny:arrays")) == tiny.SAMPLES
    assert len(load_data("tiny:arrays:test")) == 60


@pytest.mark.parametrize(
    ("spec", "companion"),
    [
        ("fashion-mnist-mini", "fashion-mnist-mini:test"),
        ("cifar100:train", "cifar100:test"),
        ("cifar100:test", None),
        ("tiny:arrays", "tiny:arrays:test"),
        ("arrays:x.npz", None),
        ("imagefolder:x", None),
        ("imagefolder:train", None),  # a path
        ("webdataset:train", None),
        ("parquet:train", None),
        ("text:train", None),
        ("", None),
    ],
)
def test_the_held_out_split_of_a_training_set(spec, companion):
    assert held_out_split(spec) == companion


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("cifar1000", UnknownNameError, "unknown data set 'cifar1000'; did you mean 'cifar100'"),
        ("arrays:nothing.npz", InputError, "nothing.npz cannot be read as an .npz file"),
        ("imagefolder:nowhere", InputError, "there is no folder nowhere"),
        ("no.such.module:thing", InputError, "data set 'no.such.module:thing' cannot be imported"),
        ("tiny:nothing", InputError, "data set 'tiny:nothing' cannot be imported"),
        ("tiny:net", InputError, "expected a map-style data set of"),
    ],
)
def test_what_cannot_be_opened_is_said(spec, error, message, monkeypatch):
    monkeypatch.setattr(tiny, "net", lambda: 3)
    with pytest.raises(error, match=message):
        load_data(spec)


def test_an_npz_without_labels_names_what_it_has(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4), np.uint8), other=1)
    with pytest.raises(InputError, match="has no array 'labels'; it has images, other"):
        load_data(f"arrays:{tmp_path / 'a.npz'}")


def test_an_npz_that_needs_pickle_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.array([{}], object), labels=[0])
    with pytest.raises(InputError, match="cannot be read as an .npz file"):
        load_data(f"arrays:{tmp_path / 'a.npz'}")


def test_torchvisions_sets_are_read_from_where_they_are(monkeypatch, tmp_path):
    """Through a stand-in of torchvision's class: the sets themselves are downloads."""

    class Stand:
        classes = ("a", "b")

        def __init__(self, root, train, download):
            assert str(root) == str(tmp_path)
            assert download
            self.data, self.targets = (
                np.zeros((4 if train else 2, 32, 32, 3), np.uint8),
                [0, 1, 0, 1][: 4 if train else 2],
            )

    monkeypatch.setenv("LOGITCACHE_DATA", str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.CIFAR10", Stand)
    assert len(load_data("cifar10")) == 4
    assert len(load_data("cifar10:test")) == 2


def test_a_set_that_cannot_be_downloaded_says_where_it_would_be(monkeypatch, tmp_path):
    def refuse(*_args, **_more):
        raise OSError("no route to host")

    monkeypatch.setenv("LOGITCACHE_DATA", str(tmp_path))
    monkeypatch.setattr("torchvision.datasets.CIFAR100", refuse)
    with pytest.raises(InputError, match=r"CIFAR100 is not in .* cannot be downloaded \(no route to host\)"):
        load_data("cifar100")


def test_every_named_set_has_a_normalisation():
    assert set(sources.NAMED_DATA) == {"cifar10", "cifar100", "fashion-mnist", "fashion-mnist-mini"}
    assert load_data("fashion-mnist-mini").normalization == ((0.286,) * 3, (0.353,) * 3)
