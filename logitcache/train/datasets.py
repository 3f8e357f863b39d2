"""For a training loop of your own: a teacher's logits, with the inputs that it was shown.

rows = logitcache.open_dataset("c.zarr")  # rows[i]: logits of sample i; rows.loader(...): whole batches
both = logitcache.wrap(dataset, "c.zarr") # both[i]: (image, label, logits), for any DataLoader
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from logitcache.data import as_samples, render
from logitcache.data.contract import cache_views, check_inputs, check_samples
from logitcache.encoding import TopKRows, dense
from logitcache.errors import InputError
from logitcache.store import Cache, open_cache
from logitcache.train.loader import Loader, refuse_mixed
from logitcache.train.order import sampled
from logitcache.train.targets import CachedTargets, Stretch

__all__ = ["TeacherRows", "WithTeacher", "open_dataset", "wrap"]


class TeacherRows(Dataset[Tensor]):
    """A teacher's logits as a map-style data set: item i is row i, which for images is sample i.

    Epoch e reads view e mod V; `set_epoch` chooses it. It can be passed to the workers of a DataLoader, forked or spawned, persistent
    or not: each reads the view itself.
    """

    def __init__(self, cache: str | Path | Cache, teacher: str | None = None) -> None:
        """Open a cache.

        Args:
            cache: Its path.
            teacher: Slug of one of several teachers.

        Raises:
            LogitCacheError: It cannot be opened, or is not whole.
        """
        self.cache = open_cache(cache).of(teacher)
        self.views = cache_views(self.cache)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]  # seen by workers that outlive an epoch
        self._held: tuple[int, CachedTargets] | None = None

    def __len__(self) -> int:
        return self.cache.manifest.view_rows

    @property
    def view(self) -> Any:
        """The view of this epoch."""
        return self.views[int(self._epoch) % len(self.views)]

    def set_epoch(self, epoch: int) -> None:
        """Go to the view of an epoch, 0, 1, ..."""
        self._epoch.fill_(epoch)

    def rows(self, samples: Sequence[int]) -> Tensor | TopKRows:
        """Return what is stored of some rows: logits, [B, C] float32, or of a top-k cache what was kept.

        Args:
            samples: Row ids, [B], which for images are sample ids.

        Raises:
            IndexError: A row that is not there.
            TypeError: Ids that are no integers: a mask, say.
            CorruptCacheError: The view is damaged.
        """
        ids = np.asarray(samples).reshape(-1)
        if len(ids) and ids.dtype.kind not in "iu":
            raise TypeError(f"sample ids are integers, not {ids.dtype}")
        ids = ids.astype(np.int64)
        if len(ids) and not 0 <= ids.min() <= ids.max() < len(self):
            raise IndexError(f"samples are 0 to {len(self) - 1}, not {ids.min()} to {ids.max()}")
        return self._targets().of(0, ids)

    def logits(self, samples: Sequence[int], temperature: float = 1.0) -> Tensor:
        """Return the logits of some rows, [B, C] float32; what a top-k cache did not keep is completed for a temperature."""
        return dense(self.rows(samples), temperature)

    def __getitem__(self, sample: int) -> Tensor:
        return self.logits([sample])[0]

    def __getitems__(self, samples: list[int]) -> list[Tensor]:
        """Return several at once: torch's loaders ask this way."""
        return list(self.logits(samples))

    def loader(self, data: Any = None, **settings: Any) -> Loader:
        """Return whole batches of inputs, labels and logits: see `Loader`."""
        return Loader(self.cache, data, **settings)

    def _targets(self) -> CachedTargets:
        view = self.view
        if self._held is None or self._held[0] != view.index:
            targets = self._held[1] if self._held else CachedTargets(self.cache, torch.device("cpu"))
            targets.begin(Stretch((view,)), Stretch((view,)))
            self._held = (view.index, targets)
        return self._held[1]

    def __getstate__(self) -> dict[str, Any]:
        """Travel without the rows: a spawned worker reads them itself."""
        return self.__dict__ | {"_held": None}


class WithTeacher(Dataset[tuple[Any, int, Tensor]]):
    """A data set with what the teacher said: items are (image, label, logits [C])."""

    def __init__(self, images: Any, rows: TeacherRows, transform: Callable[[Tensor], Any] | None) -> None:
        self._images = check_samples(rows.cache, images, listed=False)
        self.teacher, self._transform = rows, transform
        refuse_mixed(rows.cache, rows.views)
        self.set_epoch(0)

    def __len__(self) -> int:
        return len(self.teacher)

    def set_epoch(self, epoch: int) -> None:
        """Go to the view of an epoch, 0, 1, ..., and look whether 64 of its samples still are what the teacher saw.

        Raises:
            CacheMismatchError: They are not.
        """
        self.teacher.set_epoch(epoch)
        check_inputs(self.teacher.cache, self._images, self.teacher.view, sampled(0, epoch, len(self)))

    def __getitem__(self, sample: int) -> tuple[Any, int, Tensor]:
        return self.__getitems__([sample])[0]

    def __getitems__(self, samples: list[int]) -> list[tuple[Any, int, Tensor]]:
        """Return several at once: torch's loaders ask this way."""
        ids, transform = np.asarray(samples, np.int64), self._transform or (lambda pixels: pixels)
        shown, logits = render(self._images, self.teacher.view, ids), self.teacher.logits(samples)
        labels = self._images.labels[ids].tolist()
        return [(transform(pixels), label, row) for pixels, label, row in zip(shown, labels, logits, strict=True)]


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
) -> WithTeacher:
    """Add the teacher's rows to a data set: items become (image, label, logits).

    Images are rendered as the teacher saw them in the view of the epoch, so the data set must come without random transforms; what
    remains (float, normalise, resize) is `transform`.

    Args:
        dataset: Torchvision-style: items are (PIL image or uint8 pixels, label).
        cache: A cache of its logits.
        transform: Applied to the uint8 pixels, [C, h, w], of an item.
        teacher: Slug of one of several teachers.

    Raises:
        CacheMismatchError: The cache is of other data, or pixels differ from what the teacher was shown.
        InputError: Items that are no images; views that mix samples.
    """
    rows = TeacherRows(cache, teacher)
    if not rows.cache.manifest.of_images:
        raise InputError(
            f"{rows.cache.place} is a cache of {rows.cache.manifest.modality}: `wrap` takes images. Use `Loader`."
        )
    return WithTeacher(as_samples(dataset, rows.cache.manifest.classes), rows, transform)
