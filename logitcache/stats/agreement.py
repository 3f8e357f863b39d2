"""Agreement between the views of a sample, and samples whose views all contradict the label.

The samples are processed in stretches, with at most 80 bytes per sample in memory. Only counts are kept afterwards, and 20 bytes for
every sample whose views all contradict its label.
"""

import numpy as np
from numpy.typing import NDArray

from logitcache.stats.records import OddSample
from logitcache.stats.rows import Answers, Floats

__all__ = ["STRETCH", "Agreement", "LabelErrors"]

STRETCH = 1 << 19  # samples in memory at a time, 42 MB
_VIEWS = 16  # maximum number of views to compare pairwise
_SHOWN = 100
_UNSEEN = -1
_LEAST = 0.5  # minimum mean probability of a predicted class


class Agreement:
    """Counts how often views have the same top class."""

    def __init__(self, views: int) -> None:
        self._views = views
        self._same, self._both = np.zeros((2, min(views, _VIEWS), min(views, _VIEWS)), np.int64)
        self._alike = self._everywhere = 0
        self._said = np.zeros((0, 0), np.int32)

    def begin(self, samples: int) -> None:
        """Start a stretch of samples."""
        self._said = np.full((len(self._same), samples), _UNSEEN, np.int32)
        self._first = np.full(samples, _UNSEEN, np.int32)
        self._still = np.ones(samples, np.bool_)
        self._seen = np.zeros(samples, np.int32)

    def add(self, view: int, part: slice, found: Answers) -> None:
        """Add the predictions for a part of the stretch in one view."""
        says = np.where(found.finite, found.says, _UNSEEN).astype(np.int32)
        first = self._first[part]
        first[first == _UNSEEN] = says[first == _UNSEEN]
        self._still[part] &= says == first
        self._seen[part] += found.finite
        if view < len(self._said):
            self._said[view, part] = says

    def end(self) -> None:
        """Finish the stretch and add it to the counts."""
        whole = self._seen == self._views
        self._everywhere += int(whole.sum())
        self._alike += int((whole & self._still).sum())
        for one, first in enumerate(self._said):
            for other, second in enumerate(self._said[: one + 1]):
                there = (first != _UNSEEN) & (second != _UNSEEN)
                self._both[one, other] += there.sum()
                self._same[one, other] += (there & (first == second)).sum()

    def of_pairs(self) -> list[list[float | None]]:
        """Return the fraction of samples on which two views agree, [V][V]; None if no sample has both views."""
        both, same = (counts + np.tril(counts, -1).T for counts in (self._both, self._same))
        return [
            [agreed / there if there else None for agreed, there in zip(*row, strict=True)]
            for row in zip(same.tolist(), both.tolist(), strict=True)
        ]

    def of_all(self) -> float | None:
        """Return the fraction of samples with the same top class in all views, of the samples that have all views; None if none has."""
        return self._alike / self._everywhere if self._everywhere else None


class LabelErrors:
    """Finds samples for which every view confidently predicts the same class, and not the label.

    Each class has its own confidence threshold: the mean probability that the teacher gives the label over the samples with this label,
    as in confident learning (Northcutt, Jiang, Chuang: Confident Learning. JAIR 70, 2021, Eq. 2), and at least 0.5. Here, the mean
    probability over a sample's views must reach the threshold, and every view must rank the class first.

    Attributes:
        class_rows: Number of rows by label, [C].
    """

    def __init__(self, classes: int) -> None:
        self.class_rows, self._probability = np.zeros(classes, np.int64), np.zeros(classes)
        self._found: list[tuple[NDArray[np.int64], ...]] = []
        self._means: list[tuple[Floats, ...]] = []

    def begin(self, samples: int) -> None:
        """Start a stretch of samples."""
        self._says = np.full(samples, _UNSEEN, np.int32)
        self._denied = np.ones(samples, np.bool_)
        self._views = np.zeros(samples, np.int32)
        self._sums = np.zeros((2, samples), np.float32)

    def add(self, part: slice, found: Answers, labels: NDArray[np.int32]) -> None:
        """Add the predictions for a part of the stretch in one view."""
        keep, says = found.finite, found.says.astype(np.int32)
        first = self._says[part]
        fresh = keep & (first == _UNSEEN)
        first[fresh] = says[fresh]
        self._denied[part] &= ~keep | ((says == first) & (says != labels))
        self._views[part] += keep
        for sums, values in zip(self._sums, (found.confidence, found.label_probability), strict=True):
            sums[part] += np.where(keep, values, 0)
        classes = len(self.class_rows)
        self.class_rows += np.bincount(labels[keep], minlength=classes)
        self._probability += np.bincount(labels[keep], found.label_probability[keep], classes)

    def end(self, first: int, labels: NDArray[np.int32]) -> None:
        """Finish the stretch, whose first sample has the id `first`, and keep its candidates for label errors."""
        where = np.flatnonzero(self._denied & (self._views > 0) & (self._sums[0] >= _LEAST * self._views))
        self._found.append((where + first, labels[where].astype(np.int64), self._says[where].astype(np.int64)))
        confidence, own = self._sums[:, where] / self._views[where]
        self._means.append((confidence, own))

    def surest(self) -> tuple[list[OddSample], int]:
        """Return the likely label errors, most confident first, and their total number."""
        if not self._found:
            return [], 0
        samples, labels, says = (np.concatenate(parts) for parts in zip(*self._found, strict=True))
        confidence, own = (np.concatenate(parts) for parts in zip(*self._means, strict=True))
        enough = np.flatnonzero(confidence >= (self._probability / np.maximum(self.class_rows, 1))[says])
        order = enough[np.lexsort((samples[enough], (own - confidence)[enough]))]
        shown = zip(*(x[order[:_SHOWN]].tolist() for x in (samples, labels, says, confidence, own)), strict=True)
        return [OddSample(*one) for one in shown], len(order)
