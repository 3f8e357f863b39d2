"""Is this the data that the teacher saw? Checked before every epoch that trains on its logits."""

from typing import Any

import numpy as np

from logitcache.data.exclusion import (
    Exclude,
    excluded_of,
    kept_unreadable,
    leave_out,
    read_exclusions,
    reading_beside,
    refuse_unreadable,
)
from logitcache.data.open import as_samples, find_modality, modality_of, part_of
from logitcache.data.optional import carried_data, with_recorded
from logitcache.data.protocol import Ids, Modality, Samples, View, offsets_of, whole_of
from logitcache.data.text.reading import text_reading_of
from logitcache.errors import CacheMismatchError, InputError
from logitcache.runtime.wording import counted
from logitcache.store import Cache, is_among, rows_of

__all__ = [
    "cache_modality",
    "cache_views",
    "check_inputs",
    "check_samples",
    "is_replayable",
    "recorded_data",
    "refuse_unreplayable",
]


def cache_modality(cache: Cache) -> Modality:
    """Return the modality that a cache's manifest names."""
    return find_modality(cache.manifest.modality)


def cache_views(cache: Cache) -> list[Any]:
    """Return the views of a cache, in order.

    Raises:
        LogitCacheError: This version cannot replay them.
    """
    modality = cache_modality(cache)
    return with_recorded(modality, cache, [modality.read_view(entry) for entry in cache.manifest.views])


def is_replayable(cache: Cache) -> bool:
    """Return whether what the teacher was shown can be shown again, in every view."""
    return all(getattr(view, "replayable", True) for view in cache_views(cache))


def refuse_unreplayable(cache: Cache) -> None:
    """Raise CacheMismatchError where a student cannot be shown what the teacher was shown."""
    if not is_replayable(cache):
        by = cache.manifest.teachers[0].get("gives", {}).get("by", "another tool")
        raise CacheMismatchError(
            f"{cache.place} holds rows of images that {by} augmented with random numbers of its own, which logitcache cannot repeat: a "
            "student would be shown other pixels than the teacher. A loop that makes the same images takes the rows from "
            "`logitcache.open_dataset(cache).at(epoch)`, whose `recorded()` has each image's seed."
        )


def recorded_data(cache: Cache, data: Any, exclude: Exclude | None = None, *, listed: bool = True) -> Any:
    """Open the data set of a cache: the one given, or the one it carries or its manifest names; and check that it is the same.

    Args:
        cache: The cache.
        data: Whatever `as_samples` takes, or None for the data that the cache carries, or for the data set that the manifest names.
        exclude: Samples to leave out besides those that the cache leaves out (see `read_exclusions`).
        listed: As for `check_samples`.

    Raises:
        CacheMismatchError: It has other samples, or its samples are mixed with one that is to be left out.
        InputError: It cannot be opened from here, or a sample of it cannot be read.
    """
    if data is None and (carried := carried_data(cache_modality(cache), cache)) is not None:
        part = leave_out(carried, cache.manifest.excluded)
        return leave_out(part, [*excluded_of(part), *read_exclusions(exclude, part)])
    spec = data if data is not None else cache.manifest.data["spec"]
    if isinstance(spec, str) and spec == "":
        raise InputError(
            f"{cache.place} does not say where its data is, which was given as an object or left out by --anonymous: name it with --data."
        )
    orientation = cache.manifest.data.get("exif_orientation", False)
    text = text_reading_of(cache.manifest, spec)
    reading = reading_beside(cache, exclude, exif_orientation=orientation, text=text)
    try:
        samples = as_samples(spec, cache.manifest.classes, reading=reading)
    except InputError as error:
        if data is not None:
            raise
        raise InputError(
            f"the data of {cache.place}, {spec}, cannot be opened from here ({error}). Say where it is with --data."
        ) from error
    part = check_samples(cache, samples, listed=listed)
    more = np.setdiff1d(read_exclusions(exclude, samples), excluded_of(part))
    if len(more) and any(view.mixes for view in cache_views(cache)):
        raise CacheMismatchError(
            f"{cache.place} mixes samples, so that pixels of sample {more[0]} are in others too, and --exclude at the training cannot take "
            "them out. Run the dump's own command with this --exclude added: it makes again what shows the sample, and nothing else."
        )
    part = leave_out(part, [*excluded_of(part), *more])
    refuse_unreadable(part, kept_unreadable(part))
    return part


def check_samples(cache: Cache, samples: Samples, *, listed: bool = True) -> Any:
    """Compare modality, length, classes, labels and the digest of the sample list.

    Args:
        cache: The cache.
        samples: The data set to be used with it.
        listed: Whether to compare the digest and the class names: one data set has other digests as an array, a folder and a
            user's own object.

    Returns:
        The stretch that the cache holds, without the samples that it leaves out.

    Raises:
        CacheMismatchError: The data set differs from the one that was dumped; the message names the difference.
    """
    whole, _ = whole_of(samples)
    manifest, name = cache.manifest, f"the data of {cache.place}"
    remedy = "Give the data it was dumped from with --data, or dump again."
    if (kind := modality_of(whole).name) != manifest.modality:
        raise CacheMismatchError(f"{name} is {manifest.modality}, this data set is {kind}. {remedy}")
    if len(whole) != manifest.data["length"]:
        raise CacheMismatchError(
            f"{name} has {counted(manifest.data['length'], 'sample')}, this data set has {len(whole):,}. {remedy}"
        )
    if whole.classes != manifest.classes and (listed or len(whole.classes) != len(manifest.classes)):
        differing = [(a, b) for a, b in zip(manifest.classes, whole.classes, strict=False) if a != b]
        detail = (
            f"first difference {differing[0][0]!r} against {differing[0][1]!r}"
            if differing
            else "the others are the same"
        )
        raise CacheMismatchError(
            f"{name} has {counted(len(manifest.classes), 'class')}, this data set {len(whole.classes)}; {detail}. {remedy}"
        )
    first = manifest.data["first"]
    part = part_of(whole, (first, first + manifest.samples))
    _check_labels(cache, part, f"{name} has other", remedy)
    if listed and whole.digest() != manifest.data["digest"]:
        raise CacheMismatchError(
            f"{name} has other samples (digest {manifest.data['digest']}) than this data set ({whole.digest()}). {remedy}"
        )
    return leave_out(part, manifest.excluded)


def _check_labels(cache: Cache, part: Samples, has_other: str, remedy: str) -> None:
    offsets, labels, classes = cache.offsets(), cache.labels(), cache.manifest.classes
    if offsets is not None and not np.array_equal(offsets, offsets_of(part)):  # type: ignore[arg-type]
        raise CacheMismatchError(f"{has_other} rows than this data set: samples have other lengths. {remedy}")
    other = np.flatnonzero(labels != part.labels)
    if len(other):
        row = int(other[0])
        raise CacheMismatchError(
            f"{has_other} labels: {cache.manifest.row_axis} {cache.manifest.first_row + row} is {classes[labels[row]]!r} in the cache and "
            f"{part.classes[part.labels[row]]!r} here; {len(other):,} of {len(labels):,} differ. {remedy}"
        )


def check_inputs(cache: Cache, samples: Samples, view: View, ids: Ids) -> None:
    """Render samples of a view again and compare them with the digests of what the teacher was shown.

    Samples that are left out are not looked at.

    Raises:
        CacheMismatchError: A sample is rendered differently.
    """
    ids = ids[~is_among(ids + whole_of(samples)[1], excluded_of(samples))]
    if not len(ids):
        return
    rows, modality = rows_of(offsets_of(samples), ids), modality_of(samples)
    expected, found = cache.digests(view.index)[rows], modality.digests(samples, view, ids)
    bad = np.flatnonzero(expected != found)
    if len(bad):
        raise CacheMismatchError(
            f"the teacher of {cache.place} was shown other {modality.shown}: view {view.index}, "
            f"{cache.manifest.row_axis} {rows[bad[0]]} has digest "
            f"{found[bad[0]]:016x} here and {expected[bad[0]]:016x} in the cache; {len(bad)} of {len(rows)} {cache.manifest.row_axis}s "
            "looked at differ. The data or its decoding has changed: restore it, or dump again."
        )
