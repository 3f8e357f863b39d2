"""What a training step minimises: cross-entropy and a method's distillation term, weighed."""

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
    """An objective's value for a batch, 0-dim each.

    Attributes:
        total: What is minimised.
        ce: Cross-entropy, without its weight or gradient.
        kd: The distillation term, likewise; 0 where there is none.
        refined: Share of rows that the label changed; NaN where the method changes none.
        unranked: Share of rows whose label is not among the largest that a cache kept; NaN where it kept all.
    """

    total: Tensor
    ce: Tensor
    kd: Tensor
    refined: Tensor
    unranked: Tensor


@dataclass(frozen=True, slots=True)
class SecondLabels:
    """The other labels of rows that two samples were mixed into.

    Attributes:
        labels: Classes of the partners, [B] int64.
        weights: Of the rows' own labels, [B]; the partners' have the rest.
    """

    labels: Tensor
    weights: Tensor


@dataclass(frozen=True, slots=True)
class Objective:
    """What a training step minimises.

        total = ce_weight · CE(student, y) + ramp(progress) · kd_weight · mean loss(student, teacher, y)

    Attributes:
        ce_weight: Weight of cross-entropy.
        kd_weight: Weight of the distillation term.
        warmup: Share of the training over which that grows from 0.
        loss: The distillation term, or None.
        label_smoothing: Share of a label that cross-entropy spreads over all classes.
        class_weights: Weights of the classes in cross-entropy, [C], of which a batch has the mean over its rows. None weighs all the same.
        begins: Boolean parameters of the term that turn true when progress exceeds a share.
        pairs_views: Whether it is summed over the views of a pair.
        translated: What evaluates the term in its place, as torch.compile translated it.
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
        """Evaluate a batch.

        Args:
            student: [B, C]; computed on in float32 or wider.
            teacher: [B, C], gets no gradient, or rows of which the largest were kept, or draws; not looked at where `loss` is None.
            labels: [B] int64.
            progress: Share of the epochs that will be over when this one is, in (0, 1].
            second: Where rows are mixed: cross-entropy weighs both labels (Zhang et al., ICLR 2018).
            means: Result of `Distillation.sequence_means` for these rows.

        Raises:
            InputError: Rows are mixed, and the distillation term reads their label.
        """
        student = upcast(student)
        cross_entropy = _cross_entropy(student, labels, second, self.label_smoothing, self.class_weights)
        if second is not None and self.loss is not None and self.loss.needs_label:
            raise InputError("the distillation term reads the label of a row, and mixed rows have two")
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
        """Measure how strongly each term pulls on the student's logits, with its weight, as after the warm-up.

        Args:
            student: [B, C]; nothing flows back into the network.
            teacher: As for a call.
            labels: [B] int64.
            progress: As for a call.
            second: As for a call.

        Returns:
            Norms of gradients with respect to the logits: of cross-entropy, `ce`, and of the distillation term, or of each term that it is
            the sum of. A term whose weight is 0 is left out.
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
        """Return the boolean parameters of the term that change over a training."""
        return {word: progress > share for word, share in self.begins.items()}

    def weight_of_kd(self, progress: float) -> float:
        """Return the weight of the distillation term."""
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
    """Return the share of rows that are true, 0-dim; NaN where there is nothing to say."""
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
    """Build a method's objective.

    Args:
        method: Name of a method, or a method as an object (see `find_method`). A function, and what `get_loss` returns, takes
            no settings or preset; its weights are 1 for cross-entropy and 1 for the distillation term unless given.
        settings: Pieces and parameters, in the words of `get_loss`; besides, for each word of the method's `begins`,
            `<word>_after`: the share of the training after which it turns true.
        preset: Another setting of its paper.
        ce_weight: Weight of cross-entropy; None is the preset's, or the method's.
        kd_weight: Weight of the distillation term, likewise.
        warmup: Share of the training over which that grows, likewise.
        label_smoothing: Share of a label that cross-entropy spreads over all classes.

    Raises:
        UnknownNameError: No such method, piece, preset or parameter.
        InputError: A value that means nothing.
    """
    name, row, loss = method_name(method), find_method(method), given_loss(method)
    if loss is not None:
        refuse_extra_settings(method, settings, preset)
    given = {"ce_weight": ce_weight, "kd_weight": kd_weight, "warmup": warmup}
    if misplaced := [word for word in WEIGHTS if word in settings]:
        raise UnknownNameError(f"{name} has no parameter {misplaced[0]!r}: weights have options of their own")
    chosen = merge_settings(preset_of(method, preset), settings)
    weights = {word: chosen.pop(word, getattr(row, word)) for word in WEIGHTS}
    weights |= {word: value for word, value in given.items() if value is not None}
    if row.divergence is None and (chosen or kd_weight):
        raise InputError(
            f"{name} has no distillation term, so parameters, pieces and --kd-weight mean nothing beside it"
        )
    numbers = all(isinstance(weight, int | float) and not isinstance(weight, bool) for weight in weights.values())
    if not numbers or not all(0 <= weight < float("inf") for weight in weights.values()) or weights["warmup"] > 1:
        raise InputError(
            f"{name}: weights must be 0 or more and the warm-up a share from 0 to 1, not {tuple(weights.values())}"
        )
    begins = {word: chosen.pop(f"{word}_after", share) for word, share in row.begins.items() if word not in chosen}
    for word, share in begins.items():
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
            raise InputError(f"{name}: {word}_after must be a share from 0 to 1, not {share!r}")
    if loss is None and row.divergence is not None:
        loss = compose(name, row, chosen)
    if not 0 <= label_smoothing < 1:
        raise InputError(f"--label-smoothing must be a share from 0 to below 1, not {label_smoothing:g}")
    return Objective(**weights, loss=loss, begins=begins, pairs_views=row.pairs_views, label_smoothing=label_smoothing)
