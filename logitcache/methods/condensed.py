"""Condensed rows: the logits of a few explicit classes, and summary statistics of all others (the rest).

The statistics of a chunk of student rows (log-sum-exp of the rest at each temperature, mean and maximum of its logits) are computed
without a second matrix of the chunk's size. Autograd differentiates a method's loss with respect to these statistics, whose derivatives
have a closed form,

    ∂ logsumexp_rest(s / T) / ∂ s_i = softmax_rest(s / T)_i / T,        ∂ mean_rest(s) / ∂ s_i = 1 / n

so the gradient with respect to the logits can be written over the logits. Values and gradients equal those of the completed rows.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from logitcache.methods._ops import PerSample, kl
from logitcache.methods.method import Rows

__all__ = ["CondensedStudent", "CondensedTeacher", "RestTerm", "Workspace", "kl_of_condensed", "with_first_unlisted"]

_BLOCK = (
    1 << 18
)  # elements per block of rows when summing a term over the rest; several such blocks fit into a core's cache

RestTerm = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""Compute one class's term of a divergence, and its derivative with respect to log q, elementwise and in place.

Called with log p, [R, 1]; log q, [R, C], overwritten with the term; an output buffer for the derivative, [R, C]; and a scratch buffer,
[R, C]. Both results must be finite for finite arguments.
"""


class Workspace:
    """Buffers for the matrices of a chunk, reused by every chunk because allocation costs more than the arithmetic."""

    def __init__(self, rows: int, classes: int, device: torch.device) -> None:
        """Set the size of the buffers, [rows, classes] each; they are allocated on first use."""
        self._shape, self._device, self._held = (rows, classes), device, dict[tuple[str, torch.dtype], Tensor]()

    def buffer(self, name: str, rows: int, dtype: torch.dtype) -> Tensor:
        """Return the first `rows` rows of a named buffer, uninitialized."""
        if (name, dtype) not in self._held:
            self._held[name, dtype] = torch.empty(self._shape, dtype=dtype, device=self._device)
        return self._held[name, dtype][:rows]


class CondensedStudent:
    """A chunk of R student rows with M explicit classes.

    Attributes:
        ids: Explicit classes, ascending, [R, M] int64.
        kept: Logits of the explicit classes, [R, M].
        count: Number of classes in the rest, n.
        predicted: Class with the largest logit, the first one if there is a tie, [R] int64.
    """

    def __init__(
        self, logits: Tensor, ids: Tensor, workspace: Workspace, *, keep_top: bool, with_gradient: bool
    ) -> None:
        """Condense logits.

        Args:
            logits: Student logits, [R, C] float32 or wider; overwritten.
            ids: Explicit classes, ascending, [R, M], with M at most C - 1, or at most C - 2 with `keep_top`.
            workspace: Buffers of at least this size.
            keep_top: Whether to make the largest of the remaining classes explicit too.
            with_gradient: Whether `gradient` will be called.
        """
        kept = logits.gather(1, ids)
        logits.scatter_(1, ids, -torch.inf)
        top, top_ids = logits.max(1, keepdim=True)
        if keep_top:
            ids, order = torch.cat([ids, top_ids], 1).sort(1)
            kept = torch.cat([kept, top], 1).gather(1, order)
            logits.scatter_(1, top_ids, -torch.inf)
            top, top_ids = logits.max(1, keepdim=True)
        self.ids, self.kept, self.count = ids, kept.requires_grad_(with_gradient), logits.shape[1] - ids.shape[1]
        self._logits, self._workspace, self._with_gradient = logits, workspace, with_gradient
        self._top, self._top_ids = top.clone().requires_grad_(with_gradient), top_ids
        best, self._place = kept.detach().max(1, keepdim=True)
        best_ids = ids.gather(1, self._place)
        self._rest_wins = (top > best) | ((top == best) & (top_ids < best_ids))
        self.predicted = torch.where(self._rest_wins, top_ids, best_ids).squeeze(1)
        self._sums: dict[
            float, tuple[Tensor, Tensor]
        ] = {}  # by temperature: log-sum-exp, and the sum before the logarithm
        self._held: float | None = None  # temperature whose exponentials are in the buffer "exponentials"
        self._mean: Tensor | None = None
        # Sums over the rest, their derivatives with respect to logits / T, and T.
        self._slopes: list[tuple[Tensor, Tensor, float]] = []

    def rest(self, temperature: float) -> Tensor:
        """Return the log-sum-exp over the rest of logits divided by a temperature, [R, 1]."""
        if temperature not in self._sums:
            total = self._exponentials(temperature, self._buffer("exponentials")).sum(1, keepdim=True)
            self._held = temperature
            value = (total.log() + self._top.detach() / temperature).requires_grad_(self._with_gradient)
            self._sums[temperature] = value, total
        return self._sums[temperature][0]

    @property
    def mean(self) -> Tensor:
        """Mean logit of the rest, [R, 1]."""
        if self._mean is None:
            self._logits.scatter_(1, self.ids, 0)
            self._mean = (self._logits.sum(1, keepdim=True) / self.count).requires_grad_(self._with_gradient)
            self._logits.scatter_(1, self.ids, -torch.inf)
        return self._mean

    @property
    def largest(self) -> Tensor:
        """Largest logit of each row, that of class `predicted`, [R, 1]."""
        return torch.where(self._rest_wins, self._top, self.kept.gather(1, self._place))

    def scores(self, temperature: float) -> Tensor:
        """Return logits divided by a temperature, with the rest as one last column, [R, M + 1]."""
        return torch.cat([self.kept / temperature, self.rest(temperature)], 1)

    def log_probs(self, temperature: float) -> Tensor:
        """Return log probabilities at a temperature, with the rest as one last column, [R, M + 1]."""
        return self.scores(temperature).log_softmax(1)

    def sum_over_rest(self, term: RestTerm, log_p: Tensor, temperature: float) -> PerSample:
        """Sum a term over the rest, whose classes all have the same teacher probability.

        Args:
            term: Term to sum, with its derivative.
            log_p: Teacher log probability of each class in the rest, [R, 1].
            temperature: Temperature of the student's probabilities.

        Returns:
            Sum of each row, [R].
        """
        total = self.scores(temperature).logsumexp(1, keepdim=True)
        rows, classes = self._logits.shape
        sums: Tensor = total.new_empty(rows)
        of_total: Tensor = total.new_empty(rows)
        slopes = self._buffer(f"slopes {len(self._slopes)}")
        block = max(1, _BLOCK // classes)
        spare = self._logits.new_empty(2, min(block, rows), classes)
        with torch.no_grad():
            for at in (slice(first, first + block) for first in range(0, rows, block)):
                ids, slope = self.ids[at], slopes[at]
                value, free = spare[:, : len(ids)]
                if temperature == 1:
                    torch.sub(self._logits[at], total[at], out=value)
                else:
                    torch.div(self._logits[at], temperature, out=value).sub_(total[at])
                term(log_p[at], value.scatter_(1, ids, 0), slope, free)
                torch.sum(value.scatter_(1, ids, 0), 1, out=sums[at])
                torch.sum(slope.scatter_(1, ids, 0), 1, out=of_total[at])
        if not self._with_gradient:
            return sums
        sums.requires_grad_()
        self._slopes.append((sums, slopes, temperature))
        return sums - of_total * (total - total.detach()).squeeze(1)  # log q = s / T - total

    def gradient(self, value: Tensor) -> Tensor:
        """Return the gradient of a value with respect to the logits, [R, C].

        It overwrites the logits, so this object cannot be used afterwards.

        Args:
            value: 0-dim tensor computed from this object's results.
        """
        temperatures = list(self._sums)
        means = [] if self._mean is None else [self._mean]
        leaves = [
            self.kept,
            self._top,
            *(one for one, _ in self._sums.values()),
            *means,
            *(one for one, *_ in self._slopes),
        ]
        of_kept, of_top, *others = torch.autograd.grad(value, leaves, allow_unused=True)
        of_sums = {t: one for t, one in zip(temperatures, others, strict=False) if one is not None}
        of_mean = others[len(temperatures)] if means else None
        of_slopes = others[len(temperatures) + len(means) :]
        constant = None if of_mean is None else of_mean / self.count
        out: Tensor | None = None
        for left, temperature in reversed(tuple(enumerate(sorted(of_sums, key=lambda one: one == self._held)))):
            name = "exponentials" if out is None else "more exponentials"
            if temperature == self._held:  # sorted last, so it is the first to be processed
                terms = self._buffer(name)
            else:
                terms = self._exponentials(temperature, self._buffer(name) if left or out is None else self._logits)
            factor = of_sums[temperature] / (temperature * self._sums[temperature][1])
            if out is not None:
                out.addcmul_(terms, factor)
            else:
                out = terms.mul_(factor) if constant is None else torch.addcmul(constant, terms, factor, out=terms)
        if out is None:
            out = self._logits.copy_(torch.zeros((), dtype=self._logits.dtype) if constant is None else constant)
        for (_, slopes, temperature), of_one in zip(self._slopes, of_slopes, strict=True):
            if of_one is not None:
                out.addcmul_(slopes, of_one[:, None] / temperature)
        if of_top is not None:
            out.scatter_add_(1, self._top_ids, of_top)
        return out.scatter_(1, self.ids, torch.zeros_like(self.kept) if of_kept is None else of_kept)

    def _exponentials(self, temperature: float, out: Tensor) -> Tensor:
        """Write exp((s - max) / T) of the rest to `out`, with 0 at the explicit classes."""
        torch.sub(self._logits, self._top.detach(), out=out)
        return (out if temperature == 1 else out.div_(temperature)).exp_()

    def _buffer(self, name: str) -> Tensor:
        return self._workspace.buffer(name, len(self._logits), self._logits.dtype)


@dataclass(frozen=True, slots=True)
class CondensedTeacher:
    """Teacher rows condensed to the same explicit classes as a student's, completed for one temperature.

    Attributes:
        kept: Logits of the explicit classes, [R, M].
        labels: Column of the label among the explicit classes, [R] int64.
        rest_logit: Logit of each class in the rest, [R, 1]; with a bucket, the offset of these logits from the student's.
        rest: Function of a temperature that returns the log-sum-exp over the rest of logits divided by it, [R, 1].
        count: Number of classes in the rest.
        bucket: Whether the mass of the rest is split in the student's proportions, so that it acts as one class; evenly if False.
        kept_columns: Columns of the classes that the teacher's rows kept, among the explicit classes, [R, k + 1].
    """

    kept: Tensor
    labels: Tensor
    rest_logit: Tensor
    rest: Callable[[float], Tensor]
    count: int
    bucket: bool
    kept_columns: Tensor

    @classmethod
    def matching(
        cls, student: CondensedStudent, rows: Rows, labels: Tensor, temperature: float, *, bucket: bool
    ) -> "CondensedTeacher":
        """Condense top-k rows to match a condensed student, completed for a temperature.

        Args:
            student: Condensed student rows. Their explicit classes are those of `rows` and one more: the lowest unlisted class, or
                with a bucket the student's largest.
            rows: Teacher rows, R of them.
            labels: Class of each row, [R] int64; must be an explicit class.
            temperature: Temperature of the softmax that will be taken.
            bucket: Whether to split the mass of the rest in the student's proportions.
        """
        dtype, alone = student.kept.dtype, torch.searchsorted(student.ids, rows.ids)
        rest_logit = more = rows.rest_logit(temperature).to(dtype)
        others = rows.classes - rows.ids.shape[1]
        if bucket:
            own = (
                student.kept.detach().scatter(1, alone, 0).sum(1, keepdim=True)
            )  # student logit of the additional class
            total = torch.logaddexp(own / temperature, student.rest(temperature).detach())
            rest_logit = rest_logit + temperature * (math.log(others) - total)
            more = rest_logit + own
        kept = more.expand_as(student.ids).scatter(1, alone, rows.values.to(dtype))
        place = torch.searchsorted(student.ids, labels[:, None]).squeeze(1)

        def rest(at: float) -> Tensor:
            return rest_logit / at + (student.rest(at).detach() if bucket else math.log(others - 1))

        return cls(kept, place, rest_logit, rest, student.count, bucket, alone)

    def with_kept(self, kept: Tensor) -> "CondensedTeacher":
        """Return the same rows with other logits of the explicit classes."""
        return replace(self, kept=kept)

    @property
    def order(self) -> Tensor:
        """Logits that rank the classes, with the rest as the last column, [R, M + 1]; a bucket ranks last, at -inf."""
        logits = torch.cat([self.kept, self.rest_logit], 1)
        if not self.bucket:
            return logits
        return torch.full_like(logits, -torch.inf).scatter(1, self.kept_columns, self.kept.gather(1, self.kept_columns))

    def scores(self, temperature: float) -> Tensor:
        """Return logits divided by a temperature, with the rest as one last column, [R, M + 1]."""
        return torch.cat([self.kept / temperature, self.rest(temperature)], 1)

    def log_probs(self, temperature: float) -> Tensor:
        """Return log probabilities at a temperature, with the rest as one last column, [R, M + 1]."""
        return self.scores(temperature).log_softmax(1)

    def rest_kl(self, student: CondensedStudent, temperature: float) -> PerSample:
        """Return KL(p || q) within the rest, with both renormalized over it, [R]; 0 with a bucket."""
        if self.bucket:
            return torch.zeros_like(self.rest_logit).squeeze(1)
        each = self.rest(temperature) - self.rest_logit / temperature  # log n
        return (student.rest(temperature) - each - student.mean / temperature).squeeze(1)


def kl_of_condensed(student: CondensedStudent, teacher: CondensedTeacher, temperature: float) -> PerSample:
    """Return KL(p || q) over all classes at a temperature, [R]: that with the rest as one class, plus that within the rest."""
    log_p = teacher.log_probs(temperature)
    return kl(log_p, student.log_probs(temperature)) + log_p[:, -1].exp() * teacher.rest_kl(student, temperature)


def with_first_unlisted(ids: Tensor) -> Tensor:
    """Add the lowest unlisted class to each row of ascending ids, [R, M], and return them in ascending order, [R, M + 1].

    If the rest is completed evenly, this class ranks first among it when ties are broken by class index.
    """
    named = ids == torch.arange(ids.shape[1], device=ids.device)
    first = named.long().cumprod(1).sum(1, keepdim=True)
    return torch.cat([ids, first], 1).sort(1).values
