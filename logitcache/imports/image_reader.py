"""Interface of readers of other tools' rows of images: log-probabilities, and the recorded augmentation."""

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import InputError
from logitcache.runtime.wording import counted
from logitcache.teachers.given import KnownRows

__all__ = ["ImageReader", "Shown", "logprobs_of", "refuse_classes", "refuse_improper", "refuse_missing"]

_ABOVE_ONE = 1e-2  # tolerance by which a sum of float16 probabilities may exceed 1


class Shown(NamedTuple):
    """Rows of a batch of images, and the augmentation that the teacher saw.

    Attributes:
        known: Classes and log-probabilities, [B, M] each.
        recorded: Augmentation of each image, [B] or [B, 5], in the form of `Cache.recorded`.
    """

    known: KnownRows
    recorded: NDArray[Any]


class ImageReader(Protocol):
    """Reads one source.

    Attributes:
        own: Whether every row contains its label, whatever its rank.
        recipe: Recipe of the views, `recorded-boxes` or `recorded-seeds`.
        keys: Number of each view in the source.
        largest: Number of classes in every row.
        row_bytes: Bytes in memory per image for all views, if the source stores all views of an image together; 0 if it stores all
            images of a view together.
    """

    own: bool
    recipe: str
    keys: tuple[int, ...]
    largest: int
    row_bytes: int

    def rows(self, view: int, samples: NDArray[np.int64]) -> Shown:
        """Return the rows of a batch of images in a view.

        Args:
            view: Index into `keys`.
            samples: Ids of the images in the data set, ascending, [B].

        Raises:
            InputError: The rows cannot be read.
        """


def logprobs_of(probabilities: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return log-probabilities; a probability that was rounded to 0 counts as half the smallest positive number of its type."""
    least = float(np.finfo(probabilities.dtype).smallest_subnormal) / 2
    found: NDArray[np.float64] = np.log(np.maximum(probabilities.astype(np.float64), least))
    return found


def refuse_improper(probabilities: NDArray[Any], subject: str) -> None:
    """Raise InputError if rows, [..., M], are not valid probabilities."""
    if probabilities.dtype.kind != "f":
        raise InputError(f"{subject} has {probabilities.dtype} values; expected floating-point probabilities")
    values = probabilities.astype(np.float64)
    if not np.isfinite(values).all() or values.min(initial=0.0) < 0:
        raise InputError(f"{subject} has invalid probabilities; expected values from 0 to 1")
    if values.size and (most := float(values.sum(-1).max())) > 1 + _ABOVE_ONE:
        raise InputError(f"{subject} has invalid probabilities: those of a row sum to {most:.4g}")


def refuse_classes(ids: NDArray[np.int64], classes: int, subject: str) -> None:
    """Raise InputError if a row has a class that the data set does not have, or a class twice."""
    if ids.size and not 0 <= ids.min() <= ids.max() < classes:
        wrong = int(ids.max() if ids.max() >= classes else ids.min())
        raise InputError(
            f"{subject} has class {wrong:,}, but the data set has {counted(classes, 'class')}; set --data to the teacher's data set"
        )
    ordered = np.sort(ids, -1)
    if (ordered[..., 1:] == ordered[..., :-1]).any():
        raise InputError(f"{subject} has a row with a duplicate class; it is damaged or has a different format")


def refuse_missing(there: NDArray[np.bool_], samples: Any, subject: str) -> None:
    """Raise InputError if the source lacks the rows of an image.

    Args:
        there: Whether the source has rows of each image, [N] bool.
        samples: Data set of the images.
        subject: Source, for the message.
    """
    missing = np.flatnonzero(~there)
    if len(missing):
        name = samples.name_of(missing[0]) if hasattr(samples, "name_of") else f"sample {missing[0]}"
        raise InputError(
            f"{subject} has no rows for {counted(len(missing), 'image')} of {len(there):,}, the first of which is {name}; set --data to a "
            "data set without them"
        )
