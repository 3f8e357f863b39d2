"""What a row of the table of methods says."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeGuard

from torch import Tensor

__all__ = ["AnyRows", "DrawnRows", "LossFunction", "Method", "MethodLike", "Rows", "TemperatureChoice", "are_drawn"]


class Rows(Protocol):
    """Logits of which only the largest were kept; completed for the temperature that a loss takes them at.

    Attributes:
        ids: Classes that were kept, ascending, [B, K] int64.
        values: Their logits, [B, K].
        classes: C.
        unranked: Rows whose label is not among the largest, [B] bool.
    """

    @property
    def ids(self) -> Tensor:
        """Classes that were kept."""

    @property
    def values(self) -> Tensor:
        """Their logits."""

    @property
    def classes(self) -> int:
        """Number of classes."""

    @property
    def unranked(self) -> Tensor:
        """Rows whose label is not among the largest."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def __getitem__(self, index: Any, /) -> "Rows":
        """Return some of the rows."""

    def rest_logit(self, temperature: float) -> Tensor:
        """Return the logit that each class of the rest has, where it is completed evenly for a temperature: [B, 1]."""

    def at(self, temperature: float, student: Tensor | None = None) -> Tensor:
        """Complete them: [B, C]; evenly, or as the student divides what is left."""


class DrawnRows(Protocol):
    """Classes that were drawn from the teacher's distribution at temperature 1, in place of logits.

    Attributes:
        ids: Classes that were drawn, [B, N] int64; one that was drawn several times stands there as often.
        targets: Contribution of each draw to the target of its class, [B, N]; their expectation is softmax(z).
        first: Class of the teacher's largest logit, [B] int64.
        entropy: Entropy of the teacher's distribution in nats, [B].
        classes: C.
    """

    @property
    def ids(self) -> Tensor:
        """Classes that were drawn."""

    @property
    def targets(self) -> Tensor:
        """What each draw adds to the target of its class."""

    @property
    def first(self) -> Tensor:
        """Class of the teacher's largest logit."""

    @property
    def entropy(self) -> Tensor:
        """Entropy of the teacher's distribution."""

    @property
    def classes(self) -> int:
        """Number of classes."""

    @property
    def unranked(self) -> None:
        """Nothing: no rank is read from draws."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def __getitem__(self, index: Any, /) -> "DrawnRows":
        """Return some of the rows."""


AnyRows = Tensor | Rows | DrawnRows
"""The teacher's rows as a loss takes them: logits [R, C], logits of which the largest were kept, or draws."""


def are_drawn(rows: Any) -> TypeGuard[DrawnRows]:
    """Return whether a teacher's rows are draws."""
    return not isinstance(rows, Tensor) and hasattr(rows, "targets")


LossFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`(student [R, C], teacher [R, C], labels [R]) -> loss`, [R] or 0-dim."""

TemperatureChoice = float | str | tuple[float | str, ...]


@dataclass(frozen=True, slots=True)
class Method:
    """A method: its pieces, the paper's settings, and what it needs.

        objective = ce_weight · CE(student, y) + ramp · kd_weight · divergence(scale(student), scale(refine(teacher, y)), T)

    Attributes:
        summary: What it does, in one line.
        paper: Authors, venue, arXiv number.
        divergence: `(student [B, C], teacher [B, C], labels [B], *, ...) -> [B]`, or 0-dim where `couples_batch`; None for
            labels alone. Its keyword-only parameters are the method's.
        condensed: The same from rows of which only the largest stand alone (`CondensedStudent`, `CondensedTeacher`), with the
            same parameters; None where it is computed from completed rows.
        drawn: The same from draws (`DrawnRows`) at temperature 1, `(student [B, C], rows, labels, *, ...) -> [B]`, with the same
            parameters but the temperature; None where its gradient is not linear in the teacher's probabilities, so that draws
            would give it a biased one.
        source: Released code it was checked against.
        refine: Edit of the teacher's logits by the label: None, "loca" or "swap".
        standardize: Whether both networks' logits are z-scored.
        temperature: A number, several (summed over), "adaptive" or "deviation"; None is the divergence's own default.
        ce_weight: Weight of cross-entropy.
        kd_weight: Weight of the divergence.
        warmup: Share of the training over which that weight grows from 0.
        begins: Boolean parameters of the divergence that turn true after a share of the training.
        needs: What the divergence needs from a cache: "labels", "top-k" or "every class". Z-scores and temperatures by row
            need every class whatever the divergence needs; `describe` reports both together.
        couples_batch: Whether rows of a batch see each other, so that the result depends on its size.
        pairs_views: Whether the paper sums the objective over a weak and a strong view of every image.
        of_sequence: `(teacher [B, C], *, ...) -> [B]` with the divergence's parameters: a number of each teacher row whose mean over the
            row's sequence the divergence takes as `means`; None where rows of a sequence do not couple.
        takes_bucket: Whether classes that were not kept may count as one (`tail="bucket"`). Value and gradient of a divergence that sums
            f(p / q) q over classes are then those of one class more, because p / q is the same for each of them.
        unranked: Parameters for rows of a top-k cache whose label is not among the k largest, where its rank decides. Such a method
            takes `order`, logits that rank the classes, where a bucket's do not.
        ignores_labels: Whether the divergence gives the same for any labels, so that rows of two labels (mixup, CutMix) will do.
        acts_on: `(teacher, labels) -> [B] bool`, where the divergence itself treats some rows differently.
        refuses: Pieces that mean nothing here, and why.
        presets: Other settings of the paper, by name; the words are those of `get_loss` and the weights above.
        about: What explains the method: the piece that is its idea; None is the divergence.
        parts: Terms that the divergence is the sum of, by name, each with the parameters that turn the others off.
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


MethodLike = str | Method | LossFunction
"""A method's name, its row, what `get_loss` returns, or a loss function."""
