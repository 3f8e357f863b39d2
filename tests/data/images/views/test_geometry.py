import numpy as np
import pytest
import torch

from logitcache.data.images.views.preprocessing import Preprocessing
from logitcache.errors import InputError

GREY = (0.5, 0.5, 0.5)


def make(resize="none", size=8, crop_pct=1.0):
    return Preprocessing(size, crop_pct, resize, (0.1, 0.2, 0.3), GREY)


def test_normalisation_is_that_of_the_formula():
    pixels = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    found = make().normalize(pixels)
    assert torch.allclose(found[:, 1], (pixels[:, 1] / 255 - 0.2) / 0.5)


def test_an_input_is_float32_whatever_the_numbers_were_given_as():
    """A mean out of a numpy array is a double of its own; what is remembered of it must not turn others' inputs into doubles."""
    values = tuple(np.array([0.25, 0.5, 0.125]))
    pixels = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    assert Preprocessing(4, 1.0, "none", values, values).normalize(pixels).dtype == torch.float32


def test_grey_images_fill_three_channels():
    found = make().normalize(torch.full((2, 1, 4, 4), 51, dtype=torch.uint8))
    assert found.shape == (2, 3, 4, 4)
    assert torch.allclose(found[0, :, 0, 0], torch.tensor([0.2, 0.0, -0.2]), atol=1e-6)


def test_stretch_brings_any_box_to_a_square():
    found = make("stretch").fit([torch.zeros(3, 5, 9, dtype=torch.uint8), torch.zeros(3, 30, 20, dtype=torch.uint8)])
    assert found.shape == (2, 3, 8, 8)
    assert found.dtype == torch.uint8


def test_center_crop_keeps_the_middle_and_the_ratio():
    image = torch.zeros(1, 20, 40, dtype=torch.uint8)
    image[:, 5:15, 15:25] = 255  # a square in the middle stays one
    found = make("center-crop", 16, 0.8).fit([image])[0, 0]
    assert found.shape == (16, 16)
    lit = (found > 127).float()
    assert lit.sum(0).max() == lit.sum(1).max() == 10
    assert torch.equal(lit, lit.flip(0))


@pytest.mark.parametrize("height", [16, 17, 100])
def test_small_and_odd_images_are_brought_to_size(height):
    assert make("center-crop", 16, 0.875).fit([torch.zeros(3, height, 31, dtype=torch.uint8)]).shape == (1, 3, 16, 16)


def test_the_manifest_entry_reads_back():
    assert Preprocessing.from_json(make("stretch").to_json()) == make("stretch")


@pytest.mark.parametrize("bad", [{"resize": "squash"}, {"image_size": 0}, {"crop_pct": 0.0}, {"std": (0.5, 0.0, 0.5)}])
def test_what_means_nothing_is_refused(bad):
    fields = {"image_size": 8, "crop_pct": 1.0, "resize": "none", "mean": GREY, "std": GREY} | bad
    with pytest.raises(InputError):
        Preprocessing(**fields)
