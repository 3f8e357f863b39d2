"""Exclude samples from a data set.

Samples keep their ids, so whatever was computed for the others remains valid. The data set records the excluded samples in `excluded`,
because views that mix samples must not use them as partners either.
"""

import contextlib
import copy
import itertools
import logging
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from logitcache.data.protocol import Ids, View, whole_of
from logitcache.data.text.reading import TextReading
from logitcache.errors import InputError, LogitCacheError, UnreadableError
from logitcache.store import Cache, kept_mask

__all__ = [
    "Exclude",
    "Reading",
    "excluded_of",
    "exclusion_numbers",
    "kept_of",
    "kept_unreadable",
    "leave_out",
    "log_left_out",
    "name_samples",
    "read_exclusions",
    "reading_beside",
    "refuse_most",
    "refuse_unreadable",
    "remedy_for",
    "sample_name",
    "shown_beside",
    "unreadable",
    "unreadable_of",
]

AnySamples = TypeVar("AnySamples", bound=Sized)
Exclude = str | Path | Sequence[int]  # path of a file with one sample per line, or sample ids
_LOG = logging.getLogger(__name__)
_NAMED = 20  # samples to list in a message
_SHOWN = 80  # characters of a line to quote
_FEW = 16  # number of unreadable samples that is always tolerated


@dataclass(frozen=True, slots=True)
class Reading:
    """Options for opening a data set and reading its samples.

    Attributes:
        tolerant: Whether to record unreadable samples in the data set's `unreadable` instead of raising an error.
        unasked: Ids of samples whose class is not read, because they are left out.
        labels: Known classes of a stretch of samples, [n], used for samples that are not or cannot be read. Without one, the class is 0.
        first: Id of the first sample of that stretch.
        exif_orientation: Whether to rotate images according to their EXIF orientation.
        text: Reading options for text, or None for the defaults.
    """

    tolerant: bool = False
    unasked: frozenset[int] = frozenset()
    labels: Sequence[int] | NDArray[np.integer[Any]] = ()
    first: int = 0
    exif_orientation: bool = False
    text: TextReading | None = None

    def known_label(self, sample: int) -> int:
        """Return the known class of a sample, or 0."""
        inside = 0 <= sample - self.first < len(self.labels)
        return int(self.labels[sample - self.first]) if inside else 0


def reading_beside(
    cache: Cache | None,
    exclude: Exclude | None,
    *,
    tolerant: bool = False,
    exif_orientation: bool = False,
    text: TextReading | None = None,
) -> Reading:
    """Return the reading options for a data set, given a cache that may hold its labels and exclusions. Excluded samples are not read.

    Args:
        cache: Cache, finished or not, or None.
        exclude: Further samples to leave out.
        tolerant: Whether to record unreadable samples instead of raising an error. Always True if any samples are left out.
        exif_orientation: Whether to rotate images according to their EXIF orientation.
        text: Reading options for text.
    """
    recorded = frozenset[int]() if cache is None else frozenset(cache.manifest.excluded)
    reading = Reading(
        tolerant=tolerant or bool(recorded) or exclude is not None,
        unasked=exclusion_numbers(exclude) | recorded,
        exif_orientation=exif_orientation,
        text=text,
    )
    if (
        cache is None or not reading.tolerant or cache.manifest.rows is not None
    ):  # a sample with several rows has no label of its own
        return reading
    with contextlib.suppress(LogitCacheError):  # damaged labels are reported when they are used
        return replace(reading, labels=cache.labels(), first=int(cache.manifest.data["first"]))
    return reading


def leave_out(samples: AnySamples, excluded: Sequence[int] | Ids) -> AnySamples:
    """Return a copy of a data set, or of a stretch of one, that excludes some samples; ids and labels do not change.

    Args:
        samples: Data set.
        excluded: Ids in the whole data set of the samples to exclude.

    Raises:
        InputError: If no sample is left.
    """
    gone = np.unique(np.asarray(excluded, np.int64))
    if not len(gone) and not len(excluded_of(samples)):
        return samples
    whole, _ = whole_of(samples)
    without = copy.copy(whole)
    without.excluded = gone
    found: Any = without
    if samples is not whole:
        found = copy.copy(samples)
        found.whole = without
    if not len(kept_of(found)):
        raise InputError(f"all {len(samples):,} samples are excluded. Exclude fewer.")
    return found  # type: ignore[no-any-return]


def excluded_of(samples: Sized) -> Ids:
    """Return the ids of excluded samples in the whole data set, ascending."""
    found: Ids = getattr(whole_of(samples)[0], "excluded", np.empty(0, np.int64))
    return found


def kept_of(samples: Sized) -> Ids:
    """Return the ids of the samples of a data set, or of a stretch of one, that are not excluded, ascending."""
    return np.flatnonzero(kept_mask(len(samples), whole_of(samples)[1], excluded_of(samples)))


def log_left_out(samples: Sized) -> None:
    """Log the number of samples used, if some are excluded."""
    if gone := len(samples) - len(kept_of(samples)):
        _LOG.info(
            "using %s of %s samples; %s are left out", f"{len(samples) - gone:,}", f"{len(samples):,}", f"{gone:,}"
        )


def shown_beside(samples: Sized, view: View, ids: Ids) -> Ids:
    """Return the samples whose pixels appear when a view renders some samples, which include mixing partners.

    Args:
        samples: Data set, or a stretch of it.
        view: View that renders them.
        ids: Ids in `samples`.

    Returns:
        Ids in the whole data set, ascending.
    """
    whole, first = whole_of(samples)
    partners = getattr(view, "partners", None)
    return np.unique(
        ids + first if partners is None or not view.mixes else np.append(ids, partners(ids + first, len(whole)))
    )


def unreadable_of(samples: Sized) -> dict[int, str]:
    """Return the samples of the whole data set that were unreadable when it was opened: sample id to the reason."""
    found: dict[int, str] = getattr(whole_of(samples)[0], "unreadable", {})
    return found


def kept_unreadable(samples: Sized) -> dict[int, str]:
    """Return the samples in `unreadable_of` that are not excluded."""
    gone = set(excluded_of(samples).tolist())
    return {sample: reason for sample, reason in unreadable_of(samples).items() if sample not in gone}


def refuse_unreadable(samples: Sized, reasons: Mapping[int, str]) -> None:
    """Raise an error if any sample cannot be read.

    Args:
        samples: Data set.
        reasons: Unreadable samples, id to the reason.

    Raises:
        UnreadableError: If there is at least one; the message lists the first 20.
    """
    if not reasons:
        return
    if len(reasons) == 1:
        ((sample, why),) = reasons.items()
        labels = getattr(whole_of(samples)[0], "label_of", "sample {}".format)
        raise unreadable(labels(sample), sample_name(samples, sample), why)
    named = name_samples(samples, reasons)
    raise UnreadableError(
        f"{len(reasons):,} of {len(whole_of(samples)[0]):,} samples cannot be read:{named}\nFix them, or leave them out with "
        "--skip-unreadable at the dump, or with --exclude FILE, a file with one sample per line."
    )


def refuse_most(samples: Sized, reasons: Mapping[int, str], count: int, among: str = "samples") -> None:
    """Raise an error if most samples would be skipped, which points to a failed disk or the wrong data.

    Args:
        samples: Data set.
        reasons: Unreadable samples, id to the reason.
        count: Number of samples that were read.
        among: Name of those samples in the message.

    Raises:
        UnreadableError: If more than half of them, and more than 16, cannot be read.
    """
    if len(reasons) > max(_FEW, count // 2):
        raise UnreadableError(
            f"{len(reasons):,} of {count:,} {among} cannot be read. So many failures suggest a failed disk or the wrong data, so "
            f"--skip-unreadable did not skip any:{name_samples(samples, reasons)}\nFix the cause and run the same command again, or "
            "list the samples in a file for --exclude."
        )


def unreadable(label: str, name: str, reason: str) -> UnreadableError:
    """Return the error for a sample that cannot be read.

    Args:
        label: Subject of the message.
        name: Name of the sample in a file for --exclude.
        reason: Reason why it cannot be read.
    """
    return UnreadableError(f"{label} cannot be read: {reason}. Fix it, or {remedy_for(name)}", reason)


def remedy_for(name: str) -> str:
    """Return the advice in error messages on how to leave out a sample, by its name."""
    return f"leave it out: with --skip-unreadable at the dump, or with --exclude FILE, a file with the line {name}"


def name_samples(samples: Sized, reasons: Mapping[int, str]) -> str:
    """Return a list of samples and reasons as text, one per line: the first 20, and the number of others."""
    shown = itertools.islice(sorted(reasons.items()), _NAMED)
    lines = "".join(f"\n  {sample_name(samples, sample)}{f': {why}' if why else ''}" for sample, why in shown)
    return lines + (f"\n  and {len(reasons) - _NAMED:,} more" if len(reasons) > _NAMED else "")


def sample_name(samples: Sized, sample: int) -> str:
    """Return the name of a sample in messages and in a file for --exclude: its path, or its id."""
    namer = getattr(whole_of(samples)[0], "name_of", None)
    return str(sample) if namer is None else str(namer(sample))


def read_exclusions(exclude: Exclude | None, samples: Sized) -> Ids:
    """Return the ids in the whole data set of samples to exclude, ascending.

    Args:
        exclude: Sample ids, or the path of a file with one sample per line, given by its id or by its path as printed in messages. Blank
            lines and lines that begin with `#` are ignored.
        samples: Data set.

    Raises:
        InputError: If the file cannot be read, or an entry is not a sample.
    """
    if exclude is None:
        return np.empty(0, np.int64)
    whole, _ = whole_of(samples)
    if not isinstance(exclude, str | Path):
        bad = next((one for one in exclude if not 0 <= one < len(whole)), None)
        if bad is not None:
            raise InputError(
                f"sample {bad} cannot be excluded, because the data set has samples 0 to {len(whole) - 1:,}; correct --exclude"
            )
        return np.unique(np.asarray(list(exclude), np.int64))
    path, by_name, found = Path(exclude).expanduser(), getattr(whole, "numbers_of", None), []
    words = _read_lines(path)
    numbers = dict[str, int](by_name({word for _, word in words})) if by_name else {}
    for place, word in words:
        number = numbers.get(word, _number(word))
        if not 0 <= number < len(whole):
            named = ", or a path relative to the folder as printed in messages" if by_name else ""
            raise InputError(
                f"samples cannot be excluded, because line {place} of --exclude {path} is {word[:_SHOWN]!r}, which is not a sample of the "
                f"data set; write an id from 0 to {len(whole) - 1:,}{named}"
            )
        found.append(number)
    return np.unique(np.asarray(found, np.int64))


def exclusion_numbers(exclude: Exclude | None) -> frozenset[int]:
    """Return the samples that are given by id; paths can be looked up only after the data set is open."""
    if exclude is None:
        return frozenset()
    if not isinstance(exclude, str | Path):
        return frozenset(int(one) for one in exclude)
    return frozenset(_number(word) for _, word in _read_lines(Path(exclude).expanduser()))


def _number(word: str) -> int:
    return int(word) if word.isascii() and word.isdigit() else -1


def _read_lines(path: Path) -> list[tuple[int, str]]:
    """Return the line number and content of each line of a file that names a sample."""
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise InputError(
            f"samples cannot be excluded, because --exclude {path} cannot be read ({error.strerror}); name a file with one sample per "
            "line, or leave it out if an existing cache records all samples to exclude"
        ) from error
    if "\0" in text:
        raise InputError(
            f"samples cannot be excluded, because --exclude {path} is not a text file; name a file with one sample per line"
        )
    lines = enumerate(text.removeprefix("\ufeff").split("\n"), 1)
    return [(place, line.strip()) for place, line in lines if line.strip() and not line.strip().startswith("#")]
