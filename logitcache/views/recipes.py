"""Views: what the teacher and the student are shown, replayable from three integers.

A recipe turns (seed, view, sample id, image size) into a **box** and a flip, in double precision on the host. A box
may reach beyond the image; what lies outside is black. Rendering cuts the box out: bytes in, bytes out, the same on
every device. Resizing and normalising belong to each network and come later (`geometry.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import FormatVersionError, InputError, unknown_name
from logitcache.views.philox import integers, uniforms, words

__all__ = ["RECIPES", "Boxes", "View", "make_turns", "make_views"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Boxes:
    """What to cut out of each image, in pixels of that image.

    Attributes:
        top, left: Upper left corner, [B]; may be negative.
        height, width: Size of the box, [B].
        flip: Whether the box is mirrored left to right, [B] bool.
    """

    top: Ints
    left: Ints
    height: Ints
    width: Ints
    flip: NDArray[np.bool_]


def _whole(_seed: int, _view: int, samples: Ints, heights: Ints, widths: Ints) -> Boxes:
    """Show the image as it is."""
    zero = np.zeros(len(samples), np.int64)
    return Boxes(zero, zero, heights, widths, np.zeros(len(samples), np.bool_))


def _pad_crop_flip(seed: int, view: int, samples: Ints, heights: Ints, widths: Ints) -> Boxes:
    """Pad by four black pixels, cut a box of the image's own size anywhere, mirror half: the CIFAR recipe (He et al., CVPR 2016, 4.2)."""
    random = words(seed, view, samples, 0)
    top, left = integers(random[:, 0], 9) - 4, integers(random[:, 1], 9) - 4
    return Boxes(top, left, heights, widths, integers(random[:, 2], 2) == 1)


def _random_resized_crop_flip(seed: int, view: int, samples: Ints, heights: Ints, widths: Ints) -> Boxes:
    """Cut 8 to 100 % of the area at a ratio of 3/4 to 4/3, mirror half: the ImageNet recipe (Szegedy et al., CVPR 2015, 6).

    As torchvision's RandomResizedCrop: ten attempts, then the largest central box of an allowed ratio. Draw 0 holds
    the flip, draws 1 to 10 an attempt each.
    """
    area = (heights * widths).astype(np.float64)
    top, left, height, width = (np.full(len(samples), -1, np.int64) for _ in range(4))
    for attempt in range(1, 11):
        random = words(seed, view, samples, attempt)
        target = area * (0.08 + 0.92 * uniforms(random[:, 0]))
        ratio = np.exp(np.log(3 / 4) + (np.log(4 / 3) - np.log(3 / 4)) * uniforms(random[:, 1]))
        w, h = np.rint(np.sqrt(target * ratio)).astype(np.int64), np.rint(np.sqrt(target / ratio)).astype(np.int64)
        take = (height < 0) & (w > 0) & (w <= widths) & (h > 0) & (h <= heights)
        height[take], width[take] = h[take], w[take]
        top[take] = integers(random[:, 2], np.maximum(heights - h + 1, 1))[take]
        left[take] = integers(random[:, 3], np.maximum(widths - w + 1, 1))[take]
    missed = height < 0
    w = np.minimum(widths, np.rint(heights * (4 / 3)).astype(np.int64))
    h = np.minimum(heights, np.rint(widths / (3 / 4)).astype(np.int64))
    height[missed], width[missed] = h[missed], w[missed]
    top[missed], left[missed] = ((heights - h) // 2)[missed], ((widths - w) // 2)[missed]
    return Boxes(top, left, height, width, integers(words(seed, view, samples, 0)[:, 0], 2) == 1)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A way to make views.

    Attributes:
        version: Raised when the same integers would give other pixels; recorded with every view.
        boxes: (seed, view, sample ids, heights, widths) to boxes.
        keeps_size: Whether a box always has the size of its image.
    """

    version: int
    boxes: Callable[[int, int, Ints, Ints, Ints], Boxes]
    keeps_size: bool


RECIPES: dict[str, Recipe] = {
    "none": Recipe(1, _whole, keeps_size=True),
    "pad-crop-flip": Recipe(1, _pad_crop_flip, keeps_size=True),
    "random-resized-crop-flip": Recipe(1, _random_resized_crop_flip, keeps_size=False),
}


@dataclass(frozen=True, slots=True)
class View:
    """One rendition of a whole data set.

    Attributes:
        recipe: A name in `RECIPES`.
        recipe_version: The recipe's version when the view was made.
        seed: Of the random numbers, 0 <= seed < 2**64.
        key: Enters the random numbers, with the seed.
        index: Place of the view in its cache.
        group: Views of one group belong together for methods that pair views.
    """

    recipe: str
    recipe_version: int
    seed: int
    key: int
    index: int
    group: int

    def boxes(self, samples: Ints, heights: Ints, widths: Ints) -> Boxes:
        """Say what to cut out of images of these sizes, [B] each."""
        return RECIPES[self.recipe].boxes(self.seed, self.key, samples, heights, widths)

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "View":
        """Read an entry of the manifest.

        Raises:
            UnknownNameError: No such recipe here.
            FormatVersionError: The recipe has another version here, so pixels would differ.
        """
        view = cls(**entry)
        if view.recipe not in RECIPES:
            raise unknown_name("recipe", view.recipe, RECIPES)
        here = RECIPES[view.recipe].version
        if view.recipe_version != here:
            raise FormatVersionError(
                f"view {view.index} was rendered by version {view.recipe_version} of recipe {view.recipe!r}, this logitcache renders "
                f"version {here}: the pixels would differ. Use the logitcache recorded in the manifest, or dump again."
            )
        return view


def make_views(recipe: str, count: int, seed: int) -> tuple[View, ...]:
    """Number the views of one recipe, or of several with commas between them: then a group has one view of each.

    Args:
        recipe: `pad-crop-flip`, or `pad-crop-flip,none`: a weak and a strong view of every image, say.
        count: Views of each recipe.
        seed: Of the random numbers.

    Raises:
        UnknownNameError: No such recipe.
        InputError: Recipes whose views are of different sizes, so that a network would have to see them differently.
    """
    recipes = recipe.split(",")
    for name in recipes:
        if name not in RECIPES:
            raise unknown_name("augmentation", name, RECIPES)
    if len({RECIPES[name].keeps_size for name in recipes}) > 1:
        raise InputError(
            f"augmentations {recipe} do not go together: one keeps the size of an image and another does not, so that a network "
            "would see them at different scales"
        )
    return tuple(
        View(name, RECIPES[name].version, seed, index, index, index // len(recipes))
        for index, name in enumerate(recipes * count)
    )


def make_turns(views: Sequence[View], *, paired: bool) -> list[tuple[View, ...]]:
    """Say what each epoch shows: one view, or where `paired` all views of a group."""
    if not paired:
        return [(view,) for view in views]
    groups: dict[int, list[View]] = {}
    for view in views:
        groups.setdefault(view.group, []).append(view)
    return [tuple(group) for group in groups.values()]
