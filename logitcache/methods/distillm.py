"""Divergences of language-model distillation: reverse KL, Jensen-Shannon, skew KL.

Gu, Dong, Wei, Huang: MiniLLM. ICLR 2024. https://arxiv.org/abs/2306.08543
Ko, Kim, Chen, Yun: DistiLLM: Towards Streamlined Distillation for Large Language Models. ICML 2024.
https://arxiv.org/abs/2402.03898
"""

from logitcache.methods._ops import Labels, Logits, PerSample, Share, Temperature, kl, log_probs, mix, squared

__all__ = ["jsd", "reverse_kl", "skew_kl", "skew_reverse_kl"]


def reverse_kl(student: Logits, teacher: Logits, labels: Labels, *, temperature: Temperature = 1.0) -> PerSample:
    """Put the student where the teacher has mass, rather than everywhere it has some.

        RKL = T² KL( q || p )                                              q = softmax(s / T),  p = softmax(z / T)

    Args:
        student: Scores of the model being trained, [B, C].
        teacher: Scores of the teacher, [B, C].
        labels: Not used.
        temperature: T.

    Returns:
        [B]; zero where student and teacher agree up to a constant.

    Departures:
        The paper distils language models, at T = 1 and without cross-entropy: preset `language`. The weights and T = 4 are KD's.
    """
    del labels
    return squared(temperature) * kl(log_probs(student, temperature), log_probs(teacher, temperature))


def jsd(
    student: Logits, teacher: Logits, labels: Labels, *, skew: Share = 0.9, temperature: Temperature = 1.0
) -> PerSample:
    """Compare both with their mixture.

        JSD = T² ( skew · KL(q || m) + (1 - skew) · KL(p || m) ),   m = (1 - skew) p + skew q

    Args:
        student: Scores of the model being trained, [B, C].
        teacher: Scores of the teacher, [B, C].
        labels: Not used.
        skew: λ, share of the student in the mixture.
        temperature: T.

    Returns:
        [B]; zero where student and teacher agree up to a constant, and bounded by T² ln 2.

    Departures:
        The paper distils language models, at T = 1 and without cross-entropy: preset `language`. T = 4 is KD's. The weight is
        eleven times KD's, because close to agreement JSD is skew (1 - skew), 0.09, of KL.
    """
    del labels
    log_p, log_q = log_probs(teacher, temperature), log_probs(student, temperature)
    middle = mix(log_q, log_p, skew)
    return squared(temperature) * (skew * kl(log_q, middle) + (1 - skew) * kl(log_p, middle))


def skew_kl(
    student: Logits, teacher: Logits, labels: Labels, *, skew: Share = 0.1, temperature: Temperature = 1.0
) -> PerSample:
    """KL whose ratio is bounded: some of the teacher is mixed into the student.

        SKL = T² KL( p || skew · p + (1 - skew) q )

    Args:
        student: Scores of the model being trained, [B, C].
        teacher: Scores of the teacher, [B, C].
        labels: Not used.
        skew: λ, share of the teacher in the mixture.
        temperature: T.

    Returns:
        [B]; zero where student and teacher agree up to a constant.

    Departures:
        The release drops the teacher's entropy, a constant. The paper distils language models, at T = 1 and without cross-entropy:
        preset `language`. The weights and T = 4 are KD's.
    """
    del labels
    log_p, log_q = log_probs(teacher, temperature), log_probs(student, temperature)
    return squared(temperature) * kl(log_p, mix(log_p, log_q, skew))


def skew_reverse_kl(
    student: Logits, teacher: Logits, labels: Labels, *, skew: Share = 0.1, temperature: Temperature = 1.0
) -> PerSample:
    """Reverse KL whose ratio is bounded: some of the student is mixed into the teacher.

        SRKL = T² KL( q || (1 - skew) p + skew · q )

    Args:
        student: Scores of the model being trained, [B, C].
        teacher: Scores of the teacher, [B, C].
        labels: Not used.
        skew: λ, share of the student in the mixture.
        temperature: T.

    Returns:
        [B]; zero where student and teacher agree up to a constant.

    Departures:
        The paper distils language models, at T = 1 and without cross-entropy: preset `language`. The weights and T = 4 are KD's.
    """
    del labels
    log_p, log_q = log_probs(teacher, temperature), log_probs(student, temperature)
    return squared(temperature) * kl(log_q, mix(log_q, log_p, skew))
