"""Swapped logit distillation (SLD).

Swapped Logit Distillation via Bi-rest_logit Teacher Alignment. Multimedia Systems 31:264, 2025. https://arxiv.org/abs/2504.20108
"""

from logitcache.methods._ops import Labels, Logits, PerSample, Rest, Temperature
from logitcache.methods.condensed import CondensedStudent, CondensedTeacher
from logitcache.methods.kd import kd, kd_condensed

__all__ = ["sld", "sld_condensed", "swap"]


def swap(logits: Logits, labels: Labels, rest: Rest = None) -> Logits:
    """Exchange the label's logit with the largest one, where another class has it.

        swap(z, y): z_y ↔ max z                                  identity where the label is the (first) argmax

    The set of logits stays, and with it every mean, deviation and log-sum-exp of the row.

    Args:
        logits: Scores, [B, C].
        labels: True classes, [B].
        rest: Not used: no class of the rest is the largest.

    Returns:
        [B, C]; the label has the largest logit of every row.
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
    """Learn from two teachers whose labels were put right: the teacher, and later the student itself.

        TS = Σ_T T² KL( softmax(swap(z) / T) || softmax(s / T) )            T = 1 … 6
        SS = Σ_T T² KL( softmax(swap(s) / T) || softmax(s / T) )            only after `student_swap_after`
        SLD = TS + SS

    The teacher's swap is the refinement, the sum over T the temperatures of this method; what is written here is one T.
    From a cache that pairs a weak and a strong view the objective is the sum over both, cross-entropy included.

    Args:
        student: Scores of the model being trained, [B, C].
        teacher: Scores of the teacher, swapped already, [B, C].
        labels: True classes, [B].
        student_swap: Whether SS is added; over a training it is, from `student_swap_after` on.
        detach: Whether swap(s) passes no gradient; in the released code it does, so that SS is
            T (q_max - q_y) (s_max - s_y) a row, with its whole gradient.
        temperature: T.

    Returns:
        [B].

    Doubts:
        The release turns SS on after epoch 150, also on ImageNet, where 100 epochs never reach it; here it is a share of
        the training, 150/240. Whether the paper detaches swap(s) is unknown. The six temperatures are literals there.
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
    """Evaluate `sld` on condensed rows, [B]: there SS is T (q_max - q_y) (s_max - s_y), where T² (1 / T) makes the T."""
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
