"""Types and tensor operations shared by the losses.

Everything is computed in log space. `p` is the teacher's distribution and `q` the student's.
"""

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
    """Open interval of allowed values for a numeric parameter."""

    low: float = -math.inf
    high: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.low < value < self.high

    def __str__(self) -> str:
        if self.high < math.inf:
            return f"between {self.low:g} and {self.high:g}"
        return f"greater than {self.low:g}"


Logits = Annotated[Tensor, "[B, C] float"]  # unnormalized scores, one row per sample
Labels = Annotated[Tensor, "[B] int64"]  # class index, 0 <= y < C
PerSample = Annotated[Tensor, "[B] float"]  # one loss value per sample
Coupled = Annotated[Tensor, "0-dim float"]  # one loss value per batch: its rows are coupled
Positive = Annotated[float, Interval(0)]
Fraction = Annotated[float, Interval(0, 1)]
PositiveInt = Annotated[int, Interval(0)]
Rest = (
    Callable[[float], Tensor] | None
)  # temperature -> logsumexp(logits of the remaining classes / temperature), [B, 1]
Temperature = Annotated[float | Tensor, Interval(0)]  # a number, or one temperature per row, [B, 1]


def upcast(logits: Tensor) -> Tensor:
    """Return logits in float32 or wider; losses are never computed in half precision."""
    return logits if logits.dtype.itemsize >= 4 else logits.float()


def squared(temperature: Temperature) -> float | Tensor:
    """Return T², a number or [B], which keeps gradients independent of T (Hinton et al., 2014, Section 2)."""
    return temperature.squeeze(-1) ** 2 if isinstance(temperature, Tensor) else temperature**2


def log_probs(logits: Logits, temperature: Temperature) -> Logits:
    """Return log softmax(logits / T), [B, C]."""
    return F.log_softmax(logits / temperature, -1)


def kl(log_p: Tensor, log_q: Tensor) -> PerSample:
    """Return KL(p || q) over the last dimension, from log probabilities."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def mix(log_p: Tensor, log_q: Tensor, share: float) -> Tensor:
    """Return log(share · p + (1 - share) · q), elementwise."""
    return torch.logaddexp(log_p + math.log(share), log_q + math.log1p(-share))


def misclassified(teacher: Logits, labels: Labels) -> Tensor:
    """Return which rows the teacher misclassifies (the papers' mis-instruction), [B] bool."""
    return teacher.argmax(-1) != labels


def masked_kl(teacher: Logits, student: Logits, drop: Tensor) -> PerSample:
    """Return KL(p || q) over the classes that are not dropped, with both distributions renormalized over them.

    Args:
        teacher: Teacher logits divided by the temperature, [B, C].
        student: Student logits divided by the temperature, [B, C].
        drop: Classes to leave out of each row, [B, C] bool.

    Returns:
        Divergence of each row, [B]. A row that drops every class has value 0 and gradient 0.
    """
    empty = drop.all(-1, keepdim=True)
    out = drop & ~empty  # empty rows are computed over all classes, to stay finite, and zeroed below
    log_p = F.log_softmax(teacher.masked_fill(out, -torch.inf), -1)
    log_q = F.log_softmax(student.masked_fill(out, -torch.inf), -1)
    log_ratio = (log_p - log_q).masked_fill(out, 0)  # -inf - (-inf) there
    return (log_p.exp() * log_ratio).sum(-1).masked_fill(empty.squeeze(-1), 0)


def split_class(scores: Logits, classes: Labels) -> tuple[Tensor, Logits, Tensor]:
    """Split each row into one class and the rest.

    Args:
        scores: Logits, [B, C].
        classes: Class to split off each row, [B] int64.

    Returns:
        Log-odds of the class, log(p / (1 - p)), [B], which stay finite for every gap (log(1 - softmax) does not); the
        scores with -inf at the class, [B, C]; and the log-sum-exp of the rest, [B, 1].
    """
    others = scores.scatter(1, classes[:, None], -torch.inf)
    rest = others.logsumexp(1, keepdim=True)
    return (scores.gather(1, classes[:, None]) - rest).squeeze(1), others, rest


def binary_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """Return KL between (p, 1 - p) and (q, 1 - q), elementwise, from the log-odds of both."""
    first = teacher.sigmoid() * (F.logsigmoid(teacher) - F.logsigmoid(student))
    return first + (-teacher).sigmoid() * (F.logsigmoid(-teacher) - F.logsigmoid(-student))


def center_and_std(logits: Logits) -> tuple[Logits, Tensor]:
    """Return mean-centered rows, [B, C], and their unbiased standard deviation, [B, 1]; 0 with gradient 0 for a constant row."""
    centred = logits - logits.mean(-1, keepdim=True)
    variance = centred.square().sum(-1, keepdim=True) / (logits.shape[-1] - 1)
    varies = variance > 0  # the square root has no gradient at 0
    return centred, torch.where(varies, torch.where(varies, variance, 1).sqrt(), 0)


def gram_distance(one: Tensor, other: Tensor) -> Tensor:
    """Return ‖AᵀA - BᵀB‖²_F of two [n, m] matrices, 0-dim, with intermediates of at most min(n, m)² entries.

    With D = A - B and S = A + B, AᵀA - BᵀB = (DᵀS + SᵀD) / 2, whose squared norm is (⟨DDᵀ, SSᵀ⟩ + ⟨SDᵀ, DSᵀ⟩) / 2.
    This takes three n by n products and avoids cancellation. Formed directly, the matrix of 32,000 classes takes 4 GB.
    """
    n, m = one.shape
    if m <= n:
        return (one.T @ one - other.T @ other).square().sum()
    difference, total = one - other, one + other
    cross = difference @ total.T
    return ((difference @ difference.T) * (total @ total.T)).sum() / 2 + (cross * cross.T).sum() / 2
