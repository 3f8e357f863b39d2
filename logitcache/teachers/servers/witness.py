"""Recognize another model behind a server that was restarted while rows were requested from it."""

import threading
from collections.abc import Callable

import numpy as np

from logitcache.errors import CacheMismatchError
from logitcache.teachers.given import KnownRows

__all__ = ["TOLERANCE", "Witness"]

# Maximum mean total variation of two answers of one server; a different model mostly exceeds 0.2. Measured: 0.017 for bfloat16 against
# float32 and for batches of 4 against 1 (SmolLM2-135M, WikiText-2, 384 rows, on a CPU; at most 0.018 over random subsets of 256 rows),
# and 0.014 for both behind vLLM 0.32.0 on a CPU (760 rows). Noise of 5% of the weights' deviation was 0.09 (stories-mini).
TOLERANCE = 0.05
_TOLERANCE_OF_FEW = 0.2  # the same for documents of fewer than _FEW rows
_FEW, _MANY = 64, 256  # rows


class Witness:
    """One response from before any interruption, which is requested again after each. Thread-safe."""

    def __init__(self) -> None:
        """Create a witness without a response."""
        self._lock, self._seen = threading.Lock(), 0
        self._kept: KnownRows | None = None
        self._again: Callable[[], KnownRows] | None = None

    def check(self, name: str, interruptions: int, rows: KnownRows, again: Callable[[], KnownRows]) -> None:
        """Accept rows that were just received, and request the remembered ones again if the server was interrupted since the last call.

        Args:
            name: Name of the teacher, for the message.
            interruptions: Number of interruptions so far.
            rows: Rows that were just received.
            again: Function that requests these rows again.

        Raises:
            CacheMismatchError: If the server returns other probabilities than before the interruption.
            LogitCacheError: If the request fails.
        """
        with self._lock:
            if interruptions != self._seen and self._kept is not None and self._again is not None:
                gap = _variation(self._kept, self._again())
                allowed = TOLERANCE if len(self._kept.ids) >= _FEW else _TOLERANCE_OF_FEW
                if gap > allowed:
                    raise CacheMismatchError(
                        f"{name} returns other probabilities since the server was interrupted: their mean total variation is {gap:.2g} "
                        f"over {len(self._kept.ids)} rows (up to {allowed:g} comes from batching and rounding). No row from after the "
                        "interruption was kept; serve the same model, and run the same command again."
                    )
            self._seen = interruptions
            if self._kept is None or (not interruptions and len(self._kept.ids) < min(len(rows.ids), _MANY)):
                self._kept, self._again = rows, again


def _variation(one: KnownRows, other: KnownRows) -> float:
    """Return the mean total variation of rows over the ids that both have and the mass of all others, in [0, 1]."""
    total = 0.0
    for ids, values, other_ids, other_values in zip(
        one.ids, np.exp(one.logprobs), other.ids, np.exp(other.logprobs), strict=True
    ):
        _, here, there = np.intersect1d(ids, other_ids, return_indices=True)
        gaps = values[here] - other_values[there]
        total += float(np.abs(gaps).sum() + abs(gaps.sum())) / 2
    return total / max(len(one.ids), 1)
