"""For a training loop of your own: a teacher's logits, with the inputs that it was shown.

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

_MOST_CHECKED = 64  # samples of the first batch of a view that nobody announced


def _stacked(rows: Sequence[Any], *, collate_fn_map: Any = None) -> Any:
    del collate_fn_map
    return type(rows[0]).stack(rows)


for _kind in (TopKRows, DrawnRows):
    default_collate_fn_map[_kind] = _stacked  # of DataLoader, also in its workers


@dataclass(frozen=True, slots=True)
class EpochRows:
    """A teacher's logits for one epoch; a later `set_epoch` does not change them.

    Attributes:
        view: The view of the epoch.
    """

    view: Any
    _rows: ViewRows
    _cache: Cache

    def recorded(self) -> dict[str, NDArray[Any]]:
        """Return how another tool augmented each image, of a cache that was imported from one: see `Cache.recorded`."""
        return self._cache.recorded(self.view.index)

    def logits(self, samples: Sequence[int] | Ids, temperature: float | None = None) -> AnyRows:
        """Return the logits of some rows: see `TeacherRows.logits`."""
        cache, ids = self._cache, _row_ids(samples, self._cache.manifest.view_rows)
        if len(gone := ids[is_among(ids, self._rows.left_out)]):
            raise InputError(
                f"{cache.place} leaves out sample {gone[0]}: `cache.kept()` lists the samples it has rows for"
            )
        rows = self._rows.of(ids)
        return rows if temperature is None else dense(rows, temperature)


class TeacherRows(Dataset[Any]):
    """A teacher's logits as a map-style data set: item i is row i, which for images is sample i.

    Epoch e reads view e mod V; `set_epoch` chooses it, and without it the epoch is 0. It can be passed to the workers of a DataLoader,
    forked or spawned, persistent or not: each reads the view itself. Use `at` for a view and logits that belong together.
    """

    def __init__(self, cache: str | Path | Cache, teacher: str | None = None) -> None:
        """Open a cache.

        Args:
            cache: Path of the cache.
            teacher: Slug of one of several teachers.

        Raises:
            LogitCacheError: It cannot be opened, or is not whole.
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
        """The epoch that `set_epoch` chose last, or None."""
        chosen = int(self._chosen)
        return None if chosen < 0 else chosen

    @property
    def view(self) -> View:
        """The view of this epoch."""
        found: View = self.views[(self.epoch or 0) % len(self.views)]
        return found

    def set_epoch(self, epoch: int) -> None:
        """Go to the view of an epoch, 0, 1, ...

        Raises:
            InputError: It is not a whole number from 0.
        """
        self._chosen.fill_(epoch_number(epoch))

    def at(self, epoch: int) -> EpochRows:
        """Return view and logits of an epoch, which belong together whatever `set_epoch` does meanwhile.

        Raises:
            CorruptCacheError: The view is damaged.
            InputError: It is not a whole number from 0.
        """
        view = self.views[epoch_number(epoch) % len(self.views)]
        held = self._held
        if held is None or held[0] != view.index:
            self._decoder = self._decoder or RowDecoder(self.cache, torch.device("cpu"))
            held = (view.index, self._decoder.hold(view, self.cache.view(view.index, self.cache.teacher)))
            self._held = held
        return EpochRows(view, held[1], self.cache)

    def logits(self, samples: Sequence[int], temperature: float | None = None) -> AnyRows:
        """Return the logits of some rows in this epoch, as any loss of logitcache takes them.

        Args:
            samples: Row ids, [B], which for images are sample ids.
            temperature: Softmax temperature to complete the rows of a top-k cache for. None leaves them as they are.

        Returns:
            [B, C] float32, or `TopKRows` where the cache keeps the largest and no temperature is given, or `DrawnRows`.

        Raises:
            IndexError: A row that is not there.
            InputError: A sample that the cache leaves out.
            TypeError: Ids that are no integers: a mask, say.
            CorruptCacheError: The view is damaged.
        """
        return self.at(self.epoch or 0).logits(samples, temperature)

    def rows(self, samples: Sequence[int]) -> AnyRows:
        """The same as `logits` without a temperature."""
        return self.logits(samples)

    def __getitem__(self, sample: int) -> AnyRows:
        return self.logits([sample])[0]

    def __getitems__(self, samples: list[int]) -> list[AnyRows]:
        """Return several at once: torch's loaders ask this way."""
        return list(self.logits(samples))

    def loader(self, data: Any = None, **settings: Any) -> Loader:
        """Return whole batches of inputs, labels and logits: see `Loader`."""
        return Loader(self.cache, data, **settings)

    def __getstate__(self) -> dict[str, Any]:
        """Travel without the rows: a spawned worker reads them itself."""
        return self.__dict__ | {"_held": None, "_decoder": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Share the epoch of a copy with the workers that it will have, as the original does."""
        self.__dict__.update(state)
        shared(self._chosen)


class WithTeacher(Dataset[tuple[Any, int, Any]]):
    """A data set with what the teacher said: items are (image, label, logits), of one view.

    Epoch e shows view e mod V. `set_epoch` chooses the epoch; Hugging Face's Trainer and accelerate call it by themselves. Until it is
    called, views follow one another: a batch shows the view after the one in which its first sample was shown last.
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
        """Go to the view of an epoch, 0, 1, ..., and look whether 64 of its samples still are what the teacher saw.

        Raises:
            CacheMismatchError: They are not.
            InputError: It is not a whole number from 0.
        """
        self.teacher.set_epoch(epoch)
        self._check(self.teacher.view, sampled(0, epoch, len(self._images)))

    def __getitem__(self, sample: int) -> tuple[Any, int, Any]:
        return self.__getitems__([sample])[0]

    def __getitems__(self, samples: list[int]) -> list[tuple[Any, int, Any]]:
        """Return several at once: torch's loaders ask this way."""
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
        """Share the views of a copy with the workers that it will have, as the original does."""
        self.__dict__.update(state)
        if self._upcoming is not None:
            shared(self._upcoming)

    def _epoch_of(self, ids: Ids) -> int:
        """Read once which epoch a batch shows; where nobody chose one, it is the next that its first sample has not been shown in."""
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
        raise TypeError(f"sample ids are integers, not {ids.dtype}")
    ids = ids.astype(np.int64)
    if len(ids) and not 0 <= ids.min() <= ids.max() < count:
        raise IndexError(f"samples are 0 to {count - 1}, not {ids.min()} to {ids.max()}")
    return ids


def open_dataset(cache: str | Path | Cache, teacher: str | None = None) -> TeacherRows:
    """Open a cache as a torch data set of logits, for a training loop of your own; `logitcache.open` is the same.

    `logitcache.open_cache` opens the store instead: its manifest, labels and blocks, as numpy arrays.

    Args:
        cache: Path of the cache.
        teacher: Slug of one of several teachers.

    Raises:
        LogitCacheError: It cannot be opened, or is not whole.
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
    """Add the teacher's rows to a data set: items become (image, label, logits), which torch's own collate function takes.

    Images are rendered as the teacher saw them in the view of the epoch, so the data set must come without random transforms, and are
    resized to one size; what remains (float, normalise) is `transform`. Logits are [C] float32, or of a top-k cache one row of
    `TopKRows`: a batch of either is what a loss of logitcache takes.

    Args:
        dataset: Torchvision-style: items are (PIL image or uint8 pixels, label); or the name of a data set, or None for the one that
            the cache was dumped from.
        cache: A cache of its logits.
        transform: Applied to the uint8 pixels, [C, image_size, image_size], of an item.
        teacher: Slug of one of several teachers.
        image_size: Height and width of the images in pixels. Defaults to the teacher's.

    Raises:
        CacheMismatchError: The cache is of other data, or pixels differ from what the teacher was shown.
        InputError: Items that are no images; views that mix samples; an argument that means nothing.
    """
    LoaderSettings(image_size=image_size)  # refuses what is no size
    if not (transform is None or callable(transform)):
        raise InputError(f"`transform` must be a function of pixels, not {transform!r}")
    rows = TeacherRows(cache, teacher)
    if not rows.cache.manifest.of_images:
        raise InputError(
            f"{rows.cache.place} is a cache of {rows.cache.manifest.modality}: `wrap` takes images. Use `Loader`."
        )
    refuse_unreplayable(rows.cache)
    images = recorded_data(rows.cache, dataset, listed=dataset is None)
    return WithTeacher(images, rows, transform, image_size)
