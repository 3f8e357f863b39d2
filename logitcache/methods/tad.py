"""Tail-aware distillation (TAD).

Don't Ignore the Tail: Decoupling top-K Probabilities for Efficient Language Model Distillation. ICML 2026.
https://arxiv.org/abs/2602.20816
"""

import torch
from torch import Tensor

from logitcache.methods._ops import (
    Coupled,
    Labels,
    Logits,
    PerSample,
    Positive,
    PositiveInt,
    Temperature,
    kl,
    log_probs,
    masked_kl,
    squared,
)

__all__ = ["tad", "tail_mass"]


def tad(
    student: Logits,
    teacher: Logits,
    labels: Labels,
    means: Tensor | None = None,
    *,
    k: PositiveInt = 10,
    beta: Positive = 2.0,
    temperature: Temperature = 1.0,
) -> Coupled:
    """Weigh what is below the teacher's K largest classes by its share of the sequence, instead of by its mass alone.

        KL(p || q) = D1 + alpha D2          exactly, alpha = 1 - Σ_K p
        D1  = KL over the K classes and one for all others            D2 = KL among the others, both renormalised there
        TAD = mean over rows of T² ( D1 + β / (mean of alpha over the row's sequence) · alpha · D2 )

    With β = mean alpha it is KL. The mean is over the rows of a sequence (of text: of a context), so these rows couple; sequences do not.
    Where nothing says which rows are a sequence, as for images, all rows of a batch are one.

    Args:
        student: Scores of the model being trained, [B, C].
        teacher: Scores of the teacher, [B, C].
        labels: Not used.
        means: Mean of alpha over the sequence of each row, [B]; None: over these rows.
        k: K; where there are fewer than 2 K classes, half of them.
        beta: Weight of the tail, where its mass is that of the sequence's mean.
        temperature: T, 1 in the paper.

    Returns:
        0-dim: the mean over rows, whatever their sequence.

    Departures:
        The paper has the mean over a sequence; with rows of several sequences at once, all rows weigh the same. T² is ours, for T other
        than 1. Top-k rows are completed evenly below what they keep (a bucket would move with the student, and change which classes are
        the largest); of rows that keep fewer than K logits, K takes some of the completed.

    Doubts:
        Equations from two public notes that quote the paper; no code was at hand.
    """
    del labels
    largest = _largest(teacher, k)
    p, q = (_merge_rest(log_probs(one, temperature), largest) for one in (teacher, student))
    mass = p[:, -1].exp()
    means = mass.mean() if means is None else means
    share = torch.where(means > 0, mass / torch.where(means > 0, means, 1), 0)
    among = torch.zeros_like(teacher, dtype=torch.bool).scatter(1, largest, True)
    within = masked_kl(teacher / temperature, student / temperature, among)
    return (squared(temperature) * (kl(p, q) + beta * share * within)).mean()


def tail_mass(teacher: Logits, *, k: int = 10, beta: float = 2.0, temperature: Temperature = 1.0) -> PerSample:
    """Return alpha, the teacher's mass below its K largest classes, [B]; `tad` divides by its mean over a sequence."""
    del beta
    return _merge_rest(log_probs(teacher, temperature), _largest(teacher, k))[:, -1].exp()


def _largest(teacher: Logits, k: int) -> Tensor:
    """Return the K largest classes, [B, K]."""
    return teacher.topk(min(k, max(teacher.shape[1] // 2, 1)), 1).indices


def _merge_rest(log_p: Tensor, largest: Tensor) -> Tensor:
    """Return log probabilities of the K largest classes and, last, of all others together, [B, K + 1]."""
    others = log_p.scatter(1, largest, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([log_p.gather(1, largest), others], 1)
