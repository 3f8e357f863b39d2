"""The training objective: a weighted sum of cross-entropy and a method's distillation term."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from logitcache.errors import InputError, UnknownNameError
from logitcache.methods._ops import upcast
from logitcache.methods._parameters import WEIGHTS
from logitcache.methods.balance import gradient_norms
from logitcache.methods.composition import compose, merge_settings, preset_of, refuse_extra_settings
from logitcache.methods.distillation import Distillation
from logitcache.methods.method import AnyRows, MethodLike
from logitcache.methods.table import find_method, given_loss, method_name

__all__ = ["Objective", "SecondLabels", "Terms", "make_objective"]


@dataclass(frozen=True, slots=True)
class Terms:
    """Terms of an objective for a batch, 0-dim each.

    Attributes:
        total: Value to minimize.
        ce: Cross-entropy, unweighted and detached.
        kd: Distillation term, unweighted and detached; 0 if there is none.
        refined: Fraction of rows whose teacher logits were changed by the label; NaN if the method changes none.
        unranked: Fraction of rows whose label is not among the largest logits that the cache kept; NaN if it kept all.
    """

    total: Tensor
    ce: Tensor
    kd: Tensor
    refined: Tensor
    unranked: Tensor


@dataclass(frozen=True, slots=True)
class SecondLabels:
    """Second labels of mixed rows (mixup, CutMix).

    Attributes:
        labels: Class of the sample mixed into each row, [B] int64.
        weights: Weight of each row's first label, [B]; its second label has the weight 1 - weights.
    """

    labels: Tensor
    weights: Tensor


@dataclass(frozen=True, slots=True)
class Objective:
    """The training objective.

        total = ce_weight · CE(student, y) + ramp(progress) · kd_weight · mean loss(student, teacher, y)

    Attributes:
        ce_weight: Weight of cross-entropy.
        kd_weight: Weight of the distillation term.
        warmup: Fraction of the training over which `kd_weight` is ramped up from 0.
        loss: Distillation term, or None.
        label_smoothing: Label smoothing of cross-entropy, in [0, 1).
        class_weights: Class weights of cross-entropy, [C], or None for equal weights. The weighted losses are averaged over the
            number of rows, not over the sum of weights.
        begins: Boolean parameters of the distillation term that turn true, each when progress exceeds the given fraction.
        pairs_views: Whether the objective is summed over the views of a pair.
        translated: Distillation term compiled by `torch.compile`, used instead of `loss`, or None.
    """

    ce_weight: float
    kd_weight: float
    warmup: float
    loss: Distillation | None
    begins: Mapping[str, float]
    pairs_views: bool
    label_smoothing: float = 0.0
    translated: Callable[..., Tensor] | None = None
    class_weights: Tensor | None = None

    def __call__(
        self,
        student: Tensor,
        teacher: AnyRows | None,
        labels: Tensor,
        progress: float,
        second: SecondLabels | None = None,
        means: Tensor | None = None,
    ) -> Terms:
        """Compute the objective on a batch.

        Args:
            student: Student logits, [B, C]; converted to float32 or wider.
            teacher: Teacher logits, [B, C], which receive no gradient; or top-k rows; or sampled rows. Ignored if `loss` is None.
            labels: Class of each row, [B] int64.
            progress: Fraction of the epochs done after this one, in (0, 1].
            second: Second labels of mixed rows, whose cross-entropy is weighted between both labels (Zhang et al., ICLR 2018).
            means: Result of `Distillation.sequence_means` for these rows.

        Raises:
            InputError: If rows are mixed and the distillation term needs their label.
        """
        student = upcast(student)
        cross_entropy = _cross_entropy(student, labels, second, self.label_smoothing, self.class_weights)
        if second is not None and self.loss is not None and self.loss.needs_label:
            raise InputError(
                "the distillation term needs one label per row, and mixed rows have two; turn mixup and CutMix off"
            )
        if self.loss is None or teacher is None:
            nothing = torch.zeros_like(cross_entropy)
            unknown = nothing * torch.nan
            return Terms(self.ce_weight * cross_entropy, cross_entropy.detach(), nothing, unknown, unknown)
        more: dict[str, Any] = {**self.switches(progress), **({} if means is None else {"means": means})}
        distillation = (self.translated or self.loss)(student, teacher, labels, **more).mean()
        total = self.ce_weight * cross_entropy + self.weight_of_kd(progress) * distillation
        refined = _share(self.loss.refined_rows(teacher, labels), cross_entropy)
        unranked = _share(None if isinstance(teacher, Tensor) else teacher.unranked, cross_entropy)
        return Terms(total, cross_entropy.detach(), distillation.detach(), refined, unranked)

    def gradient_norms(
        self,
        student: Tensor,
        teacher: AnyRows | None,
        labels: Tensor,
        progress: float,
        second: SecondLabels | None = None,
    ) -> dict[str, float]:
        """Return the gradient norm of each weighted term with respect to the student's logits, as after the warm-up.

        Args:
            student: Student logits, [B, C]; no gradient flows back into the network.
            teacher: Teacher rows, as for `__call__`.
            labels: Class of each row, [B] int64.
            progress: Fraction of the epochs done after this one, in (0, 1].
            second: Second labels of mixed rows.

        Returns:
            Norms by name: `ce` for cross-entropy, and the distillation term or each of its parts. Terms with weight 0 are left out.
        """
        student = upcast(student).detach().requires_grad_()
        terms = dict[str, Tensor]()
        if self.ce_weight:
            cross_entropy = _cross_entropy(student, labels, second, self.label_smoothing, self.class_weights)
            terms["ce"] = self.ce_weight * cross_entropy
        if self.loss is not None and teacher is not None and self.kd_weight:
            switches = self.switches(progress)
            for name, part in (self.loss.parts or {"distillation": self.loss}).items():
                terms[name] = self.kd_weight * part(student, teacher, labels, **switches).mean()
        return gradient_norms(student, terms)

    def switches(self, progress: float) -> dict[str, bool]:
        """Return the values of the term's boolean parameters that change during training."""
        return {word: progress > share for word, share in self.begins.items()}

    def weight_of_kd(self, progress: float) -> float:
        """Return the weight of the distillation term, including its warm-up."""
        return self.kd_weight * (min(progress / self.warmup, 1.0) if self.warmup else 1.0)


def _cross_entropy(
    student: Tensor, labels: Tensor, second: SecondLabels | None, smoothing: float, weights: Tensor | None
) -> Tensor:
    if second is None and weights is None:
        return F.cross_entropy(student, labels, label_smoothing=smoothing)
    weights = None if weights is None else weights.to(student.dtype)
    each = functools.partial(F.cross_entropy, student, weight=weights, reduction="none", label_smoothing=smoothing)
    own = each(labels)
    return (own if second is None else second.weights * own + (1 - second.weights) * each(second.labels)).mean()


def _share(rows: Tensor | None, like: Tensor) -> Tensor:
    """Return the fraction of rows that are true, 0-dim; NaN if `rows` is None."""
    return torch.full_like(like, torch.nan) if rows is None else rows.to(like.dtype).mean()


def make_objective(
    method: MethodLike,
    settings: Mapping[str, Any],
    *,
    preset: str | None = None,
    ce_weight: float | None = None,
    kd_weight: float | None = None,
    warmup: float | None = None,
    label_smoothing: float = 0.0,
) -> Objective:
    """Build the training objective of a method.

    Args:
        method: Name of a method, or a method object (see `find_method`). A function or a loss from `get_loss` takes no settings and
            no preset; its weights default to 1 for cross-entropy and 1 for the distillation term.
        settings: Pieces and parameters, as keyword arguments of `get_loss`. For each parameter in the method's `begins` there is
            also `<parameter>_after`, the fraction of the training after which it turns true.
        preset: Name of one of the method's presets.
        ce_weight: Weight of cross-entropy. Defaults to the preset's, or else to the method's.
        kd_weight: Weight of the distillation term. Defaults to the preset's, or else to the method's.
        warmup: Fraction of the training over which `kd_weight` is ramped up. Defaults to the preset's, or else to the method's.
        label_smoothing: Label smoothing of cross-entropy, in [0, 1).

    Raises:
        UnknownNameError: If there is no such method, piece, preset or parameter.
        InputError: If a value is out of range.
    """
    name, row, loss = method_name(method), find_method(method), given_loss(method)
    if loss is not None:
        refuse_extra_settings(method, settings, preset)
    given = {"ce_weight": ce_weight, "kd_weight": kd_weight, "warmup": warmup}
    if misplaced := [word for word in WEIGHTS if word in settings]:
        raise UnknownNameError(f"{misplaced[0]!r} is a weight, not a parameter of {name}; set it with its own option")
    chosen = merge_settings(preset_of(method, preset), settings)
    weights = {word: chosen.pop(word, getattr(row, word)) for word in WEIGHTS}
    weights |= {word: value for word, value in given.items() if value is not None}
    if row.divergence is None and (chosen or kd_weight):
        raise InputError(
            f"{name} has no distillation term, so parameters, pieces and --kd-weight have no effect; drop them"
        )
    numbers = all(isinstance(weight, int | float) and not isinstance(weight, bool) for weight in weights.values())
    if not numbers or not all(0 <= weight < float("inf") for weight in weights.values()) or weights["warmup"] > 1:
        raise InputError(
            f"{name}: weights must be 0 or more and the warm-up a fraction from 0 to 1, not {tuple(weights.values())}"
        )
    begins = {word: chosen.pop(f"{word}_after", share) for word, share in row.begins.items() if word not in chosen}
    for word, share in begins.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise InputError(f"{name}: {word}_after must be a fraction from 0 to 1, not {share!r}")
    if loss is None and row.divergence is not None:
        loss = compose(name, row, chosen)
    if not 0 <= label_smoothing < 1:
        raise InputError(f"--label-smoothing must be at least 0 and below 1, not {label_smoothing:g}")
    return Objective(**weights, loss=loss, begins=begins, pairs_views=row.pairs_views, label_smoothing=label_smoothing)
