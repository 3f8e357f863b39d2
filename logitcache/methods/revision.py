"""Label revision (LR), as reimplemented by the authors of RLD.

Lan et al.: Improve Knowledge Distillation via Label Revision and Data Selection. 2024. https://arxiv.org/abs/2404.03693
"""

import torch
from torch.nn import functional as F

from logitcache.methods._ops import Coupled, Labels, Logits, misclassified

__all__ = ["revision"]


def revision(
    student: Logits,
    teacher: Logits,
    labels: Labels,
    *,
    lambda_right: float = 4.0,
    lambda_wrong: float = 1.0,
    eta: float = 0.8,
) -> Coupled:
    """Match logits where the teacher is right, and a distribution shifted towards the label where it is wrong.

        right rows:  CE(s, y) + lambda_right · MSE(s, z)
        wrong rows:  lambda_wrong · MSE( softmax(s), b p + (1 - b) 1_y ),   b = eta / (p_max - p_y + 1)
        LR = mean over right rows + mean over wrong rows

    Couples the batch through the two counts. Cross-entropy is part of the loss, so the objective's own weight for it is 0.

    Args:
        student: Student logits, [B, C].
        teacher: Teacher logits, [B, C].
        labels: True class of each row, [B].
        lambda_right: Weight of the squared error on right rows.
        lambda_wrong: Weight of the squared error on wrong rows.
        eta: Fraction of the teacher's distribution that is kept on wrong rows.

    Returns:
        Loss of the batch, 0-dim.
    """
    bad = misclassified(teacher, labels)
    p, q = F.softmax(teacher, -1), F.softmax(student, -1)
    true = labels[:, None]
    b = eta / (p.amax(-1, keepdim=True) - p.gather(1, true) + 1)
    revised = (b * p).scatter_add(1, true, 1 - b)
    on_right = F.cross_entropy(student, labels, reduction="none") + lambda_right * (student - teacher).square().mean(-1)
    on_wrong = lambda_wrong * (q - revised).square().mean(-1)
    right_count, wrong_count = (~bad).sum().clamp_min(1), bad.sum().clamp_min(1)
    return torch.where(bad, 0, on_right).sum() / right_count + torch.where(bad, on_wrong, 0).sum() / wrong_count
