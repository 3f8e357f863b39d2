"""Refined logit distillation (RLD).

Sun, Wang, Zhu, Lin, Yang, Zhang, Ma: Knowledge Distillation with Refined Logits. ICCV 2025.
https://arxiv.org/abs/2408.07703
"""

import torch
from torch import Tensor

from logitcache.methods._ops import (
    Labels,
    Logits,
    PerSample,
    Positive,
    Temperature,
    binary_kl,
    masked_kl,
    split_class,
    squared,
)
from logitcache.methods.condensed import CondensedStudent, CondensedTeacher

__all__ = ["contradicts", "rld", "rld_condensed"]


def contradicts(teacher: Logits, labels: Labels) -> Tensor:
    """Return which rows rank another class at least as high as the label, so that RLD masks it, [B] bool."""
    return (teacher >= teacher.gather(1, labels[:, None])).sum(1) > 1


def rld(
    student: Logits,
    teacher: Logits,
    labels: Labels,
    order: Logits | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: Temperature = 4.0,
    confidence_temperature: Positive = 1.0,
) -> PerSample:
    """Learn the teacher's confidence and class relations, except where they contradict the label.

        SCD = τ₁² KL( (p_max, 1 - p_max) || (q_y, 1 - q_y) )    the teacher's confidence, assigned to the true class
        MCD = τ₂² KL( p̃ || q̃ )                                 over classes ranked below y by the teacher: M = {i : z_i >= z_y} is masked
        RLD = alpha · SCD + beta · MCD

    Args:
        student: Student logits, [B, C].
        teacher: Teacher logits, [B, C].
        labels: True class of each row, [B].
        order: Logits that rank the classes, [B, C]. Defaults to `teacher`. Pass them if the classes that a cache dropped are merged
            into a bucket: their logits in `teacher` then depend on the student and must not rank anything.
        alpha: Weight of SCD.
        beta: Weight of MCD; the paper uses 0.5 and 2 on ImageNet.
        temperature: τ₂, the temperature of MCD; 1 on ImageNet.
        confidence_temperature: τ₁, the temperature of SCD; 1 in the released configuration, equal to `temperature` under its flag
            --same-t (preset same-t).

    Returns:
        Loss of each row, [B]. Equals DKD if the teacher is always right and τ₁ = τ₂. If the teacher ranks the label last,
        every class is masked and MCD is 0.

    Departures:
        The released code forms log(1 - p) from a summed probability, which underflows in float32 at gaps of about
        104 τ. We use logsigmoid, which is equal wherever the release is finite.

    Doubts:
        It is unknown whether the published CIFAR-100 numbers use τ₁ = 1 or 4: the paper has a single τ, the released default
        is 1, and the example in its README sets 4. Z-scoring does not change the default of τ₁; the preset for it sets 2.
        The alpha and beta of each pair of networks are not in the release; a third-party note gives beta 4.
    """
    order = teacher if order is None else order
    p_gap, _, _ = split_class(teacher / confidence_temperature, order.argmax(-1))
    q_gap, _, _ = split_class(student / confidence_temperature, labels)
    scd = confidence_temperature**2 * binary_kl(p_gap, q_gap)
    drop = order >= order.gather(1, labels[:, None])
    mcd = squared(temperature) * masked_kl(teacher / temperature, student / temperature, drop)
    return alpha * scd + beta * mcd


def rld_condensed(
    student: CondensedStudent,
    teacher: CondensedTeacher,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    confidence_temperature: float = 1.0,
) -> PerSample:
    """Compute `rld` from condensed rows, [B]."""
    order = teacher.order
    p_gap, _, _ = split_class(teacher.scores(confidence_temperature), order[:, :-1].argmax(-1))
    q_gap, _, _ = split_class(student.scores(confidence_temperature), teacher.labels)
    scd = confidence_temperature**2 * binary_kl(p_gap, q_gap)
    drop = order >= order.gather(1, teacher.labels[:, None])
    scores = teacher.scores(temperature)
    mcd = masked_kl(scores, student.scores(temperature), drop)
    of_rest = (scores[:, -1] - scores.masked_fill(drop, -torch.inf).logsumexp(1)).exp().masked_fill(drop[:, -1], 0)
    return alpha * scd + beta * temperature**2 * (mcd + of_rest * teacher.rest_kl(student, temperature))
