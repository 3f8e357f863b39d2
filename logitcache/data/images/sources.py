"""Data sets by name: `fashion-mnist-mini`, `cifar100:test`, `imagefolder:PATH`, `arrays:FILE.npz`, `package.module:factory`."""

import inspect
import os
import zipfile
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from logitcache.data.images.sets import ArrayImages, FolderImages, ImageSet, MappedImages, Normalization
from logitcache.errors import InputError, unknown_name
from logitcache.runtime.plugins import resolve

__all__ = ["NAMED_DATA", "held_out_split", "load_data"]

SPLITS = ("train", "test")
_GREY: Normalization = ((0.2860, 0.2860, 0.2860), (0.3530, 0.3530, 0.3530))


def _mini(split: str) -> ImageSet:
    """Fashion-MNIST, 10,000 train and 2,000 test images; ships with logitcache."""
    file = resources.files("logitcache.demo_data") / f"{split}.npz"
    with resources.as_file(file) as path:
        return _arrays(path, _GREY)


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


def load_data(spec: str) -> ImageSet:
    """Open a data set.

    Args:
        spec: `NAME` or `NAME:test` with a name in `NAMED_DATA`; `imagefolder:PATH` with PATH/CLASS/IMAGE;
            `arrays:FILE.npz` with `images` (uint8, [N, H, W] or [N, H, W, 3]), `labels` and perhaps `classes`;
            `package.module:factory`, called with "train", or `package.module:factory:test`.

    Raises:
        UnknownNameError: No such name.
        InputError: The data cannot be read or used.
    """
    kind, _, rest = spec.partition(":")
    if kind == "imagefolder" and rest:
        return FolderImages(Path(rest))
    if kind == "arrays" and rest:
        return _arrays(Path(rest))
    split = "train"
    if spec.rpartition(":")[2] in SPLITS:
        spec, _, split = spec.rpartition(":")
    if spec in NAMED_DATA:
        return NAMED_DATA[spec](split)
    if ":" in spec:
        return _made(resolve(spec, "data set"), spec, split)
    raise unknown_name("data set", spec, [*NAMED_DATA, "imagefolder:PATH", "arrays:FILE.npz", "package.module:factory"])


def held_out_split(spec: str) -> str | None:
    """Return the test split that belongs to a training set, or None where there is none."""
    name, _, split = spec.rpartition(":")
    if split in SPLITS and name:
        return f"{name}:test" if split == "train" else None
    if spec in NAMED_DATA:
        return f"{spec}:test"
    if spec.partition(":")[0] in ("imagefolder", "arrays") or ":" not in spec:
        return None
    return f"{spec}:test" if inspect.signature(resolve(spec, "data set")).parameters else None


def _arrays(path: Path, normalization: Normalization | None = None) -> ArrayImages:
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


def _made(factory: Any, spec: str, split: str) -> ImageSet:
    made = factory(split) if inspect.signature(factory).parameters else factory()
    if isinstance(made, ArrayImages | FolderImages | MappedImages):
        return made
    if isinstance(made, tuple) and len(made) in (2, 3):
        return ArrayImages(*made)
    if hasattr(made, "__getitem__") and hasattr(made, "__len__"):
        return MappedImages(made)
    raise InputError(
        f"{spec} returned {type(made).__name__}; expected a data set of (image, label) items, or (images, labels[, classes]) arrays"
    )
