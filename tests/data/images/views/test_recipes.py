import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from logitcache.data.images.views import CROPS, View, make_views
from logitcache.data.images.views.digests import digests
from logitcache.data.images.views.render import cut, cut_batch
from logitcache.errors import FormatVersionError, UnknownNameError

MANY = np.arange(4000)


def boxes(recipe, samples=MANY, height=32, width=32, view=0, seed=0):
    sizes = np.full(len(samples), height), np.full(len(samples), width)
    return make_views(recipe, view + 1, seed)[view].boxes(samples, *sizes)


@given(
    st.sampled_from(sorted(CROPS)),
    st.permutations(list(range(12))),
    st.integers(0, 2**64 - 1),
    st.integers(0, 300),
)
def test_a_box_depends_on_seed_view_and_sample_alone(recipe, order, seed, view):
    order = np.array(order)
    together = boxes(recipe, order, view=view, seed=seed)
    alone = [boxes(recipe, np.array([sample]), view=view, seed=seed) for sample in order]
    for field in ("top", "left", "height", "width", "flip"):
        assert getattr(together, field).tolist() == [getattr(one, field)[0] for one in alone]


def test_none_shows_the_whole_image():
    found = boxes("none", height=20, width=30)
    assert (found.height == 20).all()
    assert (found.width == 30).all()
    assert not (found.top.any() or found.left.any() or found.flip.any())


def test_pad_crop_flip_reaches_every_offset_equally_and_flips_half():
    found = boxes("pad-crop-flip", np.arange(40000))
    for offsets in (found.top, found.left):
        values, counts = np.unique(offsets, return_counts=True)
        assert values.tolist() == list(range(-4, 5))
        assert np.abs(counts / 40000 - 1 / 9).max() < 0.01
    assert abs(found.flip.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(found.top, found.left)[0, 1]) < 0.02


@pytest.mark.parametrize(("height", "width"), [(32, 32), (50, 200), (400, 30), (1, 1), (224, 300)])
def test_random_resized_crops_lie_inside_the_image(height, width):
    found = boxes("random-resized-crop-flip", height=height, width=width)
    assert (found.top >= 0).all()
    assert (found.left >= 0).all()
    assert (found.height >= 1).all()
    assert (found.width >= 1).all()
    assert (found.top + found.height <= height).all()
    assert (found.left + found.width <= width).all()


def test_random_resized_crops_have_torchvisions_distribution():
    torchvision = pytest.importorskip("torchvision")
    theirs = torch.tensor(
        [
            torchvision.transforms.RandomResizedCrop.get_params(torch.zeros(1, 200, 300), (0.08, 1.0), (3 / 4, 4 / 3))
            for _ in range(4000)
        ]
    ).double()
    ours = boxes("random-resized-crop-flip", height=200, width=300)
    for column, values in enumerate((ours.top, ours.left, ours.height, ours.width)):
        assert abs(theirs[:, column].mean() - values.mean()) < 0.06 * theirs[:, column].std() + 0.5
        assert abs(theirs[:, column].std() / values.std() - 1) < 0.06


def test_views_differ_and_seeds_differ():
    first = boxes("pad-crop-flip")
    assert (first.top != boxes("pad-crop-flip", view=1).top).mean() > 0.8
    assert (first.top != boxes("pad-crop-flip", seed=1).top).mean() > 0.8


def test_one_gather_gives_the_pixels_of_one_cut_at_a_time():
    images = torch.randint(0, 256, (50, 3, 12, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    samples = np.array([3, 49, 3, 0, 17])
    found = make_views("pad-crop-flip", 1, 5)[0].boxes(samples, np.full(5, 12), np.full(5, 10))
    together = cut_batch(images, torch.from_numpy(samples), found)
    assert found.flip.any()
    assert found.top.any()
    assert torch.equal(together, torch.stack([cut(images[s], found, row) for row, s in enumerate(samples)]))


def test_what_lies_outside_the_image_is_black():
    samples = np.arange(200)
    found = boxes("pad-crop-flip", samples)
    row = int(np.flatnonzero((found.top == -4) & (found.left == 2) & ~found.flip)[0])
    pixels = cut(torch.full((1, 32, 32), 9, dtype=torch.uint8), found, row)
    assert not pixels[:, :4].any()
    assert not pixels[:, :, -2:].any()
    assert (pixels[:, 4:, :-2] == 9).all()


# Digest of sixteen rows of a fixed image in view 3, seed 11. If one of these changes, pixels have changed: raise the recipe's version.
RENDERED = {
    "none": "4d791ede4f3a9d62",
    "pad-crop-flip": "6f3d17d3be99c5d3",
    "random-resized-crop-flip": "b954e9e73348c3b7",
}


@pytest.mark.parametrize("recipe", sorted(RENDERED))
def test_a_recipe_renders_what_it_always_has(recipe):
    from hashlib import blake2b

    image = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (3, 40, 56), dtype=np.uint8))
    found = boxes(recipe, np.arange(16), 40, 56, view=3, seed=11)
    rows = digests([cut(image, found, row) for row in range(16)], "blake2b")
    assert blake2b(rows.tobytes(), digest_size=8).hexdigest() == RENDERED[recipe]


def test_an_unknown_recipe_is_refused_with_a_suggestion():
    with pytest.raises(UnknownNameError, match="did you mean 'pad-crop-flip'"):
        make_views("pad-crop-filp", 1, 0)


def test_another_version_of_a_recipe_is_refused():
    entry = make_views("none", 1, 0)[0].to_json() | {"recipe_version": 2}
    with pytest.raises(FormatVersionError, match="version 2 of recipe 'none', but this logitcache has version 1"):
        View.from_json(entry)
