"""What the papers say: one file a paper, pure functions on tensors, one table.

A method is a distillation loss `(student [B, C], teacher [B, C], labels [B]) -> [B]` and the weights it stands beside
cross-entropy with:

    objective = ce_weight · CE(student, y) + ramp(progress) · kd_weight · loss(student, teacher, y)
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from logitcache.errors import InputError, UnknownNameError, unknown_name
from logitcache.methods import _ops
from logitcache.methods.kd import kd
from logitcache.methods.rld import rld

__all__ = ["METHODS", "Loss", "Method", "Objective", "get_loss", "make_objective", "parameters_of"]

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Method:
    """A row of the table.

    Attributes:
        summary: What it does, in one line.
        paper: Authors, venue, arXiv number.
        loss: The distillation term, or None (labels alone).
        ce_weight, kd_weight: The paper's weights for CIFAR-100.
        warmup: Share of the training over which the distillation term grows from 0 to its weight.
        needs: What a cache must hold: "labels", "top-k", "every class".
    """

    summary: str
    paper: str
    loss: Callable[..., Tensor] | None
    ce_weight: float
    kd_weight: float
    warmup: float = 0.0
    needs: str = "every class"


METHODS: dict[str, Method] = {
    "ce": Method("Labels alone: the baseline without a teacher.", "-", None, 1.0, 0.0, needs="labels"),
    "kd": Method("Match the teacher's softened distribution.", "Hinton et al., 2014, arXiv 1503.02531", kd, 0.1, 0.9),
    "rld": Method(
        "Put the teacher's confidence on the true class; learn class relations only below it.",
        "Sun et al., ICCV 2025, arXiv 2408.07703",
        rld,
        1.0,
        1.0,
        warmup=20 / 240,
    ),
}


def parameters_of(name: str) -> dict[str, float]:
    """Return a method's own parameters and their defaults, from the signature of its loss.

    Raises:
        UnknownNameError: No such method.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    loss = METHODS[name].loss
    signature = inspect.signature(loss).parameters.values() if loss else ()
    return {parameter.name: parameter.default for parameter in signature if parameter.kind is parameter.KEYWORD_ONLY}


def get_loss(name: str, *, standardize: bool = False, **parameters: float) -> Loss:
    """Return a method's distillation term.

    Args:
        name: A key of `METHODS`.
        standardize: Whether both sets of logits are z-scored first (LSKD's plug-in).
        **parameters: The method's own, as `logitcache methods` lists them.

    Returns:
        `loss(student, teacher, labels)` with [B, C], [B, C], [B] -> [B]; its mean is what one trains with.

    Raises:
        UnknownNameError: No such method, or it has no such parameter.
        InputError: A value is no finite number.
    """
    known = parameters_of(name)
    for parameter, value in parameters.items():
        if parameter not in known:
            raise UnknownNameError(f"{name} has no parameter {parameter!r}; it takes {', '.join(known) or 'none'}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
            raise InputError(f"{name}: {parameter} must be a finite number, not {value!r}")
        if parameter.endswith("temperature") and value <= 0:
            raise InputError(f"{name}: {parameter} must be greater than 0, not {value!r}")
    function = METHODS[name].loss
    if function is None:
        raise InputError(f"{name} has no distillation term")
    loss: Loss = functools.partial(function, **parameters)
    if not standardize:
        return loss
    return lambda student, teacher, labels: loss(_ops.standardize(student), _ops.standardize(teacher), labels)


@dataclass(frozen=True, slots=True)
class Objective:
    """What a training step minimises.

    Attributes:
        ce_weight, kd_weight: Weights of cross-entropy and of the distillation term.
        warmup: Share of the training over which the second grows from 0 to its weight.
        loss: The distillation term, or None.
    """

    ce_weight: float
    kd_weight: float
    warmup: float
    loss: Loss | None

    def __call__(
        self, student: Tensor, teacher: Tensor | None, labels: Tensor, progress: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (total, cross-entropy, distillation), each 0-dim; the last two before their weights.

        Args:
            student: [B, C]; computed on in float32 or wider.
            teacher: [B, C], without gradient; not looked at where `loss` is None.
            labels: [B] int64.
            progress: Share of the epochs that will be over when this one is, in (0, 1].
        """
        student = student if student.dtype.itemsize >= 4 else student.float()
        cross_entropy = F.cross_entropy(student, labels)
        if self.loss is None or teacher is None:
            return self.ce_weight * cross_entropy, cross_entropy.detach(), cross_entropy.detach() * 0
        distillation = self.loss(student, teacher, labels).mean()
        ramp = min(progress / self.warmup, 1.0) if self.warmup else 1.0
        total = self.ce_weight * cross_entropy + ramp * self.kd_weight * distillation
        return total, cross_entropy.detach(), distillation.detach()


def make_objective(
    name: str,
    parameters: Mapping[str, float],
    *,
    standardize: bool = False,
    ce_weight: float | None = None,
    kd_weight: float | None = None,
    warmup: float | None = None,
) -> Objective:
    """Build a method's objective; a weight that is None is the paper's.

    Raises:
        UnknownNameError: No such method or parameter.
        InputError: A value that means nothing.
    """
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    method = METHODS[name]
    if method.loss is None and (parameters or standardize or kd_weight):
        raise InputError(
            f"{name} has no distillation term, so parameters, --standardize and --kd-weight mean nothing beside it"
        )
    loss = get_loss(name, standardize=standardize, **parameters) if method.loss else None
    weights = (
        method.ce_weight if ce_weight is None else ce_weight,
        method.kd_weight if kd_weight is None else kd_weight,
        method.warmup if warmup is None else warmup,
    )
    if not all(0 <= weight < float("inf") for weight in weights) or weights[2] > 1:
        raise InputError(f"{name}: weights must be 0 or more and the warm-up a share from 0 to 1, not {weights}")
    return Objective(*weights, loss)
