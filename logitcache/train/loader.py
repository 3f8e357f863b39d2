"""Whole batches of inputs, labels and teacher's logits, for a training loop of your own."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from logitcache.data import modality_of
from logitcache.data.contract import cache_views, check_inputs, recorded_data
from logitcache.encoding import TopKRows, dense
from logitcache.errors import InputError
from logitcache.runtime.device import pick_device, to_device
from logitcache.store import Cache, open_cache
from logitcache.train.order import sampled, shuffled
from logitcache.train.targets import CachedTargets, Stretch

__all__ = ["Batch", "Loader", "refuse_mixed"]


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
        refuse_mixed(self.cache, self._views)
        given = {"mean": mean, "std": std, "image_size": image_size, "crop_pct": crop_pct}
        recorded = self.cache.manifest.teachers[0]["preprocessing"]
        self.preprocessing = self._modality.choose_inputs(self.data, self._views[0], given, recorded)
        self._targets = CachedTargets(self.cache, self.device)
        self._renderer = self._modality.renderer(self.data, [self.preprocessing], workers=workers, device=self.device)
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self._begun: int | None = 0  # number of epochs begun; None when closed

    def __len__(self) -> int:
        """Return the batches of an epoch."""
        return (len(self.data) + self.batch_size - 1) // self.batch_size

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
        order = shuffled(count, self.seed, epoch) if self.shuffle else np.arange(count)
        batches = [order[start : start + size] for start in range(0, count, size)]
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


def refuse_mixed(cache: Cache, views: Sequence[Any]) -> None:
    """Raise InputError where views mix samples."""
    if any(view.mixes for view in views):
        raise InputError(f"{cache.place} mixes samples, so that rows have two labels: `logitcache train` takes both")
