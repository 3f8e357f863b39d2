"""Normalised logits (NormKD).

NormKD: Normalized Logits for Knowledge Distillation. 2023. https://arxiv.org/abs/2308.00520
"""

import torch
from torch import Tensor

from logitcache.methods._ops import Logits, Positive, center_and_std

__all__ = ["by_deviation"]


def by_deviation(student: Logits, teacher: Logits, *, base: Positive = 2.0) -> tuple[Tensor, Tensor]:
    """Give every row of each network a temperature of its own: the deviation of its logits, times a number.

        T_z = base · std(z),   T_s = base · std(s)                                  unbiased, over classes
        NormKD = T_z² KL( softmax(z / T_z) || softmax(s / T_s) )                     gradient through std(s) too

    Row by row this is std(z)² times KD on z-scored logits (LSKD).

    Args:
        student: Scores of the model being trained, [B, C].
        teacher: Scores of the teacher, [B, C].
        base: T₀; `temperature` where the method's temperature is by deviation.

    Returns:
        The temperatures of student and teacher, [B, 1] each; a deviation of exactly 0 counts as 1e-7.
    """
    (_, s), (_, z) = center_and_std(student), center_and_std(teacher)
    return base * torch.where(s > 0, s, 1e-7), base * torch.where(z > 0, z, 1e-7)
