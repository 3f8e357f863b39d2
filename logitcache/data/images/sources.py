"""Image data sets that have a name, and those in a file: `fashion-mnist-mini`, `cifar100`, `arrays:FILE.npz`."""

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
    """Fashion-MNIST, 10,000 train and 2,000 test images; ships with logitcache."""
    file = resources.files("logitcache.demo_data") / f"{split}.npz"
    with resources.as_file(file) as path:
        return open_arrays(path, _GREY)


def _torchvision(name: str, normalization: Normalization) -> Callable[[str], ImageSet]:
    def load(split: str) -> ImageSet:
        from torchvision import datasets  # noqa: PLC0415  (a second of import that most commands do not need)

        root = Path(os.environ.get("LOGITCACHE_DATA", Path.home() / ".cache" / "logitcache"))
        try:
            dataset = getattr(datasets, name)(root, train=split == "train", download=True)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"{name} is not in {root} and cannot be downloaded ({error}). Put it there by hand (torchvision's layout), or set "
                "LOGITCACHE_DATA to the folder that has it."
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
    """Open an `.npz` file with `images`, `labels` and perhaps `classes`.

    Raises:
        InputError: It cannot be read, or its arrays do not fit.
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
