"""Attention masks that isolate contexts which share a sequence.

Restarting positions at each context is not enough: transformers uses them to isolate contexts only without a cache and without a mask, and
not if the positions of two contexts happen to be consecutive. A block mask is explicit.
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["attention_masks", "block_mask", "several_contexts"]

_WINDOWED, _FULL = "sliding_attention", "full_attention"


def several_contexts(documents: Tensor) -> bool:
    """Return whether any sequence holds more than one context.

    Args:
        documents: Index of each token's context, [B, L], or -1 for padding.
    """
    changes = (documents[:, 1:] != documents[:, :-1]) & (documents[:, 1:] >= 0)
    return bool(changes.any())


def block_mask(documents: Tensor, window: int | None = None) -> Tensor:
    """Return the causal mask within contexts.

    Padding attends to padding, so that no row of the mask is empty and would become NaN.

    Args:
        documents: Index of each token's context, [B, L], or -1 for padding.
        window: Maximum number of tokens that a token attends to, including itself. None for all previous tokens.

    Returns:
        Mask, [B, 1, L, L], true where the token of the third axis attends to that of the fourth.
    """
    places = torch.arange(documents.shape[1], device=documents.device)
    distance = places[:, None] - places[None, :]
    seen = distance >= 0
    if window is not None:
        seen &= distance < window
    return (documents[:, None, :, None] == documents[:, None, None, :]) & seen


def attention_masks(config: Any, documents: Tensor, dtype: torch.dtype) -> Tensor | dict[str, Tensor] | None:
    """Return the `attention_mask` that isolates contexts in a model of transformers.

    Args:
        config: Configuration of the model (of its text part).
        documents: Index of each token's context, [B, L], or -1 for padding.
        dtype: Dtype of the model's attention scores, for an implementation that adds the mask to them.

    Returns:
        One mask for all layers, or one per type of layer if these differ; None if the layers or the attention implementation of this
        configuration do not accept such masks.
    """
    implementation = getattr(config, "_attn_implementation", None)
    if implementation not in ("sdpa", "eager"):
        return None
    window = getattr(config, "sliding_window", None)
    listed = getattr(config, "layer_types", None)
    kinds = {*listed} if listed else {_FULL if window is None else _WINDOWED}
    if kinds - {_FULL, _WINDOWED}:
        return None
    if _WINDOWED in kinds and window is not None and documents.shape[1] > window:
        masks = {kind: block_mask(documents, window if kind == _WINDOWED else None) for kind in kinds}
    else:
        masks = {_FULL: block_mask(documents)}
    if implementation == "eager":  # adds the mask to the scores
        masks = {kind: _to_add(mask, dtype) for kind, mask in masks.items()}
    return next(iter(masks.values())) if len(masks) == 1 else masks


def _to_add(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return an additive mask: 0 where the mask is true, the lowest finite number where it is false."""
    lowest = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=mask.device)
    return torch.where(mask, torch.zeros((), dtype=dtype, device=mask.device), lowest)
