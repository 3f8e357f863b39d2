"""Order-preserving quantization of logits. Rounding makes ties, but preserves the top class and the classes ranked at or above the label.

RLD masks `z_i >= z_y`. With plain float16, a class just below the label would tie with it and be masked. On 256 CIFAR-100 test rows of a
ResNet-56 this changes the gradient of RLD by 7.5 % of its norm; with the order preserved, by 0.09 %.
"""

import torch
from torch import Tensor

__all__ = ["dequantize", "half", "half_below", "quantize"]


def quantize(logits: Tensor, labels: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Quantize each row to `levels` + 1 uniform values between its largest and smallest logit.

        code = round((max - z) / step),   step = (max - min) / levels                    0 is the largest logit

    If a tie would change the top class, or whether a class ranks at or above the label (the mask of RLD), the lower logit is
    moved down by one step.

    Args:
        logits: Finite logits, [B, K] float32.
        labels: Position of the label in each row, [B] int64.
        levels: Largest code, at most 255.

    Returns:
        Codes, [B, K] uint8, and (max, step) of each row, [B, 2] float32.
    """
    top = logits.amax(1, keepdim=True)
    step = (top - logits.amin(1, keepdim=True)) / levels
    codes = torch.where(step > 0, (top - logits) / step, 0).round().clamp(0, levels)
    codes = torch.where(logits < top, codes.clamp_min(1), codes)  # only the largest logit has code 0
    own, code = logits.gather(1, labels[:, None]), codes.gather(1, labels[:, None])
    below = logits < own
    code = torch.where(below.any(1, keepdim=True), code.clamp_max(levels - 1), code)
    codes = torch.where(below, codes.maximum(code + 1), codes.minimum(code))
    return codes.to(torch.uint8), torch.cat([top, step], 1)


def dequantize(codes: Tensor, scale: Tensor) -> Tensor:
    """Return the logits, [B, K] float32, of codes, [B, K], and (max, step), [B, 2]."""
    return scale[:, :1] - scale[:, 1:] * codes.float()


def half(logits: Tensor, labels: Tensor) -> Tensor:
    """Round to the nearest float16, or to the next one below if that would change the top class or the rank of the label.

    Args:
        logits: Logits, [B, K] float32.
        labels: Position of the label in each row, [B] int64.

    Returns:
        Rounded logits, [B, K] float16; infinite outside the range of float16.
    """
    top, own = logits.amax(1, keepdim=True), logits.gather(1, labels[:, None])
    rounded = logits.half()
    rounded = torch.where((logits < top) & (rounded == top.half()), _next_below(rounded), rounded)
    stored = rounded.gather(1, labels[:, None])
    return torch.where((logits < own) & (rounded >= stored), _next_below(stored), rounded)


def half_below(values: Tensor, *, strictly: bool = False) -> Tensor:
    """Round float32 down to float16, to a `strictly` smaller value if asked for, and clamp to the range of float16."""
    rounded = values.clamp(-_LARGEST, _LARGEST).half()
    too_large = rounded.float() >= values if strictly else rounded.float() > values
    return torch.where(too_large, _next_below(rounded), rounded)


_LARGEST = 65504.0


def _next_below(values: Tensor) -> Tensor:
    """Return the next smaller float16 of each value, or the value itself if there is none."""
    bits = values.view(torch.int16).int()
    order = torch.where(bits >= 0, bits, -(bits & 0x7FFF)) - 1  # sign and magnitude to an integer that sorts the same
    bits = torch.where(order >= 0, order, -order - 0x8000).to(torch.int16)
    below = bits.view(torch.float16)
    return torch.where(below.isfinite() & values.isfinite(), below, values)
