"""Eight bits a logit, by an even grid for every row; the first class and what ranks at or above the label stay what they were."""

import torch
from torch import Tensor

__all__ = ["dequantize", "quantize"]


def quantize(logits: Tensor, labels: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Round each row to `levels` + 1 values between its largest and its smallest.

        code = round((max - z) / step),   step = (max - min) / levels                    0 is the largest logit

    Rounding makes ties. Where one would change the first class, or whether a class ranks at or above the label (the mask of
    RLD), the lower logit goes one step further down.

    Args:
        logits: Finite, [B, K] float32.
        labels: Position of the label in each row, [B] int64.
        levels: Largest code, at most 255.

    Returns:
        Codes, [B, K] uint8, and (max, step) of each row, [B, 2] float32.
    """
    top = logits.amax(1, keepdim=True)
    step = (top - logits.amin(1, keepdim=True)) / levels
    codes = torch.where(step > 0, (top - logits) / step, 0).round().clamp(0, levels)
    codes = torch.where(logits < top, codes.clamp_min(1), codes)  # only what is the largest has code 0
    own, code = logits.gather(1, labels[:, None]), codes.gather(1, labels[:, None])
    below = logits < own
    code = torch.where(below.any(1, keepdim=True), code.clamp_max(levels - 1), code)
    codes = torch.where(below, codes.maximum(code + 1), codes.minimum(code))
    return codes.to(torch.uint8), torch.cat([top, step], 1)


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """Turn codes, [B, K], and (max, step), [B, 2], into logits, [B, K] float32."""
    return scale[:, :1] - scale[:, 1:] * codes.float()
