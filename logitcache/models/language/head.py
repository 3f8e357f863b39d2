"""The head of a language model: from hidden states to logits, exactly as the model's own forward computes them.

A model's logits for all tokens, [B, L, V], rarely fit in memory. So networks return hidden states and the head, and whoever
needs logits applies the head to a few hundred rows at a time.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Head", "HiddenStates", "find_head"]


class _Projection(NamedTuple):
    """A linear layer whose weights were computed from its parameters, so that they belong to the graph of a forward pass."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, states: Tensor) -> Tensor:
        return F.linear(states, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Head:
    """A linear projection, what its product is multiplied with or divided by, and a soft cap.

    Attributes:
        projection: Linear layer from hidden states [..., H] to logits [..., V']; its weight may be tied to the embedding.
        multiplier: Factor of the product (Cohere's `logit_scale`), or None.
        divisor: Divisor of the product (Granite's `logits_scaling`), or None; kept apart because dividing by a number and
            multiplying with its inverse differ in the last bit.
        soft_cap: Bound of the absolute value, `soft_cap * tanh(logits / soft_cap)` (Gemma 2's `final_logit_softcapping`), or None.
    """

    projection: nn.Linear | _Projection
    multiplier: float | None = None
    divisor: float | None = None
    soft_cap: float | None = None

    @property
    def weight(self) -> Tensor:
        """Weight of the projection, [V', H]."""
        return self.projection.weight

    @property
    def bias(self) -> Tensor | None:
        """Bias of the projection, [V'], or None."""
        found: Tensor | None = self.projection.bias  # torch's annotation leaves None out
        return found

    @property
    def scale(self) -> float:
        """What the product of hidden states and weight, bias included, is multiplied with before the soft cap."""
        return (1.0 if self.multiplier is None else self.multiplier) / (1.0 if self.divisor is None else self.divisor)

    def __call__(self, states: Tensor) -> Tensor:
        """Return the logits of hidden states: [..., H] to [..., V'], in the dtype of the projection's output."""
        logits: Tensor = self.projection(states)
        if self.multiplier is not None:
            logits = logits * self.multiplier
        if self.divisor is not None:
            logits = logits / self.divisor
        if self.soft_cap is not None:
            logits = torch.tanh(logits / self.soft_cap) * self.soft_cap
        return logits


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """Output of a language model before its head.

    Attributes:
        states: Hidden state of each token, [B, L, H].
        head: Turns hidden states into logits.
    """

    states: Tensor
    head: Head

    def with_head_in_graph(self) -> "HiddenStates":
        """Return the same with a head whose weights are outputs of this forward pass, as the hidden states are.

        `DistributedDataParallel` looks for the parameters that a forward pass uses in the graph of its outputs; a head is used after it.
        """
        weight, bias = self.head.weight, self.head.bias
        views = _Projection(weight.view_as(weight), None if bias is None else bias.view_as(bias))
        return replace(self, head=replace(self.head, projection=views))


def find_head(model: Any) -> Head | None:
    """Return the head of a causal language model of transformers, read off its layers and its configuration.

    Configurations name their scales differently, and a family may have one that is not known here; so compare the result with
    the model's own logits before using it (`CausalNetwork` does).

    Args:
        model: A `PreTrainedModel` with a language-modelling head.

    Returns:
        The head, or None where the output layer is not a plain linear layer.
    """
    projection = model.get_output_embeddings()
    if (
        type(projection) is not nn.Linear
    ):  # an adapter or a quantized layer computes something else than weight and bias say
        return None
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    multiplier = _number(config, "logit_scale")
    return Head(
        projection,
        multiplier=_number(config, "lm_head_multiplier") if multiplier is None else multiplier,
        divisor=_number(config, "logits_scaling"),
        soft_cap=_number(config, "final_logit_softcapping"),
    )


def _number(config: Any, name: str) -> float | None:
    found = getattr(config, name, None)
    return None if found is None or isinstance(found, bool) else float(found)
