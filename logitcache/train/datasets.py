"""Data sets for your own training loop: a teacher's logits, with the inputs that it was shown.

rows = logitcache.open_dataset("c.zarr")  # rows[i]: logits of sample i; rows.loader(...): whole batches
both = logitcache.wrap(dataset, "c.zarr") # both[i]: (image, label, logits), for any DataLoader
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data._utils.collate import default_collate_fn_map

from logitcache.data import Ids, View, kept_of, modality_of, render
from logitcache.data.contract import cache_views, check_inputs, recorded_data, refuse_unreplayable
from logitcache.encoding import AnyRows, DrawnRows, TopKRows, dense
from logitcache.errors import InputError
from logitcache.runtime.tensors import shared
from logitcache.store import Cache, is_among, open_cache
from logitcache.train.loader import Loader, LoaderSettings, refuse_mixed
from logitcache.train.order import epoch_number, sampled
from logitcache.train.targets import RowDecoder, ViewRows

__all__ = ["EpochRows", "TeacherRows", "WithTeacher", "open_dataset", "wrap"]

_MOST_CHECKED = 64  # samples to check in the first batch of a view that was not chosen with set_epoch


def _stacked(rows: Sequence[Any], *, collate_fn_map: Any = None) -> Any:
    del collate_fn_map
    return type(rows[0]).stack(rows)


for _kind in (TopKRows, DrawnRows):
    default_collate_fn_map[_kind] = _stacked  # used by DataLoader, also in its workers


@dataclass(frozen=True, slots=True)
class EpochRows:
    """A teacher's logits for one epoch, unaffected by later calls of `set_epoch`.

    Attributes:
        view: View of the epoch.
    """

    view: Any
    _rows: ViewRows
    _cache: Cache

    def recorded(self) -> dict[str, NDArray[Any]]:
        """Return the augmentation of each image by another tool, for a cache of imported rows (see `Cache.recorded`)."""
        return self._cache.recorded(self.view.index)

    def logits(self, samples: Sequence[int] | Ids, temperature: float | None = None) -> AnyRows:
        """Return the logits of rows (see `TeacherRows.logits`)."""
        cache, ids = self._cache, _row_ids(samples, self._cache.manifest.view_rows)
        if len(gone := ids[is_among(ids, self._rows.left_out)]):
            raise InputError(
                f"{cache.place} leaves out sample {gone[0]}; `cache.kept()` lists the samples that it has rows for"
            )
        rows = self._rows.of(ids)
        return rows if temperature is None else dense(rows, temperature)


class TeacherRows(Dataset[Any]):
    """A teacher's logits as a map-style data set. Item i is row i, which for images is sample i.

    Epoch e reads view e mod V. The epoch is set with `set_epoch` and is 0 by default. The data set can be used in DataLoader workers,
    forked or spawned, persistent or not; each worker reads the view itself. Use `at` to get a view together with its logits.
    """

    def __init__(self, cache: str | Path | Cache, teacher: str | None = None) -> None:
        """Open a cache.

        Args:
            cache: Path of the cache.
            teacher: Slug of the teacher, if the cache has several.

        Raises:
            LogitCacheError: If it cannot be opened, or is incomplete.
        """
        self.cache = open_cache(cache).of(teacher)
        self.views = cache_views(self.cache)
        self._chosen = shared(torch.full((), -1, dtype=torch.int64))
        self._decoder: RowDecoder | None = None
        self._held: tuple[int, ViewRows] | None = None

    def __len__(self) -> int:
        return self.cache.manifest.view_rows

    @property
    def labels(self) -> Tensor:
        """Class of each row, [N] int64."""
        return torch.from_numpy(self.cache.labels()).long()

    @property
    def epoch(self) -> int | None:
        """Epoch set by `set_epoch`, or None."""
        chosen = int(self._chosen)
        return None if chosen < 0 else chosen

    @property
    def view(self) -> View:
        """View of this epoch."""
        found: View = self.views[(self.epoch or 0) % len(self.views)]
        return found

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, 0, 1, ..., which determines the view.

        Raises:
            InputError: If it is not a non-negative integer.
        """
        self._chosen.fill_(epoch_number(epoch))

    def at(self, epoch: int) -> EpochRows:
        """Return the view and the logits of an epoch; later calls of `set_epoch` do not affect them.

        Raises:
            CorruptCacheError: If the view is damaged.
            InputError: If `epoch` is not a non-negative integer.
        """
        view = self.views[epoch_number(epoch) % len(self.views)]
        held = self._held
        if held is None or held[0] != view.index:
            self._decoder = self._decoder or RowDecoder(self.cache, torch.device("cpu"))
            held = (view.index, self._decoder.hold(view, self.cache.view(view.index, self.cache.teacher)))
            self._held = held
        return EpochRows(view, held[1], self.cache)

    def logits(self, samples: Sequence[int], temperature: float | None = None) -> AnyRows:
        """Return the logits of rows in this epoch, in the form that logitcache's losses accept.

        Args:
            samples: Row ids, [B], which for images are sample ids.
            temperature: Softmax temperature at which to complete top-k rows. None returns them as stored.

        Returns:
            Logits, [B, C] float32; or `TopKRows` for a top-k cache if no temperature is given, or `DrawnRows` for a sampled cache.

        Raises:
            IndexError: If a row does not exist.
            InputError: If the cache leaves out a sample.
            TypeError: If ids are not integers, such as a mask.
            CorruptCacheError: If the view is damaged.
        """
        return self.at(self.epoch or 0).logits(samples, temperature)

    def rows(self, samples: Sequence[int]) -> AnyRows:
        """Return `logits(samples)`."""
        return self.logits(samples)

    def __getitem__(self, sample: int) -> AnyRows:
        return self.logits([sample])[0]

    def __getitems__(self, samples: list[int]) -> list[AnyRows]:
        """Return several items at once, as torch's data loaders request them."""
        return list(self.logits(samples))

    def loader(self, data: Any = None, **settings: Any) -> Loader:
        """Return a `Loader` of batches of inputs, labels and logits."""
        return Loader(self.cache, data, **settings)

    def __getstate__(self) -> dict[str, Any]:
        """Drop the rows: a spawned worker reads them itself."""
        return self.__dict__ | {"_held": None, "_decoder": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Put the epoch of a copy in shared memory, so that its workers see changes."""
        self.__dict__.update(state)
        shared(self._chosen)


class WithTeacher(Dataset[tuple[Any, int, Any]]):
    """A data set with the teacher's logits: items are (image, label, logits) in one view.

    Epoch e uses view e mod V. The epoch is set with `set_epoch`, which Hugging Face's Trainer and accelerate call automatically. Until
    it is called, views are cycled: a batch uses the view after the one that its first sample was last shown in.
    """

    def __init__(
        self, images: Any, rows: TeacherRows, transform: Callable[[Tensor], Any] | None, image_size: int | None
    ) -> None:
        refuse_mixed(rows.cache, rows.views)
        self._images, self.teacher, self._transform = images, rows, transform
        self._kept = kept_of(images)  # sample id of each item
        recorded = rows.cache.manifest.teachers[0]["preprocessing"]
        wanted = {"image_size": image_size}
        self._inputs = modality_of(images).choose_inputs(images, rows.views[0], wanted, recorded)
        several = len(rows.views) > 1
        self._upcoming = shared(torch.zeros(len(rows), dtype=torch.int16)) if several else None  # view of each sample
        self._checked: set[int] = set()
        self._check(rows.views[0], sampled(0, 0, len(images)))

    def __len__(self) -> int:
        return len(self._kept)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, 0, 1, ..., and check that 64 samples of its view are what the teacher saw.

        Raises:
            CacheMismatchError: If they are not.
            InputError: If it is not a non-negative integer.
        """
        self.teacher.set_epoch(epoch)
        self._check(self.teacher.view, sampled(0, epoch, len(self._images)))

    def __getitem__(self, sample: int) -> tuple[Any, int, Any]:
        return self.__getitems__([sample])[0]

    def __getitems__(self, samples: list[int]) -> list[tuple[Any, int, Any]]:
        """Return several items at once, as torch's data loaders request them."""
        ids, transform = self._kept[_row_ids(samples, len(self))], self._transform or (lambda pixels: pixels)
        if not len(ids):
            return []
        now = self.teacher.at(self._epoch_of(ids))
        if now.view.index not in self._checked:
            self._check(now.view, ids[:_MOST_CHECKED])
        shown = self._inputs.fit(render(self._images, now.view, ids))
        labels, logits = self._images.labels[ids].tolist(), now.logits(ids)
        return [(transform(pixels), label, row) for pixels, label, row in zip(shown, labels, logits, strict=True)]

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Put the next views of a copy in shared memory, so that its workers see changes."""
        self.__dict__.update(state)
        if self._upcoming is not None:
            shared(self._upcoming)

    def _epoch_of(self, ids: Ids) -> int:
        """Return the epoch of a batch: the one that was set, or else the next view of its first sample."""
        if (chosen := self.teacher.epoch) is not None or self._upcoming is None:
            return chosen or 0
        view = int(self._upcoming[ids[0]])
        self._upcoming[torch.from_numpy(ids)] = (view + 1) % len(self.teacher.views)
        return view

    def _check(self, view: Any, ids: Ids) -> None:
        check_inputs(self.teacher.cache, self._images, view, ids)
        self._checked.add(view.index)


def _row_ids(samples: Sequence[int] | Ids, count: int) -> Ids:
    ids = np.asarray(samples).reshape(-1)
    if len(ids) and ids.dtype.kind not in "iu":
        raise TypeError(f"sample ids must be integers, not {ids.dtype}")
    ids = ids.astype(np.int64)
    if len(ids) and not 0 <= ids.min() <= ids.max() < count:
        raise IndexError(f"sample ids must be 0 to {count - 1}, not {ids.min()} to {ids.max()}")
    return ids


def open_dataset(cache: str | Path | Cache, teacher: str | None = None) -> TeacherRows:
    """Open a cache as a torch data set of logits, for your own training loop; `logitcache.open` is an alias.

    To read the manifest, labels and blocks as numpy arrays, use `logitcache.open_cache`.

    Args:
        cache: Path of the cache.
        teacher: Slug of the teacher, if the cache has several.

    Raises:
        LogitCacheError: If it cannot be opened, or is incomplete.
    """
    return TeacherRows(cache, teacher)


def wrap(
    dataset: Any,
    cache: str | Path | Cache,
    *,
    transform: Callable[[Tensor], Any] | None = None,
    teacher: str | None = None,
    image_size: int | None = None,
) -> WithTeacher:
    """Add the teacher's rows to a data set: items become (image, label, logits), which torch's default collate function supports.

    Images are rendered as the teacher saw them in the view of the epoch and resized to one size, so the data set must not apply random
    transforms; use `transform` for the remaining steps (conversion to float, normalization). Logits are [C] float32, or one row of
    `TopKRows` for a top-k cache; logitcache's losses accept batches of either.

    Args:
        dataset: Torchvision-style data set with items (PIL image or uint8 pixels, label), or the name of a data set. None opens the one
            that the cache was dumped from.
        cache: Cache of its logits.
        transform: Function applied to the uint8 pixels of an item, [C, image_size, image_size].
        teacher: Slug of the teacher, if the cache has several.
        image_size: Height and width of the images in pixels. Defaults to the teacher's.

    Raises:
        CacheMismatchError: If the cache is of other data, or pixels differ from what the teacher was shown.
        InputError: If items are not images, views mix samples, or an argument is invalid.
    """
    LoaderSettings(image_size=image_size)  # raises an error for an invalid size
    if not (transform is None or callable(transform)):
        raise InputError(f"`transform` must be a function of pixels, not {transform!r}")
    rows = TeacherRows(cache, teacher)
    if not rows.cache.manifest.of_images:
        raise InputError(
            f"{rows.cache.place} is a cache of {rows.cache.manifest.modality}, but `wrap` is for images. Use `Loader`."
        )
    refuse_unreplayable(rows.cache)
    images = recorded_data(rows.cache, dataset, listed=dataset is None)
    return WithTeacher(images, rows, transform, image_size)
