"""Read soft labels of FKD (Shen and Xing, ECCV 2022) and its successors, one file `.../CLASS/NAME.tar` per image.

Despite its name, such a file is not an archive but three arrays saved by torch.save, for n crops of the image.

* [n, 4]: top, left, height and width of the crop, relative to the image's height and width.
* [n]: whether the crop was flipped.
* The softmax: [n, 2, k], classes and probabilities of the k largest (`marginal_smoothing_k5`, `marginal_renorm_k5` and the like, which
  differ only in training); [n, 2], class and probability of the largest (`smoothing`); [n], the largest class (`hard`); or [n, C],
  every class.

Each crop is a view. Its images can be reproduced for a student by cropping, flipping and resizing the image.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import InputError, explain_foreign_errors
from logitcache.imports.image_reader import Shown, logprobs_of, refuse_classes, refuse_improper, refuse_missing
from logitcache.runtime.tensors import load_arrays
from logitcache.runtime.wording import counted
from logitcache.teachers.given import KnownRows

__all__ = ["FkdReader"]

_EXACT = 2048  # float16 represents all integers up to here
_OUTSIDE = 1e-3  # tolerance for boxes beyond the image because of rounding, relative to its size
_ALL_ONE = 1e-6  # tolerance for sums to count as normalized
_TRIED = 64  # files to check before the import


class FkdReader:
    """Reads the files of a batch of images at a time, for all views."""

    recipe = "recorded-boxes"

    def __init__(self, source: str | Path, samples: Any, views: int | None) -> None:
        """Find the file of each image and read the first one.

        Args:
            source: Folder with the files, at any depth.
            samples: Data set of the images.
            views: Number of crops per image; None uses the number in the first file.

        Raises:
            InputError: There are no files, they have at most one class per row, or the mass of the other classes is lost.
        """
        if not hasattr(samples, "paths"):
            raise InputError("FKD's files are named after the images; use image files, --data imagefolder:PATH")
        self._samples = samples
        self._files = _files_of(Path(source).expanduser(), samples)
        first = _load(self._files[0])
        if views is not None and views > len(first.boxes):
            raise InputError(f"--views {views} is too many: {self._files[0]} has {counted(len(first.boxes), 'crop')}")
        self.keys = tuple(range(views or len(first.boxes)))
        self.own, self.largest = self._kind_of(first, self._files[0])
        self.row_bytes = len(self.keys) * (first.labels.nbytes // len(first.labels) + 20)
        self._held: tuple[NDArray[np.int64], list[_Crops]] | None = None
        some = [_load(file) for file in self._files[:_TRIED]]
        if not self.own and all(np.allclose(one.labels[:, 1].sum(-1), 1, rtol=0, atol=_ALL_ONE) for one in some):
            raise InputError(
                f"{source} has rows whose {self.largest} probabilities sum to exactly 1: they were normalized, so the mass of the other "
                "classes is lost. Import the labels from before the normalization."
            )

    def rows(self, view: int, samples: NDArray[np.int64]) -> Shown:
        """Return the rows and boxes of a batch of images for one crop.

        Raises:
            InputError: A file is damaged or has too few crops.
        """
        if self._held is None or not np.array_equal(self._held[0], samples):
            self._held = samples, [self._read(sample) for sample in samples.tolist()]
        crops = self._held[1]
        recorded = np.array([one.boxes[view] for one in crops], np.float32)
        labels = np.stack([one.labels[view] for one in crops])
        if self.own:
            ids = np.tile(np.arange(self.largest), (len(labels), 1))
            return Shown(KnownRows(ids, logprobs_of(labels)), recorded)
        return Shown(KnownRows(labels[:, 0].astype(np.int64), logprobs_of(labels[:, 1])), recorded)

    def _read(self, sample: int) -> "_Crops":
        """Read the crops of an image that are imported."""
        file, wanted = self._files[sample], len(self.keys)
        found = _load(file)
        if len(found.boxes) < wanted:
            raise InputError(
                f"{file} has {counted(len(found.boxes), 'crop')}, but {wanted:,} are imported from each image; use fewer --views"
            )
        if self._kind_of(found, file) != (self.own, self.largest):
            raise InputError(f"{file} has labels of a different form than {self._files[0]}; import them separately")
        refuse_improper(found.labels[:wanted] if self.own else found.labels[:wanted, 1], str(file))
        if not self.own:
            refuse_classes(found.labels[:wanted, 0].astype(np.int64), len(self._samples.classes), str(file))
        return _Crops(found.boxes[:wanted], found.labels[:wanted])

    def _kind_of(self, crops: "_Crops", file: Path) -> tuple[bool, int]:
        """Return whether rows have every class, and their number of classes."""
        shape, classes = crops.labels.shape, len(self._samples.classes)
        if crops.labels.ndim == 3 and shape[1] == 2 and shape[2] > 1:
            if crops.labels.dtype == np.float16 and classes > _EXACT:
                raise InputError(
                    f"{file} stores classes in float16, which is exact up to {_EXACT:,}, but the data set has {classes:,} classes"
                )
            if (crops.labels[:, 0] % 1).any():
                raise InputError(f"{file} is not a file of FKD labels: its class numbers are not integers")
            return False, shape[2]
        if crops.labels.ndim == 2 and shape[1] == classes > 2:
            return True, classes
        kind = {(1,): "hard labels", (2, 2): "only the largest probability"}.get((crops.labels.ndim, *shape[1:]))
        if kind:
            raise InputError(
                f"{file} has {kind}, which is not enough for a distribution; FKD labels need at least the 2 largest probabilities, such as "
                "marginal_smoothing_k5"
            )
        raise InputError(
            f"{file} has labels of shape {list(shape)}; expected [crops, 2, k], or [crops, {classes}] for the {classes:,} classes of the "
            "data set"
        )


class _Crops:
    """The crops of an image, with boxes and flips, [n, 5], and labels, [n, ...]."""

    def __init__(self, boxes: NDArray[np.float32], labels: NDArray[Any]) -> None:
        self.boxes, self.labels = boxes, labels


def _load(file: Path) -> _Crops:
    """Read a file.

    Raises:
        InputError: It is not a file of FKD labels.
    """
    found = load_arrays(file)
    if not isinstance(found, list | tuple) or len(found) != 3:
        raise InputError(
            f"{file} is not a file of FKD labels: expected boxes, flips and probabilities, found {type(found).__name__}"
        )
    with explain_foreign_errors(f"{file} is not a file of FKD labels"):
        boxes, flips, labels = (np.asarray(one) for one in found)
    crops = len(boxes) if boxes.ndim else 0
    if not crops or boxes.shape != (crops, 4) or flips.shape != (crops,) or labels.shape[:1] != (crops,):
        raise InputError(
            f"{file} is not a file of FKD labels: boxes, flips and probabilities have the shapes {list(boxes.shape)}, {list(flips.shape)} "
            f"and {list(labels.shape)}, expected [n, 4], [n] and [n, ...]"
        )
    shares = boxes.astype(np.float32)
    ends = shares[:, :2] + shares[:, 2:]
    if not (shares >= 0).all() or not (shares[:, 2:] > 0).all() or not (ends <= 1 + _OUTSIDE).all():
        raise InputError(
            f"{file} has invalid boxes; expected top, left, height and width from 0 to 1, within the image"
        )
    return _Crops(np.concatenate([shares, flips.astype(np.float32)[:, None]], 1), labels)


def _files_of(source: Path, samples: Any) -> list[Path]:
    """Return the file of each image, by the name of its class folder and its own name up to the first dot.

    Raises:
        InputError: There are no files, an image has no file or several, or two images have the same one.
    """
    if not source.is_dir():
        raise InputError(f"there is no folder {source}; expected one with files .../CLASS/NAME.tar")
    found, twice = dict[tuple[str, str], Path](), None
    for file in sorted(source.rglob("*.tar")):
        key = file.parent.name, file.stem
        twice = twice or (found[key], file) if key in found else twice
        found[key] = file
    if not found:
        raise InputError(f"{source} has no files CLASS/NAME.tar, which FKD writes for each image")
    if twice:
        raise InputError(f"{twice[0]} and {twice[1]} are for the same image; name the folder of one set of labels")
    keys = [(path.split("/")[-2], path.split("/")[-1].split(".")[0]) for path in samples.paths]
    if len(set(keys)) < len(keys):
        raise InputError(
            "the data set has two images with the same class and name, which FKD cannot tell apart; rename one"
        )
    refuse_missing(np.array([key in found for key in keys]), samples, str(source))
    return [found[key] for key in keys]
