"""How strongly each term of a loss pulls on a student: norms of gradients with respect to its logits.

A term whose gradient is a hundredth of another's teaches nothing, and nothing about the loss curve says so.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from logitcache.errors import InputError

__all__ = ["describe_norms", "drowned_terms", "gradient_norms"]

_NEGLIGIBLE = 0.01  # share of the sum of all norms below which a term hardly counts


def gradient_norms(logits: Tensor, terms: Mapping[str, Tensor]) -> dict[str, float]:
    """Measure how strongly each term of a loss pulls on the logits.

    Call it once in a training loop, on a batch, before `backward`:

        norms = gradient_norms(logits, {"ce": 0.1 * ce, "kd": 0.9 * kd})
        print(describe_norms(norms))

    Args:
        logits: The student's, [B, C], as the network returned them.
        terms: Terms of the loss by name, each 0-dim, computed from `logits` and with its weight.

    Returns:
        For each term the Frobenius norm of its gradient with respect to `logits`; 0 if it does not depend on them. Neither the
        terms nor the gradients of the network's parameters are changed.

    Raises:
        InputError: A term is not 0-dim, or `logits` has no gradient.
    """
    if not isinstance(logits, Tensor) or not logits.requires_grad:
        raise InputError(
            "gradient_norms takes the logits that the network returned, with their gradient; these have none"
        )
    found: dict[str, float] = {}
    for name, term in terms.items():
        if not isinstance(term, Tensor) or term.ndim != 0:
            what = f"a tensor {list(term.shape)}" if isinstance(term, Tensor) else f"a {type(term).__name__}"
            raise InputError(f"term {name} must be 0-dim, found {what}: take the mean of a loss that has a value a row")
        if not term.requires_grad:
            found[name] = 0.0
            continue
        (gradient,) = torch.autograd.grad(term, logits, retain_graph=True, allow_unused=True)
        found[name] = 0.0 if gradient is None else float(gradient.float().norm())
    return found


def describe_norms(norms: Mapping[str, float]) -> str:
    """Write norms and their shares of the sum: `ce 0.0124 (9.1 %), kd 0.124 (90.9 %)`."""
    shares = _shares(norms)
    return ", ".join(f"{name} {norm:.3g} ({100 * shares[name]:.3g} %)" for name, norm in norms.items())


def drowned_terms(norms: Mapping[str, float]) -> list[str]:
    """Return the names of terms below one percent of the sum of all norms, which hardly count beside the others."""
    return [name for name, share in _shares(norms).items() if share < _NEGLIGIBLE]


def _shares(norms: Mapping[str, float]) -> dict[str, float]:
    total = math.fsum(norms.values())
    return {name: norm / total if total > 0 else math.nan for name, norm in norms.items()}
