"""The record of a method in the table, and the types that losses take."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeGuard

from torch import Tensor

__all__ = ["AnyRows", "DrawnRows", "LossFunction", "Method", "MethodLike", "Rows", "TemperatureChoice", "are_drawn"]


class Rows(Protocol):
    """Top-k rows: logits of which only the largest were kept, to be completed for a loss's temperature.

    Attributes:
        ids: Kept classes, ascending, [B, K] int64.
        values: Logits of the kept classes, [B, K].
        classes: Number of classes C.
        unranked: Rows whose label is not among the largest, [B] bool.
    """

    @property
    def ids(self) -> Tensor:
        """Kept classes, ascending, [B, K] int64."""

    @property
    def values(self) -> Tensor:
        """Logits of the kept classes, [B, K]."""

    @property
    def classes(self) -> int:
        """Number of classes."""

    @property
    def unranked(self) -> Tensor:
        """Rows whose label is not among the largest, [B] bool."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def __getitem__(self, index: Any, /) -> "Rows":
        """Return the indexed rows."""

    def rest_logit(self, temperature: float) -> Tensor:
        """Return the logit of each dropped class when they are completed evenly for a temperature, [B, 1]."""

    def at(self, temperature: float, student: Tensor | None = None) -> Tensor:
        """Return completed logits, [B, C], splitting the remaining mass evenly or, with `student`, in the student's proportions."""


class DrawnRows(Protocol):
    """Sampled rows: classes sampled from the teacher's distribution at temperature 1, instead of logits.

    Attributes:
        ids: Sampled classes, [B, N] int64, with repetitions.
        targets: Contribution of each sample to the target of its class, [B, N]; summed by class, their expectation is softmax(z).
        first: Class of the teacher's largest logit, [B] int64.
        entropy: Entropy of the teacher's distribution in nats, [B].
        classes: Number of classes C.
    """

    @property
    def ids(self) -> Tensor:
        """Sampled classes, [B, N] int64."""

    @property
    def targets(self) -> Tensor:
        """Contribution of each sample to the target of its class, [B, N]."""

    @property
    def first(self) -> Tensor:
        """Class of the teacher's largest logit, [B] int64."""

    @property
    def entropy(self) -> Tensor:
        """Entropy of the teacher's distribution in nats, [B]."""

    @property
    def classes(self) -> int:
        """Number of classes."""

    @property
    def unranked(self) -> None:
        """Always None: samples do not rank the classes."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def __getitem__(self, index: Any, /) -> "DrawnRows":
        """Return the indexed rows."""


AnyRows = Tensor | Rows | DrawnRows
"""The teacher's rows as a loss takes them: logits [R, C], top-k rows, or sampled rows."""


def are_drawn(rows: Any) -> TypeGuard[DrawnRows]:
    """Return whether a teacher's rows are sampled rows."""
    return not isinstance(rows, Tensor) and hasattr(rows, "targets")


LossFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`(student [R, C], teacher [R, C], labels [R]) -> loss`, [R] or 0-dim."""

TemperatureChoice = float | str | tuple[float | str, ...]


@dataclass(frozen=True, slots=True)
class Method:
    """A method: its pieces, its paper's settings and its requirements.

        objective = ce_weight · CE(student, y) + ramp · kd_weight · divergence(scale(student), scale(refine(teacher, y)), T)

    Attributes:
        summary: One-line description.
        paper: Authors, venue and arXiv number.
        divergence: `(student [B, C], teacher [B, C], labels [B], *, ...) -> [B]`, or 0-dim if `couples_batch`; None to train on
            labels alone. Its keyword-only parameters are the method's hyperparameters.
        condensed: Same divergence for condensed rows (`CondensedStudent`, `CondensedTeacher`), with the same parameters; None if it
            is computed from completed rows.
        drawn: Same divergence for sampled rows (`DrawnRows`) at temperature 1, `(student [B, C], rows, labels, *, ...) -> [B]`, with
            the same parameters except the temperature; None if its gradient is not linear in the teacher's probabilities, in which
            case samples would bias it.
        source: Released code that the method was checked against.
        refine: Label-aware edit of the teacher's logits: None, "loca" or "swap".
        standardize: Whether both networks' logits are z-scored.
        temperature: A number, several numbers (the loss is summed over them), "adaptive" or "deviation"; None for the divergence's
            default.
        ce_weight: Weight of cross-entropy.
        kd_weight: Weight of the divergence.
        warmup: Fraction of the training over which `kd_weight` is ramped up from 0.
        begins: Boolean parameters of the divergence that turn true, each after the given fraction of the training.
        needs: Rows that the divergence requires: "labels", "top-k" or "every class". Z-scores and per-row temperatures always require
            every class; `describe` reports both together.
        couples_batch: Whether the rows of a batch are coupled, so that the result depends on the batch size.
        pairs_views: Whether the paper sums the objective over a weak and a strong view of each image.
        of_sequence: `(teacher [B, C], *, ...) -> [B]` with the divergence's parameters, whose mean over a row's sequence is passed
            to the divergence as `means`; None if the rows of a sequence are not coupled.
        takes_bucket: Whether dropped classes may be merged into one (`tail="bucket"`). Value and gradient of a divergence that sums
            f(p / q) q over classes are then those with one additional class, because p / q is the same for all dropped classes.
        unranked: Parameters for rows of a top-k cache whose label is not among the k largest, for methods that need its rank. Such a
            method takes `order`, the logits that rank the classes, because a bucket's do not.
        ignores_labels: Whether the divergence does not depend on the labels, so that rows with two labels (mixup, CutMix) are allowed.
        acts_on: `(teacher, labels) -> [B] bool`, the rows that the divergence itself treats differently, or None.
        refuses: Pieces that make no sense with this method, with the reason.
        presets: Other settings of the paper by name, as keyword arguments of `get_loss` and the weights above.
        about: Piece whose docstring explains the method; None for the divergence.
        parts: Terms of the divergence by name, each with the parameters that turn the other terms off.
        assumed: Whether `needs` and `ignores_labels` are assumptions, because the method is a plain function.
    """

    summary: str
    paper: str
    divergence: Callable[..., Tensor] | None
    condensed: Callable[..., Tensor] | None = None
    drawn: Callable[..., Tensor] | None = None
    source: str = "-"
    refine: str | None = None
    standardize: bool = False
    temperature: TemperatureChoice | None = None
    ce_weight: float = 1.0
    kd_weight: float = 1.0
    warmup: float = 0.0
    begins: Mapping[str, float] = field(default_factory=dict)
    needs: str = "top-k"
    couples_batch: bool = False
    pairs_views: bool = False
    of_sequence: Callable[..., Tensor] | None = None
    takes_bucket: bool = False
    unranked: Mapping[str, Any] = field(default_factory=dict)
    ignores_labels: bool = False
    acts_on: Callable[[Tensor, Tensor], Tensor] | None = None
    refuses: Mapping[str, str] = field(default_factory=dict)
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    about: Callable[..., Any] | None = None
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    assumed: bool = False


MethodLike = str | Method | LossFunction
"""A method's name, a `Method`, a loss returned by `get_loss`, or a loss function."""
