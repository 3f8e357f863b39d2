"""How far a student is from its teacher on rows that it was not trained on."""

import functools
import math

import torch
from torch import Tensor

from logitcache.encoding import AnyRows, DrawnRows, TopKRows, first_classes, top_classes
from logitcache.methods import Distillation, get_loss

__all__ = ["BESIDE", "as_metrics", "compared"]

_TOP = 10

BESIDE = ("kl_to_teacher", "test_teacher_agreement", "topk_overlap")  # what `compared` adds up, in order


@torch.no_grad()
def compared(student: Tensor, teacher: AnyRows, labels: Tensor) -> Tensor:
    """Compare a student with its teacher; what `BESIDE` names, summed over rows, [3] float64.

        KL(teacher || student) = sum_c p_c (log p_c - log q_c)      at temperature 1, in nats

    Of rows of which the largest were kept, all other classes count as one. That joins terms of the sum, so what is found is at most the
    divergence of whole rows. From draws it is an unbiased estimate. The overlap is the share of the teacher's ten largest
    classes, or of as many as a cache keeps, that are among as many of the student's; of draws it is NaN.

    Args:
        student: Logits, [R, C].
        teacher: Its rows.
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
    """Return what an epoch records, from sums over so many rows; without what is not known."""
    means = zip(BESIDE, (sums / rows).tolist(), strict=True)
    return {name: mean for name, mean in means if not math.isnan(mean)}


@functools.cache
def _divergence(tail: str) -> Distillation:
    return get_loss("kd", temperature=1.0, tail=tail)
