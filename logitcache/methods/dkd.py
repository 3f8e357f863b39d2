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
    """Weight the target class and the non-target classes separately.

        TCKD = KL( (p_y, 1 - p_y) || (q_y, 1 - q_y) )                      target class against the rest
        NCKD = KL( p̂ || q̂ )                                               softmax over the classes other than y
        DKD  = T² (alpha · TCKD + beta · NCKD)                             KD is alpha = 1, beta = 1 - p_y

    Args:
        student: Student logits, [B, C].
        teacher: Teacher logits, [B, C].
        labels: True class of each row, [B].
        alpha: Weight of TCKD.
        beta: Weight of NCKD; 8 on CIFAR-100, between 2 and 8 depending on the pair of networks (see the presets).
        temperature: T, which divides both sets of logits.

    Returns:
        Loss of each row, [B]; 0 if student and teacher logits differ by a constant.

    Departures:
        The released code takes the log of a summed probability, which underflows in float32 at gaps of about 104 T, and
        masks the target by subtracting 1000. We use logsigmoid and a fill with -inf, which is equal wherever the release
        is finite.
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
    """Compute `dkd` from condensed rows, [B]."""
    tckd, nckd, log_p = _terms(student.scores(temperature), teacher.scores(temperature), teacher.labels)
    nckd = nckd + log_p[:, -1].exp() * teacher.rest_kl(student, temperature)
    return temperature**2 * (alpha * tckd + beta * nckd)


def _terms(student: Logits, teacher: Logits, labels: Labels) -> tuple[PerSample, PerSample, Logits]:
    """Return TCKD, [B]; NCKD, [B]; and the teacher's log probabilities over non-target classes, [B, C], from logits divided by T."""
    q_gap, q_others, q_rest = split_class(student, labels)
    p_gap, p_others, p_rest = split_class(teacher, labels)
    log_p, log_q = p_others - p_rest, q_others - q_rest  # over non-target classes, [B, C]
    log_ratio = (log_p - log_q).scatter(1, labels[:, None], 0)  # -inf - (-inf) at the target
    return binary_kl(p_gap, q_gap), (log_p.exp() * log_ratio).sum(-1), log_p
