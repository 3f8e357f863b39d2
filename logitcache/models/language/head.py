"""The head of a language model, which maps hidden states to logits exactly as the model's own forward does.

The logits of all tokens, [B, L, V], rarely fit in memory. Networks therefore return hidden states and the head, which is applied to a few
hundred rows at a time.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Head", "HiddenStates", "find_head"]


class _Projection(NamedTuple):
    """A linear layer whose weights are computed from its parameters, and so are part of the graph of a forward pass."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, states: Tensor) -> Tensor:
        return F.linear(states, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Head:
    """A linear projection with a scale and a soft cap.

    Attributes:
        projection: Linear layer from hidden states [..., H] to logits [..., V']; its weight may be tied to the embedding.
        multiplier: Factor applied to the projection (Cohere's `logit_scale`), or None.
        divisor: Divisor applied to the projection (Granite's `logits_scaling`), or None. Separate from `multiplier`, because division
            and multiplication by the inverse differ in the last bit.
        soft_cap: Bound on the absolute value, `soft_cap * tanh(logits / soft_cap)` (Gemma 2's `final_logit_softcapping`), or None.
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
        """Factor applied to the projection before the soft cap."""
        return (1.0 if self.multiplier is None else self.multiplier) / (1.0 if self.divisor is None else self.divisor)

    def __call__(self, states: Tensor) -> Tensor:
        """Map hidden states, [..., H], to logits, [..., V'], in the dtype of the projection's output."""
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
        head: Head that maps hidden states to logits.
    """

    states: Tensor
    head: Head

    def with_head_in_graph(self) -> "HiddenStates":
        """Return the same output with a head whose weights are also outputs of this forward pass.

        `DistributedDataParallel` searches the graph of a forward pass's outputs for used parameters, but the head is only applied later.
        """
        weight, bias = self.head.weight, self.head.bias
        views = _Projection(weight.view_as(weight), None if bias is None else bias.view_as(bias))
        return replace(self, head=replace(self.head, projection=views))


def find_head(model: Any) -> Head | None:
    """Return the head of a causal language model of transformers, from its layers and configuration.

    Configurations name their scales differently, and some may be unknown here, so compare the result with the model's own logits
    before using it (`CausalNetwork` does).

    Args:
        model: A `PreTrainedModel` with a language-modelling head.

    Returns:
        The head, or None if the output layer is not a plain linear layer.
    """
    projection = model.get_output_embeddings()
    if (
        type(projection) is not nn.Linear
    ):  # the output of an adapter or a quantized layer is not given by weight and bias
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
