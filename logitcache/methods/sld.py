"""Swapped logit distillation (SLD).

Swapped Logit Distillation via Bi-rest_logit Teacher Alignment. Multimedia Systems 31:264, 2025. https://arxiv.org/abs/2504.20108
"""

from logitcache.methods._ops import Labels, Logits, PerSample, Rest, Temperature
from logitcache.methods.condensed import CondensedStudent, CondensedTeacher
from logitcache.methods.kd import kd, kd_condensed

__all__ = ["sld", "sld_condensed", "swap"]


def swap(logits: Logits, labels: Labels, rest: Rest = None) -> Logits:
    """Swap the label's logit with the largest one, if another class has it.

        swap(z, y): z_y ↔ max z                                  identity where the label is the (first) argmax

    The set of logits is unchanged, and so are the mean, deviation and log-sum-exp of each row.

    Args:
        logits: Logits, [B, C].
        labels: True class of each row, [B].
        rest: Not used, because no class in the rest is the largest.

    Returns:
        Swapped logits, [B, C]; the label has the largest logit of every row.
    """
    del rest
    top = logits.argmax(-1, keepdim=True)
    ranked_first, of_label = logits.gather(1, top), logits.gather(1, labels[:, None])
    return logits.scatter(1, top, of_label).scatter(1, labels[:, None], ranked_first)


def sld(
    student: Logits,
    teacher: Logits,
    labels: Labels,
    *,
    student_swap: bool = False,
    detach: bool = False,
    temperature: Temperature = 4.0,
) -> PerSample:
    """Learn from two teachers with corrected labels: the teacher and, later, the student itself.

        TS = Σ_T T² KL( softmax(swap(z) / T) || softmax(s / T) )            T = 1 … 6
        SS = Σ_T T² KL( softmax(swap(s) / T) || softmax(s / T) )            only after `student_swap_after`
        SLD = TS + SS

    The teacher's swap is this method's refinement and T its temperatures; this function computes one T of the sum. If a
    cache pairs a weak and a strong view, the objective, including cross-entropy, is summed over both.

    Args:
        student: Student logits, [B, C].
        teacher: Teacher logits, already swapped, [B, C].
        labels: True class of each row, [B].
        student_swap: Whether to add SS; in training it turns true after `student_swap_after`.
        detach: Whether to detach swap(s). The released code does not, so SS is T (q_max - q_y) (s_max - s_y) for each row,
            with its full gradient.
        temperature: T, which divides both sets of logits.

    Returns:
        Loss of each row, [B].

    Doubts:
        The release turns SS on after epoch 150, even on ImageNet, where training stops after 100 epochs; we use a fraction
        of the training, 150/240. We do not know whether the paper detaches swap(s). The release hard-codes the six temperatures.
    """
    value = kd(student, teacher, labels, temperature=temperature)
    if student_swap:
        swapped = swap(student, labels)
        value = value + kd(student, swapped.detach() if detach else swapped, labels, temperature=temperature)
    return value


def sld_condensed(
    student: CondensedStudent,
    teacher: CondensedTeacher,
    *,
    student_swap: bool = False,
    detach: bool = False,
    temperature: float = 4.0,
) -> PerSample:
    """Compute `sld` from condensed rows, [B], with SS in closed form: T (q_max - q_y) (s_max - s_y)."""
    value = kd_condensed(student, teacher, temperature=temperature)
    if student_swap:
        total = student.scores(temperature).logsumexp(1, keepdim=True)
        largest, of_label = (
            one / temperature for one in (student.largest, student.kept.gather(1, teacher.labels[:, None]))
        )
        gain = (largest - total).exp() - (of_label - total).exp()
        swapped = (gain.detach() if detach else gain) * (largest - of_label)
        value = value + temperature**2 * swapped.squeeze(1)
    return value
