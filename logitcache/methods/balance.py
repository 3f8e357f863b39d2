"""Gradient norms of each loss term with respect to the student's logits.

A term whose gradient is a hundredth of another's teaches nothing, and the loss curve does not show it.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from logitcache.errors import InputError

__all__ = ["describe_norms", "drowned_terms", "gradient_norms"]

_NEGLIGIBLE = 0.01  # fraction of the sum of norms below which a term has almost no effect


def gradient_norms(logits: Tensor, terms: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the norm of each loss term's gradient with respect to the logits.

    Call it on one batch of a training loop, before `backward`:

        norms = gradient_norms(logits, {"ce": 0.1 * ce, "kd": 0.9 * kd})
        print(describe_norms(norms))

    Args:
        logits: Student logits as returned by the network, [B, C].
        terms: Weighted terms of the loss by name, each 0-dim and computed from `logits`.

    Returns:
        Frobenius norm of each term's gradient with respect to `logits`; 0 if the term does not depend on them. The terms and
        the gradients of the network's parameters are left unchanged.

    Raises:
        InputError: If a term is not 0-dim, or if `logits` does not require a gradient.
    """
    if not isinstance(logits, Tensor) or not logits.requires_grad:
        raise InputError(
            "gradient_norms needs logits that require a gradient; pass them as the network returned them, not detached"
        )
    found: dict[str, float] = {}
    for name, term in terms.items():
        if not isinstance(term, Tensor) or term.ndim != 0:
            what = f"a tensor {list(term.shape)}" if isinstance(term, Tensor) else f"a {type(term).__name__}"
            raise InputError(f"term {name} must be 0-dim, not {what}; average a loss that has one value per row")
        if not term.requires_grad:
            found[name] = 0.0
            continue
        (gradient,) = torch.autograd.grad(term, logits, retain_graph=True, allow_unused=True)
        found[name] = 0.0 if gradient is None else float(gradient.float().norm())
    return found


def describe_norms(norms: Mapping[str, float]) -> str:
    """Format norms and their fraction of the sum, e.g. `ce 0.0124 (9.1 %), kd 0.124 (90.9 %)`."""
    shares = _shares(norms)
    return ", ".join(f"{name} {norm:.3g} ({100 * shares[name]:.3g} %)" for name, norm in norms.items())


def drowned_terms(norms: Mapping[str, float]) -> list[str]:
    """Return the names of the terms whose norm is below one percent of the sum: they have almost no effect."""
    return [name for name, share in _shares(norms).items() if share < _NEGLIGIBLE]


def _shares(norms: Mapping[str, float]) -> dict[str, float]:
    total = math.fsum(norms.values())
    return {name: norm / total if total > 0 else math.nan for name, norm in norms.items()}
