"""Training steps on static tensors: a whole step, from gathering pixels to the optimizer and the metrics, runs on the device.

Everything that an epoch needs is copied to the device in advance: the order of samples, crops and flips, labels, rows of the view, and
learning rates. A step therefore needs no synchronization with the host and has fixed shapes, so it can be captured as a CUDA graph and
replayed (`runtime.graphs`). A batch of another size, such as the last one of an epoch, runs eagerly.
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
_UNSEEN = "not tried on a GPU yet"


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The way in which training steps are executed.

    Attributes:
        resident: Samples to render on the device; None if the host renders each batch.
        captures: Whether steps are captured as a CUDA graph and replayed.
        reason: Reason for this choice, for the log.
    """

    resident: Resident | None
    captures: bool
    reason: str

    def log(self, device: torch.device, asked: str) -> None:
        """Log how steps are executed, if there is a GPU or --cuda-graph is on."""
        if device.type == "cuda" or asked == "on":
            how = "replayed as a CUDA graph" if self.captures else "run eagerly"
            _LOG.info("steps are %s: %s", how, self.reason)


def plan_steps(job: Job, settings: TrainSettings, replicas: Replicas) -> StepPlan:
    """Choose how steps are executed. The optimizer is checked later, by `with_optimizer`."""
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
        return StepPlan(found, captures=False, reason=f"the device is {job.device.type}; steps use static tensors")
    return StepPlan(found, captures=True, reason=f"--cuda-graph on ({_UNSEEN})")


def _problem(job: Job, settings: TrainSettings, replicas: Replicas) -> str | None:
    """Return the reason why steps cannot be captured, apart from the data and the optimizer; None if they can."""
    if replicas.world > 1:
        return "gradients are averaged over several processes"
    if settings.live_teacher is not False and job.objective.loss is not None:
        return "the live teacher runs in every step"
    if job.window is not None:
        return "--memory-budget reads rows in windows"
    if settings.gradient_checkpointing:
        return "--gradient-checkpointing saves the random number state in every step"
    return None


def with_optimizer(plan: StepPlan, settings: TrainSettings, stepper: Stepper) -> StepPlan:
    """Return the plan, without capture if the optimizer synchronizes with the host in every step."""
    if not plan.captures or stepper.is_capturable:
        return plan
    reason = "the optimizer synchronizes in every step; create it with capturable=True, or SGD with fused=True"
    if settings.amp and settings.amp_dtype == "float16":
        reason = "with float16 the host decides whether to skip a step, except for --opt sgd, adam and adamw"
    return StepPlan(None, captures=False, reason=reason)


class StaticSteps:
    """Runs the steps of epochs on static tensors."""

    def __init__(
        self, job: Job, settings: TrainSettings, stepper: Stepper, targets: Targets, plan: StepPlan, sums: Tensor
    ) -> None:
        """Allocate the tensors.

        Args:
            job: Prepared training.
            settings: Settings of the training.
            stepper: Student and optimizer.
            targets: Teacher's rows, replaced in place, or none.
            plan: Plan with resident samples.
            sums: Sums of the metrics in `SUMS`, which steps add to, float64 on the device.
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
        # Row, label and crop of every sample in the order of the epoch; one table for each view of a pair.
        self._tables = [integers(samples, 2 + self._resident.columns) for _ in range(shown)]
        self._rates = torch.zeros(samples, dtype=torch.float64, device=job.device)
        self._place, self._step = integers(1), integers(1)  # next sample and next step
        self._offsets = torch.arange(settings.batch_size, device=job.device)

    def steps(
        self, views: Sequence[View], batches: Sequence[Ids], rates: Sequence[float], progress: float
    ) -> Iterator[Ids]:
        """Take a step on each batch and yield the batch.

        Args:
            views: One view, or the views of a pair.
            batches: Sample ids of each batch.
            rates: Learning rate of each step.
            progress: Fraction of the epochs that are complete after this one.
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
        """Copy everything that the steps of an epoch need to the device."""
        for view, table in zip(views, self._tables, strict=False):
            rows = self._modality.row_labels(self._job.samples, view, ids)
            numbers = torch.from_numpy(self._resident.numbers(view, ids))
            host = torch.cat([torch.from_numpy(rows.ids)[:, None], rows.labels[:, None], numbers], 1)
            table[: len(ids)].copy_(host)
        self._rates[: len(rates)].copy_(torch.tensor(rates, dtype=torch.float64))
        self._place.zero_()
        self._step.zero_()

    def _take(self, views: int, lengths: Sequence[int], progress: float) -> None:
        """Take the next step. This is the function that a graph captures.

        Args:
            views: Number of views per step.
            lengths: Number of samples in each micro-batch.
            progress: Progress as in `steps`.
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
        """Gather samples of a view by their positions in the order of the epoch, [B]."""
        table = self._tables[position].index_select(0, places)
        rows, labels = table[:, 0], table[:, 1]
        teacher = None if self._targets is None else self._targets.held(position).at(rows)
        return MicroBatch(self._resident.inputs(table[:, 2:]), None, labels, None, teacher, len(places))
