"""Evaluation of a network on labelled data."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from logitcache.data import Ids, Inputs, Samples, View, kept_of, modality_of
from logitcache.data.optional import measured_besides, usual_batch
from logitcache.data.protocol import Renderer
from logitcache.encoding import AnyRows
from logitcache.errors import InputError, StoppedError
from logitcache.models import evaluating
from logitcache.runs.metrics import ACCURACY
from logitcache.train.beside import BESIDE, as_metrics, compared
from logitcache.train.completing import Completer
from logitcache.train.replicas import Replicas

__all__ = ["Evaluation", "Subject", "evaluate"]

_BINS = 15
_TOP = 5

# Function of a network, its input and the mask of outputs that are rows; yields their logits, [r, C] float32.
Predict = Callable[[nn.Module, Any, Tensor | None], Iterable[Tensor]]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Results of an evaluation.

    Attributes:
        accuracy: Fraction of rows whose predicted class is the label.
        loss: Mean cross-entropy in nats.
        ece: Expected calibration error, 15 bins of equal width (Guo et al., ICML 2017).
        rows: Row ids, [R] int64.
        predictions: Predicted class of each row, [R] int64.
        top5: Fraction of rows whose label is among the five largest logits; None if there are five classes or fewer, or accuracy is not
            the headline metric of the data.
        others: Further metrics of the modality, such as `perplexity`.
    """

    accuracy: float
    loss: float
    ece: float
    rows: Ids
    predictions: NDArray[np.int64]
    top5: float | None
    others: Mapping[str, float] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Return the metrics of an epoch."""
        top5 = {} if self.top5 is None else {"test_top5_accuracy": self.top5}
        return {"test_accuracy": self.accuracy, **top5, "test_loss": self.loss, "test_ece": self.ece, **self.others}


@dataclass(frozen=True, slots=True)
class Subject:
    """The data that a network is evaluated on.

    Attributes:
        samples: Labelled data.
        view: View to render.
        inputs: Preprocessing of the network.
        renderer: Renderer of the samples for this preprocessing.
        names: Names of networks that may come with files the modality needs, such as a tokenizer.
        completer: Completer of the samples' prompts, or None.
    """

    samples: Samples
    view: View
    inputs: Inputs
    renderer: Renderer
    names: Sequence[str] = ()
    completer: Completer | None = None


def evaluate(
    module: nn.Module,
    subject: Subject,
    predict: Predict,
    device: torch.device,
    replicas: Replicas,
    *,
    ids: Ids | None = None,
    teacher: Callable[[Ids], AnyRows] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Evaluation:
    """Evaluate a network in evaluation mode, and restore the mode of each of its modules afterwards.

    All processes of a training must call this. Each evaluates its share of the batches, and all return the same result.

    Args:
        module: Network, on `device`.
        subject: Data to evaluate on.
        predict: Function that runs the network on a batch as in training (`Stepper.rows`).
        device: Device of the network.
        replicas: Processes that share the work.
        ids: Sample ids to evaluate on, ascending, [B]. Defaults to all that are not excluded.
        teacher: Function that returns the teacher's logits of rows, to compare the student with, or None.
        should_stop: Function that returns whether to stop, called after every batch except the last. Not called if there are several
            processes, because they would have to agree each time.

    Raises:
        InputError: If the loss is not finite.
        StoppedError: If `should_stop` returned True.
    """
    samples, modality = subject.samples, modality_of(subject.samples)
    chosen = kept_of(samples) if ids is None else ids
    size = usual_batch(modality)
    batches = [chosen[start : start + size] for start in range(0, len(chosen), size)][replicas.rank :: replicas.world]
    ranked = modality.headline == ACCURACY.name and len(samples.classes) > _TOP
    sums = _Sums(device, teacher, ranked=ranked)
    rows: list[Ids] = []
    predictions: list[Tensor] = []
    replicas.align(module)
    # Not in inference mode: a student may cache tensors that it creates here, such as a table of positions, for the next step.
    with evaluating(module), torch.no_grad():
        for batch in subject.renderer.batches(subject.view, batches):
            targets = modality.row_labels(samples, subject.view, batch.samples)
            mask, all_labels = batch.kept(targets, 0), targets.labels.to(device)
            keep = None if mask is None else mask.to(device)
            # Allocated before the logits: what is kept between large matrices fragments the memory in which they alternate.
            predictions.append(torch.empty_like(all_labels))
            first = 0
            for logits in predict(module, subject.inputs.on(batch.inputs[0], device), keep):
                here = slice(first, first + len(logits))
                predictions[-1][here] = sums.add(logits, all_labels[here], targets.ids[here])
                first = here.stop
            rows.append(targets.ids)
            if replicas.world == 1 and len(rows) < len(batches) and should_stop():
                raise StoppedError("the evaluation was stopped on request")
    mine = (_joined(rows), _joined([one.cpu().numpy() for one in predictions]))
    found, said = (_joined(parts) for parts in zip(*replicas.gathered(mine), strict=True))
    order = np.argsort(found, kind="stable")
    found, said = found[order], said[order]
    accuracy = float((said == samples.labels[found]).mean())
    loss, top5, ece, beside = sums.means(replicas, len(found))
    if not math.isfinite(loss):
        raise InputError(
            f"the loss of an evaluation is {loss}, so training has diverged. Lower --lr, or add --warmup-epochs."
        )
    others = {**measured_besides(modality, samples, loss, len(found), chosen, subject.names), **beside}
    if subject.completer is not None:
        others |= subject.completer.measure(module, replicas, should_stop)
    return Evaluation(accuracy, loss, ece, found, said, top5, others)


class _Sums:
    """Metrics of an evaluation, summed over rows on the device."""

    def __init__(self, device: torch.device, teacher: Callable[[Ids], AnyRows] | None, *, ranked: bool) -> None:
        """Begin with no rows.

        Args:
            device: Device of the network.
            teacher: Function that returns the teacher's logits of rows, or None.
            ranked: Whether to count rows whose label is among the largest logits.
        """
        self._teacher, self._ranked = teacher, ranked
        # Loss; number of rows whose label is among the largest logits; correct rows minus confidence in each bin.
        self._sums = torch.zeros(2 + _BINS, dtype=torch.float64, device=device)
        self._beside = torch.zeros(len(BESIDE), dtype=torch.float64, device=device)

    def add(self, logits: Tensor, labels: Tensor, rows: Ids) -> Tensor:
        """Add rows, and return the predicted class of each, [r] int64.

        Args:
            logits: Logits of the network, [r, C].
            labels: Class of each row, [r] int64.
            rows: Row ids, [r].
        """
        if self._teacher is not None:
            self._beside += compared(logits, self._teacher(rows), labels)
        self._sums[0] += F.cross_entropy(logits, labels, reduction="sum").double()
        confidence, predicted = logits.softmax(1).max(1)
        gap = (predicted == labels).double() - confidence.double()
        if self._ranked:
            self._sums[1] += logits.topk(_TOP).indices.eq(labels[:, None]).sum()
        self._sums[2:].index_add_(0, (confidence * _BINS).nan_to_num().long().clamp_max(_BINS - 1), gap)
        return predicted

    def means(self, replicas: Replicas, rows: int) -> tuple[float, float | None, float, Mapping[str, float]]:
        """Return the loss, the share of `ranked` rows, the calibration error, and the comparison with the teacher.

        Args:
            replicas: Processes whose sums are added.
            rows: Number of rows of all processes.
        """
        sums = replicas.summed(self._sums)
        loss, hits, ece = (float(one) / rows for one in (sums[0], sums[1], sums[2:].abs().sum()))
        beside = {} if self._teacher is None else as_metrics(replicas.summed(self._beside), rows)
        return loss, hits if self._ranked else None, ece, beside


def _joined(parts: Any) -> NDArray[np.int64]:
    return np.concatenate([np.empty(0, np.int64), *parts])
