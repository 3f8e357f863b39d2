"""Items of a user's map-style data set: (image, label), or dictionaries as in Hugging Face `datasets`.

The image and label columns of a dictionary are found by name, or else by content.
"""

import contextlib
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset

from logitcache.errors import InputError

__all__ = ["IMAGE_COLUMNS", "class_names", "class_number", "image_and_label", "label_column", "listed_labels"]

IMAGE_COLUMNS = ("image", "img", "pixel_values")
_LABEL_COLUMNS = ("label", "labels", "target", "class")


def image_and_label(item: Any) -> tuple[Any, Any]:
    """Return the image and the label of an item, unconverted.

    Args:
        item: (image, label, ...), or a dictionary of columns.

    Raises:
        InputError: If it is neither, or its image or label column cannot be identified.
    """
    if not isinstance(item, Mapping):
        if not isinstance(item, Sequence) or len(item) < 2:
            raise InputError(f"the item is {_described(item)}; expected (image, label)")
        return item[0], item[1]
    image = _column(item, IMAGE_COLUMNS, (name for name, value in item.items() if _is_image(value)), "an image")
    label = _column(item, _LABEL_COLUMNS, (name for name, value in item.items() if _is_whole(value)), "a label")
    return item[image], item[label]


def listed_labels(dataset: Any) -> NDArray[Any] | None:
    """Return the labels that a data set lists, [N], or None if it does not list one integer for each item."""
    if isinstance(dataset, Subset):
        inner = listed_labels(dataset.dataset)
        return None if inner is None else inner[np.asarray(dataset.indices)]
    if isinstance(dataset, ConcatDataset):
        parts = [listed_labels(one) for one in dataset.datasets]
        return np.concatenate(parts) if all(part is not None for part in parts) else None  # type: ignore[arg-type]
    column = label_column(dataset)
    for name in ("targets", "labels", *([column] if column else [])):
        with contextlib.suppress(
            Exception
        ):  # a ragged list, or a property that raises: labels are read from the items instead
            found = np.asarray(dataset[name][:] if name == column else getattr(dataset, name))
            if found.shape == (len(dataset),) and np.issubdtype(found.dtype, np.integer):
                return found
    return None


def class_names(dataset: Any) -> list[Any] | None:
    """Return the class names of a data set, also through Subset and ConcatDataset; None if it has none."""
    if isinstance(dataset, Subset):
        return class_names(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        names = [class_names(one) for one in dataset.datasets]
        return names[0] if all(one == names[0] for one in names) else None
    found = getattr(dataset, "classes", None)
    if not found and (column := label_column(dataset)):
        found = getattr(dataset.features[column], "names", None)
    if not found:
        return None
    if isinstance(found, str) or not isinstance(found, Iterable):
        raise InputError(
            f"the classes of {type(dataset).__name__} are {found!r}; expected their names, in the order of the labels"
        )
    return list(found)


def class_number(label: Any) -> int | None:
    """Return a label of any type as an integer, or None if it is not a whole number."""
    if isinstance(label, Tensor | np.ndarray | np.generic):
        values = np.asarray(label).reshape(-1).tolist()
        label = values[0] if len(values) == 1 else None
    if isinstance(label, float) and label.is_integer():
        return int(label)
    return label if isinstance(label, int) else None


def _described(item: Any) -> str:
    length = f" of length {len(item)}" if isinstance(item, Sequence) else ""
    return f"a {type(item).__name__}{length}"


def label_column(dataset: Any) -> str | None:
    """Return the label column of a Hugging Face data set, or None if there is no such column or it is not clear from its features."""
    features = getattr(dataset, "features", None)
    if not isinstance(features, Mapping):
        return None
    named = [name for name in _LABEL_COLUMNS if name in features]
    classes = [name for name, feature in features.items() if getattr(feature, "names", None)]
    return named[0] if named else classes[0] if len(classes) == 1 else None


def _column(item: Mapping[Any, Any], names: Iterable[str], fitting: Iterable[Any], wanted: str) -> Any:
    """Return the column with one of these names, or else the only column whose content fits."""
    if named := [name for name in names if name in item]:
        return named[0]
    found = list(fitting)
    if len(found) != 1:
        have = ", ".join(map(str, found or item))
        raise InputError(
            f"its columns {have} could each be {wanted}: rename the right one to {wanted.split()[1]!r}"
            if found
            else f"it has no column with {wanted}, only {have or 'an empty dictionary'}: name it {wanted.split()[1]!r}"
        )
    return found[0]


def _is_image(value: Any) -> bool:
    """Return whether a value looks like an image: pixels with height and width, or a PIL image."""
    return len(getattr(value, "shape", ())) in (2, 3) or hasattr(value, "getbands")


def _is_whole(value: Any) -> bool:
    """Return whether a value looks like a label: an integer of Python, numpy or torch."""
    kind = str(getattr(value, "dtype", ""))
    return isinstance(value, numbers.Integral) or (getattr(value, "shape", None) == () and "int" in kind)
