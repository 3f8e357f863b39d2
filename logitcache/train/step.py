"""One step of a training: forward and backward over the micro-batches of a batch, then the optimizer.

A batch's gradient is that of the mean over its rows, however it is divided: each part counts by its share of the rows. (A method
that couples the rows of a batch couples those of a part.)
"""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from logitcache.encoding import TopKRows
from logitcache.methods import Objective, SecondLabels
from logitcache.runtime.device import compiled_unless_refused
from logitcache.train.optimize import make_optimizer
from logitcache.train.replicas import Replicas
from logitcache.train.settings import TrainSettings

__all__ = ["SUMS", "Part", "Stepper"]

SUMS = ("loss", "ce", "kd", "train_accuracy", "teacher_agreement", "refined_rows", "unranked_rows")


class Part(NamedTuple):
    """A part of a batch in one view.

    Attributes:
        inputs: The student's, [B, 3, H, W] float32.
        labels: [B] int64.
        second: The other labels of mixed rows.
        teacher: What the teacher says, or None.
        counted: Rows that count: all, or 0 where this process takes part with a row of another.
    """

    inputs: Tensor
    labels: Tensor
    second: SecondLabels | None
    teacher: Tensor | TopKRows | None
    counted: int


class Stepper:
    """A student, its optimizer, and all that changes from step to step."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        settings: TrainSettings,
        device: torch.device,
        replicas: Replicas,
    ) -> None:
        """Prepare a student for training.

        Args:
            model: On `device`.
            objective: What is minimised.
            settings: Those of `train_student`.
            device: Where it trains.
            replicas: The processes that train it together.
        """
        self.model, self._objective, self._device = model, objective, device
        self._optimizer = make_optimizer(model, settings)
        self._clip = settings.clip_grad
        decay = settings.model_ema_decay
        self.average = None
        if decay:
            self.average = AveragedModel(model, multi_avg_fn=functools.partial(_towards, 1 - decay), use_buffers=True)
        self._dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}[settings.amp_dtype]
        self._autocast = settings.amp
        scaled = self._autocast and self._dtype is torch.float16
        self._scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        if settings.channels_last:
            model.to(memory_format=torch.channels_last)
        self._layout = torch.channels_last if settings.channels_last else torch.contiguous_format
        self._replicas, self._replicated = replicas, replicas.replicate(model, device)
        self._run: Callable[[Tensor], Any] = self._replicated
        if settings.compiled:
            self._run = compiled_unless_refused(self._replicated, "the student")
            if objective.loss:
                translated = compiled_unless_refused(objective.loss.__call__, "the loss")
                self._objective = replace(objective, translated=translated)

    def step(self, parts: Sequence[Sequence[Part]], rows: int, rate: float, progress: float) -> Tensor:
        """Take a step on a batch.

        Args:
            parts: This process's shares of the micro-batches, each in one view or in those of a pair, over which the objective is
                summed.
            rows: Of the whole batch.
            rate: Learning rate.
            progress: Share of the epochs that will be over when this one is.

        Returns:
            What `SUMS` names, summed over this process's rows (averaged over views, where it is a share), float64 on the device.
        """
        sums = torch.zeros(len(SUMS), dtype=torch.float64, device=self._device)
        for number, part in enumerate(parts):
            count = part[0].counted
            with self._apart() if number + 1 < len(parts) else contextlib.nullcontext():
                found = [self._forward(shown, progress) for shown in part]
                total = functools.reduce(torch.add, [total for total, _, _ in found])
                share = count * self._replicas.world / rows  # gradients are averaged over processes
                scaled: Tensor = self._scaler.scale(total if share == 1 else total * share)
                torch.autograd.backward(scaled)
            summed = torch.stack([terms for _, terms, _ in found]).sum(0)
            averaged = torch.stack([shares for _, _, shares in found]).mean(0)
            sums += torch.cat([summed, averaged]).double() * count
        if self._clip is not None:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self._clip)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update_parameters(self.model)
        return sums

    def _apart(self) -> contextlib.AbstractContextManager[None]:
        """Leave gradients where they are: the last part of a batch averages the sum of all over processes."""
        if isinstance(self._replicated, DistributedDataParallel):
            return self._replicated.no_sync()
        return contextlib.nullcontext()

    def _forward(self, shown: Part, progress: float) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate the objective in one view: its value, its terms to be summed, and shares to be averaged, over views."""
        with torch.autocast(self._device.type, self._dtype, enabled=self._autocast):
            logits: Tensor = self._run(shown.inputs.contiguous(memory_format=self._layout))
        logits = logits.float()
        terms = self._objective(logits, shown.teacher, shown.labels, progress, shown.second)
        predicted = logits.detach().argmax(1)
        right = (predicted == shown.labels).float().mean()
        agreed = torch.full_like(right, torch.nan)
        if shown.teacher is not None:
            agreed = (predicted == _top(shown.teacher)).float().mean()
        return (
            terms.total,
            torch.stack([terms.total.detach(), terms.ce, terms.kd]),
            torch.stack([right, agreed, terms.refined, terms.unranked]),
        )

    def state(self) -> dict[str, Any]:
        """Return what goes on from step to step."""
        found = {"student": self.model.state_dict(), "optimizer": self._optimizer.state_dict()}
        if self._scaler.is_enabled():
            found["scaler"] = self._scaler.state_dict()
        return found | ({"average": self.average.state_dict()} if self.average is not None else {})

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` returned."""
        self.model.load_state_dict(state["student"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])


def _top(teacher: Tensor | TopKRows) -> Tensor:
    """Return the class that the teacher prefers, [B]."""
    if isinstance(teacher, Tensor):
        return teacher.argmax(1)
    return teacher.ids.gather(1, teacher.values.argmax(1, keepdim=True)).squeeze(1)


@torch.no_grad()
def _towards(share: float, averaged: Sequence[Tensor], current: Sequence[Tensor], _count: object) -> None:
    """Move a running mean towards what is; what is counted or indexed, in integers, has no mean and is copied."""
    for mean, now in zip(averaged, current, strict=True):
        if mean.is_floating_point() or mean.is_complex():
            mean.lerp_(now, share)
        else:
            mean.copy_(now)
