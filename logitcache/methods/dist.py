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
    """Match the order of classes within a sample and of samples within a class, not the values.

        DIST = T² ( beta (1 - mean corr of rows of P and Q) + gamma (1 - mean corr of columns of P and Q) )

    corr is Pearson's; P and Q hold softmax(z / T) and softmax(s / T) of the batch, [B, C]. Couples the batch.

    Args:
        student: Scores of the model being trained, [B, C].
        teacher: Scores of the teacher, [B, C].
        labels: Not used.
        beta: Weight of relations within a sample.
        gamma: Weight of relations within a class.
        temperature: T.

    Returns:
        0-dim; zero where student and teacher agree up to a constant. In a batch of one sample the second term is 0.

    Doubts:
        T is 1 in the authors' segmentation loss and 4 in two other repositories.
    """
    del labels
    p, q = log_probs(teacher, temperature).exp(), log_probs(student, temperature).exp()
    square = squared(temperature)
    scale = (
        square if isinstance(square, Tensor) else p.new_full((), square)
    )  # made on the device: a copy would wait for it
    value: Tensor = beta * (scale * (1 - _pearson(q, p))).mean()
    if len(student) > 1:
        value = value + gamma * scale.mean() * (1 - _pearson(q.T, p.T).mean())
    return value


def _pearson(one: Tensor, other: Tensor) -> Tensor:
    """Correlation of the rows of two matrices, [n]."""
    one, other = (x - x.mean(1, keepdim=True) for x in (one, other))
    correlation: Tensor = (one * other).sum(1) / (one.norm(dim=1) * other.norm(dim=1) + 1e-8)
    return correlation
