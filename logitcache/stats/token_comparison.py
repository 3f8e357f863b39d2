"""Compare two teachers of text token by token: agreement by position, and the tokens with the largest divergence."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.stats.pairing import Part, TextRows
from logitcache.stats.records import DifferingToken, PairedBin, TokenComparison
from logitcache.stats.rows import Answers, Columns, Floats, Ints
from logitcache.store import kept_values

__all__ = ["TokenSums", "kept_by_both", "surprise_of"]

_SHOWN = 20
_BINS = 40  # powers of two
_LEAST = np.float32(1e-38)


def surprise_of(found: Answers) -> Floats:
    """Return the surprisal of each row, -log of the label's probability in nats, [B]."""
    surprise: Floats = -np.log(np.maximum(found.label_probability, _LEAST))
    return surprise


def kept_by_both(both: Sequence[tuple[Mapping[str, Any], Columns]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return whether both caches keep a class of a row separately, [B, C].

    Args:
        both: Encoding and stored arrays of the rows in each cache.
        shape: Number of rows and of classes, (B, C).
    """
    kept = np.ones(shape, np.bool_)
    for encoding, columns in both:
        ids, _ = kept_values(encoding, columns)
        if ids is not None:
            mine = np.zeros(shape, np.bool_)
            np.put_along_axis(mine, ids, True, 1)
            kept &= mine
    return kept


class TokenSums:
    """Accumulates means by position, and the tokens on which the teachers differ most."""

    def __init__(self) -> None:
        self._bins = np.zeros((5, _BINS))  # rows, agreeing, KL, surprise of the first, of the second
        self._most: list[DifferingToken] = []

    def add(self, part: Part, chosen: Ints, found: Sequence[Answers], divergence: NDArray[np.floating]) -> None:
        """Add rows.

        Args:
            part: Rows of text.
            chosen: Indices of the rows of the part to add, [B].
            found: Predictions of both teachers for these rows.
            divergence: KL(first || second) of these rows at temperature 1 in nats, [B].
        """
        assert part.documents is not None
        assert part.positions is not None
        documents, positions, labels = part.documents[chosen], part.positions[chosen], part.labels[chosen]
        agree = (found[0].says == found[1].says).astype(np.float64)
        bins = np.log2(np.maximum(positions, 1)).astype(np.int64)
        values = (None, agree, divergence, surprise_of(found[0]), surprise_of(found[1]))
        self._bins += [np.bincount(bins, weights, _BINS) for weights in values]
        least = self._most[-1].kl_nats if len(self._most) == _SHOWN else -math.inf
        some = np.flatnonzero(divergence > least)
        for at in some[np.argsort(-divergence[some], kind="stable")[:_SHOWN]].tolist():
            self._most.append(
                DifferingToken(
                    document=int(documents[at]),
                    position=int(positions[at]),
                    label=int(labels[at]),
                    first_says=int(found[0].says[at]),
                    second_says=int(found[1].says[at]),
                    first_probability=float(found[0].label_probability[at]),
                    second_probability=float(found[1].label_probability[at]),
                    kl_nats=float(divergence[at]),
                    before=[],
                )
            )
        self._most = sorted(self._most, key=lambda one: (-one.kl_nats, one.document, one.position))[:_SHOWN]

    def stats(self, rows: TextRows) -> TokenComparison:
        """Return the result, with the preceding tokens of each token that is shown."""
        positions = [
            PairedBin(1 << number, (2 << number) - 1, int(count), *(float(total / count) for total in totals))
            for number, (count, *totals) in enumerate(self._bins.T.tolist())
            if count
        ]
        differing = [replace(one, before=rows.before(one.document, one.position)) for one in self._most]
        return TokenComparison(positions, differing)
