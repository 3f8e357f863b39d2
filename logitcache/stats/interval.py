"""Confidence interval of a proportion."""

import math

__all__ = ["wilson_interval"]

_Z = 1.959964  # 95 %


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion (Wilson, JASA 1927), which stays within [0, 1] and also works for few samples.

    Args:
        share: Observed proportion, in [0, 1].
        count: Number of samples.
    """
    if not count:
        return 0.0, 1.0
    spread = _Z**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return max(middle - half, 0.0), min(middle + half, 1.0)
