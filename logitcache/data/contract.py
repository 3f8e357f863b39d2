"""Check that data is what the teacher saw. Runs before every epoch that trains on its logits."""

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
    sample_name,
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
        LogitCacheError: If this version cannot replay them.
    """
    modality = cache_modality(cache)
    return with_recorded(modality, cache, [modality.read_view(entry) for entry in cache.manifest.views])


def is_replayable(cache: Cache) -> bool:
    """Return whether the teacher's input can be rendered again in every view."""
    return all(getattr(view, "replayable", True) for view in cache_views(cache))


def refuse_unreplayable(cache: Cache) -> None:
    """Raise CacheMismatchError if the teacher's input cannot be rendered again for a student."""
    if not is_replayable(cache):
        by = cache.manifest.teachers[0].get("gives", {}).get("by", "another tool")
        raise CacheMismatchError(
            f"the images of {cache.place} were augmented by {by} with its own random numbers, which logitcache cannot replay, so a "
            "student would see different pixels than the teacher. In a loop of your own that renders the same images, read the rows with "
            "`logitcache.open_dataset(cache).at(epoch)`; its `recorded()` returns each image's seed."
        )


def recorded_data(cache: Cache, data: Any, exclude: Exclude | None = None, *, listed: bool = True) -> Any:
    """Open the data set of a cache and check that it is the one the cache was made from.

    Args:
        cache: Cache.
        data: Data set, as in `as_samples`. Defaults to the data that the cache carries, or else to the data set that its manifest names.
        exclude: Samples to leave out in addition to those that the cache leaves out (see `read_exclusions`).
        listed: Whether to compare digest and class names, as in `check_samples`.

    Raises:
        CacheMismatchError: If it has different samples, or an excluded sample is mixed into others.
        InputError: If it cannot be opened, or a sample cannot be read.
    """
    if data is None and (carried := carried_data(cache_modality(cache), cache)) is not None:
        part = leave_out(carried, cache.manifest.excluded)
        return leave_out(part, [*excluded_of(part), *read_exclusions(exclude, part)])
    spec = data if data is not None else cache.manifest.data["spec"]
    if isinstance(spec, str) and spec == "":
        raise InputError(
            f"{cache.place} does not record the path of its data, because the data was passed as an object or the cache was made with "
            "--anonymous. Pass it with --data."
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
            f"the data of {cache.place}, {spec}, cannot be opened ({error}). If it has moved, pass its new path with --data."
        ) from error
    part = check_samples(cache, samples, listed=listed)
    more = np.setdiff1d(read_exclusions(exclude, samples), excluded_of(part))
    if len(more) and any(view.mixes for view in cache_views(cache)):
        raise CacheMismatchError(
            f"{cache.place} mixes samples, so pixels of sample {more[0]} also appear in others, and --exclude in training cannot remove "
            "them. Run the dump's command again with this --exclude added; it redoes only the blocks that show the sample."
        )
    part = leave_out(part, [*excluded_of(part), *more])
    refuse_unreadable(part, kept_unreadable(part))
    return part


def check_samples(cache: Cache, samples: Samples, *, listed: bool = True) -> Any:
    """Compare the modality, length, classes, labels and digest of a data set with those of a cache.

    Args:
        cache: Cache.
        samples: Data set to use with it.
        listed: Whether to compare the digest and the class names. The digest of the same data differs between an array, a folder and a
            user's own object.

    Returns:
        The stretch of samples that the cache holds, without those that it leaves out.

    Raises:
        CacheMismatchError: If the data set differs from the one that was dumped; the message states the difference.
    """
    whole, _ = whole_of(samples)
    manifest, name = cache.manifest, f"the data of {cache.place}"
    remedy = "Pass the data it was dumped from with --data, or dump again."
    if (kind := modality_of(whole).name) != manifest.modality:
        raise CacheMismatchError(f"{name} is {manifest.modality}, but this data set is {kind}. {remedy}")
    if len(whole) != manifest.data["length"]:
        raise CacheMismatchError(
            f"{name} has {counted(manifest.data['length'], 'sample')}, but this data set has {len(whole):,}. {remedy}"
        )
    if whole.classes != manifest.classes and (listed or len(whole.classes) != len(manifest.classes)):
        differing = [(a, b) for a, b in zip(manifest.classes, whole.classes, strict=False) if a != b]
        detail = (
            f"first difference {differing[0][0]!r} against {differing[0][1]!r}"
            if differing
            else "the others are the same"
        )
        raise CacheMismatchError(
            f"{name} has {counted(len(manifest.classes), 'class')}, but this data set has {len(whole.classes)}; {detail}. {remedy}"
        )
    first = manifest.data["first"]
    part = part_of(whole, (first, first + manifest.samples))
    _check_labels(cache, part, f"{name} has different", remedy)
    if listed and whole.digest() != manifest.data["digest"]:
        raise CacheMismatchError(
            f"{name} has different samples (digest {manifest.data['digest']}) from this data set ({whole.digest()}). {remedy}"
        )
    return leave_out(part, manifest.excluded)


def _check_labels(cache: Cache, part: Samples, has_other: str, remedy: str) -> None:
    offsets, labels, classes = cache.offsets(), cache.labels(), cache.manifest.classes
    if offsets is not None and not np.array_equal(offsets, offsets_of(part)):  # type: ignore[arg-type]
        raise CacheMismatchError(f"{has_other} rows from this data set: the lengths of samples differ. {remedy}")
    other = np.flatnonzero(labels != part.labels)
    if len(other):
        row = int(other[0])
        raise CacheMismatchError(
            f"{has_other} labels: {cache.manifest.row_axis} {cache.manifest.first_row + row} is {classes[labels[row]]!r} in the cache and "
            f"{part.classes[part.labels[row]]!r} here; {len(other):,} of {len(labels):,} differ. {remedy}"
        )


def check_inputs(cache: Cache, samples: Samples, view: View, ids: Ids) -> None:
    """Render samples of a view again and compare them with the digests of the teacher's input.

    Excluded samples are skipped.

    Raises:
        CacheMismatchError: If a sample renders differently.
    """
    ids = ids[~is_among(ids + whole_of(samples)[1], excluded_of(samples))]
    if not len(ids):
        return
    rows, modality = rows_of(offsets_of(samples), ids), modality_of(samples)
    expected, found = cache.digests(view.index)[rows], modality.digests(samples, view, ids)
    bad = np.flatnonzero(expected != found)
    if len(bad):
        row, named = int(rows[bad[0]]), ""
        if cache.manifest.row_axis == "sample":
            sample = whole_of(samples)[1] + row
            name = sample_name(samples, sample)
            named = "" if name == str(sample) else f" ({name})"
        raise CacheMismatchError(
            f"the teacher of {cache.place} was shown different {modality.shown}: view {view.index}, "
            f"{cache.manifest.row_axis} {row}{named} has digest "
            f"{found[bad[0]]:016x} here and {expected[bad[0]]:016x} in the cache; {len(bad)} of {len(rows)} {cache.manifest.row_axis}s "
            "checked differ. The data or its decoding has changed; restore it, or dump again."
        )
