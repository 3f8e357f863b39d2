"""Knowledge distillation (KD).

Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network. NeurIPS workshop 2014.
https://arxiv.org/abs/1503.02531
"""

from torch.nn import functional as F

from logitcache.methods._ops import Labels, Logits, PerSample, kl

__all__ = ["kd"]


def kd(student: Logits, teacher: Logits, labels: Labels, *, temperature: float = 4.0) -> PerSample:
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
    return temperature**2 * kl(F.log_softmax(teacher / temperature, -1), F.log_softmax(student / temperature, -1))
