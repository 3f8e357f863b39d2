"""An objective from hidden states and the last layer, without the matrix of all logits.

Rows are projected a few hundred at a time. What is asked of their logits, and the gradient with respect to them, is computed at once, and
the gradient goes on to the hidden states and the layer before the next rows are projected: one projection a row, and never [R, C] in
memory. (Liger Kernel computes cross-entropy so, Hsu et al. 2024, arXiv 2410.10989.)
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
        weight: [V', H].
        bias: [V'], or None.
        scale: Number that logits are multiplied by.
        soft_cap: Largest size of a logit, or None.
    """

    @property
    def weight(self) -> Tensor:
        """Weights, [V', H]."""

    @property
    def bias(self) -> Tensor | None:
        """Biases, [V']."""

    @property
    def scale(self) -> float:
        """Number that logits are multiplied by."""

    @property
    def soft_cap(self) -> float | None:
        """Largest size of a logit."""


TeacherLogits = AnyRows | Callable[[Tensor], AnyRows]
"""The teacher's logits [R, C]; rows of which the largest were kept, or draws; or a function that takes positions [r] int64 and returns
such rows."""


@dataclass(frozen=True, slots=True)
class LinearTerms(Terms):
    """An objective's value, and counts of what its logits show; 0-dim each.

    Attributes:
        right: Number of rows whose largest logit is the label's.
        agreed: Number of rows whose largest logit is of the class of the teacher's largest; NaN without a teacher.
        rows: Number of rows that counted.
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
    """Evaluate an objective from a student's hidden states; its value and gradients are those of all logits at once.

        logits = hidden · weightᵀ + bias,    total = Objective(logits, teacher, labels)

    The gradients of hidden states, weight and bias are computed on the way, where autograd asks for them, and `backward` multiplies
    them by what comes from above. It may be called once.

    With rows of which the largest were kept, most methods (those with a `condensed` form in `METHODS`) never complete a row. All others,
    full rows and functions of your own are evaluated on the completed rows of a chunk; a method that couples the rows of a batch couples
    those of a chunk there, so that its value depends on `chunk_rows`; one that couples the rows of a sequence does not.

    Args:
        method: An objective of `make_objective`, or a method with the weights of its paper (see `find_method`).
        hidden: [R, H]; half precision is projected as it is, and everything after that is computed in float32.
        head: The last layer, or its weight alone, [V', H].
        teacher: The teacher's rows in the order of `hidden` (see `TeacherLogits`); None where labels alone are learned.
        labels: Class of each row, [R] int64; rows with -100 do not count, and are not projected.
        bias: Of the last layer, [V'], where `head` is a weight.
        classes: C: columns of the layer beyond it get no probability and no gradient. None: the teacher's, or all columns.
        progress: Share of the training that will be over, in (0, 1].
        chunk_rows: Rows that are projected at a time.
        sequences: Number of the sequence of each row, [R] int64, for methods that couple the rows of a sequence; None: all are of one.

    Returns:
        The terms; only `total` has a gradient. Without rows that count they are 0.

    Raises:
        InputError: Shapes, dtypes or labels that do not fit; or a method that these rows will not do for.
    """
    objective = method if isinstance(method, Objective) else make_objective(method, {})
    layer = _Layer.of(head, bias)
    known = None if teacher is None or not hasattr(teacher, "classes") else teacher.classes
    if isinstance(teacher, Tensor) and teacher.ndim == 2:
        known = teacher.shape[1]
    classes = classes or known or len(layer.weight)
    _refuse_misfits(hidden, layer, teacher, labels, classes, known, chunk_rows)
    positions = (labels != IGNORED).nonzero().squeeze(1)
    named = None  # asked once where it can be: on a GPU every answer waits for the device
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
    """A head as it is used here."""

    weight: Tensor
    bias: Tensor | None
    scale: float
    soft_cap: float | None

    @classmethod
    def of(cls, head: Head | Tensor, bias: Tensor | None) -> "_Layer":
        if isinstance(head, Tensor):
            return cls(head, bias, 1.0, None)
        if bias is not None:
            raise InputError("a bias was given beside a head, which has its own: give the bias with the weight alone")
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
    """Refuse what does not fit together.

    Raises:
        InputError: Something does not.
    """
    weight, bias = layer.weight, layer.bias
    if hidden.ndim != 2 or weight.ndim != 2 or labels.shape != hidden.shape[:1] or weight.shape[1] != hidden.shape[1]:
        raise InputError(
            f"a loss from hidden states takes them as [R, H], a weight [V, H] and labels [R], found {list(hidden.shape)}, "
            f"{list(weight.shape)} and {list(labels.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise InputError(f"the bias of a weight {list(weight.shape)} is [{len(weight)}], found {list(bias.shape)}")
    if not 1 <= classes <= len(weight):
        raise InputError(f"the head has {len(weight):,} columns, which are no logits of {classes:,} classes")
    if known is not None and known != classes:
        raise InputError(f"the teacher's rows are of {known:,} classes, and the student's of {classes:,}")
    if teacher is not None and not callable(teacher) and len(teacher) != len(labels):
        raise InputError(f"there are {len(labels):,} rows of hidden states, and {len(teacher):,} of the teacher")
    if labels.dtype != torch.int64:
        raise InputError(f"labels are int64, not {str(labels.dtype).removeprefix('torch.')}")
    if bool(((labels != IGNORED) & ((labels < 0) | (labels >= classes))).any()):
        raise InputError(f"a label is a class from 0 to {classes - 1:,}, or {IGNORED} for a row that does not count")
    if chunk_rows < 1:
        raise InputError(f"chunk_rows must be 1 or more, not {chunk_rows}")


class _Values(NamedTuple):
    """What a chunk adds up to: sums over its rows, and the gradient of the total's sum with respect to its logits."""

    sums: Tensor  # in the order of LinearTerms
    gradient: Tensor | None


_SUMS = tuple(one.name for one in fields(LinearTerms) if one.name != "rows")


@dataclass(frozen=True, slots=True)
class _Task:
    """What is evaluated on the rows that count."""

    objective: Objective
    layer: _Layer
    teacher: TeacherLogits | None
    labels: Tensor
    positions: Tensor
    classes: int
    progress: float
    chunk_rows: int
    named: bool | None  # whether every label is among the classes that were kept; None asks each chunk
    means: Tensor | None = None  # over the sequence of each row, [R], where its rows couple

    def sequence_means(self, sequences: Tensor | None) -> Tensor | None:
        """Return what the method takes of the sequence of each row, [R]."""
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
        """Evaluate a chunk.

        Args:
            logits: [r, C], overwritten.
            positions: Of its rows, [r].
            workspace: Memory for matrices of this size.
            with_gradient: Whether the gradient with respect to the logits is wanted.
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
                f"for {len(positions)} positions the teacher returned {len(found)} rows of {found_classes:,} classes; "
                f"expected as many rows, of {self.classes:,}"
            )
        return found.detach() if isinstance(found, Tensor) else found

    def _can_be_condensed(self, rows: Rows | DrawnRows | None, labels: Tensor) -> bool:
        """Say whether all that is asked of the logits is known of condensed rows."""
        objective = self.objective
        if objective.class_weights is not None and objective.label_smoothing:
            return False  # needs every logit with a weight of its own
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
        """Evaluate a chunk from condensed rows."""
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
        """Return the cross-entropy of each row, as `torch.nn.functional.cross_entropy` weighs and smooths it."""
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
        """Evaluate a chunk as a batch of its own."""
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
    """Say whether the label of every row that counts is among the classes that were kept."""
    return bool(((rows.ids == labels[:, None]).any(1) | (labels == IGNORED)).all())


def _agreed(predicted: Tensor, teacher: AnyRows | None, like: Tensor) -> Tensor:
    """Return 1 for each row whose prediction is the teacher's, [r]; NaN without a teacher."""
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
    """Evaluates a task and its gradients in the forward pass."""

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
                "the gradients of a loss from hidden states are computed for one backward pass, and this is another"
            )
        gradients, ctx.gradients = ctx.gradients, None
        scaled = [None if one is None else one.mul_(above).to(d) for one, d in zip(gradients, ctx.dtypes, strict=True)]
        return *scaled, None, None


def _dtype_of(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Return the dtype of the projection."""
    if torch.is_autocast_enabled(hidden.device.type) and hidden.dtype != torch.float64:
        return torch.get_autocast_dtype(hidden.device.type)
    if hidden.dtype != weight.dtype:
        names = [str(one.dtype).removeprefix("torch.") for one in (hidden, weight)]
        raise InputError(f"hidden states are {names[0]} and the head's weight is {names[1]}: bring them to one dtype")
    return hidden.dtype


def _evaluate(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    task: _Task,
    wanted: tuple[bool, bool, bool],
    dtype: torch.dtype,
) -> tuple[Tensor, list[Tensor | None]]:
    """Evaluate a task chunk by chunk: its terms, and gradients with respect to hidden states, weight and bias."""
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
    means = _SUMS.index("right")  # before it; from it on they are counts
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
    """Return the logits of rows, [r, C], in a room, and what their gradient is multiplied by to be that of the projection."""
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
