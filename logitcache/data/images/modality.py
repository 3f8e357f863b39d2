"""Images as a modality: each sample is one row."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from logitcache.data.exclusion import excluded_of
from logitcache.data.images.rendering import Renderer, preprocessing_for, render
from logitcache.data.images.resident import ResidentImages, resident_images
from logitcache.data.images.sets import ImageSet, Part
from logitcache.data.images.views import RecordedBoxes, View, make_views
from logitcache.data.images.views.digests import digests
from logitcache.data.images.views.preprocessing import TEST_TIME_VIEWS, Preprocessing
from logitcache.data.protocol import Ids, RowLabels, joined_digests, whole_of
from logitcache.errors import InputError
from logitcache.models import Network, load_network, logits_of
from logitcache.store import Cache

__all__ = ["IMAGES", "Images"]


class Images:
    """Labelled images: [B, C] logits for B of them."""

    name, unit, shown, headline = "images", "images", "pixels", "test_accuracy"
    software: tuple[str, ...] = ("pillow", "torchvision")
    test_time_views: tuple[str, ...] = TEST_TIME_VIEWS

    def make_views(self, recipe: str, count: int, seed: int) -> tuple[View, ...]:
        """Return `count` views of each recipe."""
        return make_views(recipe, count, seed)

    def read_view(self, entry: Mapping[str, Any]) -> View:
        """Read the manifest entry of a view."""
        return View.from_json(entry)

    def continued(self, views: Sequence[View], begun: Sequence[Mapping[str, Any]]) -> tuple[View, ...]:
        """Return views whose pixels are hashed as in the unfinished cache; additional views use the hash of its last view."""
        kinds = [View.from_json(entry).digest for entry in begun]
        return tuple(replace(view, digest=kinds[min(number, len(kinds) - 1)]) for number, view in enumerate(views))

    def with_recorded(self, cache: Cache, views: Sequence[View]) -> list[View]:
        """Return views with the crop boxes of another tool attached, which the cache stores for imported views."""
        held, first = _HeldBoxes(cache), int(cache.manifest.data["first"])
        return [
            replace(view, recorded=RecordedBoxes(functools.partial(held.of, view.index), first))
            if view.recipe == "recorded-boxes"
            else view
            for view in views
        ]

    def choose_inputs(self, samples: ImageSet, view: View, *said: Mapping[str, Any]) -> Preprocessing:
        """Choose mean, standard deviation, size and resizing (see `preprocessing_for`)."""
        return preprocessing_for(samples, view.recipe, *said)

    def read_inputs(self, entry: Mapping[str, Any]) -> Preprocessing:
        """Read the manifest entry of the preprocessing."""
        return Preprocessing.from_json(entry)

    def for_evaluation(self, inputs: Preprocessing, samples: ImageSet) -> tuple[Preprocessing, View]:
        """Evaluate on whole images: at their own size if the network was trained on it, else resized and center-cropped."""
        size, (whole,) = inputs.image_size, make_views("none", 1, 0)
        kept = samples.native_size == (size, size) or (samples.native_size and inputs.resize == "none")
        return replace(inputs, resize="none" if kept else "center-crop"), whole

    def renderer(
        self,
        samples: ImageSet,
        inputs: Sequence[Preprocessing],
        *,
        with_digests: bool = False,
        workers: int | None = None,
        device: torch.device | None = None,
        skip_unreadable: bool = False,
        on_device: bool = False,
    ) -> Renderer:
        """Return a renderer of batches of images."""
        return Renderer(
            samples,
            inputs,
            with_digests=with_digests,
            workers=workers,
            device=device,
            skip_unreadable=skip_unreadable,
            on_device=on_device,
        )

    def resident(
        self, samples: ImageSet, views: Sequence[View], inputs: Preprocessing, device: torch.device
    ) -> tuple[ResidentImages | None, str]:
        """Return images that are rendered on the device without the host, or None and the reason."""
        return resident_images(samples, views, inputs, device)

    def digests(self, samples: ImageSet, view: View, ids: Ids) -> NDArray[np.uint64]:
        """Render images and hash their pixels, [B] uint64."""
        return joined_digests([digests(render(samples, view, ids), view.digest)])

    def row_labels(self, samples: ImageSet, view: View, ids: Ids) -> RowLabels:
        """Return the class of each image, and that of its partner if the view mixes images."""
        whole, first = whole_of(samples)
        mixed, second = view.mixed(ids + first, len(whole), excluded_of(samples)), None
        if mixed is not None:
            weights = torch.from_numpy(mixed.weights) / 256
            second = torch.from_numpy(whole.labels[mixed.partners]), weights.float()
        return RowLabels(ids, torch.from_numpy(samples.labels[ids]), second)

    def rows(self, output: Any, keep: Tensor | None, *, classes: int, label: str) -> Iterable[Tensor]:
        """Return the logits unchanged, [B, C]."""
        logits = logits_of(output)
        if keep is not None or not isinstance(logits, Tensor) or logits.ndim != 2 or logits.is_complex():
            found = f"a tensor {list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            found += " of complex numbers" * (isinstance(logits, Tensor) and logits.is_complex())
            raise InputError(f"{label} must return logits [B, {classes}], found {found}")
        return (logits,)

    def network(self, spec: str | nn.Module, classes: int, weights: str | None) -> Network:
        """Build a network by name and load its weights."""
        return load_network(spec, classes, weights)

    def part(self, samples: ImageSet, first: int, last: int) -> ImageSet:
        """Return a stretch of a data set."""
        whole, offset = whole_of(samples)
        return Part(whole, offset + first, offset + last)


class _HeldBoxes:
    """Boxes of the most recently requested view only, because they take 20 bytes per image."""

    def __init__(self, cache: Cache) -> None:
        self._cache, self._held = cache, (-1, np.empty((0, 5), np.float32))

    def of(self, view: int) -> NDArray[np.float32]:
        """Return the boxes of a view, [N, 5]."""
        held = self._held
        if held[0] != view:
            held = self._held = (view, self._cache.recorded(view)["boxes"])
        return held[1]

    def __getstate__(self) -> dict[str, Any]:
        """Drop the boxes: a spawned worker reads them itself."""
        return self.__dict__ | {"_held": (-1, np.empty((0, 5), np.float32))}


IMAGES = Images()
