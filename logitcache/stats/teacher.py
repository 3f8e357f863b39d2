"""How good the teacher is, view by view: sums that grow with the rows, and what comes of them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.stats.records import Bin, Confusion, ViewStats
from logitcache.stats.rows import Answers, Floats, Ints

__all__ = ["Calibration", "Confusions", "ViewSums"]

_BINS = 15  # Guo et al., ICML 2017, Section 5
_RANKS = 20  # counted one by one
_PAIRS = 20  # of confused classes, shown
_PENDING = 1 << 20  # rows that are counted at once


class Calibration:
    """A reliability diagram that is being filled."""

    def __init__(self) -> None:
        self._rows, self._confidence, self._right = np.zeros((3, _BINS))

    def add(self, confidence: Floats, right: NDArray[np.bool_]) -> None:
        """Count rows in: largest probability, [B], and whether it is the label's."""
        place = np.ceil(confidence * np.float32(_BINS)).astype(np.int64).clip(1, _BINS) - 1
        for sums, weights in ((self._rows, None), (self._confidence, confidence), (self._right, right)):
            np.add(sums, np.bincount(place, weights, _BINS), out=sums)

    def bins(self) -> list[Bin]:
        """Return the bins."""
        return [
            Bin(number / _BINS, (number + 1) / _BINS, int(rows), confidence / max(rows, 1), right / max(rows, 1))
            for number, (rows, confidence, right) in enumerate(
                zip(*(sums.tolist() for sums in (self._rows, self._confidence, self._right)), strict=True)
            )
        ]

    def error(self) -> float:
        """Return the expected calibration error: Σ |rows of bin| / |rows| · |accuracy - confidence| (Guo et al., Eq. 3)."""
        return float(np.abs(self._right - self._confidence).sum() / max(self._rows.sum(), 1))


class ViewSums:
    """One view: what is summed while its rows are read.

    Args:
        classes: C.
        kept: How many of the largest logits of a row are kept.
    """

    def __init__(self, classes: int, kept: int) -> None:
        self.rows = self.constant = self.not_finite = 0
        self._class_rows, self._class_right = np.zeros((2, classes), np.int64)
        self._ranks = np.zeros(min(_RANKS, kept, classes - 1) + 1, np.int64)
        self._sums = np.zeros(3)  # among the first five, confidence, entropy
        self._calibration = Calibration()

    def add(self, found: Answers, labels: NDArray[np.int32]) -> None:
        """Count rows in; those that are not finite only as such."""
        self.not_finite += int((~found.finite).sum())
        keep = found.finite
        labels, rank, confidence = labels[keep], found.rank[keep], found.confidence[keep]
        right = found.says[keep] == labels
        self.rows += len(labels)
        self.constant += int(found.constant[keep].sum())
        classes = len(self._class_rows)
        five = (rank < 5) | (classes <= 5)
        self._sums += five.sum(), confidence.sum(dtype=np.float64), found.entropy[keep].sum(dtype=np.float64)
        self._ranks += np.bincount(rank.clip(max=len(self._ranks) - 1), minlength=len(self._ranks))
        self._calibration.add(confidence, right)
        self._class_rows += np.bincount(labels, minlength=classes)
        self._class_right += np.bincount(labels[right], minlength=classes)

    @property
    def wrong(self) -> int:
        """Rows whose largest logit is not the label's."""
        return self.rows - int(self._class_right.sum())

    def stats(self, view: int, recipe: str) -> ViewStats:
        """Return what came of it."""
        five, confidence, entropy = (self._sums / max(self.rows, 1)).tolist()
        right = int(self._class_right.sum()) / max(self.rows, 1)
        return ViewStats(
            view=view,
            recipe=recipe,
            rows=self.rows,
            accuracy=right,
            top5_accuracy=five,
            mis_instruction_rate=1 - right if self.rows else 0.0,
            confidence=confidence,
            entropy_nats=entropy,
            calibration_error=self._calibration.error(),
            reliability=self._calibration.bins(),
            rank_of_label=self._ranks.tolist(),
            class_accuracy=[
                good / rows if rows else None
                for good, rows in zip(self._class_right.tolist(), self._class_rows.tolist(), strict=True)
            ],
            class_rows=self._class_rows.tolist(),
            constant_rows=self.constant,
            not_finite_rows=self.not_finite,
        )


class Confusions:
    """Which class is taken for which; 16 bytes for every pair that occurs, and at most 8 MB besides."""

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._pairs, self._counts = np.zeros((2, 0), np.int64)
        self._pending: list[Ints] = []

    def add(self, says: Ints, labels: NDArray[np.int32]) -> None:
        """Count rows in."""
        wrong = says != labels
        self._pending.append(labels[wrong].astype(np.int64) * self._classes + says[wrong])
        if sum(map(len, self._pending)) > _PENDING:
            self._merge()

    def _merge(self) -> None:
        pairs, counts = np.unique(np.concatenate([np.zeros(0, np.int64), *self._pending]), return_counts=True)
        merged, where = np.unique(np.concatenate([self._pairs, pairs]), return_inverse=True)
        sums = np.bincount(where, np.concatenate([self._counts, counts]), len(merged))
        self._pairs, self._counts, self._pending = merged, sums.astype(np.int64), []

    def most(self, class_rows: NDArray[np.int64]) -> list[Confusion]:
        """Return the most confused pairs, given how many rows each class has, [C]."""
        self._merge()
        order = np.lexsort((self._pairs, -self._counts))[:_PAIRS]
        found: list[Any] = [divmod(pair, self._classes) for pair in self._pairs[order].tolist()]
        return [
            Confusion(label, says, rows, rows / int(class_rows[label]))
            for (label, says), rows in zip(found, self._counts[order].tolist(), strict=True)
        ]
