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

        KD = T² KL( softmax(z / T) || softmax(s / T) )                     (Section 2; T² keeps gradients independent of T)

    Args:
        student: Student logits, [B, C].
        teacher: Teacher logits, [B, C].
        labels: Not used.
        temperature: T, which divides both sets of logits; mdistiller uses 4 for CIFAR-100 and 1 for ImageNet.

    Returns:
        Loss of each row, [B]; 0 if student and teacher logits differ by a constant.
    """
    del labels
    return squared(temperature) * kl(log_probs(teacher, temperature), log_probs(student, temperature))


def kd_condensed(student: CondensedStudent, teacher: CondensedTeacher, *, temperature: float = 4.0) -> PerSample:
    """Compute `kd` from condensed rows, [B]."""
    return temperature**2 * kl_of_condensed(student, teacher, temperature)


def kd_drawn(student: Logits, rows: DrawnRows, labels: Labels) -> PerSample:
    """Estimate `kd` at temperature 1 from samples of the teacher's distribution.

        - Σ_samples t_j log softmax(s)_{c_j} - H(p)               t_j = p / (N q), or 1 / N when sampling from p itself

    Value and gradient are unbiased estimates of those of `kd` (Sparse Logit Sampling, arXiv 2503.16870).

    Args:
        student: Student logits, [B, C].
        rows: Sampled teacher rows, N samples each.
        labels: Not used.

    Returns:
        Loss of each row, [B]; negative if the samples happen to fall on classes that the student finds likely.
    """
    del labels
    log_q = log_probs(student, 1.0).gather(-1, rows.ids)
    return -(rows.targets * log_q).sum(-1) - rows.entropy
