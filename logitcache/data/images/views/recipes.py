"""Views: augmentation that teacher and student share, replayable from three integers.

A recipe is a crop, optionally followed by transforms of its pixels and by mixing with another sample: `pad-crop-flip+randaugment+cutmix`.
Each step derives its random numbers from (seed, view, sample id) on the host. Rendering maps uint8 pixels to uint8 pixels, identically on
every device. Resizing and normalization belong to each network and come later (`preprocessing.py`).
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from logitcache.data.images.views.changes import CHANGES, change
from logitcache.data.images.views.crops import CROPS, RECORDED, Boxes, Crop, RecordedBoxes
from logitcache.data.images.views.digests import BLAKE2B, MULTILINEAR
from logitcache.data.images.views.mixing import MIXES, Mixed, draw
from logitcache.errors import FormatVersionError, InputError, unknown_name

__all__ = ["PRESETS", "Recipe", "View", "make_views", "read_recipe"]

Ints = NDArray[np.int64]
Step = tuple[str, Mapping[str, float | str]]

_PLUS = r"\+(?![^()]*\))"  # only outside parentheses: 1e+2 is a number

_EVERY_CROP = CROPS | RECORDED
PRESETS = {
    "cifar": "pad-crop-flip",
    "cifar-strong": "pad-crop-flip+randaugment(num_ops=2,magnitude=10)",
    "imagenet": "random-resized-crop-flip",
    "imagenet-strong": "random-resized-crop-flip+randaugment(num_ops=2,magnitude=9)+erasing(p=0.25)",
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A parsed augmentation recipe.

    Attributes:
        name: Name with every parameter written out, so that a new default does not change existing caches.
        version: Version, incremented when the same integers would give different pixels; recorded with every view.
        crop: Crop of the image.
        changes: Transforms of the cropped pixels, in order.
        mixes: Methods of mixing with another sample; if there are several, each row uses one.
    """

    name: str
    version: int
    crop: Crop
    changes: tuple[Step, ...]
    mixes: tuple[Step, ...]

    @property
    def runs_others_code(self) -> bool:
        """Whether a step is a user's own code."""
        return any(":" in name for name, _ in self.changes)

    @property
    def keeps_size(self) -> bool:
        """Whether a rendition always has the size of its image."""
        return self.crop.keeps_size and not self.runs_others_code


@functools.cache
def read_recipe(text: str) -> Recipe:
    """Parse `CROP+TRANSFORM+MIXING`, each step with its parameters in parentheses if they are not the defaults.

    Args:
        text: Preset, or steps: a crop (default `none`), then transforms, either torchvision's or a user's own as
            `package.module:factory`, then `mixup` or `cutmix` or both.

    Raises:
        UnknownNameError: If a step or parameter is unknown.
        InputError: If steps are in the wrong order, or a value is invalid.
    """
    named = "+".join(PRESETS.get(step.strip(), step) for step in re.split(_PLUS, text))
    steps = [_read_step(step, text) for step in re.split(_PLUS, named)]
    if steps[0][0] not in _EVERY_CROP:
        steps.insert(0, ("none", {}))
    ranks = [0 if name in _EVERY_CROP else 2 if name in MIXES else 1 for name, _ in steps]
    if ranks != sorted(ranks) or ranks.count(0) > 1:
        raise InputError(f"augmentation {text}: steps must be one crop, then transforms of pixels, then mixing")
    mixed = [name for name, _ in steps if name in MIXES]
    if len(set(mixed)) < len(mixed):
        raise InputError(f"augmentation {text} names {mixed[0]} twice")
    changes, mixes = (
        tuple(step for step, rank in zip(steps, ranks, strict=True) if rank == wanted) for wanted in (1, 2)
    )
    crop = _EVERY_CROP[steps[0][0]]
    versions = [crop.version, *(CHANGES[name].version for name, _ in changes if name in CHANGES)]
    return Recipe(
        "+".join(_format_step(*step) for step in steps),
        sum([*versions, *(MIXES[name].version for name, _ in mixes)]),
        crop,
        changes,
        mixes,
    )


def _read_step(text: str, recipe: str) -> Step:
    found = re.fullmatch(r"([^()]+)(?:\((.*)\))?", text.strip())
    if not found:
        raise InputError(f"augmentation {recipe}: {text!r} is not a step; expected NAME or NAME(parameter=value,...)")
    name, given = found[1].strip(), found[2]
    if found[2] is not None and (name in PRESETS or name in _EVERY_CROP or ":" in name):
        raise InputError(f"augmentation {recipe}: {name} takes no parameters")
    if name not in _EVERY_CROP and name not in CHANGES and name not in MIXES and ":" not in name:
        raise unknown_name("augmentation", name, [*PRESETS, *CROPS, *CHANGES, *MIXES, "package.module:factory"])
    known = {step: one.defaults for step, one in CHANGES.items()} | {step: one.defaults for step, one in MIXES.items()}
    defaults = known.get(name, {})
    chosen: dict[str, float | str] = {}
    for part in (given or "").split(","):
        if part:
            word, value = _read_parameter(part, name, defaults)
            if word in chosen:
                raise InputError(f"augmentation {recipe} gives {word} of {name} twice")
            chosen[word] = value
    return name, {**defaults, **chosen}


def _read_parameter(text: str, step: str, defaults: Mapping[str, float | str]) -> tuple[str, float | str]:
    word, _, value = (part.strip() for part in text.partition("="))
    if word not in defaults:
        raise unknown_name(f"parameter of {step}", word, defaults or ["none"])
    if isinstance(defaults[word], str):
        return word, value
    try:
        number = float(value)
    except ValueError as error:
        raise InputError(f"{word} of {step} must be a number, not {value!r}") from error
    if not 0 <= number < float("inf") or (word == "p" and number > 1):
        raise InputError(f"{word} of {step} must be {'between 0 and 1' if word == 'p' else '0 or more'}, not {value}")
    return word, int(number) if isinstance(defaults[word], int) and number == int(number) else number


def _format_step(name: str, parameters: Mapping[str, float | str]) -> str:
    return name + (f"({','.join(f'{word}={value}' for word, value in parameters.items())})" if parameters else "")


@dataclass(frozen=True, slots=True)
class View:
    """One augmented version of a whole data set.

    Attributes:
        recipe: Name of the recipe, as in `Recipe.name`.
        recipe_version: Version of the recipe when the view was made.
        seed: Seed of the random numbers, 0 <= seed < 2**64.
        key: Number that the random numbers depend on besides the seed.
        index: Position of the view in its cache.
        group: Number of the group; methods that compare views use views of one group together.
        digest: Hash function of pixels: `multilinear`, or `blake2b` in caches made before 2026-11-28.
        recorded: Boxes drawn by another tool, for a view of an imported cache; not part of the manifest entry.
    """

    recipe: str
    recipe_version: int
    seed: int
    key: int
    index: int
    group: int
    digest: str = BLAKE2B
    recorded: RecordedBoxes | None = field(default=None, compare=False, repr=False)

    def boxes(self, samples: Ints, heights: Ints, widths: Ints) -> Boxes:
        """Return the crop boxes of images with the given sizes, [B] each."""
        if self.recorded is not None:
            return self.recorded.boxes(samples, heights, widths)
        return read_recipe(self.recipe).crop.boxes(self.seed, self.key, samples, heights, widths)

    @property
    def replayable(self) -> bool:
        """Whether its images can be rendered again; False if another tool drew the augmentation and did not record it."""
        return self.recorded is not None or read_recipe(self.recipe).crop.drawn

    def only(self, samples: Ints) -> "View":
        """Return the same view for some samples only, to be sent to a worker process."""
        return self if self.recorded is None else replace(self, recorded=self.recorded.only(samples))

    @property
    def changes_pixels(self) -> bool:
        """Whether there are transforms besides the crop, so that rendering takes time."""
        return bool(read_recipe(self.recipe).changes)

    @property
    def runs_others_code(self) -> bool:
        """Whether a step is a user's own code."""
        return read_recipe(self.recipe).runs_others_code

    @property
    def keeps_size(self) -> bool:
        """Whether a rendition always has the size of its image."""
        return read_recipe(self.recipe).keeps_size

    @property
    def mixes(self) -> bool:
        """Whether rows are mixed with others, so that they have two labels."""
        return bool(read_recipe(self.recipe).mixes)

    def changed(self, rows: Sequence[Tensor], samples: Ints) -> list[Tensor]:
        """Change the pixels of renditions, [C, h, w] uint8 each."""
        return change(rows, read_recipe(self.recipe).changes, self.seed, self.key, samples)

    def mixed(self, samples: Ints, total: int, excluded: Ints | None = None) -> Mixed | None:
        """Return the mixing parameters of rows, or None if the view does not mix.

        Args:
            samples: Sample ids, [B].
            total: Number of samples in the whole data set.
            excluded: Excluded samples; rows that would be mixed with one are not mixed.
        """
        mixes = read_recipe(self.recipe).mixes
        if not mixes:
            return None
        found = draw(mixes, self.seed, self.key, samples, total)
        return found if excluded is None or not len(excluded) else found.without(samples, excluded)

    def partners(self, samples: Ints, total: int) -> Ints:
        """Return the samples that rows are mixed with, excluded or not, [B]. The view must mix."""
        return draw(read_recipe(self.recipe).mixes, self.seed, self.key, samples, total).partners

    def to_json(self) -> dict[str, Any]:
        """Return the manifest entry."""
        left_out = {"recorded"} | ({"digest"} if self.digest == BLAKE2B else set())
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name not in left_out}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "View":
        """Read a manifest entry.

        Raises:
            UnknownNameError: If this logitcache does not have the recipe.
            FormatVersionError: If this logitcache has another version of the recipe, so that pixels would differ, or does not know the
                hash function.
        """
        view = cls(**entry)
        here = read_recipe(view.recipe).version
        if view.recipe_version != here:
            raise FormatVersionError(
                f"view {view.index} was rendered with version {view.recipe_version} of recipe {view.recipe!r}, but this logitcache has "
                f"version {here}, whose pixels differ. Use the logitcache version recorded in the manifest, or dump again."
            )
        if view.digest not in (BLAKE2B, MULTILINEAR):
            raise FormatVersionError(
                f"the pixels of view {view.index} are hashed with {view.digest!r}, but this logitcache has only {BLAKE2B} and "
                f"{MULTILINEAR}. Upgrade logitcache to read it."
            )
        return view


def make_views(recipe: str, count: int, seed: int) -> tuple[View, ...]:
    """Return the views of one recipe, or of several; in the latter case each group has one view of each recipe.

    Args:
        recipe: One or more recipes, separated by commas: `pad-crop-flip`, or `cifar,cifar-strong` for a weak and a strong view.
        count: Number of views of each recipe.
        seed: Seed of the random numbers.

    Raises:
        UnknownNameError: If there is no such recipe.
        InputError: If only some of the recipes keep the size of an image, so that a network would see different scales.
    """
    recipes = [read_recipe(name) for name in re.split(r",(?![^()]*\))", recipe)]
    if foreign := next((one.name for one in recipes if not one.crop.drawn), None):
        raise InputError(
            f"augmentation {foreign} exists only in imported caches; choose one of {', '.join([*PRESETS, *CROPS])}"
        )
    if len({one.keeps_size for one in recipes}) > 1:
        raise InputError(
            f"augmentations {recipe} cannot be combined: one keeps the size of an image and another does not, so that a network "
            "would see them at different scales"
        )
    return tuple(
        View(one.name, one.version, seed, index, index, index // len(recipes), MULTILINEAR)
        for index, one in enumerate(recipes * count)
    )
