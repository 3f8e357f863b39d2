"""The composed distillation term of a method.

loss(student, teacher, y) = Σ_T  divergence( scale(student), scale(refine(teacher, y)), y, temperature=T )
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from logitcache.errors import InputError
from logitcache.methods._ops import misclassified, upcast
from logitcache.methods._parameters import call_text
from logitcache.methods.condensed import CondensedStudent, CondensedTeacher, with_first_unlisted
from logitcache.methods.lskd import standardize
from logitcache.methods.method import AnyRows, DrawnRows, Rows, are_drawn

__all__ = ["Distillation"]


@dataclass(frozen=True, slots=True)
class Distillation:
    """The composed distillation term of a method, `loss(student [B, C], teacher [B, C], labels [B])`.

    Attributes:
        divergence: Divergence with its parameters bound.
        refine: Label-aware edit of the teacher's logits, or None.
        standardize: Whether both sets of logits are z-scored.
        temperatures: Numbers, or functions that return a temperature per row; the loss is summed over them. Empty if the divergence
            has no temperature.
        couples_batch: Whether the loss is 0-dim because the rows of a batch are coupled.
        acts_on: Function that returns the rows that the divergence itself treats differently, or None.
        needs_label: Whether the loss depends on the labels, so that each row must have exactly one.
        bucket: Whether the classes that a cache dropped are merged into one, instead of being completed evenly.
        every_class: Reason why top-k rows are not enough, or None if they are.
        unranked: Parameters of the divergence that differ for rows whose label is not among the largest.
        condensed: Divergence of condensed rows with its parameters bound, or None.
        of_sequence: Function of the teacher's rows, [B], whose mean over a sequence the divergence needs, with its parameters bound,
            or None.
        drawn: Divergence of sampled rows with its parameters bound, or None.
        not_drawn: Reason why sampled rows cannot be used, or None if they can.
        assumed: Whether `needs_label` and `every_class` are assumptions, because the divergence is a plain function.
        name: Description of the term, as recorded in run.json.
        parts: Terms of the sum by name; empty if there is only one.
    """

    divergence: Callable[..., Tensor]
    refine: Callable[..., Tensor] | None
    standardize: bool
    temperatures: tuple[float | Callable[..., tuple[Tensor, Tensor]], ...]
    couples_batch: bool
    acts_on: Callable[[Tensor, Tensor], Tensor] | None
    needs_label: bool
    bucket: bool = False
    every_class: str | None = None
    unranked: Mapping[str, Any] = field(default_factory=dict, hash=False)
    condensed: Callable[..., Tensor] | None = None
    of_sequence: Callable[..., Tensor] | None = None
    drawn: Callable[..., Tensor] | None = None
    not_drawn: str | None = "the loss does not support them"
    assumed: bool = False
    name: str = ""
    parts: Mapping[str, "Distillation"] = field(default_factory=dict, hash=False)

    def __repr__(self) -> str:
        options = dict(getattr(self.divergence, "keywords", {}))
        options |= {"temperature": tuple(map(_piece_text, self.temperatures))} if self.temperatures else {}
        options |= {"refine": _piece_text(self.refine)} if self.refine else {}
        options |= {"standardize": True} if self.standardize else {}
        options |= {"tail": "bucket"} if self.bucket else {}
        function = getattr(self.divergence, "func", self.divergence)
        name = getattr(function, "__name__", type(function).__name__)
        return f"<{self.name or type(self).__name__}: {call_text(name, (), options)}>"

    def __call__(self, student: Tensor, teacher: AnyRows, labels: Tensor, **more: Any) -> Tensor:
        """Return the loss, [B], or 0-dim if the batch is coupled.

        Args:
            student: Student logits, [B, C]; half precision is converted to float32.
            teacher: Teacher logits, [B, C], which receive no gradient; or top-k rows; or sampled rows.
            labels: True class of each row, [B] int64.
            **more: Boolean parameters of the divergence that change during training, and `means` from `sequence_means`.

        Raises:
            InputError: If shapes do not match, if top-k rows are given but every class is needed, or if sampled rows are given
                but would bias the gradient.
        """
        if are_drawn(teacher):
            return self._of_draws(student, teacher, labels)
        if not isinstance(teacher, Tensor):
            return self._of_rows(student, cast("Rows", teacher), labels, more)
        if student.shape != teacher.shape or student.shape[:1] != labels.shape:
            raise InputError(
                f"a loss takes student and teacher [B, C] and labels [B], got {list(student.shape)}, "
                f"{list(teacher.shape)} and {list(labels.shape)}"
            )
        student, teacher = upcast(student), upcast(teacher.detach())
        if self.refine is not None:
            teacher = self.refine(teacher, labels)
        if self.standardize:
            student, teacher = standardize(student), standardize(teacher)
        if not self.temperatures:
            return self.divergence(student, teacher, labels, **more)
        values = [self._at(chosen, student, teacher, labels, more) for chosen in self.temperatures]
        return functools.reduce(torch.add, values)

    def sequence_means(self, rows: Iterable[tuple[AnyRows, Tensor]], sequences: Tensor | None) -> Tensor | None:
        """Return the divergence's argument `means`, [R], or None if it does not couple the rows of a sequence.

        Args:
            rows: All teacher rows with their labels, in chunks.
            sequences: Sequence index of each row, [R] int64. None treats all rows as one sequence.
        """
        if self.of_sequence is None:
            return None
        numbers = torch.cat([self.of_sequence(self._completed(*some)) for some in rows])
        if sequences is None:
            return numbers.mean().expand(len(numbers))
        _, places = torch.unique(sequences, return_inverse=True)
        sums = numbers.new_zeros(len(numbers)).index_add(0, places, numbers)
        counts = numbers.new_zeros(len(numbers)).index_add(0, places, torch.ones_like(numbers))
        return (sums / counts.clamp_min(1))[places]

    def _completed(self, teacher: AnyRows, labels: Tensor) -> Tensor:
        """Return the teacher's logits, completed and refined as for the divergence, [R, C]."""
        if are_drawn(teacher):
            raise self._draws_error()
        if not isinstance(teacher, Tensor):
            (temperature,) = self.temperatures
            assert isinstance(temperature, float | int)
            teacher = cast("Rows", teacher).at(temperature)
        teacher = upcast(teacher.detach())
        return teacher if self.refine is None else self.refine(teacher, labels)

    def _of_draws(self, student: Tensor, rows: DrawnRows, labels: Tensor) -> Tensor:
        """Compute the loss from sampled rows."""
        if self.not_drawn or self.drawn is None:
            raise self._draws_error()
        return self.drawn(upcast(student), rows, labels)

    def _draws_error(self) -> InputError:
        return InputError(f"the loss cannot be computed from sampled rows: {self.not_drawn}")

    @property
    def other_temperature(self) -> float | None:
        """A temperature other than 1 that is applied to the teacher's logits, or None."""
        bound = {**getattr(self.divergence, "keywords", {}), **getattr(self.refine, "keywords", {})}
        read = [*self.temperatures, *(value for name, value in bound.items() if name.endswith("_temperature"))]
        return next((one for one in read if isinstance(one, int | float) and one != 1), None)

    def _of_rows(self, student: Tensor, rows: Rows, labels: Tensor, switches: Mapping[str, bool]) -> Tensor:
        """Compute the loss from top-k rows, completed for each temperature."""
        if self.every_class:
            raise InputError(f"the loss cannot be computed from top-k rows: {self.every_class}")
        student, values = upcast(student), []
        for temperature in self.temperatures or (1.0,):
            assert isinstance(temperature, float | int)  # see every_class
            teacher = rows.at(temperature, student if self.bucket else None).to(student.dtype)
            if self.refine is not None:
                teacher = self.refine(teacher, labels)
            more: dict[str, Any] = {**switches, **({"temperature": temperature} if self.temperatures else {})}
            if self.bucket and self.unranked:
                below = torch.full_like(teacher, -torch.inf)  # the bucket ranks below the kept classes
                more["order"] = below.scatter(1, rows.ids, rows.values.to(teacher.dtype))
            value = self.divergence(student, teacher, labels, **more)
            if self.unranked:
                other = self.divergence(student, teacher, labels, **{**more, **self.unranked})
                value = torch.where(rows.unranked, other, value)
            values.append(value)
        return functools.reduce(torch.add, values)

    def of_condensed(
        self, student: CondensedStudent, rows: Rows, labels: Tensor, switches: Mapping[str, bool]
    ) -> Tensor:
        """Return the loss from condensed rows, [B], equal to that of `__call__`. Requires `condensed` and top-k rows.

        Args:
            student: Condensed student rows, with the explicit classes of `rows` and one more (see `CondensedTeacher.matching`).
            rows: Teacher rows.
            labels: True class of each row, [B] int64; must be an explicit class.
            switches: Boolean parameters of the divergence that change during training.
        """
        assert self.condensed is not None
        values = []
        for temperature in self.temperatures:
            assert isinstance(temperature, float | int)  # see every_class
            teacher = CondensedTeacher.matching(student, rows, labels, temperature, bucket=self.bucket)
            if self.refine is not None:
                teacher = teacher.with_kept(self.refine(teacher.kept, teacher.labels, teacher.rest))
            more: dict[str, Any] = {**switches, "temperature": temperature}
            value = self.condensed(student, teacher, **more)
            if self.unranked:
                value = torch.where(rows.unranked, self.condensed(student, teacher, **{**more, **self.unranked}), value)
            values.append(value)
        return functools.reduce(torch.add, values)

    def _at(
        self, chosen: Any, student: Tensor, teacher: Tensor, labels: Tensor, switches: Mapping[str, bool]
    ) -> Tensor:
        """Compute the loss at one temperature; if the student's differs, rescale its logits to the teacher's temperature."""
        if not callable(chosen):
            return self.divergence(student, teacher, labels, temperature=chosen, **switches)
        of_student, of_teacher = chosen(student, teacher)
        if of_student is not of_teacher:
            student = (student - student.mean(-1, keepdim=True)) * (of_teacher / of_student)
        return self.divergence(student, teacher, labels, temperature=of_teacher, **switches)

    def refined_rows(self, teacher: AnyRows, labels: Tensor) -> Tensor | None:
        """Return which rows of a batch were changed by the label, [B] bool, or None if the method changes none."""
        acts_on = self.acts_on if self.refine is None else misclassified
        if acts_on is None or are_drawn(teacher):
            return None
        # the ranking is the same at any temperature
        return acts_on(teacher if isinstance(teacher, Tensor) else cast("Rows", teacher).at(1.0), labels)

    def refined_of_condensed(self, rows: Rows, labels: Tensor) -> Tensor | None:
        """Return the same as `refined_rows` without completing the rows; each label must be among their classes."""
        acts_on = self.acts_on if self.refine is None else misclassified
        if acts_on is None:
            return None
        ids = with_first_unlisted(rows.ids)
        alone = torch.searchsorted(ids, rows.ids)
        teacher = rows.rest_logit(1.0).expand_as(ids).scatter(1, alone, rows.values)
        return acts_on(teacher, torch.searchsorted(ids, labels[:, None]).squeeze(1))


def _piece_text(piece: Any) -> Any:
    """Return a number as it is, and a function with its parameters as the text of a call."""
    if not callable(piece):
        return piece
    function = getattr(piece, "func", piece)
    return call_text(function.__name__, (), getattr(piece, "keywords", {}))
