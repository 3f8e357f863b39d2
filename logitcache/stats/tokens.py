"""Statistics of a teacher of text by position, token and document, in one pass over view 0.

Memory: tokens, labels and targets as stored (up to 9 bytes per token), 40 bytes per document, and one block.
"""

import math
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from logitcache.stats.records import OddDocument, PositionBin, SurprisingToken, TokenStats
from logitcache.stats.rows import Answers, Floats, Ints
from logitcache.store import Cache, samples_of

__all__ = ["Tokens"]

_SHOWN = 20  # maximum length of each list
_BEFORE = 16  # preceding tokens to show for a surprising token
_FEWEST = 8  # minimum number of rows to judge a document as a whole
_FAR = 5.0  # minimum number of deviations above the median for a document to be an outlier
_PARTS = 1 << 16  # tokens per part when counting targets
_LEAST = np.float32(1e-38)
_BINS = 40  # powers of two


class Tokens:
    """Accumulates the statistics of text while the rows of view 0 are read."""

    def __init__(self, cache: Cache) -> None:
        """Read the tokens of the cache.

        Raises:
            CorruptCacheError: An array is missing or damaged.
        """
        self._tokens, self._begins, self._targets = (cache.array(name) for name in ("tokens", "documents", "targets"))
        offsets, self._first = cache.offsets(), int(cache.manifest.data["first"])
        assert offsets is not None  # for text, the number of rows varies between samples
        self._offsets, self._kept = offsets, np.zeros(len(offsets) - 1, np.bool_)
        self._kept[cache.kept()] = True
        counts = np.add.reduceat(self._targets, np.arange(0, len(self._targets), _PARTS), dtype=np.int64)
        self._counted = np.concatenate([[0], np.cumsum(counts)])  # targets before each part
        self._bins = np.zeros((4, _BINS))  # rows, surprise, entropy, right
        self._documents = np.zeros((2, len(offsets) - 1))  # rows, surprise
        self._most: list[SurprisingToken] = []

    def add(self, first: int, found: Answers, labels: NDArray[np.int32]) -> None:
        """Add the rows of a block that are finite and not excluded.

        Args:
            first: First row of the block.
            found: Predictions of the rows; `finite` is False for rows to leave out.
            labels: Labels of the rows, [B].
        """
        rows = np.flatnonzero(found.finite)
        if not len(rows):
            return
        documents = samples_of(self._offsets, rows + first)
        places = self._places(first, len(labels))[rows] - self._begins[documents]
        surprise = -np.log(np.maximum(found.label_probability[rows], _LEAST))
        bins = np.log2(places).astype(np.int64)
        values = (None, surprise, found.entropy[rows], found.says[rows] == labels[rows])
        self._bins += [np.bincount(bins, weights, _BINS) for weights in values]
        begin, end = int(documents[0]), int(documents[-1]) + 1
        here = [np.bincount(documents - begin, weights, end - begin) for weights in (None, surprise)]
        self._documents[:, begin:end] += here
        self._remember(rows, surprise, documents, places, found, labels)

    def _places(self, first: int, count: int) -> Ints:
        """Return the index in `tokens` of the target of each row from `first` on, [count]."""
        begin = int(np.searchsorted(self._counted, first, side="right")) - 1
        end = int(np.searchsorted(self._counted, first + count))
        found = np.flatnonzero(self._targets[begin * _PARTS : end * _PARTS]) + begin * _PARTS
        skipped = first - int(self._counted[begin])
        return found[skipped : skipped + count]

    def _remember(
        self,
        rows: Ints,
        surprise: Floats,
        documents: Ints,
        places: Ints,
        found: Answers,
        labels: NDArray[np.int32],
    ) -> None:
        """Keep the most surprising tokens so far."""
        least = self._most[-1].surprise_nats if len(self._most) == _SHOWN else -math.inf
        some = np.flatnonzero(surprise > least)
        some = some[np.argsort(-surprise[some], kind="stable")[:_SHOWN]]
        for at in some.tolist():
            row, place = int(rows[at]), int(places[at])
            target = int(self._begins[documents[at]]) + place
            before = self._tokens[max(target - _BEFORE, target - place) : target]
            self._most.append(
                SurprisingToken(
                    document=int(documents[at]) + self._first,
                    position=place,
                    label=int(labels[row]),
                    says=int(found.says[row]),
                    surprise_nats=float(surprise[at]),
                    confidence=float(found.confidence[row]),
                    before=before.tolist(),
                )
            )
        self._most = sorted(self._most, key=lambda one: (-one.surprise_nats, one.document, one.position))[:_SHOWN]

    def stats(self) -> TokenStats:
        """Return the statistics."""
        rows, surprise, entropy, right = self._bins.tolist()
        positions = [
            PositionBin(1 << number, (2 << number) - 1, int(count), one / count, other / count, good / count)
            for number, (count, one, other, good) in enumerate(zip(rows, surprise, entropy, right, strict=True))
            if count
        ]
        copies = self._copies()
        odd, total = self._odd()
        return TokenStats(
            rows=int(sum(rows)),
            surprise_nats=sum(surprise) / max(sum(rows), 1),
            positions=positions,
            surprising=self._most,
            documents=int(self._kept.sum()),
            copies=copies[:_SHOWN],
            copies_total=len(copies),
            odd_documents=odd,
            odd_total=total,
        )

    def _copies(self) -> list[tuple[int, int]]:
        """Return pairs of contexts with the same tokens: the first one and each later copy, in order."""
        first, found = dict[bytes, int](), list[tuple[int, int]]()
        for document in np.flatnonzero(self._kept & (np.diff(self._begins) > 1)).tolist():
            content = self._tokens[self._begins[document] : self._begins[document + 1]].tobytes()
            digest = blake2b(content, digest_size=16).digest()
            if (other := first.setdefault(digest, document)) != document:
                found.append((other + self._first, document + self._first))
        return found

    def _odd(self) -> tuple[list[OddDocument], int]:
        """Return the documents with a far higher mean surprisal than the others, farthest first, and their total number."""
        rows, surprise = self._documents
        judged = np.flatnonzero(rows >= _FEWEST)
        if len(judged) < 2:
            return [], 0
        means = surprise[judged] / rows[judged]
        middle = np.median(means)
        spread = 1.4826 * np.median(np.abs(means - middle))
        if not spread:
            return [], 0
        far = (means - middle) / spread
        order = np.argsort(-far, kind="stable")
        order = order[far[order] > _FAR]
        found = [
            OddDocument(int(judged[at]) + self._first, int(rows[judged[at]]), float(means[at]), float(far[at]))
            for at in order[:_SHOWN].tolist()
        ]
        return found, len(order)
