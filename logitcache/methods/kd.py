"""Knowledge distillation (KD).

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network. NeurIPS workshop 2014.
https://arxiv.org/abs/1503.02531
"""

from logitcache.methods._ops import Labels, Logits, PerSample, Temperature, kl, log_probs, squared
from logitcache.methods.condensed import CondensedStudent, CondensedTeacher, kl_of_condensed
from logitcache.methods.method import DrawnRows

__all__ = ["kd", "kd_condensed", "kd_drawn"]


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


def kd_drawn(student: Logits, rows: DrawnRows, labels: Labels) -> PerSample:
    """Evaluate `kd` at temperature 1 on draws of the teacher's distribution.

        - Σ_draws t_j log softmax(s)_{c_j} - H(p)                 t_j = p / (N q), 1 / N where draws are from p itself

    Value and gradient have those of `kd` as their expectation over draws (Sparse Logit Sampling, arXiv 2503.16870).

    Args:
        student: Scores of the model being trained, [B, C].
        rows: Draws, N for each row.
        labels: Not used.

    Returns:
        [B]; below zero where the draws happen to fall on classes that the student finds likely.
    """
    del labels
    log_q = log_probs(student, 1.0).gather(-1, rows.ids)
    return -(rows.targets * log_q).sum(-1) - rows.entropy
