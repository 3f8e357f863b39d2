"""Decoupled knowledge distillation (DKD).

Zhao, Cui, Song, Qiu, Liang: Decoupled Knowledge Distillation. CVPR 2022.
https://arxiv.org/abs/2203.08679
"""

from logitcache.methods._ops import Labels, Logits, PerSample, Temperature, binary_kl, split_class, squared
from logitcache.methods.condensed import CondensedStudent, CondensedTeacher

__all__ = ["dkd", "dkd_condensed"]


def dkd(
    student: Logits,
    teacher: Logits,
    labels: Labels,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: Temperature = 4.0,
) -> PerSample:
    """Teach "is it the target?" and "which of the others?" with weights of their own.

        TCKD = KL( (p_y, 1 - p_y) || (q_y, 1 - q_y) )                      the target against the rest
        NCKD = KL( p̂ || q̂ )                                               softmax over the classes that are not y
        DKD  = T² (alpha · TCKD + beta · NCKD)                             KD is alpha = 1, beta = 1 - p_y

    Args:
        student: Scores of the model being trained, [B, C].
        teacher: Scores of the teacher, [B, C].
        labels: True classes, [B].
        alpha: Weight of TCKD.
        beta: Weight of NCKD; 8 on CIFAR-100, by the pair from 2 to 8 (see the presets).
        temperature: T.

    Returns:
        [B]; zero where student and teacher agree up to a constant.

    Departures:
        The released code takes the log of a summed probability, which underflows in float32 at gaps of about 104 T, and
        leaves the target out by subtracting 1000; here it is a logsigmoid and a fill with minus infinity. Equal where
        the release is finite.
    """
    tckd, nckd, _ = _terms(student / temperature, teacher / temperature, labels)
    return squared(temperature) * (alpha * tckd + beta * nckd)


def dkd_condensed(
    student: CondensedStudent,
    teacher: CondensedTeacher,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> PerSample:
    """Evaluate `dkd` on condensed rows: [B]."""
    tckd, nckd, log_p = _terms(student.scores(temperature), teacher.scores(temperature), teacher.labels)
    nckd = nckd + log_p[:, -1].exp() * teacher.rest_kl(student, temperature)
    return temperature**2 * (alpha * tckd + beta * nckd)


def _terms(student: Logits, teacher: Logits, labels: Labels) -> tuple[PerSample, PerSample, Logits]:
    """Return TCKD and NCKD, [B] each, and the teacher's log probabilities over the others, [B, C]; of logits divided by T."""
    q_gap, q_others, q_rest = split_class(student, labels)
    p_gap, p_others, p_rest = split_class(teacher, labels)
    log_p, log_q = p_others - p_rest, q_others - q_rest  # over the others alone, [B, C]
    log_ratio = (log_p - log_q).scatter(1, labels[:, None], 0)  # at the target it is -inf - (-inf)
    return binary_kl(p_gap, q_gap), (log_p.exp() * log_ratio).sum(-1), log_p
