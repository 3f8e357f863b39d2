import random

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from logitcache.data.images.views import CHANGES, make_views, read_recipe
from logitcache.errors import InputError, UnknownNameError


class Noisy:
    """A transform that draws from every generator there is."""

    def __call__(self, pixels):
        shift = random.randrange(50) + int(np.random.randint(50)) + int(torch.randint(50, ()))  # noqa: NPY002
        return (pixels.int() + shift).clamp(0, 255).to(torch.uint8)


def own():
    return v2.Compose([v2.RandomHorizontalFlip(), v2.RandomCrop(8), Noisy()])


def floats():
    return v2.ToDtype(torch.float32, scale=True)


def not_callable():
    return 3


def in_place():
    return v2.RandomErasing(p=1, inplace=True)


def of_its_own():
    generator = np.random.default_rng()
    return lambda pixels: (pixels.int() + int(generator.integers(2))).clamp(0, 255).to(torch.uint8)


def broken():
    raise OSError("no such disk")


def breaks():
    def fail(pixels):
        raise AssertionError("not today")

    return fail


IMAGES = torch.from_numpy(np.random.RandomState(0).randint(0, 256, (12, 3, 16, 12), dtype=np.uint8))
RECIPES = [*CHANGES, "colorjitter(hue=0.3)", "autoaugment(policy=cifar10)", f"{__name__}:own", "cifar-strong"]


def changed(recipe, samples, view=0, images=IMAGES):
    samples = np.array(samples)
    return make_views(recipe, view + 1, 7)[view].changed([images[i % 12] for i in samples], samples)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_change_depends_on_seed_view_and_sample_alone(recipe):
    together = changed(recipe, range(12), view=1)
    before = torch.get_rng_state()
    for sample in (11, 3, 0):
        torch.manual_seed(sample)
        random.seed(sample)
        assert torch.equal(changed(recipe, [sample], view=1)[0], together[sample])
    torch.set_rng_state(before)
    others = changed(recipe, range(12), view=2)
    assert any(not torch.equal(one, other) for one, other in zip(together, others, strict=True))


@pytest.mark.parametrize("recipe", RECIPES)
def test_grey_images_are_changed_too(recipe):
    rows = changed(recipe, range(40), images=IMAGES[:, :1])
    assert all(row.dtype == torch.uint8 and len(row) == 1 for row in rows)


def test_nobodys_random_numbers_are_disturbed():
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    expected = torch.rand(1).item(), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    changed(f"{__name__}:own", range(3))
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == expected  # noqa: NPY002


def test_a_recipe_is_recorded_with_every_parameter():
    assert make_views("cifar-strong", 1, 0)[0].recipe == "pad-crop-flip+randaugment(num_ops=2,magnitude=10)"
    assert read_recipe("erasing").name == "none+erasing(p=0.25)"
    assert read_recipe(" imagenet".strip()).name == "random-resized-crop-flip"
    for recipe in ("cifar-strong", "imagenet-strong", "cifar,cifar-strong", "none+mixup+cutmix(alpha=0.5)"):
        for view in make_views(recipe, 2, 3):
            assert type(view).from_json(view.to_json()) == view
            assert read_recipe(view.recipe).name == view.recipe


def test_a_pipeline_may_change_the_size_and_torchvisions_changes_do_not():
    assert not read_recipe(f"{__name__}:own").keeps_size
    assert changed(f"{__name__}:own", [0])[0].shape == (3, 8, 8)
    assert read_recipe("cifar-strong").keeps_size


@pytest.mark.parametrize(
    ("recipe", "error", "words"),
    [
        ("randaugmnt", UnknownNameError, "did you mean 'randaugment'"),
        ("randaugment(n=2)", UnknownNameError, "parameter of randaugment"),
        ("randaugment(magnitude=x)", InputError, "must be a number"),
        ("erasing(p=1.5)", InputError, "must be between 0 and 1"),
        ("randaugment+pad-crop-flip", InputError, "steps must be one crop"),
        ("mixup+erasing", InputError, "steps must be one crop"),
        ("erasing(p=1", InputError, "is not a step"),
        ("autoaugment(policy=mnist)", InputError, "policies imagenet, cifar10, svhn"),
        ("randaugment(magnitude=40)", InputError, "randaugment .*fails on sample 0"),
        (f"{__name__}:floats", InputError, "Remove ToDtype"),
        (f"{__name__}:not_callable", InputError, "expected a transform"),
        (f"{__name__}:absent", InputError, "cannot be imported"),
        (f"{__name__}:broken", InputError, "cannot be created: OSError: no such disk"),
        (f"{__name__}:breaks", InputError, "fails on sample 0: AssertionError: not today"),
        ("cifar(num_ops=1)", InputError, "cifar takes no parameters"),
        ("none(x=1)", InputError, "none takes no parameters"),
        ("erasing(p=1,p=0)", InputError, "gives p of erasing twice"),
        ("mixup+mixup", InputError, "names mixup twice"),
    ],
)
def test_what_cannot_be_rendered_is_refused(recipe, error, words):
    with pytest.raises(error, match=words):
        changed(recipe, range(3))


def test_a_transform_that_works_in_place_leaves_the_data_alone():
    from logitcache.data import ArrayImages, render
    from logitcache.data.images.views.digests import digests

    images = ArrayImages(np.full((4, 16, 16, 3), 200, np.uint8), np.zeros(4, np.int64))
    view, samples = make_views(f"{__name__}:in_place", 1, 0)[0], np.arange(4)
    first = digests(render(images, view, samples), view.digest)
    assert bool((images.images == 200).all())
    assert (digests(render(images, view, samples), view.digest) == first).all()


def test_a_transform_with_a_generator_of_its_own_is_refused_at_the_dump(dump):
    with pytest.raises(InputError, match="is not reproducible: one of its transforms"):
        dump(augment=f"{__name__}:of_its_own")


def test_grey_and_coloured_items_go_together(dump):
    from logitcache.data import MappedImages

    class Mixed(list):
        targets = [0, 1] * 10

    items = Mixed((torch.full((1 + 2 * (n % 2), 16, 16), n, dtype=torch.uint8), n % 2) for n in range(20))
    cache = dump(
        data=MappedImages(items),
        teacher=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 2)),
        image_size=16,
    )
    assert cache.manifest.samples == 20
