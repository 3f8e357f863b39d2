"""Named image data sets (`fashion-mnist-mini`, `cifar100`, ...) and arrays in a file (`arrays:FILE.npz`)."""

import os
import zipfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np

from logitcache.data.images.sets import ArrayImages, ImageSet, Normalization
from logitcache.errors import InputError

__all__ = ["NAMED_DATA", "SPLITS", "open_arrays"]

SPLITS = ("train", "test")
_GREY: Normalization = ((0.2860, 0.2860, 0.2860), (0.3530, 0.3530, 0.3530))


def _mini(split: str) -> ImageSet:
    """Open the part of Fashion-MNIST that ships with logitcache: 10,000 training and 2,000 test images."""
    file = resources.files("logitcache.demo_data") / f"{split}.npz"
    with resources.as_file(file) as path:
        return open_arrays(path, _GREY)


def _torchvision(name: str, normalization: Normalization) -> Callable[[str], ImageSet]:
    def load(split: str) -> ImageSet:
        from torchvision import datasets  # noqa: PLC0415  (takes a second to import, and most commands do not need it)

        root = Path(os.environ.get("LOGITCACHE_DATA", Path.home() / ".cache" / "logitcache"))
        try:
            dataset = getattr(datasets, name)(root, train=split == "train", download=True)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"{name} is not in {root} and cannot be downloaded ({error}). Copy it there (in torchvision's layout), or set "
                "LOGITCACHE_DATA to the folder that contains it."
            ) from error
        return ArrayImages(np.asarray(dataset.data), np.asarray(dataset.targets), dataset.classes, normalization)

    return load


NAMED_DATA: dict[str, Callable[[str], ImageSet]] = {
    "cifar10": _torchvision("CIFAR10", ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))),
    "cifar100": _torchvision("CIFAR100", ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))),
    "fashion-mnist": _torchvision("FashionMNIST", _GREY),
    "fashion-mnist-mini": _mini,
}


def open_arrays(path: Path, normalization: Normalization | None = None) -> ArrayImages:
    """Open an `.npz` file with arrays `images`, `labels` and optionally `classes`.

    Raises:
        InputError: If it cannot be read, or its arrays are invalid.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            missing = {"images", "labels"} - set(file.files)
            if missing:
                raise InputError(
                    f"{path} has no array {' and '.join(sorted(missing))!r}; it has {', '.join(file.files) or 'none'}"
                )
            return ArrayImages(
                file["images"], file["labels"], file["classes"] if "classes" in file.files else None, normalization
            )
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read as an .npz file: {error}") from error
