"""Comparison of a student with its teacher on held-out rows."""

import functools
import math

import torch
from torch import Tensor

from logitcache.encoding import AnyRows, DrawnRows, TopKRows, first_classes, top_classes
from logitcache.methods import Distillation, get_loss

__all__ = ["BESIDE", "as_metrics", "compared"]

_TOP = 10

BESIDE = ("kl_to_teacher", "test_teacher_agreement", "topk_overlap")  # metrics that `compared` sums, in order


@torch.no_grad()
def compared(student: Tensor, teacher: AnyRows, labels: Tensor) -> Tensor:
    """Return the metrics in `BESIDE`, summed over rows, [3] float64.

        KL(teacher || student) = sum_c p_c (log p_c - log q_c)      at temperature 1, in nats

    For top-k rows, the classes outside the k largest are merged into one, so the result is a lower bound of the divergence of full rows.
    For sampled rows it is an unbiased estimate. The overlap is the share of the teacher's ten largest classes (or of as many as the cache
    keeps) that are among the same number of the student's largest classes; it is NaN for sampled rows.

    Args:
        student: Student logits, [R, C].
        teacher: Teacher rows.
        labels: Class of each row, [R] int64.
    """
    loss = _divergence("bucket" if isinstance(teacher, TopKRows) else "uniform")
    agreed = (top_classes(teacher) == student.argmax(1)).double()
    shared = agreed * torch.nan
    if not isinstance(teacher, DrawnRows):
        theirs = first_classes(teacher, _TOP)
        ours = first_classes(student, theirs.shape[1])
        shared = (theirs[:, :, None] == ours[:, None, :]).any(2).double().mean(1)
    return torch.stack([loss(student, teacher, labels).double().sum(), agreed.sum(), shared.sum()])


def as_metrics(sums: Tensor, rows: int) -> dict[str, float]:
    """Return the metrics of an epoch from sums over rows, without those that are NaN."""
    means = zip(BESIDE, (sums / rows).tolist(), strict=True)
    return {name: mean for name, mean in means if not math.isnan(mean)}


@functools.cache
def _divergence(tail: str) -> Distillation:
    return get_loss("kd", temperature=1.0, tail=tail)
