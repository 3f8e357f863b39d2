"""Class-aware logit knowledge distillation (CLKD).

Class-aware Information for Logit-based Knowledge Distillation. 2022. https://arxiv.org/abs/2211.14773
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from logitcache.methods._ops import Coupled, Labels, Logits, gram_distance

__all__ = ["clkd"]


def clkd(
    student: Logits,
    teacher: Logits,
    labels: Labels,
    *,
    mu: float = 0.5,
    nu: float = 0.4,
    beta: float = 2.0,
    reduction: Literal["mean", "sum"] = "mean",
    correlation: Literal["class_cov", "batch_gram"] = "class_cov",
    divisor: Literal["batch", "classes"] = "batch",
    squared: bool = True,
) -> Coupled:
    """Match rows, columns and the correlation of classes, on raw logits.

        INS  = MSE( rows of s / their norm, rows of z / their norm )                 each sample, over classes
        CLA  = MSE( columns of s / their norm, columns of z / their norm )           each class, over the batch
        B(Z) = 1/(B - 1) Σ_n (z_n - z̄)(z_n - z̄)ᵀ,   CC = ‖B(S) - B(Z)‖²_F / C²        classes' covariance over the batch
        CLKD = mu (INS + beta · CLA) + nu · CC

    Couples the batch: the result depends on its size and make-up.

    Args:
        student: Scores of the model being trained, [B, C].
        teacher: Scores of the teacher, [B, C].
        labels: Not used.
        mu: Weight of INS and CLA.
        nu: Weight of CC.
        beta: Weight of CLA beside INS.
        reduction: Of the squared errors: `mean` over all entries, or `sum` over a vector and mean over vectors.
        correlation: `class_cov`, C by C; or `batch_gram`, B by B, of the same centred logits.
        divisor: Of that matrix: `batch`, B - 1; or `classes`, C - 1.
        squared: Whether its norm is squared.

    Returns:
        0-dim. In a batch of one sample CLA and CC are 0.

    Doubts:
        There is no released code; four third parties agree on the structure and differ in the shape of the matrix, its
        divisor, the power of the norm and the reduction. `correlation=batch_gram divisor=classes` is the one that our
        golden numbers hold. With `mean`, INS is at most 4/C, so that cross-entropy dominates unless `sum` was meant.
    """
    del labels
    batch, classes = student.shape

    def error(one: Tensor, other: Tensor, vectors: int) -> Tensor:
        total = (one - other).square().sum()
        return total / one.numel() if reduction == "mean" else total / vectors

    value = mu * error(F.normalize(student, dim=1), F.normalize(teacher, dim=1), batch)
    if batch == 1:
        return value
    value = value + mu * beta * error(F.normalize(student, dim=0), F.normalize(teacher, dim=0), classes)
    s, z = (scores - scores.mean(0) for scores in (student, teacher))
    distance = gram_distance(s, z) if correlation == "class_cov" else gram_distance(s.T, z.T)
    distance = distance / (batch - 1 if divisor == "batch" else classes - 1) ** 2
    if not squared:
        positive = distance > 0  # the root has no gradient at 0
        distance = torch.where(positive, torch.where(positive, distance, 1).sqrt(), 0)
    return value + nu * distance / classes**2
