"""Views: what the teacher and the student are shown, replayable from three integers.

A recipe is a crop, and perhaps changes of its pixels and mixing with another sample's: `pad-crop-flip+randaugment+cutmix`.
Each turns (seed, view, sample id) into numbers of its own, on the host; rendering is bytes in, bytes out, the same on every
device. Resizing and normalising belong to each network and come later (`preprocessing.py`).
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

_PLUS = r"\+(?![^()]*\))"  # outside of parentheses: 1e+2 is a number

_EVERY_CROP = CROPS | RECORDED
PRESETS = {
    "cifar": "pad-crop-flip",
    "cifar-strong": "pad-crop-flip+randaugment(num_ops=2,magnitude=10)",
    "imagenet": "random-resized-crop-flip",
    "imagenet-strong": "random-resized-crop-flip+randaugment(num_ops=2,magnitude=9)+erasing(p=0.25)",
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """A way to make views.

    Attributes:
        name: With every parameter spelled, so that another default changes no cache.
        version: Raised when the same integers would give other pixels; recorded with every view.
        crop: Which box is shown.
        changes: What happens to its pixels, one after another.
        mixes: What it is mixed with another sample by; of several each row takes one.
    """

    name: str
    version: int
    crop: Crop
    changes: tuple[Step, ...]
    mixes: tuple[Step, ...]

    @property
    def runs_others_code(self) -> bool:
        """Whether a step is somebody's own."""
        return any(":" in name for name, _ in self.changes)

    @property
    def keeps_size(self) -> bool:
        """Whether a rendition always has the size of its image."""
        return self.crop.keeps_size and not self.runs_others_code


@functools.cache
def read_recipe(text: str) -> Recipe:
    """Read `CROP+CHANGE+MIXING`, each with parameters in parentheses where they are not the usual ones.

    Args:
        text: A preset, or steps: a crop (left out it is `none`), then changes of pixels, torchvision's or somebody's own as
            `package.module:factory`, then `mixup` or `cutmix` or both.

    Raises:
        UnknownNameError: A step or parameter that is not known.
        InputError: Steps in another order, or a value that means nothing.
    """
    named = "+".join(PRESETS.get(step.strip(), step) for step in re.split(_PLUS, text))
    steps = [_read_step(step, text) for step in re.split(_PLUS, named)]
    if steps[0][0] not in _EVERY_CROP:
        steps.insert(0, ("none", {}))
    ranks = [0 if name in _EVERY_CROP else 2 if name in MIXES else 1 for name, _ in steps]
    if ranks != sorted(ranks) or ranks.count(0) > 1:
        raise InputError(f"augmentation {text}: one crop comes first, then changes of pixels, then mixing")
    mixed = [name for name, _ in steps if name in MIXES]
    if len(set(mixed)) < len(mixed):
        raise InputError(f"augmentation {text} names {mixed[0]} twice")
    changes, mixes = (
        tuple(step for step, rank in zip(steps, ranks, strict=True) if rank == wanted) for wanted in (1, 2)
    )
    crop = _EVERY_CROP[steps[0][0]]
    versions = [crop.version, *(CHANGES[name].version for name, _ in changes if name in CHANGES)]
    return Recipe(
        "+".join(_spelled(*step) for step in steps),
        sum([*versions, *(MIXES[name].version for name, _ in mixes)]),
        crop,
        changes,
        mixes,
    )


def _read_step(text: str, recipe: str) -> Step:
    found = re.fullmatch(r"([^()]+)(?:\((.*)\))?", text.strip())
    if not found:
        raise InputError(f"augmentation {recipe}: {text!r} is no step; expected NAME or NAME(parameter=value,...)")
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
        raise InputError(
            f"{word} of {step} must be {'a share from 0 to 1' if word == 'p' else '0 or more'}, not {value}"
        )
    return word, int(number) if isinstance(defaults[word], int) and number == int(number) else number


def _spelled(name: str, parameters: Mapping[str, float | str]) -> str:
    return name + (f"({','.join(f'{word}={value}' for word, value in parameters.items())})" if parameters else "")


@dataclass(frozen=True, slots=True)
class View:
    """One rendition of a whole data set.

    Attributes:
        recipe: As `read_recipe` spells it.
        recipe_version: The recipe's version when the view was made.
        seed: Of the random numbers, 0 <= seed < 2**64.
        key: Enters the random numbers, with the seed.
        index: Place of the view in its cache.
        group: Views of one group belong together for methods that pair views.
        digest: How pixels are hashed: `multilinear`, or `blake2b` as before 2026-11-28.
        recorded: Boxes that another tool drew, of a view of an imported cache; not part of the manifest entry.
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
        """Say what to cut out of images of these sizes, [B] each."""
        if self.recorded is not None:
            return self.recorded.boxes(samples, heights, widths)
        return read_recipe(self.recipe).crop.boxes(self.seed, self.key, samples, heights, widths)

    @property
    def replayable(self) -> bool:
        """Whether its images can be shown again: not where another tool made them from random numbers of its own."""
        return self.recorded is not None or read_recipe(self.recipe).crop.drawn

    def only(self, samples: Ints) -> "View":
        """Return the same view for some samples alone, which a worker process is sent."""
        return self if self.recorded is None else replace(self, recorded=self.recorded.only(samples))

    @property
    def changes_pixels(self) -> bool:
        """Whether more happens to a row than being cut out, so that rendering it takes time."""
        return bool(read_recipe(self.recipe).changes)

    @property
    def runs_others_code(self) -> bool:
        """Whether a step is somebody's own."""
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
        """Return what rows are mixed with; None where they are not.

        Args:
            samples: Sample ids, [B].
            total: How many samples the whole data set has.
            excluded: Samples that are left out: a row that would be mixed with one is shown as it is.
        """
        mixes = read_recipe(self.recipe).mixes
        if not mixes:
            return None
        found = draw(mixes, self.seed, self.key, samples, total)
        return found if excluded is None or not len(excluded) else found.without(samples, excluded)

    def partners(self, samples: Ints, total: int) -> Ints:
        """Return the samples that rows are mixed with, [B], whether these are left out or not; of a view that mixes."""
        return draw(read_recipe(self.recipe).mixes, self.seed, self.key, samples, total).partners

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the manifest."""
        left_out = {"recorded"} | ({"digest"} if self.digest == BLAKE2B else set())
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name not in left_out}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "View":
        """Read an entry of the manifest.

        Raises:
            UnknownNameError: No such recipe here.
            FormatVersionError: The recipe has another version here, so pixels would differ, or their digest is not known here.
        """
        view = cls(**entry)
        here = read_recipe(view.recipe).version
        if view.recipe_version != here:
            raise FormatVersionError(
                f"view {view.index} was rendered by version {view.recipe_version} of recipe {view.recipe!r}, this logitcache renders "
                f"version {here}: the pixels would differ. Use the logitcache recorded in the manifest, or dump again."
            )
        if view.digest not in (BLAKE2B, MULTILINEAR):
            raise FormatVersionError(
                f"the pixels of view {view.index} are hashed by {view.digest!r}, this logitcache knows {BLAKE2B} and {MULTILINEAR}. "
                "Upgrade logitcache to read it."
            )
        return view


def make_views(recipe: str, count: int, seed: int) -> tuple[View, ...]:
    """Number the views of one recipe, or of several with commas between them: then a group has one view of each.

    Args:
        recipe: `pad-crop-flip`, or `cifar,cifar-strong`: a weak and a strong view of every image, say.
        count: Views of each recipe.
        seed: Seed of the random numbers.

    Raises:
        UnknownNameError: No such recipe.
        InputError: Recipes whose views are of different sizes, so that a network would have to see them differently.
    """
    recipes = [read_recipe(name) for name in re.split(r",(?![^()]*\))", recipe)]
    if foreign := next((one.name for one in recipes if not one.crop.drawn), None):
        raise InputError(f"augmentation {foreign} is of imported caches: choose one of {', '.join([*PRESETS, *CROPS])}")
    if len({one.keeps_size for one in recipes}) > 1:
        raise InputError(
            f"augmentations {recipe} do not go together: one keeps the size of an image and another does not, so that a network "
            "would see them at different scales"
        )
    return tuple(
        View(one.name, one.version, seed, index, index, index // len(recipes), MULTILINEAR)
        for index, one in enumerate(recipes * count)
    )
