"""Loader of batches of inputs, labels and the teacher's logits, for your own training loop."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from logitcache.data import Ids, kept_of, modality_of
from logitcache.data.contract import cache_views, check_inputs, recorded_data, refuse_unreplayable
from logitcache.data.optional import for_training
from logitcache.data.protocol import Renderer
from logitcache.encoding import AnyRows
from logitcache.errors import InputError
from logitcache.runtime.device import pick_device, to_device
from logitcache.runtime.processes import place_in_group
from logitcache.runtime.settings import Settings, option, show_options
from logitcache.store import Cache, open_cache
from logitcache.train.counting import with_loss_on
from logitcache.train.order import epoch_number, only, sampled, shares, shuffled
from logitcache.train.settings import LOSSES_ON
from logitcache.train.targets import CachedTargets, Stretch

__all__ = ["Batch", "Loader", "LoaderRequest", "LoaderSettings", "refuse_mixed"]


class Batch(NamedTuple):
    """A batch of one view for a training step. For images each sample is one row, so R = B.

    Attributes:
        inputs: Input of the student, a tensor or a mapping of tensors; for images normalized pixels, [B, 3, H, W] float32.
        labels: Class of each row, [R] int64.
        logits: Teacher's logits in the form that logitcache's losses accept: [R, C] float32, `TopKRows` for a top-k cache, or
            `DrawnRows` for a sampled cache.
        samples: Sample ids, [B] int64, on the host.
        keep: Mask of the student's outputs that are rows, [B, ...] bool. None if all of them are.
    """

    inputs: Any
    labels: Tensor
    logits: AnyRows
    samples: Tensor
    keep: Tensor | None = None

    @property
    def images(self) -> Any:
        """Alias of `inputs`."""
        return self.inputs

    @property
    def rows(self) -> AnyRows:
        """Alias of `logits`."""
        return self.logits


@dataclass(frozen=True, kw_only=True, repr=False)
class LoaderSettings(Settings):
    """Settings of a `Loader`."""

    batch_size: int = option(
        64, minimum=1, help="Number of samples per batch, in each process. The last batch may be smaller."
    )
    drop_last: bool = option(False, help="Leave out a smaller last batch.")
    teacher: str | None = option(None, shown="the only one", help="Teacher, if the cache holds several.")
    shuffle: bool = option(
        True, help="Iterate over the samples in a random order, which depends only on the seed and the epoch."
    )
    seed: int = option(0, minimum=0, help="Seed of the sampling order.")
    mean: Sequence[float] | None = option(
        None, form="numbers", shown="the teacher's", help="Per-channel mean of the student's input, in [0, 1]."
    )
    std: Sequence[float] | None = option(
        None, form="numbers", shown="the teacher's", help="Per-channel standard deviation of the input, in [0, 1]."
    )
    image_size: int | None = option(
        None, minimum=1, shown="the teacher's", help="Height and width of the student's input in pixels."
    )
    crop_pct: float | None = option(
        None,
        shown="the teacher's",
        help="Fraction of the shorter side kept by the center crop when images are resized.",
    )
    loss_on: str | None = option(
        None,
        metavar="all|assistant|completion",
        shown="all rows of the cache",
        help="For text, the rows to return, as in `train_student`: all; completions and the assistant's turns in a chat (assistant); or "
        "completions and the assistant's last turn in a chat (completion). Documents without such a row are left out.",
    )
    device: str = option("auto", help="Device of the batches: auto, cpu, cuda, cuda:1, ...")
    workers: int | None = option(
        None, minimum=0, shown="a number that suits the data", help="Number of worker processes that decode images."
    )
    rank: int | None = option(
        None,
        minimum=0,
        shown="that of torch.distributed or torchrun",
        help="Rank of this process among those that train together.",
    )
    world_size: int | None = option(
        None, minimum=1, shown="as for the rank", help="Number of processes that train together."
    )

    def __post_init__(self) -> None:
        """Check ranges, and that rank and world size belong together."""
        super().__post_init__()
        self.check("seed", lambda seed: seed < 2**63, "below 2**63")
        self.check_name("loss_on", "rows to count", LOSSES_ON)
        if (self.rank is None) != (self.world_size is None):
            raise InputError("rank and world_size must be given together, or not at all")
        self.check("rank", lambda rank: rank < (self.world_size or 1), f"below the world size, {self.world_size}")


@dataclass(frozen=True, kw_only=True, repr=False)
class LoaderRequest(Settings):
    """The arguments of a loader besides its settings."""

    cache: str | Path | Cache = option(form="python", help="Cache with the teacher's logits, or its path.")
    data: Any = option(
        None,
        form="python",
        shown="the data used for the dump",
        help="Data set, by name or as an object, if it has moved since the dump.",
    )


class Loader:
    """Batches for your own training loop, in the order and with the pixels of `logitcache train`.

        with Loader("c.zarr", batch_size=64) as loader:
            for epoch in range(240):
                for batch in loader:
                    loss = distill(student(batch.inputs), batch.logits, batch.labels).mean()

    Each pass is the next epoch, and epoch e uses view e mod V. Passes are independent: several may be active at once, and each may be
    stopped at any batch. Processes that train together (torchrun, accelerate, torch.distributed) divide every epoch: all have the same
    number of batches, so up to `world_size - 1` samples are repeated, and a step of all processes contains the samples of one batch of
    `batch_size * world_size` in a single process.
    """

    @show_options(LoaderRequest, LoaderSettings)
    def __init__(self, cache: str | Path | Cache, data: Any = None, **options: Any) -> None:
        """Open a cache and its data.

        {arguments}

        Raises:
            LogitCacheError: If the cache or the data cannot be opened, or they do not match.
        """
        self._settings = settings = LoaderSettings(**options)
        self.cache = open_cache(cache).of(settings.teacher)
        refuse_unreplayable(self.cache)
        self.data = with_loss_on(recorded_data(self.cache, data), settings.loss_on)
        self.device = pick_device(settings.device)
        self.batch_size = settings.batch_size
        self._modality, self._views = modality_of(self.data), cache_views(self.cache)
        refuse_mixed(self.cache, self._views)
        given = {name: getattr(settings, name) for name in ("mean", "std", "image_size", "crop_pct")}
        recorded = self.cache.manifest.teachers[0]["preprocessing"]
        chosen = self._modality.choose_inputs(self.data, self._views[0], given, recorded)
        self.preprocessing = for_training(self._modality, chosen, self.data)
        self._targets, self._reading = CachedTargets(self.cache, self.device), threading.Lock()
        self._idle: list[Renderer] = []  # from finished passes
        self._next, self._closed = 0, False

    def __len__(self) -> int:
        """Return the number of batches per epoch in this process."""
        return sum(1 for _ in self._shares(kept_of(self.data)))

    def __iter__(self) -> Iterator[Batch]:
        """Return the batches of the next epoch, starting with epoch 0."""
        epoch, self._next = self._next, self._next + 1
        return self.epoch(epoch)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass, 0, 1, ...; later passes continue from there.

        Raises:
            InputError: If it is not a non-negative integer.
        """
        self._next = epoch_number(epoch)

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, 0, 1, ..., while the next view is read in the background.

        Raises:
            CacheMismatchError: If pixels differ from those that the teacher was shown (64 samples are checked).
            CorruptCacheError: If the view is damaged.
            InputError: If the loader is closed, or `epoch` is not a non-negative integer.
        """
        self._refuse_closed()
        epoch = epoch_number(epoch)
        view, upcoming = (self._views[one % len(self._views)] for one in (epoch, epoch + 1))
        check_inputs(self.cache, self.data, view, sampled(self._settings.seed, epoch, len(self.data)))
        with self._reading:
            self._targets.begin(Stretch((view,)), Stretch((upcoming,)))
            rows = self._targets.held(0)
        kept = kept_of(self.data)
        order = only(shuffled(len(self.data), self._settings.seed, epoch), kept) if self._settings.shuffle else kept
        renderer = self._idle.pop() if self._idle else self._new_renderer()
        try:
            for batch in renderer.batches(view, list(self._shares(order))):
                self._refuse_closed()
                labels = self._modality.row_labels(self.data, view, batch.samples)
                keep = batch.kept(labels, 0)
                yield Batch(
                    self.preprocessing.on(batch.inputs[0], self.device),
                    to_device(labels.labels, self.device),
                    rows.of(labels.ids),
                    torch.from_numpy(batch.samples),
                    None if keep is None else to_device(keep, self.device),
                )
        finally:
            if not self._closed:
                self._idle.append(renderer)

    def _shares(self, order: Ids) -> Iterator[Ids]:
        """Yield the sample ids of each batch in this process."""
        settings = self._settings
        rank, world = (settings.rank, settings.world_size) if settings.rank is not None else place_in_group()
        return shares(order, settings.batch_size, rank, world or 1, drop_last=settings.drop_last)

    def _new_renderer(self) -> Renderer:
        return self._modality.renderer(
            self.data, [self.preprocessing], workers=self._settings.workers, device=self.device
        )

    def _refuse_closed(self) -> None:
        if self._closed:
            raise InputError("this loader is closed")

    def close(self) -> None:
        """Stop the read-ahead thread and the worker processes."""
        self._closed = True
        self._idle.clear()
        self._targets.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def refuse_mixed(cache: Cache, views: Sequence[Any]) -> None:
    """Raise InputError if views mix samples."""
    if any(view.mixes for view in views):
        raise InputError(
            f"{cache.place} mixes samples, so rows have two labels, which only `logitcache train` supports"
        )
