"""DIST: distillation from a stronger teacher.

Huang, You, Wang, Qian, Xu: Knowledge Distillation from A Stronger Teacher. NeurIPS 2022. https://arxiv.org/abs/2205.10536
"""

from torch import Tensor

from logitcache.methods._ops import Coupled, Labels, Logits, Temperature, log_probs, squared

__all__ = ["dist"]


def dist(
    student: Logits,
    teacher: Logits,
    labels: Labels,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    temperature: Temperature = 4.0,
) -> Coupled:
    """Match the correlation of classes within a sample and of samples within a class, not the values.

        DIST = T² ( beta (1 - mean corr of rows of P and Q) + gamma (1 - mean corr of columns of P and Q) )

    corr is Pearson's correlation; P and Q are softmax(z / T) and softmax(s / T) of the batch, [B, C]. Couples the batch.

    Args:
        student: Student logits, [B, C].
        teacher: Teacher logits, [B, C].
        labels: Not used.
        beta: Weight of the correlation within a sample.
        gamma: Weight of the correlation within a class.
        temperature: T, which divides both sets of logits.

    Returns:
        Loss of the batch, 0-dim; 0 if student and teacher logits differ by a constant. The second term is 0 for a batch of one sample.

    Doubts:
        T is 1 in the authors' segmentation loss and 4 in two other repositories.
    """
    del labels
    p, q = log_probs(teacher, temperature).exp(), log_probs(student, temperature).exp()
    square = squared(temperature)
    # Created on the device, because a copy to it would wait for it.
    scale = square if isinstance(square, Tensor) else p.new_full((), square)
    value: Tensor = beta * (scale * (1 - _pearson(q, p))).mean()
    if len(student) > 1:
        value = value + gamma * scale.mean() * (1 - _pearson(q.T, p.T).mean())
    return value


def _pearson(one: Tensor, other: Tensor) -> Tensor:
    """Return the Pearson correlation of each pair of rows of two [n, m] matrices, [n]."""
    one, other = (x - x.mean(1, keepdim=True) for x in (one, other))
    correlation: Tensor = (one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1) + 1e-8)
    return correlation
