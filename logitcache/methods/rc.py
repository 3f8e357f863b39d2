"""Response correction (RC), as reimplemented by the authors of RLD (zju-SWJ/RLD)."""

from logitcache.methods._ops import Labels, Logits, PerSample, Temperature
from logitcache.methods.kd import kd, kd_drawn
from logitcache.methods.method import DrawnRows

__all__ = ["rc", "rc_drawn"]


def rc(
    student: Logits,
    teacher: Logits,
    labels: Labels,
    *,
    kl_weight: float = 1.0,
    rc_weight: float = 0.1,
    temperature: Temperature = 4.0,
) -> PerSample:
    """Learn from the teacher, and from the student's own logits with the label raised to the top.

        ŝ = s without gradient, with ŝ_y = s_y + max s
        RC = kl_weight · T² KL( softmax(z / T) || softmax(s / T) ) + rc_weight · T² KL( softmax(ŝ / T) || softmax(s / T) )

    Args:
        student: Student logits, [B, C].
        teacher: Teacher logits, [B, C].
        labels: True class of each row, [B].
        kl_weight: Weight of the first term, which is KD.
        rc_weight: Weight of the second term, self-distillation.
        temperature: T, which divides both sets of logits.

    Returns:
        Loss of each row, [B]. It is not shift-invariant, because max s is added to a logit, and it is not 0 for a student that
        equals its teacher, because of the second term.
    """
    return kl_weight * kd(student, teacher, labels, temperature=temperature) + rc_weight * _self_distillation(
        student, labels, temperature
    )


def rc_drawn(
    student: Logits, rows: DrawnRows, labels: Labels, *, kl_weight: float = 1.0, rc_weight: float = 0.1
) -> PerSample:
    """Estimate `rc` at temperature 1 from samples of the teacher's distribution, [B]."""
    return kl_weight * kd_drawn(student, rows, labels) + rc_weight * _self_distillation(student, labels, 1.0)


def _self_distillation(student: Logits, labels: Labels, temperature: Temperature) -> PerSample:
    own = student.detach()
    lifted = own.scatter_add(1, labels[:, None], own.amax(-1, keepdim=True))
    return kd(student, lifted, labels, temperature=temperature)
