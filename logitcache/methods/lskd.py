"""Logit standardization (LSKD).

Sun, Ren, Li, Wang, Cao: Logit Standardization in Knowledge Distillation. CVPR 2024. https://arxiv.org/abs/2403.01427
"""

from logitcache.methods._ops import Logits, center_and_std

__all__ = ["standardize"]


def standardize(logits: Logits) -> Logits:
    """Z-score each row, so that the student need not match the scale of the teacher's logits.

        ẑ = (z - mean(z)) / (std(z) + 1e-7)                                    unbiased deviation over classes
        LSKD = T² KL( softmax(ẑ / T) || softmax(ŝ / T) )                       T = 2

    As a plug-in (`--standardize`) it changes nothing else; the paper's weights, nine times as large, are presets.

    Args:
        logits: Logits of either network, [B, C].

    Returns:
        Z-scored logits, [B, C]; zeros for a constant row.

    Doubts:
        The released logs use weights from 3 to 18 and temperatures from 2 to 4, depending on the pair of networks. As in the
        release, a student row that is constant up to rounding has a huge gradient: 1 / 1e-7.
    """
    centred, deviation = center_and_std(logits)
    return centred / (deviation + 1e-7)
