"""The few operations that losses share. Log space throughout; `p` is the teacher's, `q` the student's."""

from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["Labels", "Logits", "PerSample", "binary_log_probs", "kl", "masked_kl", "standardize"]

Logits = Annotated[Tensor, "[B, C] float"]  # unnormalised scores, one row a sample
Labels = Annotated[Tensor, "[B] int64"]  # class index, 0 <= y < C
PerSample = Annotated[Tensor, "[B] float"]  # one loss value a sample


def kl(log_p: Tensor, log_q: Tensor) -> PerSample:
    """KL(p || q) over the last dimension, from log probabilities."""
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def masked_kl(teacher: Logits, student: Logits, keep: Tensor) -> PerSample:
    """KL between the two distributions over the kept classes alone, each renormalised there.

    Args:
        teacher: Scores, already divided by the temperature, [B, C].
        student: The same, [B, C].
        keep: Classes that take part, [B, C] bool.

    Returns:
        [B]; a row that keeps nothing costs 0 and has gradient 0.
    """
    some = keep.any(-1, keepdim=True)
    taking_part = (
        keep | ~some
    )  # a row that keeps nothing is computed over all classes, so that it stays finite, and dropped below
    log_p = F.log_softmax(teacher.masked_fill(~taking_part, -torch.inf), -1)
    log_q = F.log_softmax(student.masked_fill(~taking_part, -torch.inf), -1)
    log_ratio = torch.where(taking_part, log_p - log_q, 0)  # outside it is -inf - (-inf)
    value = (log_p.exp() * log_ratio).sum(-1)
    return torch.where(some.squeeze(-1), value, 0)


def binary_log_probs(scores: Logits, classes: Labels) -> Tensor:
    """Log of (p_c, 1 - p_c) for one class a row, [B, 2]; finite at any gap, where log(1 - softmax) is not."""
    chosen = scores.gather(1, classes[:, None])  # [B, 1]
    rest = scores.scatter(1, classes[:, None], -torch.inf).logsumexp(1, keepdim=True)  # [B, 1]
    return torch.cat([F.logsigmoid(chosen - rest), F.logsigmoid(rest - chosen)], 1)


def standardize(logits: Logits) -> Logits:
    """Z-score each row: unbiased deviation plus 1e-7, as LSKD's released code (Sun et al., CVPR 2024); a constant row gives zeros."""
    centred = logits - logits.mean(-1, keepdim=True)
    variance = centred.square().sum(-1, keepdim=True) / (logits.shape[-1] - 1)
    varies = variance > 0  # the root has no gradient at 0
    deviation = torch.where(varies, torch.where(varies, variance, 1).sqrt(), 0)
    return centred / (deviation + 1e-7)
