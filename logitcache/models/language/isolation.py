"""Contexts that share a sequence must not see each other: attention masks, and the proof that a model obeys them.

Positions that restart at each context are not enough: transformers isolates contexts by them only without a cache and without a
mask, and not where the positions of two contexts happen to continue. A block mask says it outright.
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["attention_masks", "block_mask", "several_contexts"]

_WINDOWED, _FULL = "sliding_attention", "full_attention"


def several_contexts(documents: Tensor) -> bool:
    """Return whether any sequence holds more than one context.

    Args:
        documents: Number of the context that each token belongs to, [B, L]; -1 is padding.
    """
    changes = (documents[:, 1:] != documents[:, :-1]) & (documents[:, 1:] >= 0)
    return bool(changes.any())


def block_mask(documents: Tensor, window: int | None = None) -> Tensor:
    """Return which tokens each token attends to: those of its own context up to itself.

    Padding attends to padding, so that every row has something to attend to and none becomes NaN.

    Args:
        documents: Number of the context that each token belongs to, [B, L]; -1 is padding.
        window: How many tokens, itself included, a token sees at most; None: all before it.

    Returns:
        A mask [B, 1, L, L], true where the token of the third axis attends to that of the fourth.
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
        config: The configuration of the model (of its text part).
        documents: Number of the context that each token belongs to, [B, L]; -1 is padding.
        dtype: Dtype of the model's attention scores, for an implementation that adds the mask to them.

    Returns:
        One mask for all layers, or one for each kind of layer where the kinds differ; None if this configuration has layers or an
        implementation of attention that no such mask reaches.
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
    if implementation == "eager":  # which adds the mask to the scores
        masks = {kind: _to_add(mask, dtype) for kind, mask in masks.items()}
    return next(iter(masks.values())) if len(masks) == 1 else masks


def _to_add(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 0 where a mask is true, and the lowest number where it is false."""
    lowest = torch.full((), torch.finfo(dtype).min, dtype=dtype, device=mask.device)
    return torch.where(mask, torch.zeros((), dtype=dtype, device=mask.device), lowest)
