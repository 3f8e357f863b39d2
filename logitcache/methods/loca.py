"""Logit calibration (LoCa).

LoCa: Logit Calibration for Knowledge Distillation. ECAI 2024. https://arxiv.org/abs/2409.04778
"""

import math

import torch

from logitcache.methods._ops import Fraction, Labels, Logits, Positive, Rest, misclassified

__all__ = ["loca"]


def loca(
    teacher: Logits,
    labels: Labels,
    rest: Rest = None,
    *,
    alpha: Fraction = 0.95,
    calibration_temperature: Positive = 4.0,
) -> Logits:
    """Lift the label of a row that the teacher gets wrong to the top, and keep the other classes' ratios.

        k = argmax p ≠ y,    s = alpha / (1 - p_y + p_k)
        p'_i = s p_i  (i ≠ y),    p'_y = 1 - s (1 - p_y)                          p = softmax(z / T)

    As an edit of one logit, in log space:

        z'_y = z_k + T log( (p_k + (1 - alpha) (1 - p_y)) / (alpha p_k) )         all other logits stay

    Rows that the teacher gets right stay as they are: the formula would take a p_y of 0.99 down to 0.41.

    Args:
        teacher: Scores of the teacher, [B, C].
        labels: True classes, [B].
        rest: Of further classes, none of which is the label or the largest: the log-sum-exp of their logits divided by a
            temperature, [B, 1]; None where there are none.
        alpha: How far towards the label, 0 to 1: near 1 it barely wins, near 0 it takes everything.
        calibration_temperature: T at which p is read; that of the divergence, where it has one number for all rows.

    Returns:
        Scores for the divergence, [B, C]; the label is the argmax of every row that was wrong.

    Doubts:
        There is no released code, and the full text could not be read. Unsure are alpha in each experiment (notes say
        0.9 to 1), whether p is taken at T (ours) or at 1 (`calibration_temperature=1`), and how cross-entropy is
        weighted (ours as KD). A third party applies the formula to every row, which destroys confident right ones.
    """
    temperature = calibration_temperature
    top = teacher.max(-1, keepdim=True).values / temperature  # z_k / T on a wrong row, [B, 1]
    others = (teacher / temperature).scatter(1, labels[:, None], -torch.inf).logsumexp(-1, keepdim=True)
    if rest is not None:
        others = torch.logaddexp(others, rest(temperature))
    lifted = torch.logaddexp(top, others + math.log1p(-alpha)) - math.log(alpha)
    edited = teacher.scatter(1, labels[:, None], lifted * temperature)
    return torch.where(misclassified(teacher, labels)[:, None], edited, teacher)
