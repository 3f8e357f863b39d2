"""Training steps on static tensors: a whole step, from gathering pixels to the optimizer and the metrics, runs on the device.

Everything that an epoch needs is copied to the device in advance: the order of samples, crops and flips, labels, rows of the view, and
learning rates. Images in memory are rendered on the device; others are rendered by the host and copied into place one batch ahead. A
step therefore needs no synchronization with the host and has fixed shapes, so it can be captured as a CUDA graph and replayed
(`runtime.graphs`). A batch of another size, such as the last one of an epoch, runs eagerly.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcache.data import Ids, RowLabels, View, modality_of
from logitcache.data.optional import divided
from logitcache.data.protocol import Renderer
from logitcache.methods import SecondLabels
from logitcache.runtime.graphs import Replay
from logitcache.train.job import Job
from logitcache.train.replicas import Replicas
from logitcache.train.settings import TrainSettings
from logitcache.train.staging import Staging
from logitcache.train.step import SUMS, MicroBatch, Stepper
from logitcache.train.step_plan import StepPlan
from logitcache.train.targets import CachedTargets, Targets

__all__ = ["StaticSteps"]


class _Share(NamedTuple):
    """This process's share of a micro-batch: `length` samples from position `first` of the batch.

    Attributes:
        counted: Number of samples to include in the loss.
    """

    first: int
    length: int
    counted: int


class _Rows(NamedTuple):
    """Rows of a micro-batch: ids and labels, [B] int64, second labels if they are mixed, and numbers of resident samples."""

    ids: Tensor
    labels: Tensor
    second: SecondLabels | None
    numbers: Tensor


class _Table:
    """Rows of a view in the order of an epoch, on the device."""

    def __init__(self, rows: int, columns: int, device: torch.device, *, mixes: bool) -> None:
        """Allocate the tensors.

        Args:
            rows: Largest number of rows.
            columns: Number of numbers that describe a resident sample.
            device: Device of the student.
            mixes: Whether any view that will be shown mixes samples.
        """
        integers = partial(torch.zeros, dtype=torch.int64, device=device)
        self._numbers = integers(rows, 2 + columns)  # id, label and numbers
        self._second = SecondLabels(integers(rows), torch.zeros(rows, device=device)) if mixes else None

    def fill(self, rows: RowLabels, numbers: NDArray[np.int64] | None) -> None:
        """Copy rows to the device.

        Args:
            rows: Rows in the order of the epoch.
            numbers: Numbers that describe resident samples, [R, columns].
        """
        columns = [torch.from_numpy(rows.ids)[:, None], rows.labels[:, None]]
        if numbers is not None:
            columns.append(torch.from_numpy(numbers))
        self._numbers[: len(rows.ids)].copy_(torch.cat(columns, 1))
        if rows.second is not None and self._second is not None:
            for there, here in zip((self._second.labels, self._second.weights), rows.second, strict=True):
                there[: len(here)].copy_(here)

    def at(self, places: Tensor, *, mixes: bool) -> _Rows:
        """Return the rows at some places in the order of the epoch, [B], without synchronizing; `mixes`: whether they are mixed."""
        found, second = self._numbers.index_select(0, places), None
        if mixes and self._second is not None:
            second = SecondLabels(*(one.index_select(0, places) for one in (self._second.labels, self._second.weights)))
        return _Rows(found[:, 0], found[:, 1], second, found[:, 2:])


class StaticSteps:
    """Runs the steps of epochs on static tensors."""

    def __init__(
        self,
        job: Job,
        settings: TrainSettings,
        stepper: Stepper,
        targets: Targets,
        replicas: Replicas,
        plan: StepPlan,
        sums: Tensor,
    ) -> None:
        """Allocate the tensors.

        Args:
            job: Prepared training.
            settings: Settings of the training.
            stepper: Student and optimizer.
            targets: Teacher's rows, replaced in place, or none.
            replicas: Processes that train together.
            plan: Plan with static tensors.
            sums: Sums of the metrics in `SUMS`, which steps add to, float64 on the device.
        """
        assert plan.static
        assert sums.shape == (len(SUMS),)
        self._job, self._stepper, self._sums, self._replicas = job, stepper, sums, replicas
        self._targets = targets if isinstance(targets, CachedTargets) else None
        self._modality, self._batch_size = modality_of(job.samples), settings.batch_size
        self._part_size = -(-settings.batch_size // settings.grad_accum_steps)
        self._replay = Replay(job.device, stepper.forget, captures=plan.captures)
        self._resident = plan.resident
        self._staging = None if plan.resident is not None else Staging(job.inputs, job.device)
        samples, columns = len(job.samples), 0 if plan.resident is None else plan.resident.columns
        self._tables = [  # one for each view of a pair
            _Table(samples, columns, job.device, mixes=any(view.mixes for view in views))
            for views in zip(*job.epoch_views, strict=True)
        ]
        self._rates = torch.zeros(samples, dtype=torch.float64, device=job.device)
        # Position of the next sample and number of the next step.
        self._place, self._step = (torch.zeros(1, dtype=torch.int64, device=job.device) for _ in range(2))
        self._offsets = torch.arange(settings.batch_size, device=job.device)

    def steps(
        self,
        views: Sequence[View],
        batches: Sequence[Ids],
        rates: Sequence[float],
        progress: float,
        renderers: Sequence[Renderer],
    ) -> Iterator[Ids]:
        """Take a step on each batch and yield the batch.

        Args:
            views: One view, or the views of a pair.
            batches: Sample ids of each batch.
            rates: Learning rate of each step.
            progress: Fraction of the epochs that are complete after this one.
            renderers: Renderer of each view, for samples that are not resident.
        """
        self._fill(views, np.concatenate(batches), rates)
        shares = [self._shares(batch) for batch in batches]
        mixes = [view.mixes for view in views]
        constants = self._stepper.constants(progress)
        for batch, parts, stays in zip(batches, shares, self._ready(views, batches, shares, renderers), strict=True):
            take = partial(self._take, mixes, parts, len(batch), progress)
            if stays and len(batch) == self._batch_size:
                self._replay.run((tuple(mixes), constants), take)
            else:
                take()
            yield batch

    def _ready(
        self,
        views: Sequence[View],
        batches: Sequence[Ids],
        shares: Sequence[Sequence[_Share]],
        renderers: Sequence[Renderer],
    ) -> Iterable[bool]:
        """Make the inputs of each batch available in turn, and yield whether they are in the memory that a graph reads."""
        if self._staging is None:
            return itertools.repeat(True, len(batches))
        ids = [
            [batch[one.first : one.first + one.length] for one in parts]
            for batch, parts in zip(batches, shares, strict=True)
        ]
        return self._staging.batches(views, ids, renderers)

    def _shares(self, batch: Ids) -> list[_Share]:
        """Return this process's share of each micro-batch."""
        found, first = list[_Share](), 0
        for part in divided(self._modality, self._job.samples, self._job.inputs, batch, self._part_size):
            positions, counted = self._replicas.share(np.arange(first, first + len(part)))
            found.append(_Share(int(positions[0]), len(positions), counted))
            first += len(part)
        return found

    def _fill(self, views: Sequence[View], ids: Ids, rates: Sequence[float]) -> None:
        """Copy everything that the steps of an epoch need to the device."""
        for view, table in zip(views, self._tables, strict=True):
            numbers = None if self._resident is None else self._resident.numbers(view, ids)
            table.fill(self._modality.row_labels(self._job.samples, view, ids), numbers)
        self._rates[: len(rates)].copy_(torch.tensor(rates, dtype=torch.float64))
        self._place.zero_()
        self._step.zero_()

    def _take(self, mixes: Sequence[bool], shares: Sequence[_Share], samples: int, progress: float) -> None:
        """Take the next step. This is the function that a graph captures.

        Args:
            mixes: Whether each view mixes samples.
            shares: This process's share of each micro-batch.
            samples: Number of samples in the whole batch.
            progress: Progress as in `steps`.
        """
        parts = list[list[MicroBatch]]()
        for number, share in enumerate(shares):
            places = self._place + self._offsets[share.first : share.first + share.length]
            parts.append(
                [self._micro_batch(number, position, places, share.counted, mixes) for position in range(len(mixes))]
            )
        rate = self._rates.index_select(0, self._step).squeeze(0)
        self._sums += self._stepper.step(parts, samples, rate, progress)
        self._place += samples
        self._step += 1

    def _micro_batch(
        self, number: int, position: int, places: Tensor, counted: int, mixes: Sequence[bool]
    ) -> MicroBatch:
        """Gather samples of a view by their positions in the order of the epoch, [B]."""
        rows = self._tables[position].at(places, mixes=mixes[position])
        if self._staging is not None:
            inputs = self._staging.inputs(number * len(mixes) + position)
        else:
            assert self._resident is not None
            inputs = self._resident.inputs(rows.numbers)
        teacher = None if self._targets is None else self._targets.held(position).at(rows.ids)
        return MicroBatch(inputs, None, rows.labels, rows.second, teacher, counted)
