"""For a training loop of your own: a teacher's logits, with the inputs that it was shown.

rows = logitcache.open_dataset("c.zarr")  # rows[i]: logits of sample i; rows.loader(...): whole batches
both = logitcache.wrap(dataset, "c.zarr") # both[i]: (image, label, logits), for any DataLoader
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from logitcache.data import as_samples, kept_of, modality_of, render
from logitcache.data.contract import cache_views, check_inputs, check_samples, recorded_data
from logitcache.encoding import TopKRows, dense
from logitcache.errors import InputError
from logitcache.runtime.device import pick_device, to_device
from logitcache.store import Cache, open_cache
from logitcache.train.order import only, sampled, shuffled
from logitcache.train.targets import CachedTargets, Stretch

__all__ = ["Batch", "Loader", "TeacherRows", "WithTeacher", "open_dataset", "wrap"]


class Batch(NamedTuple):
    """What a training step needs. For images each sample is one row, R = B.

    Attributes:
        inputs: The student's input: a tensor, or a mapping of tensors; for images normalized pixels, [B, 3, H, W] float32.
        labels: Class of each row, [R] int64.
        logits: The teacher's logits, [R, C] float32; a top-k cache's rows are completed for temperature 1 (`rows` has more).
        samples: Sample ids, [B] int64, on the host.
        rows: The stored rows: the same logits, or from a top-k cache the kept logits and statistics of the rest.
        keep: Mask of the student's outputs that are rows, [B, ...] bool. None if all of them are.
    """

    inputs: Any
    labels: Tensor
    logits: Tensor
    samples: Tensor
    rows: Tensor | TopKRows
    keep: Tensor | None = None

    @property
    def images(self) -> Any:
        """The same as `inputs`."""
        return self.inputs


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
        if self.cache.manifest.excluded and len(gone := ids[~self.cache.kept_rows()[ids]]):
            raise InputError(
                f"{self.cache.place} leaves out sample {gone[0]}: `cache.kept()` lists the samples it has rows for"
            )
        return self._targets().of(0, ids)

    def logits(self, samples: Sequence[int], temperature: float = 1.0) -> Tensor:
        """Return the logits of some rows, [B, C] float32; what a top-k cache did not keep is completed for a temperature."""
        return dense(self.rows(samples), temperature)

    def __getitem__(self, sample: int) -> Tensor:
        return self.logits([sample])[0]

    def __getitems__(self, samples: list[int]) -> list[Tensor]:
        """Return several at once: torch's loaders ask this way."""
        return list(self.logits(samples))

    def loader(self, data: Any = None, **settings: Any) -> "Loader":
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
        _refuse_mixed(rows.cache, rows.views)
        self._kept = kept_of(self._images)
        self.set_epoch(0)

    def __len__(self) -> int:
        return len(self._kept)

    def set_epoch(self, epoch: int) -> None:
        """Go to the view of an epoch, 0, 1, ..., and look whether 64 of its samples still are what the teacher saw.

        Raises:
            CacheMismatchError: They are not.
        """
        self.teacher.set_epoch(epoch)
        check_inputs(self.teacher.cache, self._images, self.teacher.view, sampled(0, epoch, len(self._images)))

    def __getitem__(self, sample: int) -> tuple[Any, int, Tensor]:
        return self.__getitems__([sample])[0]

    def __getitems__(self, samples: list[int]) -> list[tuple[Any, int, Tensor]]:
        """Return several at once: torch's loaders ask this way."""
        ids, transform = self._kept[np.asarray(samples, np.int64)], self._transform or (lambda pixels: pixels)
        shown, logits = render(self._images, self.teacher.view, ids), self.teacher.logits(ids.tolist())
        labels = self._images.labels[ids].tolist()
        return [(transform(pixels), label, row) for pixels, label, row in zip(shown, labels, logits, strict=True)]


class Loader:
    """Whole batches for a loop of your own, in the order and with the pixels of `logitcache train`."""

    def __init__(
        self,
        cache: str | Path | Cache,
        data: Any = None,
        *,
        batch_size: int = 64,
        teacher: str | None = None,
        shuffle: bool = True,
        seed: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        image_size: int | None = None,
        crop_pct: float | None = None,
        device: str = "auto",
        workers: int | None = None,
    ) -> None:
        """Open a cache and its data.

        Args:
            cache: Its path.
            data: The data set, if it is not where the dump found it.
            batch_size: Samples of a batch; the last one may be smaller.
            teacher: Slug of one of several teachers.
            shuffle: Whether an epoch is a permutation, drawn from (seed, epoch); else in order.
            seed: Of the order.
            mean: Of the student's input; None takes the teacher's.
            std: Deviation, likewise.
            image_size: The student's input in pixels, likewise.
            crop_pct: Share of the shorter side kept of an image that is resized, likewise.
            device: Where batches go: `auto`, `cpu`, `cuda`, ...
            workers: Processes that decode images; None chooses by the data.

        Raises:
            LogitCacheError: Cache or data cannot be opened, or do not belong together.
        """
        if batch_size < 1:
            raise InputError(f"batch size must be 1 or more, not {batch_size}")
        self.cache = open_cache(cache).of(teacher)
        self.data, self.device = recorded_data(self.cache, data), pick_device(device)
        self._modality, self._views = modality_of(self.data), cache_views(self.cache)
        _refuse_mixed(self.cache, self._views)
        given = {"mean": mean, "std": std, "image_size": image_size, "crop_pct": crop_pct}
        recorded = self.cache.manifest.teachers[0]["preprocessing"]
        self.preprocessing = self._modality.choose_inputs(self.data, self._views[0], given, recorded)
        self._targets = CachedTargets(self.cache, self.device)
        self._renderer = self._modality.renderer(self.data, [self.preprocessing], workers=workers, device=self.device)
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self._begun: int | None = 0  # number of epochs begun; None when closed

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        return (len(kept_of(self.data)) + self.batch_size - 1) // self.batch_size

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, 0, 1, ...; the next view is read meanwhile.

        Raises:
            CacheMismatchError: Pixels are not those that the teacher was shown (64 samples are looked at).
            CorruptCacheError: The view is damaged.
        """
        if self._begun is None:
            raise InputError("this loader is closed")
        self._begun += 1
        mine = self._begun
        view, upcoming = (self._views[one % len(self._views)] for one in (epoch, epoch + 1))
        check_inputs(self.cache, self.data, view, sampled(self.seed, epoch, len(self.data)))
        self._targets.begin(Stretch((view,)), Stretch((upcoming,)))
        count, size = len(self.data), self.batch_size
        order = only(shuffled(count, self.seed, epoch) if self.shuffle else np.arange(count), kept_of(self.data))
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        for batch in self._renderer.batches(view, batches):
            if mine != self._begun:
                raise InputError("this epoch was left when another was begun: a loader goes through one at a time")
            labels = self._modality.row_labels(self.data, view, batch.samples)
            rows = self._targets.logits(0, batch, labels)
            yield Batch(
                self.preprocessing.on(batch.inputs[0], self.device),
                to_device(labels.labels, self.device),
                dense(rows),
                torch.from_numpy(batch.samples),
                rows,
                None if labels.keep is None else to_device(labels.keep, self.device),
            )

    def close(self) -> None:
        """End the thread that reads ahead."""
        self._begun = None
        self._targets.close()


def _refuse_mixed(cache: Cache, views: Sequence[Any]) -> None:
    if any(view.mixes for view in views):
        raise InputError(f"{cache.place} mixes samples, so that rows have two labels: `logitcache train` takes both")


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
