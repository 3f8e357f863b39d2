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
    """Raise the label to the top of rows that the teacher gets wrong, and keep the ratios of the other classes.

        k = argmax p ≠ y,    s = alpha / (1 - p_y + p_k)
        p'_i = s p_i  (i ≠ y),    p'_y = 1 - s (1 - p_y)                          p = softmax(z / T)

    In log space this edits a single logit:

        z'_y = z_k + T log( (p_k + (1 - alpha) (1 - p_y)) / (alpha p_k) )         other logits are unchanged

    Rows that the teacher gets right are unchanged: the formula would lower a p_y of 0.99 to 0.41.

    Args:
        teacher: Teacher logits, [B, C].
        labels: True class of each row, [B].
        rest: Function of a temperature that returns the log-sum-exp of further classes' logits divided by it, [B, 1], or None if
            there are no further classes. They must not include the label or the largest class.
        alpha: Strength of the edit, in (0, 1): near 1 the label barely wins, near 0 it gets all the probability.
        calibration_temperature: T at which p is computed. Defaults to the temperature of the divergence if that is one number.

    Returns:
        Edited logits, [B, C]; the label is the argmax of every row that was wrong.

    Doubts:
        There is no released code, and we could not read the full text. We are unsure about alpha in each experiment (notes
        say 0.9 to 1), whether p is computed at T (our choice) or at 1 (`calibration_temperature=1`), and how cross-entropy is
        weighted (ours is as in KD). A third party applies the formula to every row, which ruins rows that are confidently right.
    """
    temperature = calibration_temperature
    top = teacher.max(-1, keepdim=True).values / temperature  # z_k / T on wrong rows, [B, 1]
    others = (teacher / temperature).scatter(1, labels[:, None], -torch.inf).logsumexp(-1, keepdim=True)
    if rest is not None:
        others = torch.logaddexp(others, rest(temperature))
    lifted = torch.logaddexp(top, others + math.log1p(-alpha)) - math.log(alpha)
    edited = teacher.scatter(1, labels[:, None], lifted * temperature)
    return torch.where(misclassified(teacher, labels)[:, None], edited, teacher)
