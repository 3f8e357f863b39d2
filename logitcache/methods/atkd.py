"""Adaptive temperature (ATKD).

Adaptive Temperature Based on Logits Correlation in Knowledge Distillation. 2025. https://arxiv.org/abs/2503.09030
"""

import math
from typing import Literal

from torch import Tensor

from logitcache.methods._ops import Logits

__all__ = ["adaptive"]

_FACTOR = (1 + math.sqrt(3)) / 2  # the smallest for which |x + x²/2| <= 1 for every x = logit / T


def adaptive(student: Logits, teacher: Logits, *, source: Literal["both", "teacher"] = "both") -> tuple[Tensor, Tensor]:
    """Give every row a temperature: its largest logit, times 1.366.

        T = (1 + √3)/2 · max_i max(|ŝ_i|, |ẑ_i|)                  no gradient; one T a row, for both networks
        ATKD = T² KL( softmax(ẑ / T) || softmax(ŝ / T) )           ŝ, ẑ z-scored over classes

    It comes with z-scored logits, as in the released code.

    Args:
        student: Scores of the model being trained, z-scored, [B, C].
        teacher: Scores of the teacher, z-scored, [B, C].
        source: Whose largest absolute logit counts: `both`, as released; or `teacher`, as the abstract says.

    Returns:
        The temperatures of student and teacher, [B, 1] each.

    Doubts:
        Abstract and summary speak of the teacher's largest logit alone, the released code takes both networks'. On
        CIFAR-100 (ResNet-56 to ResNet-20) the student decides on 3.5 % of training rows. Result tables were not read.
    """
    largest = teacher.detach().abs().amax(-1, keepdim=True)
    if source == "both":
        largest = largest.maximum(student.detach().abs().amax(-1, keepdim=True))
    temperature = _FACTOR * largest.clamp_min(1e-7)  # a constant row is all zeros
    return temperature, temperature
