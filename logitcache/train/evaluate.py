"""How good is a network on labelled data."""

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

# Network, input, which outputs are rows -> their logits, [r, C] float32 each.
Predict = Callable[[nn.Module, Any, Tensor | None], Iterable[Tensor]]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured, in evaluation mode.

    Attributes:
        accuracy: Share of rows whose largest logit is the label's.
        loss: Mean cross-entropy in nats.
        ece: Expected calibration error, 15 bins of equal width (Guo et al., ICML 2017).
        rows: Row ids, [R] int64.
        predictions: Class of the largest logit of each row, [R] int64.
        top5: Share of rows whose label is among the five largest logits; None where there are five classes or fewer, or the data is
            not judged by its accuracy.
        others: What the kind of data is measured by besides, as `perplexity`.
    """

    accuracy: float
    loss: float
    ece: float
    rows: Ids
    predictions: NDArray[np.int64]
    top5: float | None
    others: Mapping[str, float] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Return what an epoch records."""
        top5 = {} if self.top5 is None else {"test_top5_accuracy": self.top5}
        return {"test_accuracy": self.accuracy, **top5, "test_loss": self.loss, "test_ece": self.ece, **self.others}


@dataclass(frozen=True, slots=True)
class Subject:
    """The data that a network is evaluated on.

    Attributes:
        samples: The labelled data.
        view: View that renders the samples.
        inputs: Preprocessing of the network.
        renderer: Renders the samples for this preprocessing.
        names: Names of networks that may have what belongs to the data, as a tokenizer.
        completer: Completes prompts of the samples; None completes none.
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
    """Run a network in evaluation mode; afterwards each of its modules has its own mode again.

    All processes of a training take part: each evaluates its share of the batches, and all return the same.

    Args:
        module: The network, on `device`.
        subject: The data.
        predict: Runs the network on a batch as training does (`Stepper.rows`).
        device: Device of the network.
        replicas: The processes that share the work.
        ids: Sample ids to evaluate on, ascending, [B]. Defaults to all that are not left out.
        teacher: Returns the teacher's logits of some rows, to compare the student with; None compares with labels alone.
        should_stop: Asked after every batch but the last, where one process evaluates: several would have to agree each time.

    Raises:
        InputError: The loss is no number.
        StoppedError: It was asked to stop.
    """
    samples, modality = subject.samples, modality_of(subject.samples)
    chosen = kept_of(samples) if ids is None else ids
    size = usual_batch(modality)
    batches = [chosen[start : start + size] for start in range(0, len(chosen), size)][replicas.rank :: replicas.world]
    ranked = modality.headline == ACCURACY.name and len(samples.classes) > _TOP
    # Loss; rows whose label is among the largest logits; of each bin, correct rows less their confidence.
    sums = torch.zeros(2 + _BINS, dtype=torch.float64, device=device)
    differences = torch.zeros(len(BESIDE), dtype=torch.float64, device=device)
    rows: list[Ids] = []
    predictions: list[Tensor] = []
    replicas.align(module)
    # Not in inference mode: a student may keep what it makes here, a table of positions say, for the next step.
    with evaluating(module), torch.no_grad():
        for batch in subject.renderer.batches(subject.view, batches):
            targets = modality.row_labels(samples, subject.view, batch.samples)
            mask, left, ids_left = batch.kept(targets, 0), targets.labels.to(device), targets.ids
            keep = None if mask is None else mask.to(device)
            for logits in predict(module, subject.inputs.on(batch.inputs[0], device), keep):
                labels, left = left[: len(logits)], left[len(logits) :]
                here, ids_left = ids_left[: len(logits)], ids_left[len(logits) :]
                if teacher is not None:
                    differences += compared(logits, teacher(here), labels)
                sums[0] += F.cross_entropy(logits, labels, reduction="sum").double()
                confidence, predicted = logits.softmax(1).max(1)
                gap = (predicted == labels).double() - confidence.double()
                if ranked:
                    sums[1] += logits.topk(_TOP).indices.eq(labels[:, None]).sum()
                sums[2:].index_add_(0, (confidence * _BINS).nan_to_num().long().clamp_max(_BINS - 1), gap)
                predictions.append(predicted)
            rows.append(targets.ids)
            if replicas.world == 1 and len(rows) < len(batches) and should_stop():
                raise StoppedError("the evaluation was stopped as asked")
    mine = (_joined(rows), _joined([one.cpu().numpy() for one in predictions]))
    found, said = (_joined(parts) for parts in zip(*replicas.gathered(mine), strict=True))
    order = np.argsort(found, kind="stable")
    found, said = found[order], said[order]
    sums, accuracy = replicas.summed(sums), float((said == samples.labels[found]).mean())
    loss, hits, ece = float(sums[0]), float(sums[1]), float(sums[2:].abs().sum())
    if not math.isfinite(loss):
        raise InputError(
            f"the loss of an evaluation is {loss}: the student's logits are no numbers, training has diverged. Lower --lr, or add "
            "--warmup-epochs."
        )
    top5 = hits / len(found) if ranked else None
    others = dict(measured_besides(modality, samples, loss / len(found), len(found), chosen, subject.names))
    if teacher is not None:
        others |= as_metrics(replicas.summed(differences), len(found))
    if subject.completer is not None:
        others |= subject.completer.measure(module, replicas, should_stop)
    return Evaluation(accuracy, loss / len(found), ece / len(found), found, said, top5, others)


def _joined(parts: Any) -> NDArray[np.int64]:
    return np.concatenate([np.empty(0, np.int64), *parts])
