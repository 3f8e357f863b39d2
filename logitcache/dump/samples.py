"""Choose the samples of a dump: open the data set, and leave out excluded and unreadable samples."""

import contextlib
import inspect
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from logitcache.data import Samples, as_samples, excluded_of, kept_of, leave_out, modality_of, part_of, whole_of
from logitcache.data.exclusion import (
    log_left_out,
    read_exclusions,
    reading_beside,
    refuse_most,
    refuse_unreadable,
    unreadable_of,
)
from logitcache.data.open import refuse_orientation
from logitcache.data.text.reading import (
    TEXT_OPTIONS,
    choose_text_reading,
    refuse_image_options,
    refuse_text_options,
)
from logitcache.dump.settings import DumpSettings
from logitcache.errors import InputError, LogitCacheError
from logitcache.runtime.progress import OnProgress, Progress
from logitcache.store import Cache, open_cache, open_place, read_manifest, refuse_derived

__all__ = ["check_data", "choose_samples", "recorded_exclusions"]

_AT_ONCE = 32  # samples that a worker reads between two progress reports
_FOR_IMAGES = ("class_map", "teacher_classes", "exif_orientation", "channels_last")
_LOG = logging.getLogger(__name__)


def choose_samples(data: Any, teacher: Any, out: str | Path, settings: DumpSettings) -> tuple[Any, dict[int, str]]:
    """Open a data set, or the requested stretch of it, without the samples to leave out.

    These are the samples in `exclude`, those that an unfinished cache already leaves out, and with `skip_unreadable` those known to be
    unreadable.

    Args:
        data: Data set, as in `dump_logits`.
        teacher: Teacher, as in `dump_logits`; its tokenizer is used for text.
        out: Path of the cache.
        settings: Settings of the dump.

    Returns:
        The samples, and the unreadable ones, id in the whole data set to the reason.

    Raises:
        InputError: If the data cannot be used, or no sample is left.
    """
    begun = _begun(out)
    recorded = [] if begun is None else list(begun.manifest.excluded)
    given = {name: getattr(settings, name) for name in TEXT_OPTIONS}
    text = choose_text_reading(data, teacher, settings.tokenizer, given)
    reading = reading_beside(
        begun,
        settings.exclude,
        tolerant=settings.skip_unreadable,
        exif_orientation=settings.exif_orientation,
        text=text,
    )
    opened = as_samples(data, reading=reading)
    refuse_text_options(opened, given | {"tokenizer": settings.tokenizer})
    refuse_image_options(opened, {name: getattr(settings, name) for name in _FOR_IMAGES})
    for note in getattr(opened, "notes", ()):
        _LOG.info("%s", note)
    if settings.skip_unreadable or settings.check_data:
        _refuse_unskippable(opened)
    if settings.exif_orientation:
        refuse_orientation(opened)
    excluded = {*read_exclusions(settings.exclude, opened).tolist(), *(one for one in recorded if one < len(opened))}
    reasons = {sample: why for sample, why in unreadable_of(opened).items() if sample not in excluded}
    if not settings.skip_unreadable:
        refuse_unreadable(opened, reasons)
    refuse_most(opened, reasons, len(opened))
    part = part_of(opened, settings.samples) if settings.samples else opened
    part = leave_out(part, sorted(excluded | reasons.keys()))
    if len(opened.classes) == 1:
        _LOG.warning(
            "the data has only one class, %s, so its logits carry no information. Is --data one folder level too high or too low?",
            opened.classes[0],
        )
    log_left_out(part)
    return part, reasons


def _refuse_unskippable(samples: Samples) -> None:
    """Raise an error if the modality cannot leave out unreadable samples.

    Raises:
        InputError: If it cannot.
    """
    modality = modality_of(samples)
    if "skip_unreadable" not in inspect.signature(modality.renderer).parameters:
        raise InputError(
            f"--skip-unreadable and --check-data are not supported by the renderer of modality {modality.name}. List the samples to leave "
            "out with --exclude."
        )


def _begun(out: str | Path) -> Cache | None:
    """Open the finished or unfinished cache at `out`, or return None if there is none, or only its beginning.

    Raises:
        InputError: If `out` is something else.
        CacheMismatchError: If it was made from other caches.
    """
    place = open_place(out)
    manifest = read_manifest(place)
    if manifest is None:
        return None
    refuse_derived(place, manifest)
    with contextlib.suppress(LogitCacheError):
        return open_cache(out, unfinished=True)
    return None


def recorded_exclusions(samples: Samples, views: Sequence[Any]) -> tuple[int, ...]:
    """Return the excluded samples to record in a manifest: those of the stretch or, if views mix samples, of the whole data set."""
    excluded, (_, first) = excluded_of(samples), whole_of(samples)
    if not any(view.mixes for view in views):
        excluded = excluded[(excluded >= first) & (excluded < first + len(samples))]
    return tuple(excluded.tolist())


def check_data(
    samples: Samples, settings: DumpSettings, on_progress: OnProgress, share: tuple[int, int] = (0, 1)
) -> dict[int, str]:
    """Read every sample that is not excluded once, and return the unreadable ones: id in the whole data set to the reason.

    Args:
        samples: Data set, or a stretch of it.
        settings: Settings of the dump.
        on_progress: Called as samples are read.
        share: Number of the part to read, from 0, and number of parts.

    Raises:
        InputError: If a worker process has died, or the modality does not support this check.
    """
    modality, (rank, world) = modality_of(samples), share
    (view,) = modality.make_views("none", 1, 0)
    kept = kept_of(samples)[rank::world]
    batches = [kept[start : start + _AT_ONCE] for start in range(0, len(kept), _AT_ONCE)]
    found: dict[int, str] = {}
    renderer = modality.renderer(samples, (), workers=settings.workers, skip_unreadable=True)
    for number, batch in enumerate(renderer.batches(view, batches), 1):
        found |= batch.unreadable
        on_progress(
            Progress(
                "checking data",
                min(number * _AT_ONCE, len(kept)),
                len(kept),
                modality.unit,
                f"{len(found):,} cannot be read" if found else "",
            )
        )
    return found
