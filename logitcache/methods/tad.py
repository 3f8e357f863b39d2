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
    """Weight the tail below the teacher's K largest classes relative to its mean mass over the sequence.

        KL(p || q) = D1 + alpha D2          exactly, alpha = 1 - Σ_K p
        D1  = KL over the K classes and the tail as one class         D2 = KL within the tail, both renormalized
        TAD = mean over rows of T² ( D1 + β / (mean of alpha over the row's sequence) · alpha · D2 )

    With β = mean alpha it is KL. The mean is over the rows of a sequence (for text, a context), so the rows of a sequence are coupled
    but sequences are not. If sequences are unknown, as for images, all rows of a batch are treated as one sequence.

    Args:
        student: Student logits, [B, C].
        teacher: Teacher logits, [B, C].
        labels: Not used.
        means: Mean of alpha over the sequence of each row, [B]. Defaults to the mean over the given rows.
        k: Number of largest classes K; limited to half the number of classes.
        beta: Weight of the tail in a row where its mass equals the sequence's mean.
        temperature: T, which divides both sets of logits; 1 in the paper.

    Returns:
        Mean loss over all rows, 0-dim.

    Departures:
        The paper averages over a sequence; if a batch has rows of several sequences, we weight all rows equally. The factor T² for T
        other than 1 is ours. Top-k rows are completed evenly (a bucket would move with the student and change which classes are the
        largest). If rows keep fewer than K logits, the K largest include completed ones.

    Doubts:
        The equations are from two public notes that quote the paper; we had no code.
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
    """Return alpha, the teacher's mass below its K largest classes, [B]; `tad` divides by its mean over the sequence."""
    del beta
    return _merge_rest(log_probs(teacher, temperature), _largest(teacher, k))[:, -1].exp()


def _largest(teacher: Logits, k: int) -> Tensor:
    """Return the K largest classes, [B, K]."""
    return teacher.topk(min(k, max(teacher.shape[1] // 2, 1)), 1).indices


def _merge_rest(log_p: Tensor, largest: Tensor) -> Tensor:
    """Return log probabilities of the K largest classes, followed by that of all others together, [B, K + 1]."""
    others = log_p.scatter(1, largest, -torch.inf).logsumexp(1, keepdim=True)
    return torch.cat([log_p.gather(1, largest), others], 1)
