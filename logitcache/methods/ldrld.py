"""Local dense relational logit distillation (LDRLD).

Local Dense Logit Relations for Enhanced Knowledge Distillation. ICCV 2025. https://arxiv.org/abs/2507.15911
"""

import torch
from torch import Tensor

from logitcache.methods._ops import (
    Labels,
    Logits,
    PerSample,
    PositiveInt,
    Temperature,
    binary_kl,
    kl,
    log_probs,
    masked_kl,
    squared,
)

__all__ = ["ldrld"]


def ldrld(
    student: Logits,
    teacher: Logits,
    labels: Labels,
    *,
    alpha: float = 10.5,
    beta: float = 7.0,
    depth: PositiveInt = 7,
    temperature: Temperature = 4.0,
) -> PerSample:
    """Match the student's top classes pairwise and together, and the remaining classes separately.

        w_ij  = 2 exp(-0.05 (i + j)) / (|i - j| + 1.5)                           i, j: ranks among the student's top d, from 1
        LOCAL = mean of KL( p_set || q_set ) over the d (d - 1) / 2 pairs, weighted by w_ij, and the set of all d, weight 1
        LDRLD = T² (alpha · LOCAL + beta · KL( p_rest || q_rest ))               each set is renormalized separately

    Args:
        student: Student logits, [B, C], which select the top classes.
        teacher: Teacher logits, [B, C].
        labels: Not used.
        alpha: Weight of the local terms.
        beta: Weight of the remaining classes.
        depth: Number of top classes d, at most C.
        temperature: T, which divides both sets of logits.

    Returns:
        Loss of each row, [B]; 0 if student and teacher logits differ by a constant.
    """
    del labels
    chosen = student.detach().topk(min(depth, student.shape[1]), -1).indices  # [B, d], largest first
    s, z = student / temperature, teacher / temperature
    first_s, first_z = s.gather(1, chosen), z.gather(1, chosen)
    i, j = torch.triu_indices(chosen.shape[1], chosen.shape[1], 1, device=student.device)  # [pairs], ranks from 0
    weight = 2 * torch.exp(-0.05 * (i + j + 2).to(s.dtype)) / ((j - i).to(s.dtype) + 1.5)
    of_pairs = binary_kl(first_z[:, i] - first_z[:, j], first_s[:, i] - first_s[:, j])  # [B, pairs]
    together = kl(log_probs(first_z, 1.0), log_probs(first_s, 1.0))
    local = ((weight * of_pairs).sum(-1) + together) / (len(i) + 1)
    drop = torch.zeros_like(student, dtype=torch.bool).scatter(1, chosen, True)
    value: Tensor = alpha * local + beta * masked_kl(z, s, drop)
    return squared(temperature) * value
