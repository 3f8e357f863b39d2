"""Class weights in cross-entropy, for imbalanced data."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.data import Samples
from logitcache.errors import InputError, first_line, unknown_name

__all__ = ["BALANCED", "weights_of_classes"]

BALANCED = "balanced"


def weights_of_classes(given: Any, samples: Samples) -> NDArray[np.float64]:
    """Return the weight of each class in cross-entropy, [C], scaled so that their mean over the training rows is 1.

    With this scale, the loss keeps its magnitude relative to the distillation term, and dividing a batch into micro-batches or over
    processes does not change the step. torch's CrossEntropyLoss(weight=...) divides by the sum of the weights in each batch instead.

    Args:
        given: Weights: `balanced` for inverse class frequencies, as in scikit-learn; path of a file (see `_read`); one number per class, in
            order; or a mapping of class names to numbers.
        samples: Training data.

    Raises:
        InputError: If the file does not exist, or the weights do not match the classes.
    """
    classes, counts = samples.classes, np.bincount(samples.labels, minlength=len(samples.classes))
    if isinstance(given, str) and given == BALANCED:
        found = np.divide(1.0, counts, out=np.zeros(len(counts)), where=counts > 0)
    else:
        found = _ordered(_read(given) if isinstance(given, str) else given, classes)
    total = float((found * counts).sum())
    if not np.isfinite(found).all() or (found < 0).any() or total == 0:
        raise InputError(
            "--class-weights must be finite and non-negative, and greater than 0 for a class of the training data; found "
            f"{_abbreviate(found.tolist())}"
        )
    return found * (len(samples.labels) / total)


def _read(file: str) -> Any:
    """Read a JSON list or object, or numbers separated by commas or white space."""
    try:
        text = Path(file).expanduser().read_text()
    except (OSError, ValueError) as error:
        raise InputError(
            f"--class-weights {file!r} is neither {BALANCED} nor a readable file ({first_line(error)}). Pass {BALANCED}, numbers separated "
            "by commas, or a JSON file with a list of numbers or an object of class names and numbers."
        ) from error
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return [float(word) for word in text.replace(",", " ").split()]
    except ValueError as error:
        raise InputError(f"--class-weights {file} holds neither JSON nor numbers: {first_line(error)}") from error


def _ordered(given: Any, classes: Sequence[str]) -> NDArray[np.float64]:
    if isinstance(given, Mapping):
        if unknown := [name for name in given if name not in classes]:
            raise unknown_name("class in --class-weights", str(unknown[0]), classes)
        if missing := [name for name in classes if name not in given]:
            raise InputError(
                f"--class-weights has no weight for {_abbreviate(missing)} ({len(missing)} of {len(classes)} classes)"
            )
        given = [given[name] for name in classes]
    numbers = list(given) if isinstance(given, list | tuple) else [given]
    good = all(isinstance(one, int | float) and not isinstance(one, bool) for one in numbers)
    if len(numbers) != len(classes) or not good:
        raise InputError(
            f"--class-weights must be {len(classes)} numbers, one per class in the order of the classes; found {_abbreviate(numbers)}"
            f" ({len(numbers)})"
        )
    return np.array(numbers, np.float64)


def _abbreviate(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values[:5])) + ", ..." * (len(values) > 5)
