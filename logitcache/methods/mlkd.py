"""Multi-level logit distillation (MLKD, MLLD).

Jin, Wang, Lin: Multi-Level Logit Distillation. CVPR 2023.
"""

from logitcache.methods._ops import Coupled, Labels, Logits, Temperature, gram_distance, log_probs
from logitcache.methods.kd import kd

__all__ = ["mlkd"]


_PAPER = 64 / 100  # samples of a batch to classes, on CIFAR-100


def mlkd(
    student: Logits, teacher: Logits, labels: Labels, *, balanced: bool = True, temperature: Temperature = 4.0
) -> Coupled:
    """Match each sample, the likeness of samples and the likeness of classes, at several temperatures.

        MLKD = Σ_T  mean T² KL(p || q)  +  r ‖PPᵀ - QQᵀ‖²_F / B  +  r² ‖PᵀP - QᵀQ‖²_F / C            T = 4, 2, 3, 5, 6

    P and Q hold softmax(z / T) and softmax(s / T) of the batch, [B, C]; what is written here is one T. Both norms grow as
    B² / C, so that the terms grow as B / C and as its square: r = 0.64 C / B keeps them as they are in the paper's setting,
    64 samples of 100 classes, where it is 1. Couples the batch. From a cache that pairs a weak and a strong view the
    objective is the sum over both, cross-entropy included.

    Args:
        student: Scores of the model being trained, [B, C].
        teacher: Scores of the teacher, [B, C].
        labels: Not used.
        balanced: Whether to weigh the last two terms by r and r²; else by 1, as published.
        temperature: T.

    Returns:
        0-dim; zero where student and teacher agree up to a constant. In a batch of one sample the last two terms are 0.

    Departures:
        This is what the paper means. In the release, KD is averaged before the confidence mask, which therefore only
        multiplies it by the share of rows it keeps (about 0.5); two of the "strong" terms read the weak logits; and the
        strong view's two matrices are computed and not used. r is ours: published is 1, with which the last term makes
        most of the gradient of ten classes.
    """
    instance = kd(student, teacher, labels, temperature=temperature).mean()
    batch, classes = student.shape
    if batch == 1:
        return instance
    p, q = log_probs(teacher, temperature).exp(), log_probs(student, temperature).exp()
    ratio = _PAPER * classes / batch if balanced else 1.0
    return instance + ratio * gram_distance(q.T, p.T) / batch + ratio**2 * gram_distance(q, p) / classes
