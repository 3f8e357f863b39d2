"""What the views of a sample say together: where they agree, and where all of them deny the label.

A stretch of samples is held at a time, at most 80 bytes each; what remains of it are counts, and 20 bytes for every sample whose
views all deny its label.
"""

import numpy as np
from numpy.typing import NDArray

from logitcache.stats.records import OddSample
from logitcache.stats.rows import Answers, Floats

__all__ = ["STRETCH", "Agreement", "LabelErrors"]

STRETCH = 1 << 19  # samples held at a time: 42 MB
_VIEWS = 16  # compared in pairs
_SHOWN = 100
_UNSEEN = -1
_LEAST = 0.5  # mean probability


class Agreement:
    """How often views have the same largest class."""

    def __init__(self, views: int) -> None:
        self._views = views
        self._same, self._both = np.zeros((2, min(views, _VIEWS), min(views, _VIEWS)), np.int64)
        self._alike = self._everywhere = 0
        self._said = np.zeros((0, 0), np.int32)

    def begin(self, samples: int) -> None:
        """Begin a stretch."""
        self._said = np.full((len(self._same), samples), _UNSEEN, np.int32)
        self._first = np.full(samples, _UNSEEN, np.int32)
        self._still = np.ones(samples, np.bool_)
        self._seen = np.zeros(samples, np.int32)

    def add(self, view: int, part: slice, found: Answers) -> None:
        """Take the answers for a part of the stretch in one view."""
        says = np.where(found.finite, found.says, _UNSEEN).astype(np.int32)
        first = self._first[part]
        first[first == _UNSEEN] = says[first == _UNSEEN]
        self._still[part] &= says == first
        self._seen[part] += found.finite
        if view < len(self._said):
            self._said[view, part] = says

    def end(self) -> None:
        """Count the stretch in."""
        whole = self._seen == self._views
        self._everywhere += int(whole.sum())
        self._alike += int((whole & self._still).sum())
        for one, first in enumerate(self._said):
            for other, second in enumerate(self._said[: one + 1]):
                there = (first != _UNSEEN) & (second != _UNSEEN)
                self._both[one, other] += there.sum()
                self._same[one, other] += (there & (first == second)).sum()

    def of_pairs(self) -> list[list[float | None]]:
        """Return the share of samples that two views agree on, [V][V]; None where no sample has both."""
        both, same = (counts + np.tril(counts, -1).T for counts in (self._both, self._same))
        return [
            [agreed / there if there else None for agreed, there in zip(*row, strict=True)]
            for row in zip(same.tolist(), both.tolist(), strict=True)
        ]

    def of_all(self) -> float | None:
        """Return the share of samples with one largest class in all views, among those that all views have; None: there are none."""
        return self._alike / self._everywhere if self._everywhere else None


class LabelErrors:
    """Samples whose label every view denies, and says which other class it is, with confidence.

    How confident is enough is that class's own: the mean probability that the teacher gives the label over the samples labelled
    so, as in confident learning (Northcutt, Jiang, Chuang: Confident Learning. JAIR 70, 2021, Eq. 2), and at least 0.5.
    Here it is the mean over a sample's views that must reach it, and every view must have this class first.

    Attributes:
        class_rows: Rows counted, by label, [C].
    """

    def __init__(self, classes: int) -> None:
        self.class_rows, self._probability = np.zeros(classes, np.int64), np.zeros(classes)
        self._found: list[tuple[NDArray[np.int64], ...]] = []
        self._means: list[tuple[Floats, ...]] = []

    def begin(self, samples: int) -> None:
        """Begin a stretch."""
        self._says = np.full(samples, _UNSEEN, np.int32)
        self._denied = np.ones(samples, np.bool_)
        self._views = np.zeros(samples, np.int32)
        self._sums = np.zeros((2, samples), np.float32)

    def add(self, part: slice, found: Answers, labels: NDArray[np.int32]) -> None:
        """Take the answers for a part of the stretch in one view."""
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
        """Remember those of the stretch that may be odd; `first` is its first sample's id."""
        where = np.flatnonzero(self._denied & (self._views > 0) & (self._sums[0] >= _LEAST * self._views))
        self._found.append((where + first, labels[where].astype(np.int64), self._says[where].astype(np.int64)))
        confidence, own = self._sums[:, where] / self._views[where]
        self._means.append((confidence, own))

    def surest(self) -> tuple[list[OddSample], int]:
        """Return the likely wrong labels, surest first, and how many there are."""
        if not self._found:
            return [], 0
        samples, labels, says = (np.concatenate(parts) for parts in zip(*self._found, strict=True))
        confidence, own = (np.concatenate(parts) for parts in zip(*self._means, strict=True))
        enough = np.flatnonzero(confidence >= (self._probability / np.maximum(self.class_rows, 1))[says])
        order = enough[np.lexsort((samples[enough], (own - confidence)[enough]))]
        shown = zip(*(x[order[:_SHOWN]].tolist() for x in (samples, labels, says, confidence, own)), strict=True)
        return [OddSample(*one) for one in shown], len(order)
