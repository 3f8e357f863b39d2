"""What a reader of another tool's rows of images gives: log-probabilities, and how each image was augmented."""

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import InputError
from logitcache.runtime.wording import counted
from logitcache.teachers.given import KnownRows

__all__ = ["ImageReader", "Shown", "logprobs_of", "refuse_classes", "refuse_improper", "refuse_missing"]

_ABOVE_ONE = 1e-2  # by which the sum of probabilities in float16 may exceed it


class Shown(NamedTuple):
    """Rows of images, and what the teacher was shown.

    Attributes:
        known: Classes and log-probabilities, [B, M] each.
        recorded: How each image was augmented, [B] or [B, 5], as the cache keeps it (`Cache.recorded`).
    """

    known: KnownRows
    recorded: NDArray[Any]


class ImageReader(Protocol):
    """Reads one source.

    Attributes:
        own: Whether every row names its label, whatever its rank.
        recipe: Recipe of the views: `recorded-boxes` or `recorded-seeds`.
        keys: Number of each view in the source.
        largest: Number of classes that every row names.
        row_bytes: Bytes that an image takes in memory in all views, where the source has them together; 0 where it has a view together.
    """

    own: bool
    recipe: str
    keys: tuple[int, ...]
    largest: int
    row_bytes: int

    def rows(self, view: int, samples: NDArray[np.int64]) -> Shown:
        """Return what the source has of some images, ascending, in a view.

        Args:
            view: Position in `keys`.
            samples: Their numbers in the data set, [B].

        Raises:
            InputError: They cannot be read.
        """


def logprobs_of(probabilities: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return logarithms; of a probability that was rounded to 0, of half the smallest that its type holds."""
    least = float(np.finfo(probabilities.dtype).smallest_subnormal) / 2
    found: NDArray[np.float64] = np.log(np.maximum(probabilities.astype(np.float64), least))
    return found


def refuse_improper(probabilities: NDArray[Any], subject: str) -> None:
    """Raise InputError where rows, [..., M], hold numbers that are no probabilities."""
    if probabilities.dtype.kind != "f":
        raise InputError(f"{subject} holds {probabilities.dtype} where probabilities are expected")
    values = probabilities.astype(np.float64)
    if not np.isfinite(values).all() or values.min(initial=0.0) < 0:
        raise InputError(f"{subject} holds numbers that are no probabilities: expected 0 to 1")
    if values.size and (most := float(values.sum(-1).max())) > 1 + _ABOVE_ONE:
        raise InputError(f"{subject} holds numbers that are no probabilities: those of a row sum to {most:.4g}")


def refuse_classes(ids: NDArray[np.int64], classes: int, subject: str) -> None:
    """Raise InputError where a row names a class that the data set does not have, or one twice."""
    if ids.size and not 0 <= ids.min() <= ids.max() < classes:
        wrong = int(ids.max() if ids.max() >= classes else ids.min())
        raise InputError(
            f"{subject} names class {wrong:,}, and the data set has {counted(classes, 'class')}: name the one that was used with --data"
        )
    ordered = np.sort(ids, -1)
    if (ordered[..., 1:] == ordered[..., :-1]).any():
        raise InputError(f"{subject} has a row that names a class twice: it is damaged, or of another format")


def refuse_missing(there: NDArray[np.bool_], samples: Any, subject: str) -> None:
    """Raise InputError where the source has no rows of an image, [N] bool."""
    missing = np.flatnonzero(~there)
    if len(missing):
        name = samples.name_of(missing[0]) if hasattr(samples, "name_of") else f"sample {missing[0]}"
        raise InputError(
            f"{subject} has no rows of {counted(len(missing), 'image')} of {len(there):,}, the first is {name}: give a data set of those "
            "that it has with --data"
        )
