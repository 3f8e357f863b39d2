"""Divergences of language-model distillation: reverse KL, Jensen-Shannon, skew KL.

Gu, Dong, Wei, Huang: MiniLLM. ICLR 2024. https://arxiv.org/abs/2306.08543
Ko, Kim, Chen, Yun: DistiLLM: Towards Streamlined Distillation for Large Language Models. ICML 2024.
https://arxiv.org/abs/2402.03898
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from logitcache.methods._ops import Fraction, Labels, Logits, PerSample, Temperature, log_probs, mix, squared
from logitcache.methods.condensed import CondensedStudent, CondensedTeacher, RestTerm

__all__ = [
    "jsd",
    "jsd_condensed",
    "reverse_kl",
    "reverse_kl_condensed",
    "skew_kl",
    "skew_kl_condensed",
    "skew_reverse_kl",
    "skew_reverse_kl_condensed",
]


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
    return squared(temperature) * _reverse_kl(log_probs(teacher, temperature), log_probs(student, temperature)).sum(-1)


def jsd(
    student: Logits, teacher: Logits, labels: Labels, *, skew: Fraction = 0.9, temperature: Temperature = 1.0
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
    return squared(temperature) * _jsd(log_p, log_q, skew=skew).sum(-1)


def skew_kl(
    student: Logits, teacher: Logits, labels: Labels, *, skew: Fraction = 0.1, temperature: Temperature = 1.0
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
    return squared(temperature) * _skew_kl(log_p, log_q, skew=skew).sum(-1)


def skew_reverse_kl(
    student: Logits, teacher: Logits, labels: Labels, *, skew: Fraction = 0.1, temperature: Temperature = 1.0
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
    return squared(temperature) * _skew_reverse_kl(log_p, log_q, skew=skew).sum(-1)


def reverse_kl_condensed(
    student: CondensedStudent, teacher: CondensedTeacher, *, temperature: float = 1.0
) -> PerSample:
    """Evaluate `reverse_kl` on condensed rows: [B]."""
    return _condensed(_reverse_kl, _reverse_kl_of_rest, student, teacher, temperature)


def jsd_condensed(
    student: CondensedStudent, teacher: CondensedTeacher, *, skew: Fraction = 0.9, temperature: float = 1.0
) -> PerSample:
    """Evaluate `jsd` on condensed rows: [B]."""
    term, of_rest = functools.partial(_jsd, skew=skew), functools.partial(_jsd_of_rest, skew=skew)
    return _condensed(term, of_rest, student, teacher, temperature)


def skew_kl_condensed(
    student: CondensedStudent, teacher: CondensedTeacher, *, skew: Fraction = 0.1, temperature: float = 1.0
) -> PerSample:
    """Evaluate `skew_kl` on condensed rows: [B]."""
    term, of_rest = functools.partial(_skew_kl, skew=skew), functools.partial(_skew_kl_of_rest, skew=skew)
    return _condensed(term, of_rest, student, teacher, temperature)


def skew_reverse_kl_condensed(
    student: CondensedStudent, teacher: CondensedTeacher, *, skew: Fraction = 0.1, temperature: float = 1.0
) -> PerSample:
    """Evaluate `skew_reverse_kl` on condensed rows: [B]."""
    term, of_rest = (
        functools.partial(_skew_reverse_kl, skew=skew),
        functools.partial(_skew_reverse_kl_of_rest, skew=skew),
    )
    return _condensed(term, of_rest, student, teacher, temperature)


def _condensed(
    term: Callable[[Tensor, Tensor], Tensor],
    of_rest: RestTerm,
    student: CondensedStudent,
    teacher: CondensedTeacher,
    temperature: float,
) -> PerSample:
    """Sum a class's term over those that stand alone and, each with its own share of the student, over the rest.

    With a bucket, the ratio of p to q is the same for each class of the rest, so that all of them have the term of one class.
    """
    if teacher.bucket:
        return temperature**2 * term(teacher.log_probs(temperature), student.log_probs(temperature)).sum(-1)
    scores = teacher.scores(temperature)
    total = scores.logsumexp(1, keepdim=True)
    alone = term((scores - total)[:, :-1], student.log_probs(temperature)[:, :-1]).sum(-1)
    return temperature**2 * (
        alone + student.sum_over_rest(of_rest, teacher.rest_logit / temperature - total, temperature)
    )


def _reverse_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return log_q.exp() * (log_q - log_p)


def _jsd(log_p: Tensor, log_q: Tensor, *, skew: float) -> Tensor:
    middle = mix(log_q, log_p, skew)
    return skew * log_q.exp() * (log_q - middle) + (1 - skew) * log_p.exp() * (log_p - middle)


def _skew_kl(log_p: Tensor, log_q: Tensor, *, skew: float) -> Tensor:
    return log_p.exp() * (log_p - mix(log_p, log_q, skew))


def _skew_reverse_kl(log_p: Tensor, log_q: Tensor, *, skew: float) -> Tensor:
    return log_q.exp() * (log_q - mix(log_q, log_p, skew))


# The same terms where every class has the same p, as `RestTerm`: with m the mixture, their derivatives by log q are
#
#     reverse KL       q (log q - log p) + q                       JSD        skew · q (log q - log m)
#     skew KL          -p (1 - skew) q / m                         skew RKL   q (log q - log m) + q (1 - skew) p / m
#
# Mixtures are formed without logarithms: one exponential and one logarithm a class, of which the latter costs most.


def _reverse_kl_of_rest(log_p: Tensor, log_q: Tensor, slope: Tensor, spare: Tensor) -> None:
    del spare
    torch.exp(log_q, out=slope)
    log_q.sub_(log_p).mul_(slope)
    slope.add_(log_q)


def _jsd_of_rest(log_p: Tensor, log_q: Tensor, slope: Tensor, spare: Tensor, *, skew: float) -> None:
    torch.exp(log_q, out=slope).mul_(skew)
    p = (1 - skew) * log_p.exp()
    log_m = torch.add(slope, _positive(p), out=spare).log_()
    slope.mul_(log_q.sub_(log_m))
    torch.sub(log_p, log_m, out=log_q)
    log_q.mul_(p).add_(slope)


def _skew_kl_of_rest(log_p: Tensor, log_q: Tensor, slope: Tensor, spare: Tensor, *, skew: float) -> None:
    del spare
    torch.exp(log_q, out=slope).mul_(1 - skew)
    p = log_p.exp()
    mixture = torch.add(slope, _positive(skew * p), out=log_q)
    slope.div_(mixture).mul_(-p)
    torch.sub(log_p, mixture.log_(), out=log_q)
    log_q.mul_(p)


def _skew_reverse_kl_of_rest(log_p: Tensor, log_q: Tensor, slope: Tensor, spare: Tensor, *, skew: float) -> None:
    torch.exp(log_q, out=spare)  # q
    p = (1 - skew) * log_p.exp()
    mixture = torch.mul(spare, skew, out=slope).add_(_positive(p))
    log_q.sub_(torch.log(mixture)).mul_(spare)
    torch.div(spare, mixture, out=slope).mul_(p).add_(log_q)


def _positive(p: Tensor) -> Tensor:
    """Return probabilities that are 0 as the smallest number above, so that a mixture with them has a logarithm."""
    return p.clamp_min(torch.finfo(p.dtype).tiny)
