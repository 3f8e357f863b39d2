"""Fused linear objective: compute an objective from hidden states and the last layer without materializing all logits.

Rows are projected in chunks of a few hundred. The loss of a chunk and its gradient with respect to the logits are computed immediately,
and the gradient is propagated to the hidden states and the layer before the next chunk. Each row is projected once, and [R, C] is never
in memory. (Liger Kernel does the same for cross-entropy; Hsu et al. 2024, arXiv 2410.10989.)
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from logitcache.errors import InputError
from logitcache.methods._ops import PerSample
from logitcache.methods.condensed import CondensedStudent, Workspace, with_first_unlisted
from logitcache.methods.method import AnyRows, DrawnRows, MethodLike, Rows, are_drawn
from logitcache.methods.objective import Objective, Terms, make_objective

__all__ = ["Head", "LinearTerms", "TeacherLogits", "linear_loss"]

IGNORED = -100


class Head(Protocol):
    """The last layer of a language model: logits = cap(scale · (hidden · weightᵀ + bias)), cap(x) = soft_cap · tanh(x / soft_cap).

    Attributes:
        weight: Weights, [V', H].
        bias: Biases, [V'], or None.
        scale: Factor applied to the logits.
        soft_cap: Bound on the absolute value of a logit, or None.
    """

    @property
    def weight(self) -> Tensor:
        """Weights, [V', H]."""

    @property
    def bias(self) -> Tensor | None:
        """Biases, [V'], or None."""

    @property
    def scale(self) -> float:
        """Factor applied to the logits."""

    @property
    def soft_cap(self) -> float | None:
        """Bound on the absolute value of a logit, or None."""


TeacherLogits = AnyRows | Callable[[Tensor], AnyRows]
"""The teacher's logits [R, C], top-k rows or sampled rows; or a function that takes row positions [r] int64 and returns any of these."""


@dataclass(frozen=True, slots=True)
class LinearTerms(Terms):
    """Terms of an objective, and counts from the student's logits; 0-dim each.

    Attributes:
        right: Number of rows whose largest logit is the label's.
        agreed: Number of rows on which student and teacher have the same largest logit; NaN without a teacher.
        rows: Number of rows in the loss.
    """

    right: Tensor
    agreed: Tensor
    rows: int


def linear_loss(
    method: Objective | MethodLike,
    hidden: Tensor,
    head: Head | Tensor,
    teacher: TeacherLogits | None,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    classes: int | None = None,
    progress: float = 1.0,
    chunk_rows: int = 256,
    sequences: Tensor | None = None,
) -> LinearTerms:
    """Compute an objective from a student's hidden states, with the value and gradients of the unfused computation.

        logits = hidden · weightᵀ + bias,    total = Objective(logits, teacher, labels)

    The gradients of hidden states, weight and bias are computed in the forward pass if autograd needs them, and `backward` scales them
    by the incoming gradient. `backward` can be called only once.

    For top-k rows, most methods (those with a `condensed` form in `METHODS`) never complete a row. Other methods, full rows and custom
    functions are evaluated on the completed rows of a chunk. A method that couples the rows of a batch then couples the rows of a chunk,
    so its value depends on `chunk_rows`; a method that couples the rows of a sequence does not depend on it.

    Args:
        method: Objective from `make_objective`, or a method with the weights of its paper (see `find_method`).
        hidden: Hidden states, [R, H]; projected in their own dtype, with everything after that in float32 or wider.
        head: Last layer, or only its weight, [V', H].
        teacher: Teacher rows in the order of `hidden` (see `TeacherLogits`), or None to train on labels alone.
        labels: Class of each row, [R] int64; rows labeled -100 are ignored and not projected.
        bias: Bias of the last layer, [V'], if `head` is a weight.
        classes: Number of classes C; further columns of the layer get no probability and no gradient. Defaults to the teacher's number
            of classes, or else to all columns.
        progress: Fraction of the training done after this step, in (0, 1].
        chunk_rows: Number of rows to project at a time.
        sequences: Sequence index of each row, [R] int64, for methods that couple the rows of a sequence. None treats all rows as one
            sequence.

    Returns:
        The terms; only `total` has a gradient. They are 0 if every row is ignored.

    Raises:
        InputError: If shapes, dtypes or labels do not match, or if the method cannot be computed from these rows.
    """
    objective = method if isinstance(method, Objective) else make_objective(method, {})
    layer = _Layer.of(head, bias)
    known = None if teacher is None or not hasattr(teacher, "classes") else teacher.classes
    if isinstance(teacher, Tensor) and teacher.ndim == 2:
        known = teacher.shape[1]
    classes = classes or known or len(layer.weight)
    _refuse_misfits(hidden, layer, teacher, labels, classes, known, chunk_rows)
    positions = (labels != IGNORED).nonzero().squeeze(1)
    named = None  # checked once if possible: each check synchronizes a GPU
    if teacher is not None and not isinstance(teacher, Tensor) and not callable(teacher):
        named = not are_drawn(teacher) and _labels_are_kept(labels, teacher)
    task = _Task(objective, layer, teacher, labels, positions, classes, progress, chunk_rows, named)
    task = replace(task, means=task.sequence_means(sequences))
    wanted = tuple(
        torch.is_grad_enabled() and one is not None and one.requires_grad for one in (hidden, layer.weight, layer.bias)
    )
    found = _Linear.apply(hidden, layer.weight, layer.bias, task, wanted)
    return LinearTerms(**dict(zip(_SUMS, found, strict=True)), rows=len(positions))


class _Layer(NamedTuple):
    """Parameters of the last layer."""

    weight: Tensor
    bias: Tensor | None
    scale: float
    soft_cap: float | None

    @classmethod
    def of(cls, head: Head | Tensor, bias: Tensor | None) -> "_Layer":
        if isinstance(head, Tensor):
            return cls(head, bias, 1.0, None)
        if bias is not None:
            raise InputError(
                "bias was given together with a head, which has its own; pass bias only with a weight tensor"
            )
        return cls(head.weight, head.bias, head.scale, head.soft_cap)


def _refuse_misfits(
    hidden: Tensor,
    layer: _Layer,
    teacher: TeacherLogits | None,
    labels: Tensor,
    classes: int,
    known: int | None,
    chunk_rows: int,
) -> None:
    """Check that shapes, dtypes and labels match.

    Raises:
        InputError: If they do not.
    """
    weight, bias = layer.weight, layer.bias
    if hidden.ndim != 2 or weight.ndim != 2 or labels.shape != hidden.shape[:1] or weight.shape[1] != hidden.shape[1]:
        raise InputError(
            f"linear_loss takes hidden states [R, H], a weight [V, H] and labels [R], got {list(hidden.shape)}, "
            f"{list(weight.shape)} and {list(labels.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError(f"the bias of a weight {list(weight.shape)} must be [{len(weight)}], not {list(bias.shape)}")
    if not 1 <= classes <= len(weight):
        raise InputError(f"classes must be between 1 and the {len(weight):,} columns of the head, not {classes:,}")
    if known is not None and known != classes:
        raise InputError(f"teacher and student must have the same number of classes, not {known:,} and {classes:,}")
    if teacher is not None and not callable(teacher) and len(teacher) != len(labels):
        raise InputError(
            f"expected a teacher row per hidden state, got {len(labels):,} hidden states and {len(teacher):,} teacher rows"
        )
    if labels.dtype != torch.int64:
        raise InputError(f"labels must be int64, not {str(labels.dtype).removeprefix('torch.')}")
    if bool(((labels != IGNORED) & ((labels < 0) | (labels >= classes))).any()):
        raise InputError(f"labels must be between 0 and {classes - 1:,}, or {IGNORED} for rows to ignore")
    if chunk_rows < 1:
        raise InputError(f"chunk_rows must be 1 or more, not {chunk_rows}")


class _Values(NamedTuple):
    """Results of a chunk: sums over its rows, and the gradient of the summed total with respect to its logits."""

    sums: Tensor  # in the order of LinearTerms
    gradient: Tensor | None


_SUMS = tuple(one.name for one in fields(LinearTerms) if one.name != "rows")


@dataclass(frozen=True, slots=True)
class _Task:
    """An objective to evaluate on all rows that are not ignored."""

    objective: Objective
    layer: _Layer
    teacher: TeacherLogits | None
    labels: Tensor
    positions: Tensor
    classes: int
    progress: float
    chunk_rows: int
    named: bool | None  # whether every label is among the kept classes; None checks each chunk
    means: Tensor | None = None  # means over the sequence of each row, [R], if the method couples its rows

    def sequence_means(self, sequences: Tensor | None) -> Tensor | None:
        """Return the method's means over the sequence of each row, [R], or None if it needs none."""
        loss = self.objective.loss
        if loss is None or loss.of_sequence is None or self.teacher is None or not len(self.positions):
            return None
        of_chunks = ((self._teacher_of(some), self.labels[some]) for some in self.chunks())
        known = ((rows, labels) for rows, labels in of_chunks if rows is not None)
        found = loss.sequence_means(known, None if sequences is None else sequences[self.positions])
        return None if found is None else found.new_zeros(len(self.labels)).index_copy(0, self.positions, found)

    def chunks(self) -> Iterator[Tensor]:
        """Yield the positions of the rows of each chunk."""
        for first in range(0, len(self.positions), self.chunk_rows):
            yield self.positions[first : first + self.chunk_rows]

    def evaluate(self, logits: Tensor, positions: Tensor, workspace: Workspace, *, with_gradient: bool) -> _Values:
        """Compute the objective on a chunk.

        Args:
            logits: Student logits, [r, C]; overwritten.
            positions: Positions of the chunk's rows, [r].
            workspace: Buffers of at least this size.
            with_gradient: Whether to compute the gradient with respect to the logits.
        """
        teacher, labels = self._teacher_of(positions), self.labels[positions]
        if isinstance(teacher, Tensor) and self.objective.loss is not None:
            return self._completed(logits, teacher, labels, positions, with_gradient=with_gradient)
        rows = None if isinstance(teacher, Tensor) else teacher
        if self._can_be_condensed(rows, labels):
            return self._condensed(logits, teacher, labels, workspace, with_gradient=with_gradient)
        return self._completed(logits, teacher, labels, positions, with_gradient=with_gradient)

    def _teacher_of(self, positions: Tensor) -> AnyRows | None:
        if self.teacher is None or isinstance(self.teacher, Tensor):
            return None if self.teacher is None else self.teacher[positions].detach()
        found = self.teacher(positions) if callable(self.teacher) else self.teacher[positions]
        found_classes = found.shape[-1] if isinstance(found, Tensor) else found.classes
        if len(found) != len(positions) or found_classes != self.classes:
            raise InputError(
                f"the teacher returned {len(found)} rows of {found_classes:,} classes for {len(positions)} positions; "
                f"expected {len(positions)} rows of {self.classes:,} classes"
            )
        return found.detach() if isinstance(found, Tensor) else found

    def _can_be_condensed(self, rows: Rows | DrawnRows | None, labels: Tensor) -> bool:
        """Return whether the objective can be computed from condensed rows."""
        objective = self.objective
        if objective.class_weights is not None and objective.label_smoothing:
            return False  # needs every logit, each with its own weight
        if objective.loss is None or rows is None:
            return self.classes >= 2
        if (
            are_drawn(rows)
            or objective.loss.condensed is None
            or objective.loss.every_class
            or self.classes < rows.ids.shape[1] + 2
        ):
            return False
        return _labels_are_kept(labels, rows) if self.named is None else self.named

    def _condensed(
        self, logits: Tensor, teacher: AnyRows | None, labels: Tensor, workspace: Workspace, *, with_gradient: bool
    ) -> _Values:
        """Compute the objective on a chunk from condensed rows."""
        objective, loss = self.objective, self.objective.loss
        rows = None if loss is None or isinstance(teacher, Tensor) else cast("Rows | None", teacher)
        bucket = loss is not None and loss.bucket
        ids = labels[:, None] if rows is None else rows.ids if bucket else with_first_unlisted(rows.ids)
        student = CondensedStudent(
            logits, ids, workspace, keep_top=rows is not None and bucket, with_gradient=with_gradient
        )
        with torch.set_grad_enabled(with_gradient):
            counts = bool(objective.ce_weight) or rows is None
            with torch.set_grad_enabled(with_gradient and counts):
                ce = self._cross_entropy(student, labels)
            kd = torch.zeros_like(ce)
            refined = unranked = torch.full_like(ce, torch.nan)
            total = objective.ce_weight * ce
            if loss is not None and rows is not None:
                kd = loss.of_condensed(student, rows, labels, objective.switches(self.progress))
                total = total + objective.weight_of_kd(self.progress) * kd
                found = loss.refined_of_condensed(rows, labels)
                refined = refined if found is None else found.to(ce.dtype)
                unranked = rows.unranked.to(ce.dtype)
            gradient = student.gradient(total.sum()) if with_gradient else None
        right = (student.predicted == labels).to(ce.dtype)
        agreed = _agreed(student.predicted, teacher, ce)
        sums = torch.stack([one.detach().sum() for one in (total, ce, kd, refined, unranked, right, agreed)])
        return _Values(sums, gradient)

    def _cross_entropy(self, student: CondensedStudent, labels: Tensor) -> PerSample:
        """Return the cross-entropy of each row, [r], with the weights and smoothing of `torch.nn.functional.cross_entropy`."""
        total = student.scores(1.0).logsumexp(1)
        place = torch.searchsorted(student.ids, labels[:, None])
        value = total - student.kept.gather(1, place).squeeze(1)
        smoothing = self.objective.label_smoothing
        if smoothing:
            mean = (student.kept.sum(1) + student.count * student.mean.squeeze(1)) / self.classes
            value = (1 - smoothing) * value + smoothing * (total - mean)
        weights = self.objective.class_weights
        return value if weights is None else value * weights.to(value.dtype)[labels]

    def _completed(
        self,
        logits: Tensor,
        teacher: AnyRows | None,
        labels: Tensor,
        positions: Tensor,
        *,
        with_gradient: bool,
    ) -> _Values:
        """Compute the objective on a chunk's completed rows, as a batch."""
        logits = logits.detach().requires_grad_(with_gradient)
        with torch.set_grad_enabled(with_gradient):
            means = None if self.means is None else self.means[positions]
            terms = self.objective(logits, teacher, labels, self.progress, means=means)
            total = terms.total * len(labels)
            gradient = torch.autograd.grad(total, logits)[0] if with_gradient else None
        predicted = logits.detach().argmax(1)
        means = torch.stack([terms.total.detach(), terms.ce, terms.kd, terms.refined, terms.unranked])
        right = (predicted == labels).to(means.dtype)
        counts = torch.stack([right.sum(), _agreed(predicted, teacher, right).sum()])
        return _Values(torch.cat([means * len(labels), counts]), gradient)


def _labels_are_kept(labels: Tensor, rows: Rows | DrawnRows) -> bool:
    """Return whether the label of every row that is not ignored is among the kept classes."""
    return bool(((rows.ids == labels[:, None]).any(1) | (labels == IGNORED)).all())


def _agreed(predicted: Tensor, teacher: AnyRows | None, like: Tensor) -> Tensor:
    """Return 1 for each row where student and teacher predict the same class, [r]; NaN without a teacher."""
    if teacher is None:
        return torch.full_like(like, torch.nan)
    if isinstance(teacher, Tensor):
        return (predicted == teacher.argmax(1)).to(like.dtype)
    if are_drawn(teacher):
        return (predicted == teacher.first).to(like.dtype)
    rows = cast("Rows", teacher)
    top = rows.ids.gather(1, rows.values.argmax(1, keepdim=True)).squeeze(1)
    return (predicted == top).to(like.dtype)


class _Linear(torch.autograd.Function):
    """Autograd function that computes a task and its gradients in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, task: _Task, wanted: tuple[bool, bool, bool]
    ) -> tuple[Tensor, ...]:
        dtype = _dtype_of(hidden, weight)
        with torch.autocast(hidden.device.type, enabled=False):
            found, gradients = _evaluate(hidden, weight, bias, task, wanted, dtype)
        ctx.gradients, ctx.dtypes = gradients, tuple(None if x is None else x.dtype for x in (hidden, weight, bias))
        total, *others = found
        ctx.mark_non_differentiable(*others)
        return total, *others

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        if ctx.gradients is None:
            raise InputError(
                "backward was called twice on a linear_loss, which keeps its gradients for one backward pass; compute the loss again"
            )
        gradients, ctx.gradients = ctx.gradients, None
        scaled = [None if one is None else one.mul_(above).to(d) for one, d in zip(gradients, ctx.dtypes, strict=True)]
        return *scaled, None, None


def _dtype_of(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Return the dtype in which hidden states are projected."""
    if torch.is_autocast_enabled(hidden.device.type) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(hidden.device.type)
    if hidden.dtype != weight.dtype:
        names = [str(one.dtype).removeprefix("torch.") for one in (hidden, weight)]
        raise InputError(
            f"hidden states are {names[0]} and the head's weight is {names[1]}; convert them to the same dtype"
        )
    return hidden.dtype


def _evaluate(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    task: _Task,
    wanted: tuple[bool, bool, bool],
    dtype: torch.dtype,
) -> tuple[Tensor, list[Tensor | None]]:
    """Compute a task chunk by chunk; return its terms and the gradients with respect to hidden states, weight and bias."""
    wide = dtype if dtype.itemsize >= 4 else torch.float32
    gradients = [
        None if one is None or not asked else torch.zeros(one.shape, dtype=wide, device=hidden.device)
        for one, asked in zip((hidden, weight, bias), wanted, strict=True)
    ]
    of_hidden, of_weight, of_bias = gradients
    count, classes = len(task.positions), task.classes
    weight = weight[:classes].to(dtype)
    bias = None if bias is None else bias[:classes].to(dtype)
    workspace = Workspace(min(task.chunk_rows, count), classes, hidden.device)
    sums = torch.zeros(len(_SUMS), dtype=wide, device=hidden.device)
    for positions in task.chunks():
        rows = hidden[positions].to(dtype)
        logits, slope = _project(rows, weight, bias, task.layer, workspace, wide, with_slope=any(wanted))
        found = task.evaluate(logits, positions, workspace, with_gradient=any(wanted))
        sums += found.sums
        if found.gradient is None:
            continue
        gradient = found.gradient if slope is None else found.gradient.mul_(slope)
        if of_bias is not None:
            of_bias[:classes] += gradient.sum(0)
        gradient = gradient if dtype is wide else workspace.buffer("projected", len(rows), dtype).copy_(gradient)
        if of_hidden is not None:
            of_hidden[positions] = (gradient @ weight).to(wide)
        if of_weight is not None and dtype is wide:
            of_weight[:classes].addmm_(gradient.T, rows)
        elif of_weight is not None:
            of_weight[:classes] += gradient.T @ rows
    for one in gradients:
        if one is not None and count:
            one.div_(count)
    means = _SUMS.index("right")  # sums before this index are averaged, those from it on are counts
    return torch.cat([sums[:means] / max(count, 1), sums[means:]]), gradients


def _project(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    layer: _Layer,
    workspace: Workspace,
    wide: torch.dtype,
    *,
    with_slope: bool,
) -> tuple[Tensor, Tensor | float | None]:
    """Return the logits of rows, [r, C], in a workspace buffer, and the derivative of scale and soft cap; None if it is 1."""
    logits = torch.mm(rows, weight.T, out=workspace.buffer("projected", len(rows), rows.dtype))
    if bias is not None:
        logits += bias
    if logits.dtype is not wide:
        logits = workspace.buffer("logits", len(rows), wide).copy_(logits)
    if layer.soft_cap is None:
        return (logits, None) if layer.scale == 1 else (logits.mul_(layer.scale), layer.scale)
    logits = logits.mul_(layer.scale / layer.soft_cap).tanh_()
    slope = None
    if with_slope:  # d cap(scale x) / dx = scale (1 - tanh²)
        slope = workspace.buffer("slope", len(rows), wide)
        torch.mul(logits, logits, out=slope).sub_(1).mul_(-layer.scale)
    return logits.mul_(layer.soft_cap), slope
