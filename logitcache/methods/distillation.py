"""The distillation term of a method, composed.

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
from logitcache.methods.condensed import CondensedStudent, CondensedTeacher, with_first_unlisted
from logitcache.methods.lskd import standardize
from logitcache.methods.method import AnyRows, DrawnRows, Rows, are_drawn

__all__ = ["Distillation"]


@dataclass(frozen=True, slots=True)
class Distillation:
    """The distillation term of a method, composed: `loss(student [B, C], teacher [B, C], labels [B])`.

    Attributes:
        divergence: With its own parameters bound.
        refine: Edit of the teacher's logits by the label, or None.
        standardize: Whether both sets of logits are z-scored.
        temperatures: Numbers, or functions that give each row its own; values are summed. Empty where the divergence
            has no temperature.
        couples_batch: Whether the value is 0-dim, because rows see each other.
        acts_on: Function that returns the rows which the divergence itself treats differently, or None.
        needs_label: Whether the value depends on the labels, so that a row must have one.
        bucket: Whether classes that a cache did not keep count as one, instead of being completed evenly.
        every_class: Why rows of which only the largest were kept will not do, or None.
        unranked: Parameters of the divergence for rows whose label is not among the largest, where they differ.
        condensed: The divergence from condensed rows, with its own parameters bound, or None.
        of_sequence: Number of each teacher row whose mean over a sequence the divergence takes, with its own parameters bound, or None.
        drawn: The divergence from draws, with its own parameters bound, or None.
        not_drawn: Why draws will not do, or None.
        assumed: Whether `needs_label` and `every_class` are assumed, because the divergence is a plain function.
        name: Description of the term, as recorded in run.json.
        parts: Terms that it is the sum of, by name; empty where it is one.
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
    not_drawn: str | None = "it was not made for them"
    assumed: bool = False
    name: str = ""
    parts: Mapping[str, "Distillation"] = field(default_factory=dict, hash=False)

    def __call__(self, student: Tensor, teacher: AnyRows, labels: Tensor, **more: Any) -> Tensor:
        """Return [B], or 0-dim where the batch is coupled; its mean is what one trains with.

        Args:
            student: Scores of the model being trained, [B, C]; half precision is computed on in float32.
            teacher: Scores of the teacher, [B, C], which get no gradient; or rows of which the largest were kept; or draws.
            labels: True classes, [B] int64.
            **more: Boolean parameters of the divergence that change over a training; and what `sequence_means` returned.

        Raises:
            InputError: Shapes that do not fit, rows of which the largest were kept where every class is needed, or draws where the
                gradient would be biased.
        """
        if are_drawn(teacher):
            return self._of_draws(student, teacher, labels)
        if not isinstance(teacher, Tensor):
            return self._of_rows(student, cast("Rows", teacher), labels, more)
        if student.shape != teacher.shape or student.shape[:1] != labels.shape:
            raise InputError(
                f"a loss takes student and teacher [B, C] and labels [B], found {list(student.shape)}, "
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
        """Return what the divergence takes as `means`, [R], where rows of a sequence couple; else None.

        Args:
            rows: The teacher's rows and their labels, all of them, some at a time.
            sequences: Number of the sequence of each row, [R] int64; None: all are of one.
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
        """Return the teacher's logits as the divergence sees them, at its temperature."""
        if are_drawn(teacher):
            raise self._draws_error()
        if not isinstance(teacher, Tensor):
            (temperature,) = self.temperatures
            assert isinstance(temperature, float | int)
            teacher = cast("Rows", teacher).at(temperature)
        teacher = upcast(teacher.detach())
        return teacher if self.refine is None else self.refine(teacher, labels)

    def _of_draws(self, student: Tensor, rows: DrawnRows, labels: Tensor) -> Tensor:
        """Evaluate with draws."""
        if self.not_drawn or self.drawn is None:
            raise self._draws_error()
        return self.drawn(upcast(student), rows, labels)

    def _draws_error(self) -> InputError:
        return InputError(f"rows of draws will not do: {self.not_drawn}")

    @property
    def other_temperature(self) -> float | None:
        """A temperature other than 1 at which the teacher's probabilities are read, or None."""
        bound = {**getattr(self.divergence, "keywords", {}), **getattr(self.refine, "keywords", {})}
        read = [*self.temperatures, *(value for name, value in bound.items() if name.endswith("_temperature"))]
        return next((one for one in read if isinstance(one, int | float) and one != 1), None)

    def _of_rows(self, student: Tensor, rows: Rows, labels: Tensor, switches: Mapping[str, bool]) -> Tensor:
        """Evaluate with rows completed for each temperature in turn."""
        if self.every_class:
            raise InputError(f"rows of which the largest were kept will not do: {self.every_class}")
        student, values = upcast(student), []
        for temperature in self.temperatures or (1.0,):
            assert isinstance(temperature, float | int)  # see every_class
            teacher = rows.at(temperature, student if self.bucket else None).to(student.dtype)
            if self.refine is not None:
                teacher = self.refine(teacher, labels)
            more: dict[str, Any] = {**switches, **({"temperature": temperature} if self.temperatures else {})}
            if self.bucket and self.unranked:
                below = torch.full_like(teacher, -torch.inf)  # what is in the bucket ranks below what was kept
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
        """Return what `__call__` does, [B], from condensed rows; `condensed` and rows of the largest are needed.

        Args:
            student: Whose classes that stand alone are those of the rows and one more (see `CondensedTeacher.beside`).
            rows: The teacher's.
            labels: True classes, [B] int64, each among those that stand alone.
            switches: Boolean parameters of the divergence that change over a training.
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
        """Evaluate at one temperature; where the student has its own, its logits are brought to the teacher's."""
        if not callable(chosen):
            return self.divergence(student, teacher, labels, temperature=chosen, **switches)
        of_student, of_teacher = chosen(student, teacher)
        if of_student is not of_teacher:
            student = (student - student.mean(-1, keepdim=True)) * (of_teacher / of_student)
        return self.divergence(student, teacher, labels, temperature=of_teacher, **switches)

    def refined_rows(self, teacher: AnyRows, labels: Tensor) -> Tensor | None:
        """Say which rows of a batch the label changed: [B] bool, or None where labels change nothing."""
        acts_on = self.acts_on if self.refine is None else misclassified
        if acts_on is None or are_drawn(teacher):
            return None
        # any temperature has the same order
        return acts_on(teacher if isinstance(teacher, Tensor) else cast("Rows", teacher).at(1.0), labels)

    def refined_of_condensed(self, rows: Rows, labels: Tensor) -> Tensor | None:
        """Return what `refined_rows` does, without completing the rows; each label must be among their classes."""
        acts_on = self.acts_on if self.refine is None else misclassified
        if acts_on is None:
            return None
        ids = with_first_unlisted(rows.ids)
        alone = torch.searchsorted(ids, rows.ids)
        teacher = rows.rest_logit(1.0).expand_as(ids).scatter(1, alone, rows.values)
        return acts_on(teacher, torch.searchsorted(ids, labels[:, None]).squeeze(1))
