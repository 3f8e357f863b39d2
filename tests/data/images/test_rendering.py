import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from logitcache.data import ArrayImages, FolderImages, Renderer, preprocessing_for
from logitcache.data.images.views import CROPS, make_views
from logitcache.errors import InputError


@pytest.fixture
def folder(tmp_path):
    """The tiny images as files, without loss."""
    pixels, labels, names = tiny.arrays()
    for sample in range(40):
        path = tmp_path / names[labels[sample]] / f"{sample:03}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(pixels[sample]).save(path)
    return FolderImages(tmp_path)


def batches(data, recipe, ids, workers=0, **wanted):
    eyes = preprocessing_for(data, recipe, wanted)
    renderer = Renderer(data, [eyes], with_digests=True, workers=workers)
    return list(renderer.batches(make_views(recipe, 3, 5)[2], ids))


RECIPES = [
    *sorted(CROPS),
    "cifar-strong",
    "imagenet-strong",
    "erasing(p=1)+mixup",
    "imagenet+cutmix(p=0.7)",
    "none+mixup+cutmix",
]
IDS = [np.array([3, 1, 7]), np.array([39, 0, 2]), np.array([11])]


@pytest.mark.parametrize("recipe", RECIPES)
def test_workers_change_no_pixel(folder, recipe):
    alone = batches(folder, recipe, IDS, workers=0, image_size=20)
    spread = batches(folder, recipe, IDS, workers=2, image_size=20)
    for one, other in zip(alone, spread, strict=True):
        assert (one.samples == other.samples).all()
        assert (one.digests == other.digests).all()
        assert torch.equal(one.inputs[0], other.inputs[0])


@pytest.mark.parametrize("recipe", RECIPES)
def test_files_and_arrays_show_the_same_pixels(folder, recipe):
    same = ArrayImages(
        np.stack([folder.image(i).numpy().transpose(1, 2, 0) for i in range(len(folder))]),
        folder.labels,
        folder.classes,
    )
    ours = batches(same, recipe, IDS)
    theirs = batches(folder, recipe, IDS, image_size=16, crop_pct=1.0)
    for one, other in zip(ours, theirs, strict=True):
        assert (one.digests == other.digests).all()
        assert torch.equal(one.inputs[0], other.inputs[0])


@pytest.mark.parametrize("recipe", RECIPES)
def test_how_samples_are_put_into_batches_changes_no_pixel(images, recipe):
    together = batches(images, recipe, [np.arange(60)])[0]
    apart = batches(images, recipe, [np.array([i]) for i in range(59, -1, -1)])[::-1]
    assert (together.digests == np.concatenate([one.digests for one in apart])).all()
    assert torch.equal(together.inputs[0], torch.cat([one.inputs[0] for one in apart]))


def test_two_networks_see_the_same_rendition_each_at_its_size(folder):
    eyes = [preprocessing_for(folder, "random-resized-crop-flip", {"image_size": size}) for size in (24, 12, 24)]
    first, second, third = next(
        Renderer(folder, eyes).batches(make_views("random-resized-crop-flip", 1, 0)[0], IDS)
    ).inputs
    assert first.shape == (3, 3, 24, 24)
    assert second.shape == (3, 3, 12, 12)
    assert third is first


def test_a_loader_outlives_its_epoch(folder):
    renderer = Renderer(folder, [preprocessing_for(folder, "none", {"image_size": 16})], workers=1)
    view = make_views("none", 1, 0)[0]
    assert [batch.samples.tolist() for batch in renderer.batches(view, IDS)] == [ids.tolist() for ids in IDS]
    assert [batch.samples.tolist() for batch in renderer.batches(view, IDS[::-1])] == [
        ids.tolist() for ids in IDS[::-1]
    ]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_file_is_one_sentence_from_any_process(folder, workers):
    (folder.root / folder.paths[7]).write_text("nonsense")
    with pytest.raises(InputError) as caught:
        batches(folder, "none", IDS, workers=workers)
    assert str(caught.value).startswith(str(folder.root / folder.paths[7]))
    assert "\n" not in str(caught.value)


def test_arrays_keep_their_size_and_files_come_to_224(images, folder):
    assert preprocessing_for(images, "pad-crop-flip").resize == "none"
    assert preprocessing_for(images, "pad-crop-flip", {"image_size": 16}).resize == "none"
    assert preprocessing_for(images, "pad-crop-flip", {"image_size": 32}).resize == "center-crop"
    assert preprocessing_for(images, "random-resized-crop-flip").resize == "stretch"
    found = preprocessing_for(folder, "none")
    assert (found.image_size, found.crop_pct, found.resize) == (224, 0.875, "center-crop")
    assert found.mean == (0.485, 0.456, 0.406)
