"""Quality of the teacher by view, accumulated over the rows: accuracy, calibration, ranks and confusions."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.stats.records import Bin, Confusion, ViewStats
from logitcache.stats.rows import Answers, Floats, Ints

__all__ = ["Calibration", "Confusions", "ViewSums"]

_BINS = 15  # Guo et al., ICML 2017, Section 5
_RANKS = 20  # number of ranks that are counted separately
_PAIRS = 20  # number of confused pairs to report
_PENDING = 1 << 20  # rows to count at a time


class Calibration:
    """Accumulates a reliability diagram."""

    def __init__(self) -> None:
        self._rows, self._confidence, self._right = np.zeros((3, _BINS))

    def add(self, confidence: Floats, right: NDArray[np.bool_]) -> None:
        """Add rows, given their largest probability and whether the top class is the label, [B] each."""
        place = np.ceil(confidence * np.float32(_BINS)).astype(np.int64).clip(1, _BINS) - 1
        for sums, weights in ((self._rows, None), (self._confidence, confidence), (self._right, right)):
            np.add(sums, np.bincount(place, weights, _BINS), out=sums)

    def bins(self) -> list[Bin]:
        """Return the bins of the diagram."""
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
    """Accumulates the statistics of one view.

    Args:
        classes: Number of classes, C.
        kept: Number of the largest logits that are kept per row.
    """

    def __init__(self, classes: int, kept: int) -> None:
        self.rows = self.constant = self.not_finite = 0
        self._class_rows, self._class_right = np.zeros((2, classes), np.int64)
        self._ranks = np.zeros(min(_RANKS, kept, classes - 1) + 1, np.int64)
        self._sums = np.zeros(3)  # rows with the label in the top five, confidence, entropy
        self._calibration = Calibration()

    def add(self, found: Answers, labels: NDArray[np.int32]) -> None:
        """Add rows; rows that are not finite are only counted."""
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
        """Number of rows whose top class is not the label."""
        return self.rows - int(self._class_right.sum())

    def stats(self, view: int, recipe: str) -> ViewStats:
        """Return the statistics of the view."""
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
    """Counts wrong predictions by label and predicted class, with 16 bytes per pair that occurs and at most 8 MB of buffers."""

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._pairs, self._counts = np.zeros((2, 0), np.int64)
        self._pending: list[Ints] = []

    def add(self, says: Ints, labels: NDArray[np.int32]) -> None:
        """Add rows, given their top classes and labels, [B] each."""
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
        """Return the most confused pairs, given the number of rows of each class, [C]."""
        self._merge()
        order = np.lexsort((self._pairs, -self._counts))[:_PAIRS]
        found: list[Any] = [divmod(pair, self._classes) for pair in self._pairs[order].tolist()]
        return [
            Confusion(label, says, rows, rows / int(class_rows[label]))
            for (label, says), rows in zip(found, self._counts[order].tolist(), strict=True)
        ]
