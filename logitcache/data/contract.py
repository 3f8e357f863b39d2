"""Is this the data that the teacher saw? Checked before every epoch that trains on its answers."""

import numpy as np
from numpy.typing import NDArray

from logitcache.data import ImageSet, load_data, part_of, render, whole_of
from logitcache.data.images.views import View
from logitcache.data.images.views.render import digests
from logitcache.errors import CacheMismatchError, InputError
from logitcache.store import Cache

__all__ = ["check_pixels", "check_samples", "recorded_data"]


def recorded_data(cache: Cache, data: str | ImageSet | None) -> ImageSet:
    """Open the data set of a cache: the one given, or the one its manifest names; and check that it is the same.

    Raises:
        CacheMismatchError: It has other samples.
        InputError: It cannot be opened from here.
    """
    spec = data if data is not None else cache.manifest.data["spec"]
    if spec == "":
        raise InputError(f"{cache.place} was dumped from a data set given as an object; give it again, as `data`.")
    try:
        images = load_data(spec) if isinstance(spec, str) else spec
    except InputError as error:
        if data is not None:
            raise
        raise InputError(
            f"the data of {cache.place}, {spec}, cannot be opened from here ({error}). Say where it is with --data."
        ) from error
    return check_samples(cache, images)


def check_samples(cache: Cache, images: ImageSet, *, listed: bool = True) -> ImageSet:
    """Compare length, classes, labels and the digest of the sample list; return the stretch that the cache answers for.

    Args:
        cache: What was dumped.
        images: What is to be used with it.
        listed: Whether digest and names of classes are compared: one data set has others as an array, a folder and a stranger's
            object.

    Raises:
        CacheMismatchError: They differ; says in what.
    """
    images, _ = whole_of(images)
    manifest, name = cache.manifest, f"the data of {cache.place}"
    remedy = "Give the data it was dumped from with --data, or dump again."
    if len(images) != manifest.data["length"]:
        raise CacheMismatchError(
            f"{name} has {manifest.data['length']:,} samples, this data set has {len(images):,}. {remedy}"
        )
    if images.classes != manifest.classes and (listed or len(images.classes) != len(manifest.classes)):
        differing = [(a, b) for a, b in zip(manifest.classes, images.classes, strict=False) if a != b]
        detail = (
            f"first difference {differing[0][0]!r} against {differing[0][1]!r}"
            if differing
            else "the others are the same"
        )
        raise CacheMismatchError(
            f"{name} has {len(manifest.classes)} classes, this data set {len(images.classes)}; {detail}. {remedy}"
        )
    first = manifest.data["first"]
    part = part_of(images, (first, first + manifest.samples))
    other = np.flatnonzero(cache.labels() != part.labels)
    if len(other):
        row = int(other[0])
        raise CacheMismatchError(
            f"{name} has other labels: sample {first + row} is {manifest.classes[cache.labels()[row]]!r} in the cache and "
            f"{part.classes[part.labels[row]]!r} here; {len(other):,} of {len(part):,} differ. {remedy}"
        )
    if listed and images.digest() != manifest.data["digest"]:
        raise CacheMismatchError(
            f"{name} has other samples (digest {manifest.data['digest']}) than this data set ({images.digest()}). {remedy}"
        )
    return part


def check_pixels(cache: Cache, images: ImageSet, view: View, samples: NDArray[np.int64]) -> None:
    """Render samples of a view again and compare them with the digests of what the teacher was shown.

    Raises:
        CacheMismatchError: A sample's pixels differ.
    """
    expected, found = cache.digests(view.index)[samples], digests(render(images, view, samples))
    bad = np.flatnonzero(expected != found)
    if len(bad):
        raise CacheMismatchError(
            f"the teacher of {cache.place} was shown other pixels: view {view.index}, sample {samples[bad[0]]} has digest "
            f"{found[bad[0]]:016x} here and {expected[bad[0]]:016x} in the cache; {len(bad)} of {len(samples)} samples looked "
            "at differ. The images or their decoding have changed: restore them, or dump again."
        )
