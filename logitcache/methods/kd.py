"""Knowledge distillation (KD).

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network. NeurIPS workshop 2014.
https://arxiv.org/abs/1503.02531
"""

from logitcache.methods._ops import Labels, Logits, PerSample, Temperature, kl, log_probs, squared
from logitcache.methods.condensed import CondensedStudent, CondensedTeacher, kl_of_condensed

__all__ = ["kd", "kd_condensed"]


def kd(student: Logits, teacher: Logits, labels: Labels, *, temperature: Temperature = 4.0) -> PerSample:
    """Match the teacher's softened distribution.

        KD = T² KL( softmax(z / T) || softmax(s / T) )                     (Section 2; T² keeps the gradient's size)

    Args:
        student: Scores of the model being trained, [B, C].
        teacher: Scores of the teacher, [B, C].
        labels: Not used.
        temperature: T, divides both sets of scores; mdistiller takes 4 for CIFAR-100 and 1 for ImageNet.

    Returns:
        [B]; zero where student and teacher agree up to a constant.
    """
    del labels
    return squared(temperature) * kl(log_probs(teacher, temperature), log_probs(student, temperature))


def kd_condensed(student: CondensedStudent, teacher: CondensedTeacher, *, temperature: float = 4.0) -> PerSample:
    """Evaluate `kd` on condensed rows: [B]."""
    return temperature**2 * kl_of_condensed(student, teacher, temperature)
