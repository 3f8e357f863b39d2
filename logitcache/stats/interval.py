"""How well a share is known."""

import math

__all__ = ["wilson_interval"]

_Z = 1.959964  # 95 %


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share (Wilson, JASA 1927), which stays inside [0, 1] and holds for few samples too.

    Args:
        share: What was observed, in [0, 1].
        count: Samples it was observed on.
    """
    if not count:
        return 0.0, 1.0
    spread = _Z**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return max(middle - half, 0.0), min(middle + half, 1.0)
