"""A step of a training as one function of what lies on the device: from the gather of pixels to the optimizer and the sums of metrics.

What an epoch needs is there before it begins: the order of samples, boxes and flips, labels, rows of the view, learning rates. So a step
asks the host for nothing, has the shapes of the one before, and can be captured as a CUDA graph and replayed (`runtime.graphs`). A batch
of another size, the last one of an epoch, is called.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from logitcache.data import Ids, View, modality_of
from logitcache.data.optional import divided, resident_samples
from logitcache.data.protocol import Resident
from logitcache.runtime.graphs import Replay
from logitcache.train.job import Job
from logitcache.train.replicas import Replicas
from logitcache.train.settings import TrainSettings
from logitcache.train.step import SUMS, MicroBatch, Stepper
from logitcache.train.targets import CachedTargets, Targets

__all__ = ["StaticSteps", "StepPlan", "plan_steps", "with_optimizer"]

_LOG = logging.getLogger(__name__)
_UNSEEN = "not yet seen on a GPU"


@dataclass(frozen=True, slots=True)
class StepPlan:
    """How steps are taken.

    Attributes:
        resident: The samples, as the device renders them; None where the host renders each batch.
        captures: Whether steps are captured and replayed.
        reason: Why they are taken so.
    """

    resident: Resident | None
    captures: bool
    reason: str

    def log(self, device: torch.device, asked: str) -> None:
        """Log how steps are taken, where there is a GPU or somebody asked."""
        if device.type == "cuda" or asked == "on":
            how = "replayed as a CUDA graph" if self.captures else "called"
            _LOG.info("steps are %s: %s", how, self.reason)


def plan_steps(job: Job, settings: TrainSettings, replicas: Replicas) -> StepPlan:
    """Decide how steps are taken; whether the optimizer allows it is seen later (`with_optimizer`)."""
    if settings.cuda_graph != "on":
        said = f"--cuda-graph {settings.cuda_graph}"
        return StepPlan(None, captures=False, reason=said if settings.cuda_graph == "off" else f"{said} ({_UNSEEN})")
    if problem := _problem(job, settings, replicas):
        return StepPlan(None, captures=False, reason=problem)
    views = [view for shown in job.epoch_views for view in shown]
    found, problem = resident_samples(modality_of(job.samples), job.samples, views, job.inputs, job.device)
    if found is None:
        return StepPlan(None, captures=False, reason=problem)
    if job.device.type != "cuda":
        return StepPlan(
            found, captures=False, reason=f"the device is {job.device.type}; the steps are those of a graph"
        )
    return StepPlan(found, captures=True, reason=f"--cuda-graph on ({_UNSEEN})")


def _problem(job: Job, settings: TrainSettings, replicas: Replicas) -> str | None:
    """Return why steps of a training cannot be captured, apart from its data and its optimizer; None if they can."""
    if replicas.world > 1:
        return "several processes average their gradients"
    if settings.live_teacher is not False and job.objective.loss is not None:
        return "the live teacher is asked in every step"
    if job.window is not None:
        return "--memory-budget reads the rows in windows"
    if settings.gradient_checkpointing:
        return "--gradient-checkpointing saves the state of random numbers in every step"
    return None


def with_optimizer(plan: StepPlan, settings: TrainSettings, stepper: Stepper) -> StepPlan:
    """Return the plan, or another one where the optimizer asks the host in every step."""
    if not plan.captures or stepper.is_capturable:
        return plan
    reason = "the optimizer asks the host in every step; make it with capturable=True, or SGD with fused=True"
    if settings.amp and settings.amp_dtype == "float16":
        reason = "with float16 the host decides whether a step is skipped, but for --opt sgd, adam and adamw"
    return StepPlan(None, captures=False, reason=reason)


class StaticSteps:
    """Takes the steps of epochs from static tensors."""

    def __init__(
        self, job: Job, settings: TrainSettings, stepper: Stepper, targets: Targets, plan: StepPlan, sums: Tensor
    ) -> None:
        """Allocate them.

        Args:
            job: The training.
            settings: Those of `train_student`.
            stepper: Takes the steps.
            targets: The teacher's rows, held in place, or none.
            plan: How steps are taken; with resident samples.
            sums: What `SUMS` names, which steps add to, float64 on the device.
        """
        assert plan.resident is not None
        assert sums.shape == (len(SUMS),)
        self._job, self._stepper, self._sums, self._resident = job, stepper, sums, plan.resident
        self._targets = targets if isinstance(targets, CachedTargets) else None
        self._modality, self._batch_size = modality_of(job.samples), settings.batch_size
        self._part_size = -(-settings.batch_size // settings.grad_accum_steps)
        self._replay = Replay(job.device, stepper.forget, captures=plan.captures)
        samples, shown = len(job.samples), max(map(len, job.epoch_views))
        integers = partial(torch.zeros, dtype=torch.int64, device=job.device)
        # Of every sample in the order of the epoch its row, its label and what renders it; of a pair of views one table each.
        self._tables = [integers(samples, 2 + self._resident.columns) for _ in range(shown)]
        self._rates = torch.zeros(samples, dtype=torch.float64, device=job.device)
        self._place, self._step = integers(1), integers(1)  # sample and step that come next
        self._offsets = torch.arange(settings.batch_size, device=job.device)

    def steps(
        self, views: Sequence[View], batches: Sequence[Ids], rates: Sequence[float], progress: float
    ) -> Iterator[Ids]:
        """Take a step on each batch and yield the batch.

        Args:
            views: One view, or those of a pair.
            batches: Sample ids of each batch.
            rates: Learning rate of each step.
            progress: Share of the epochs that will be over when this one is.
        """
        self._fill(views, np.concatenate(batches), rates)
        for batch in batches:
            take = partial(self._take, len(views), self._lengths(batch), progress)
            if len(batch) == self._batch_size:
                self._replay.run((len(views), self._stepper.constants(progress)), take)
            else:
                take()
            yield batch

    def _lengths(self, batch: Ids) -> list[int]:
        """Return the number of samples of each micro-batch."""
        return [
            len(part) for part in divided(self._modality, self._job.samples, self._job.inputs, batch, self._part_size)
        ]

    def _fill(self, views: Sequence[View], ids: Ids, rates: Sequence[float]) -> None:
        """Bring what the steps of an epoch need to the device."""
        for view, table in zip(views, self._tables, strict=False):
            rows = self._modality.row_labels(self._job.samples, view, ids)
            numbers = torch.from_numpy(self._resident.numbers(view, ids))
            host = torch.cat([torch.from_numpy(rows.ids)[:, None], rows.labels[:, None], numbers], 1)
            table[: len(ids)].copy_(host)
        self._rates[: len(rates)].copy_(torch.tensor(rates, dtype=torch.float64))
        self._place.zero_()
        self._step.zero_()

    def _take(self, views: int, lengths: Sequence[int], progress: float) -> None:
        """Take the next step: what a graph holds.

        Args:
            views: Number of views that are shown together.
            lengths: Samples of each micro-batch.
            progress: As for `steps`.
        """
        parts, first = list[list[MicroBatch]](), 0
        for length in lengths:
            places = self._place + self._offsets[first : first + length]
            parts.append([self._micro_batch(position, places) for position in range(views)])
            first += length
        rate = self._rates.index_select(0, self._step).squeeze(0)
        self._sums += self._stepper.step(parts, first, rate, progress)
        self._place += first
        self._step += 1

    def _micro_batch(self, position: int, places: Tensor) -> MicroBatch:
        """Gather samples of a view by their places in the order of the epoch, [B]."""
        table = self._tables[position].index_select(0, places)
        rows, labels = table[:, 0], table[:, 1]
        teacher = None if self._targets is None else self._targets.held(position).at(rows)
        return MicroBatch(self._resident.inputs(table[:, 2:]), None, labels, None, teacher, len(places))
