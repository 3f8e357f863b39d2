"""One training step: forward and backward passes over the micro-batches of a batch, then the optimizer.

The gradient is that of the mean over the rows of the batch, however it is divided: each micro-batch is weighted by its share of the rows.
(A method that couples the rows of a batch couples those of a micro-batch.)
"""

import contextlib
import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from logitcache.data import Samples, modality_of
from logitcache.encoding import AnyRows, top_classes
from logitcache.errors import InputError
from logitcache.methods import Objective, SecondLabels, Terms, linear_loss
from logitcache.models import explain_forward_errors, float_dtype
from logitcache.models.language.head import Head, HiddenStates
from logitcache.runtime.device import compile_function
from logitcache.runtime.tensors import call_network, channels_last, in_dtype
from logitcache.train.optimize import is_capturable, make_optimizer, set_rate
from logitcache.train.replicas import Replicas, answer_of
from logitcache.train.settings import TrainSettings

__all__ = ["SUMS", "MicroBatch", "Stepper"]

_STUDENT = "the student"
# Maximum number of rows, and of their logits, on which gradient norms are measured if the logits of all rows are never materialized.
_MEASURED_ROWS, _MEASURED = 256, 1 << 22

SUMS = ("loss", "ce", "kd", "train_accuracy", "teacher_agreement", "refined_rows", "unranked_rows")


class MicroBatch(NamedTuple):
    """A micro-batch in one view; all tensors are on the student's device.

    Attributes:
        inputs: Input of the student, a tensor or a mapping of tensors; for images [B, 3, H, W] float32.
        keep: Mask of the student's outputs that are rows (`Rendition.kept`).
        labels: Class of each row, [R] int64.
        second: Second labels of mixed rows, or None.
        teacher: Teacher's logits, or None.
        weight_rows: Rows to include in the loss; 0 on ranks that only join the collective.
        sequences: Sample of each row, [R] int64, for methods that couple the rows of a sample; None if all rows belong to one.
    """

    inputs: Any
    keep: Tensor | None
    labels: Tensor
    second: SecondLabels | None
    teacher: AnyRows | None
    weight_rows: int
    sequences: Tensor | None = None


class Stepper:
    """A student, its optimizer, and all other state that changes from step to step."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        settings: TrainSettings,
        device: torch.device,
        replicas: Replicas,
        samples: Samples,
        *,
        static: bool = False,
        capturable: bool = False,
    ) -> None:
        """Prepare a student for training.

        Args:
            model: Student, on `device`.
            objective: Objective to minimize.
            settings: Settings of the training.
            device: Device to train on.
            replicas: Processes that train together.
            samples: Training data; its modality determines which of the student's outputs are rows.
            static: Whether steps run on static tensors, so that gradients are averaged over processes by `Averaging`.
            capturable: Whether steps will be captured as a CUDA graph, so that they must not synchronize with the host.
        """
        self.model, self._objective, self._device = model, objective, device
        self._weights_dtype = float_dtype(model)
        self._modality, self._classes = modality_of(samples), len(samples.classes)
        self._optimizer = make_optimizer(model, settings, capturable=capturable)
        self._optimizer.zero_grad(set_to_none=True)  # a user's module may already have gradients
        self._clip = settings.clip_grad
        decay = settings.model_ema_decay
        self.average, self._averages = (
            None,
            False,
        )  # `_averages`: whether the average was initialized after the first step
        if decay:
            self.average = AveragedModel(model, use_buffers=True)
            self._share = 1 - decay
        self._dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}[settings.amp_dtype]
        self._autocast = settings.amp
        scaled = self._autocast and self._dtype is torch.float16
        self._scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        # Learning rate of captured steps, a tensor on the device; other steps use a Python number.
        self._rate: Tensor | None = None
        if capturable and is_capturable(self._optimizer, scaled=scaled):
            self._rate = torch.zeros((), dtype=torch.float32, device=device)
        if settings.channels_last:
            model.to(memory_format=torch.channels_last)
        self._channels_last = settings.channels_last
        self._replicas = replicas
        self._averaging = replicas.averaging(model) if static else None
        self._replicated = model if static else replicas.replicate(model, device)
        self._run: Callable[..., Any] = self._replicated
        self.norms: dict[str, float] | None = None  # Objective.gradient_norms of the first batch
        if settings.compiled:
            self._run = compile_function(self._replicated, "the student")
            if objective.loss:
                translated = compile_function(objective.loss.__call__, "the loss")
                self._objective = replace(objective, translated=translated)

    @property
    def couples_sequences(self) -> bool:
        """Whether the method couples the rows of a sequence, so that it needs `MicroBatch.sequences`."""
        return self._objective.loss is not None and self._objective.loss.of_sequence is not None

    @property
    def is_capturable(self) -> bool:
        """Whether the optimizer takes steps without synchronizing with the host."""
        return self._rate is not None

    def constants(self, progress: float) -> Hashable:
        """Return the parameters of the objective that are constant within an epoch and may change between epochs."""
        switches = self._objective.switches(progress)
        return self._objective.weight_of_kd(progress), tuple(sorted(switches.items()))

    def step(self, parts: Sequence[Sequence[MicroBatch]], rows: int, rate: float | Tensor, progress: float) -> Tensor:
        """Take a step on a batch. If `is_capturable`, steps after the first do not synchronize with the host.

        Args:
            parts: This process's shares of the micro-batches, each in one view or in the views of a pair. The objective is summed over
                views.
            rows: Number of rows in the whole batch.
            rate: Learning rate; a 0-dim tensor on the device if steps are captured.
            progress: Fraction of the epochs that are complete after this one.

        Returns:
            Metrics in `SUMS`, summed over this process's rows (fractions are averaged over views), float64 on the device.
        """
        sums = torch.zeros(len(SUMS), dtype=torch.float64, device=self._device)
        if self._averaging is not None:
            self._averaging.broadcast_buffers()
        for number, part in enumerate(parts):
            count = part[0].weight_rows
            with self._no_sync() if number + 1 < len(parts) else contextlib.nullcontext():
                found = [self._forward(batch, progress) for batch in part]
                total = functools.reduce(torch.add, [total for total, _, _ in found])
                share = count * self._replicas.world / rows  # gradients are averaged over processes
                scaled: Tensor = self._scaler.scale(total if share == 1 else total * share)
                if not scaled.requires_grad:
                    raise InputError(
                        "the loss does not depend on the student's parameters: the student's output has no gradient (it is detached or "
                        "of an integer type). Return the logits without detaching them."
                    )
                torch.autograd.backward(scaled)
            if not count:  # the mean over no rows is NaN
                continue
            summed = torch.stack([terms for _, terms, _ in found]).sum(0)
            averaged = torch.stack([shares for _, _, shares in found]).mean(0)
            sums += torch.cat([summed, averaged]).double() * count
        if self._averaging is not None:
            self._averaging.average_gradients()
        if self._clip is not None:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self._clip)
        if self._rate is not None:
            rate = self._rate.copy_(rate) if isinstance(rate, Tensor) else self._rate.fill_(rate)
        set_rate(self._optimizer, float(rate) if self._rate is None else rate)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad(set_to_none=True)
        self._update_average()
        return sums

    def _update_average(self) -> None:
        """Update the moving average of the weights, which is initialized after the first step."""
        if self.average is None:
            return
        if not self._averages:
            self.average.update_parameters(self.model)
            self._averages = True
            return
        with torch.no_grad():
            means, now = ([*one.parameters(), *one.buffers()] for one in (self.average.module, self.model))
            _update_moving_average(self._share, means, now)

    def forget(self) -> None:
        """Discard a step that was not completed: its gradients, and the state that the scaler derived from them."""
        self._optimizer.zero_grad(set_to_none=True)
        if self._scaler.is_enabled():
            state = self._scaler.state_dict()
            self._scaler = torch.amp.GradScaler(self._device.type)
            self._scaler.load_state_dict(state)

    def _no_sync(self) -> contextlib.AbstractContextManager[None]:
        """Skip gradient synchronization; the last micro-batch of a batch averages the accumulated gradients over processes."""
        if isinstance(self._replicated, DistributedDataParallel):
            return self._replicated.no_sync()
        return contextlib.nullcontext()

    def rows(self, network: Callable[..., Any], inputs: Any, keep: Tensor | None) -> Iterator[Tensor]:
        """Run a student, or its moving average, as in training: with the same autocast and memory format.

        Args:
            network: Student.
            inputs: Input of the student, on the device.
            keep: Mask of the outputs that are rows.

        Yields:
            Logits of consecutive rows, [r, C] float32; large outputs are yielded a few hundred rows at a time.

        Raises:
            InputError: If the student returns no logits.
        """
        yield from self._logits(self._answer(network, inputs), keep)

    def _logits(self, output: Any, keep: Tensor | None) -> Iterator[Tensor]:
        """Yield the logits in a network's output, as in `rows`."""
        chunks = iter(self._modality.rows(output, keep, classes=self._classes, label=_STUDENT))
        while True:
            with self._precision():
                chunk = next(chunks, None)
            if chunk is None:
                return
            if chunk.shape[1] != self._classes:
                raise InputError(
                    f"the student must return logits [B, {self._classes}], one for each class of the data, found a tensor "
                    f"{list(chunk.shape)}; change its number of outputs, or return the logits first"
                )
            yield chunk.float()

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        """Return the autocast context of the training."""
        return torch.autocast(self._device.type, self._dtype, enabled=self._autocast)

    def _answer(self, network: Callable[..., Any], inputs: Any) -> Any:
        """Return a network's output: logits, or hidden states and their head."""
        inputs = in_dtype(inputs, self._weights_dtype)
        with self._precision(), explain_forward_errors(_STUDENT, inputs):
            return answer_of(call_network(network, channels_last(inputs) if self._channels_last else inputs))

    def _forward(self, batch: MicroBatch, progress: float) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate the objective in one view: its value, terms to sum over views, and fractions to average over views."""
        output = self._answer(self._run, batch.inputs)
        if isinstance(output, HiddenStates) and batch.keep is not None:
            return self._from_hidden(output.states[batch.keep], output.head, batch, progress)
        chunks = list(self._logits(output, batch.keep))
        logits = chunks[0] if len(chunks) == 1 else torch.cat(chunks)
        self._measure(logits, batch, progress)
        means = None
        if self._objective.loss is not None and batch.teacher is not None:
            means = self._objective.loss.sequence_means([(batch.teacher, batch.labels)], batch.sequences)
        terms = self._objective(logits, batch.teacher, batch.labels, progress, batch.second, means)
        predicted = logits.detach().argmax(1)
        right = (predicted == batch.labels).float().mean()
        agreed = torch.full_like(right, torch.nan)
        if batch.teacher is not None:
            agreed = (predicted == top_classes(batch.teacher)).float().mean()
        return _summed(terms, right, agreed)

    def _from_hidden(
        self, hidden: Tensor, head: Head, batch: MicroBatch, progress: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate the objective, as `_forward`, from the hidden states of rows, [R, H], without materializing all logits."""
        if self.norms is None:
            some = slice(0, min(_MEASURED_ROWS, max(_MEASURED // self._classes, 1)))
            with torch.no_grad(), self._precision():
                logits = head(hidden[some])[:, : self._classes]
            teacher = None if batch.teacher is None else batch.teacher[some]
            self._measure(logits, batch._replace(teacher=teacher, labels=batch.labels[some]), progress)
        with self._precision():
            terms = linear_loss(
                self._objective,
                hidden,
                head,
                batch.teacher,
                batch.labels,
                classes=self._classes,
                progress=progress,
                sequences=batch.sequences,
            )
        count = max(terms.rows, 1)
        return _summed(terms, terms.right / count, terms.agreed / count)

    def _measure(self, logits: Tensor, batch: MicroBatch, progress: float) -> None:
        """Record the gradient norm of each term with respect to the logits of the first batch."""
        if self.norms is None:
            self.norms = self._objective.gradient_norms(logits, batch.teacher, batch.labels, progress, batch.second)

    def state(self) -> dict[str, Any]:
        """Return the state that changes from step to step."""
        found = {"student": self.model.state_dict(), "optimizer": self._optimizer.state_dict()}
        if self._scaler.is_enabled():
            found["scaler"] = self._scaler.state_dict()
        return found | ({"average": self.average.state_dict()} if self.average is not None else {})

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore a state returned by `state`."""
        self.model.load_state_dict(state["student"])
        self._optimizer.load_state_dict(state["optimizer"])
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
            self._averages = bool(self.average.n_averaged > 0)


def _summed(terms: Terms, right: Tensor, agreed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the results of `Stepper._forward`."""
    sums = torch.stack([terms.total.detach(), terms.ce, terms.kd])
    return (
        terms.total,
        sums,
        torch.stack([one.to(sums.dtype) for one in (right, agreed, terms.refined, terms.unranked)]),
    )


@torch.no_grad()
def _update_moving_average(share: float, averaged: Sequence[Tensor], current: Sequence[Tensor]) -> None:
    """Update a moving average in a few kernels for all tensors; integer tensors are copied."""
    has_mean = [mean.is_floating_point() or mean.is_complex() for mean in averaged]
    means, counts = (
        [pair for pair, floats in zip(zip(averaged, current, strict=True), has_mean, strict=True) if floats is wanted]
        for wanted in (True, False)
    )
    if means:
        torch._foreach_lerp_([mean for mean, _ in means], [now for _, now in means], share)
    if counts:
        torch._foreach_copy_([mean for mean, _ in counts], [now for _, now in counts])
