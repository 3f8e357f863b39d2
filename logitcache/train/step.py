"""One step of a training: forward and backward over the micro-batches of a batch, then the optimizer.

A batch's gradient is that of the mean over its rows, however it is divided: each part counts by its share of the rows. (A method
that couples the rows of a batch couples those of a part.)
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
# Rows of whose logits the pull of each term is measured, and numbers of these logits, at most, where those of all rows never exist.
_MEASURED_ROWS, _MEASURED = 256, 1 << 22

SUMS = ("loss", "ce", "kd", "train_accuracy", "teacher_agreement", "refined_rows", "unranked_rows")


class MicroBatch(NamedTuple):
    """A part of a batch in one view; everything is on the student's device.

    Attributes:
        inputs: The student's input: a tensor, or a mapping of tensors; for images [B, 3, H, W] float32.
        keep: Mask of the student's outputs that are rows (`Rendition.kept`).
        labels: Class of each row, [R] int64.
        second: Second labels of mixed rows.
        teacher: The teacher's logits, or None.
        weight_rows: Rows to include in the loss; 0 on ranks that only join the collective.
        sequences: Number of the sample of each row, [R] int64, for methods that couple the rows of one; None: all rows are of one.
    """

    inputs: Any
    keep: Tensor | None
    labels: Tensor
    second: SecondLabels | None
    teacher: AnyRows | None
    weight_rows: int
    sequences: Tensor | None = None


class Stepper:
    """A student, its optimizer, and all that changes from step to step."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        settings: TrainSettings,
        device: torch.device,
        replicas: Replicas,
        samples: Samples,
        *,
        capturable: bool = False,
    ) -> None:
        """Prepare a student for training.

        Args:
            model: On `device`.
            objective: What is minimised.
            settings: Those of `train_student`.
            device: Where it trains.
            replicas: The processes that train it together.
            samples: The training data; its modality says which of the student's outputs are rows.
            capturable: Whether steps are to be captured as a CUDA graph, so that none may ask the host for anything.
        """
        self.model, self._objective, self._device = model, objective, device
        self._weights_dtype = float_dtype(model)
        self._modality, self._classes = modality_of(samples), len(samples.classes)
        self._optimizer = make_optimizer(model, settings, capturable=capturable)
        self._optimizer.zero_grad(set_to_none=True)  # a module may come with gradients of another use
        self._clip = settings.clip_grad
        decay = settings.model_ema_decay
        self.average, self._averages = None, False  # whether the average has begun, with the weights after a first step
        if decay:
            self.average = AveragedModel(model, use_buffers=True)
            self._share = 1 - decay
        self._dtype = {"bfloat16": torch.bfloat16, "float16": torch.float16}[settings.amp_dtype]
        self._autocast = settings.amp
        scaled = self._autocast and self._dtype is torch.float16
        self._scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        # The rate of a step that is captured; others set a number, which the host reads.
        self._rate: Tensor | None = None
        if capturable and is_capturable(self._optimizer, scaled=scaled):
            self._rate = torch.zeros((), dtype=torch.float32, device=device)
        if settings.channels_last:
            model.to(memory_format=torch.channels_last)
        self._channels_last = settings.channels_last
        self._replicas, self._replicated = replicas, replicas.replicate(model, device)
        self._run: Callable[..., Any] = self._replicated
        self.norms: dict[str, float] | None = None  # of the gradients of the first batch, see Objective.gradient_norms
        if settings.compiled:
            self._run = compile_function(self._replicated, "the student")
            if objective.loss:
                translated = compile_function(objective.loss.__call__, "the loss")
                self._objective = replace(objective, translated=translated)

    @property
    def couples_sequences(self) -> bool:
        """Whether the method couples the rows of a sequence, so that it must know them."""
        return self._objective.loss is not None and self._objective.loss.of_sequence is not None

    @property
    def is_capturable(self) -> bool:
        """Whether a step asks the host for nothing, so far as the optimizer is concerned."""
        return self._rate is not None

    def constants(self, progress: float) -> Hashable:
        """Return the numbers of the objective that are the same in every step of an epoch, and perhaps others in the next."""
        switches = self._objective.switches(progress)
        return self._objective.weight_of_kd(progress), tuple(sorted(switches.items()))

    def step(self, parts: Sequence[Sequence[MicroBatch]], rows: int, rate: float | Tensor, progress: float) -> Tensor:
        """Take a step on a batch. From the second on it asks the host for nothing where `is_capturable`.

        Args:
            parts: This process's shares of the micro-batches, each in one view or in those of a pair, over which the objective is
                summed.
            rows: Of the whole batch.
            rate: Learning rate; a 0-dim tensor on the device where steps are captured.
            progress: Share of the epochs that will be over when this one is.

        Returns:
            What `SUMS` names, summed over this process's rows (averaged over views, where it is a share), float64 on the device.
        """
        sums = torch.zeros(len(SUMS), dtype=torch.float64, device=self._device)
        for number, part in enumerate(parts):
            count = part[0].weight_rows
            with self._no_sync() if number + 1 < len(parts) else contextlib.nullcontext():
                found = [self._forward(batch, progress) for batch in part]
                total = functools.reduce(torch.add, [total for total, _, _ in found])
                share = count * self._replicas.world / rows  # gradients are averaged over processes
                scaled: Tensor = self._scaler.scale(total if share == 1 else total * share)
                if not scaled.requires_grad:
                    raise InputError(
                        "the loss does not depend on the student's parameters: what the student returns has no gradient (detached, or "
                        "integers). Let it return the logits as its layers give them."
                    )
                torch.autograd.backward(scaled)
            if not count:  # means over no rows are no numbers
                continue
            summed = torch.stack([terms for _, terms, _ in found]).sum(0)
            averaged = torch.stack([shares for _, _, shares in found]).mean(0)
            sums += torch.cat([summed, averaged]).double() * count
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
        """Move the running mean of the weights; it begins with those after the first step."""
        if self.average is None:
            return
        if not self._averages:
            self.average.update_parameters(self.model)
            self._averages = True
            return
        with torch.no_grad():
            means, now = ([*one.parameters(), *one.buffers()] for one in (self.average.module, self.model))
            _towards(self._share, means, now)

    def forget(self) -> None:
        """Forget a step that was begun and not taken: its gradients, and what the scaler found in them."""
        self._optimizer.zero_grad(set_to_none=True)
        if self._scaler.is_enabled():
            state = self._scaler.state_dict()
            self._scaler = torch.amp.GradScaler(self._device.type)
            self._scaler.load_state_dict(state)

    def _no_sync(self) -> contextlib.AbstractContextManager[None]:
        """Keep gradients local: the last micro-batch of a batch averages the sum of all over the processes."""
        if isinstance(self._replicated, DistributedDataParallel):
            return self._replicated.no_sync()
        return contextlib.nullcontext()

    def rows(self, network: Callable[..., Any], inputs: Any, keep: Tensor | None) -> Iterator[Tensor]:
        """Run a student, this one or its running mean, as training runs it: with its autocast and memory format.

        Args:
            network: The student.
            inputs: The student's input, on the device.
            keep: Mask of the outputs that are rows.

        Yields:
            The logits of some rows, in order, [r, C] float32: of all, or where they are many of a few hundred at a time.

        Raises:
            InputError: The student returns no logits.
        """
        yield from self._logits(self._answer(network, inputs), keep)

    def _logits(self, output: Any, keep: Tensor | None) -> Iterator[Tensor]:
        """Yield the logits of what a network answered, as `rows`."""
        chunks = iter(self._modality.rows(output, keep, classes=self._classes, label=_STUDENT))
        while True:
            with self._precision():
                chunk = next(chunks, None)
            if chunk is None:
                return
            if chunk.shape[1] != self._classes:
                raise InputError(
                    f"the student must return logits [B, {self._classes}], one for each class of the data, found a tensor "
                    f"{list(chunk.shape)}: give it as many outputs, or let it return its logits first"
                )
            yield chunk.float()

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        """Compute under the training's autocast."""
        return torch.autocast(self._device.type, self._dtype, enabled=self._autocast)

    def _answer(self, network: Callable[..., Any], inputs: Any) -> Any:
        """Return what a network answers: logits, or hidden states and their head."""
        inputs = in_dtype(inputs, self._weights_dtype)
        with self._precision(), explain_forward_errors(_STUDENT, inputs):
            return answer_of(call_network(network, channels_last(inputs) if self._channels_last else inputs))

    def _forward(self, batch: MicroBatch, progress: float) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate the objective in one view: its value, its terms to be summed, and shares to be averaged, over views."""
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
        """Evaluate the objective from the hidden states of the rows, [R, H], as `_forward`, without the logits of all of them."""
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
        """Keep how strongly each term pulls on the logits of the first batch."""
        if self.norms is None:
            self.norms = self._objective.gradient_norms(logits, batch.teacher, batch.labels, progress, batch.second)

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
            self._averages = bool(self.average.n_averaged > 0)


def _summed(terms: Terms, right: Tensor, agreed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `Stepper._forward` returns."""
    sums = torch.stack([terms.total.detach(), terms.ce, terms.kd])
    return (
        terms.total,
        sums,
        torch.stack([one.to(sums.dtype) for one in (right, agreed, terms.refined, terms.unranked)]),
    )


@torch.no_grad()
def _towards(share: float, averaged: Sequence[Tensor], current: Sequence[Tensor]) -> None:
    """Move a running mean towards the current values, in a few kernels for all tensors; integers have no mean and are copied."""
    has_mean = [mean.is_floating_point() or mean.is_complex() for mean in averaged]
    means, counts = (
        [pair for pair, floats in zip(zip(averaged, current, strict=True), has_mean, strict=True) if floats is wanted]
        for wanted in (True, False)
    )
    if means:
        torch._foreach_lerp_([mean for mean, _ in means], [now for _, now in means], share)
    if counts:
        torch._foreach_copy_([mean for mean, _ in counts], [now for _, now in counts])
