"""What losses share: types, and the few operations on scores. Log space throughout; `p` is the teacher's, `q` the student's."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "Fraction",
    "Interval",
    "Labels",
    "Logits",
    "PerSample",
    "Positive",
    "PositiveInt",
    "Rest",
    "Temperature",
    "binary_kl",
    "center_and_std",
    "gram_distance",
    "kl",
    "log_probs",
    "masked_kl",
    "misclassified",
    "mix",
    "split_class",
    "squared",
    "upcast",
]


@dataclass(frozen=True, slots=True)
class Interval:
    """The values a number may take, ends excluded."""

    low: float = -math.inf
    high: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.low < value < self.high

    def __str__(self) -> str:
        if self.high < math.inf:
            return f"between {self.low:g} and {self.high:g}"
        return f"greater than {self.low:g}"


Logits = Annotated[Tensor, "[B, C] float"]  # unnormalised scores, one row a sample
Labels = Annotated[Tensor, "[B] int64"]  # class index, 0 <= y < C
PerSample = Annotated[Tensor, "[B] float"]  # one loss value a sample
Coupled = Annotated[Tensor, "0-dim float"]  # one loss value a batch: rows see each other
Positive = Annotated[float, Interval(0)]
Fraction = Annotated[float, Interval(0, 1)]
PositiveInt = Annotated[int, Interval(0)]
Rest = Callable[[float], Tensor] | None  # log-sum-exp of further classes' logits divided by a temperature, [B, 1]
Temperature = Annotated[float | Tensor, Interval(0)]  # one number, or one a row, [B, 1]


def upcast(logits: Tensor) -> Tensor:
    """Return logits in float32 or wider: half precision is not computed on."""
    return logits if logits.dtype.itemsize >= 4 else logits.float()


def squared(temperature: Temperature) -> float | Tensor:
    """T², a number or [B]: what keeps the size of a gradient (Hinton et al., 2014, Section 2)."""
    return temperature.squeeze(-1) ** 2 if isinstance(temperature, Tensor) else temperature**2


def log_probs(logits: Logits, temperature: Temperature) -> Logits:
    """Log softmax(v / T), [B, C]."""
    return F.log_softmax(logits / temperature, -1)


def kl(log_p: Tensor, log_q: Tensor) -> PerSample:
    """KL(p || q) over the last dimension, from log probabilities."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def mix(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """log(share · p + (1 - share) · q), element by element."""
    return torch.logaddexp(log_p + math.log(share), log_q + math.log1p(-share))


def misclassified(teacher: Logits, labels: Labels) -> Tensor:
    """Which rows rank another class first (the papers' mis-instruction), [B] bool."""
    return teacher.argmax(-1) != labels


def masked_kl(teacher: Logits, student: Logits, drop: Tensor) -> PerSample:
    """KL between the two distributions over the classes that are not dropped, each renormalised there.

    Args:
        teacher: Scores, already divided by the temperature, [B, C].
        student: The same, [B, C].
        drop: Classes that take no part, [B, C] bool.

    Returns:
        [B]; a row that keeps nothing costs 0 and has gradient 0.
    """
    empty = drop.all(-1, keepdim=True)
    out = drop & ~empty  # a row that keeps nothing is computed over all classes, to stay finite, and dropped below
    log_p = F.log_softmax(teacher.masked_fill(out, -torch.inf), -1)
    log_q = F.log_softmax(student.masked_fill(out, -torch.inf), -1)
    log_ratio = (log_p - log_q).masked_fill(out, 0)  # there it is -inf - (-inf)
    return (log_p.exp() * log_ratio).sum(-1).masked_fill(empty.squeeze(-1), 0)


def split_class(scores: Logits, classes: Labels) -> tuple[Tensor, Logits, Tensor]:
    """Part a row into one class and the rest.

    Returns:
        The score of the class above the log-sum-exp of the rest, [B]: log p / (1 - p), finite at any gap, where
        log(1 - softmax) is not; the scores with minus infinity at the class, [B, C]; their log-sum-exp, [B, 1].
    """
    others = scores.scatter(1, classes[:, None], -torch.inf)
    rest = others.logsumexp(1, keepdim=True)
    return (scores.gather(1, classes[:, None]) - rest).squeeze(1), others, rest


def binary_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL between (p, 1 - p) and (q, 1 - q), element by element, from log p / (1 - p) of both."""
    first = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    return first + (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))


def center_and_std(logits: Logits) -> tuple[Logits, Tensor]:
    """Rows less their mean, [B, C], and their unbiased standard deviation, [B, 1]; 0, with gradient 0, where a row is constant."""
    centred = logits - logits.mean(-1, keepdim=True)
    variance = centred.square().sum(-1, keepdim=True) / (logits.shape[-1] - 1)
    varies = variance > 0  # the root has no gradient at 0
    return centred, torch.where(varies, torch.where(varies, variance, 1).sqrt(), 0)


def gram_distance(one: Tensor, other: Tensor) -> Tensor:
    """‖AᵀA - BᵀB‖²_F of two [n, m] matrices, 0-dim, without forming more than min(n, m)² entries.

    With D = A - B and S = A + B, AᵀA - BᵀB = (DᵀS + SᵀD) / 2, whose squared norm is (⟨DDᵀ, SSᵀ⟩ + ⟨SDᵀ, DSᵀ⟩) / 2:
    three n by n products, and no small difference of large numbers. 32,000 classes would otherwise want a matrix of 4 GB.
    """
    n, m = one.shape
    if m <= n:
        return (one.T @ one - other.T @ other).square().sum()
    difference, total = one - other, one + other
    cross = difference @ total.T
    return ((difference @ difference.T) * (total @ total.T)).sum() / 2 + (cross * cross.T).sum() / 2
