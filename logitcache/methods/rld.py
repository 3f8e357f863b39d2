"""Refined logit distillation (RLD).

Sun, Wang, Zhu, Lin, Yang, Zhang, Ma: Knowledge Distillation with Refined Logits. ICCV 2025.
https://arxiv.org/abs/2408.07703 Checked against the authors' code, zju-SWJ/RLD @d54578f.
"""

from logitcache.methods._ops import Labels, Logits, PerSample, binary_log_probs, kl, masked_kl

__all__ = ["rld"]


def rld(
    student: Logits,
    teacher: Logits,
    labels: Labels,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
    confidence_temperature: float = 1.0,
) -> PerSample:
    """Keep what the teacher knows and leave out where it contradicts the label.

        SCD = τ₁² KL( (p_max, 1 - p_max) || (q_y, 1 - q_y) )    the teacher's confidence, put on the true class; τ₁ softens
        MCD = τ₂² KL( p̃ || q̃ )                                 over classes that the teacher ranks below y: M = {i : z_i >= z_y} is masked
        RLD = alpha · SCD + beta · MCD

    The released code forms log(1 - p) from a summed probability, which underflows at gaps of about 104 τ in float32;
    here it is a logsigmoid, equal where the release is finite. A row whose label is the teacher's last class keeps
    nothing, and its MCD is 0.

    Args:
        student: Scores of the model being trained, [B, C].
        teacher: Scores of the teacher, [B, C].
        labels: True classes, [B].
        alpha: Weight of SCD.
        beta: Weight of MCD; the paper's ImageNet settings are 0.5 and 2.
        temperature: τ₂ of MCD; ImageNet 1.
        confidence_temperature: τ₁ of SCD; 1 in the released configuration, equal to `temperature` under its flag
            --same-t.

    Returns:
        [B]; with a teacher that is right everywhere and τ₁ = τ₂ the same as DKD.
    """
    p = binary_log_probs(teacher / confidence_temperature, teacher.argmax(-1))
    q = binary_log_probs(student / confidence_temperature, labels)
    scd = confidence_temperature**2 * kl(p, q)
    keep = teacher < teacher.gather(1, labels[:, None])
    mcd = temperature**2 * masked_kl(teacher / temperature, student / temperature, keep)
    return alpha * scd + beta * mcd
