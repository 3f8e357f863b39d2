"""Weighted soft labels (WSLD).

Zhou, Song, Chen, Zhou, Wang, Yuan, Zhang: Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff
Perspective. ICLR 2021. https://arxiv.org/abs/2102.00650
"""

import torch
from torch.nn import functional as F

from logitcache.methods._ops import Labels, Logits, PerSample, Temperature, log_probs, squared

__all__ = ["wsld"]


def wsld(
    student: Logits, teacher: Logits, labels: Labels, *, alpha: float = 2.5, temperature: Temperature = 2.0
) -> PerSample:
    """Weight each row's soft label by how far the student is behind the teacher on the true class.

        w = 1 - exp( -CE(s, y) / CE(z, y) )                            at T = 1, no gradient
        WSLD = alpha · T² · w · H(p, q)                                H is cross-entropy, with the entropy of p as its minimum

    Args:
        student: Student logits, [B, C].
        teacher: Teacher logits, [B, C].
        labels: True class of each row, [B].
        alpha: Weight of the loss.
        temperature: T of p and q.

    Returns:
        Loss of each row, [B].
    """
    ours = F.cross_entropy(student.detach(), labels, reduction="none")
    theirs = F.cross_entropy(teacher, labels, reduction="none")
    weight = -torch.expm1(-ours / (theirs + 1e-7))
    entropy = -(log_probs(teacher, temperature).exp() * log_probs(student, temperature)).sum(-1)
    return alpha * squared(temperature) * weight * entropy
