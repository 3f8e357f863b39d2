"""Normalized logits (NormKD).

NormKD: Normalized Logits for Knowledge Distillation. 2023. https://arxiv.org/abs/2308.00520
"""

import torch
from torch import Tensor

from logitcache.methods._ops import Logits, Positive, center_and_std

__all__ = ["by_deviation"]


def by_deviation(student: Logits, teacher: Logits, *, base: Positive = 2.0) -> tuple[Tensor, Tensor]:
    """Return a temperature for each row of each network: the standard deviation of its logits, times `base`.

        T_z = base · std(z),   T_s = base · std(s)                                  unbiased, over classes
        NormKD = T_z² KL( softmax(z / T_z) || softmax(s / T_s) )                     gradient through std(s) too

    For each row this equals std(z)² times KD on z-scored logits (LSKD).

    Args:
        student: Student logits, [B, C].
        teacher: Teacher logits, [B, C].
        base: Factor T₀; a method with temperature "deviation" takes a number given as `temperature` for it.

    Returns:
        Temperatures of the student and of the teacher, [B, 1] each; a deviation of exactly 0 is replaced by 1e-7.
    """
    (_, s), (_, z) = center_and_std(student), center_and_std(teacher)
    return base * torch.where(s > 0, s, 1e-7), base * torch.where(z > 0, z, 1e-7)
