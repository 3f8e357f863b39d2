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
    """Concentrate the student on the teacher's modes (mode-seeking), instead of covering all of its mass.

        RKL = T² KL( q || p )                                              q = softmax(s / T),  p = softmax(z / T)

    Args:
        student: Student logits, [B, C].
        teacher: Teacher logits, [B, C].
        labels: Not used.
        temperature: T, which divides both sets of logits.

    Returns:
        Loss of each row, [B]; 0 if student and teacher logits differ by a constant.

    Departures:
        The paper distills language models at T = 1 and without cross-entropy (preset `language`). The weights and T = 4 are from KD.
    """
    del labels
    return squared(temperature) * _reverse_kl(log_probs(teacher, temperature), log_probs(student, temperature)).sum(-1)


def jsd(
    student: Logits, teacher: Logits, labels: Labels, *, skew: Fraction = 0.9, temperature: Temperature = 1.0
) -> PerSample:
    """Compare student and teacher with their mixture.

        JSD = T² ( skew · KL(q || m) + (1 - skew) · KL(p || m) ),   m = (1 - skew) p + skew q

    Args:
        student: Student logits, [B, C].
        teacher: Teacher logits, [B, C].
        labels: Not used.
        skew: λ, fraction of the student in the mixture.
        temperature: T, which divides both sets of logits.

    Returns:
        Loss of each row, [B]; 0 if student and teacher logits differ by a constant, and at most T² ln 2.

    Departures:
        The paper distills language models at T = 1 and without cross-entropy (preset `language`). T = 4 is from KD. The weight is
        eleven times KD's, because near agreement JSD is skew (1 - skew) = 0.09 times KL.
    """
    del labels
    log_p, log_q = log_probs(teacher, temperature), log_probs(student, temperature)
    return squared(temperature) * _jsd(log_p, log_q, skew=skew).sum(-1)


def skew_kl(
    student: Logits, teacher: Logits, labels: Labels, *, skew: Fraction = 0.1, temperature: Temperature = 1.0
) -> PerSample:
    """Compute KL with some of the teacher mixed into the student, which bounds the ratio.

        SKL = T² KL( p || skew · p + (1 - skew) q )

    Args:
        student: Student logits, [B, C].
        teacher: Teacher logits, [B, C].
        labels: Not used.
        skew: λ, fraction of the teacher in the mixture.
        temperature: T, which divides both sets of logits.

    Returns:
        Loss of each row, [B]; 0 if student and teacher logits differ by a constant.

    Departures:
        The release drops the teacher's entropy, a constant. The paper distills language models at T = 1 and without cross-entropy
        (preset `language`). The weights and T = 4 are from KD.
    """
    del labels
    log_p, log_q = log_probs(teacher, temperature), log_probs(student, temperature)
    return squared(temperature) * _skew_kl(log_p, log_q, skew=skew).sum(-1)


def skew_reverse_kl(
    student: Logits, teacher: Logits, labels: Labels, *, skew: Fraction = 0.1, temperature: Temperature = 1.0
) -> PerSample:
    """Compute reverse KL with some of the student mixed into the teacher, which bounds the ratio.

        SRKL = T² KL( q || (1 - skew) p + skew · q )

    Args:
        student: Student logits, [B, C].
        teacher: Teacher logits, [B, C].
        labels: Not used.
        skew: λ, fraction of the student in the mixture.
        temperature: T, which divides both sets of logits.

    Returns:
        Loss of each row, [B]; 0 if student and teacher logits differ by a constant.

    Departures:
        The paper distills language models at T = 1 and without cross-entropy (preset `language`). The weights and T = 4 are from KD.
    """
    del labels
    log_p, log_q = log_probs(teacher, temperature), log_probs(student, temperature)
    return squared(temperature) * _skew_reverse_kl(log_p, log_q, skew=skew).sum(-1)


def reverse_kl_condensed(
    student: CondensedStudent, teacher: CondensedTeacher, *, temperature: float = 1.0
) -> PerSample:
    """Compute `reverse_kl` from condensed rows, [B]."""
    return _condensed(_reverse_kl, _reverse_kl_of_rest, student, teacher, temperature)


def jsd_condensed(
    student: CondensedStudent, teacher: CondensedTeacher, *, skew: Fraction = 0.9, temperature: float = 1.0
) -> PerSample:
    """Compute `jsd` from condensed rows, [B]."""
    term, of_rest = functools.partial(_jsd, skew=skew), functools.partial(_jsd_of_rest, skew=skew)
    return _condensed(term, of_rest, student, teacher, temperature)


def skew_kl_condensed(
    student: CondensedStudent, teacher: CondensedTeacher, *, skew: Fraction = 0.1, temperature: float = 1.0
) -> PerSample:
    """Compute `skew_kl` from condensed rows, [B]."""
    term, of_rest = functools.partial(_skew_kl, skew=skew), functools.partial(_skew_kl_of_rest, skew=skew)
    return _condensed(term, of_rest, student, teacher, temperature)


def skew_reverse_kl_condensed(
    student: CondensedStudent, teacher: CondensedTeacher, *, skew: Fraction = 0.1, temperature: float = 1.0
) -> PerSample:
    """Compute `skew_reverse_kl` from condensed rows, [B]."""
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
    """Sum a divergence's term over the explicit classes and over the rest.

    With a bucket, p / q is the same for every class in the rest, so the whole rest contributes the term of a single class.
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


# The same terms as `RestTerm`, for classes that all have the same p. With m the mixture, their derivatives with respect to log q are
#
#     reverse KL       q (log q - log p) + q                       JSD        skew · q (log q - log m)
#     skew KL          -p (1 - skew) q / m                         skew RKL   q (log q - log m) + q (1 - skew) p / m
#
# Mixtures are formed without logarithms, so each class takes one exponential and one logarithm, which costs the most.


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
    """Replace zero probabilities by the smallest positive number, so that the logarithm of a mixture is finite."""
    return p.clamp_min(torch.finfo(p.dtype).tiny)
