"""Pair the rows of two caches: the same samples and views for images, the same target tokens for text."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import CacheMismatchError
from logitcache.stats.rows import Ints
from logitcache.store import Cache

__all__ = ["ImageRows", "Part", "TextRows", "common_samples"]

_SAME_VIEW = ("recipe", "recipe_version", "seed", "key")
_TOKENS = 1 << 20  # tokens to process at a time
_BEFORE = 16  # number of preceding tokens to show


class Part(NamedTuple):
    """A batch of rows that both caches contain.

    Attributes:
        views: View in each cache.
        rows: Row numbers in each cache, ascending, [B] each.
        labels: Labels of the rows, [B].
        documents: For text, id of each row's context in the data set, [B]; otherwise None.
        positions: For text, number of preceding tokens in the context, [B]; otherwise None.
        done: Fraction of all rows that is done after this part.
    """

    views: tuple[int, int]
    rows: tuple[Ints, Ints]
    labels: NDArray[np.int32]
    documents: Ints | None
    positions: Ints | None
    done: float


def common_samples(first: Cache, second: Cache) -> tuple[int, int]:
    """Return the first sample that both caches contain, and one past the last.

    Raises:
        CacheMismatchError: The caches have no sample in common.
    """
    spans = [(one.manifest.data["first"], one.manifest.data["first"] + one.manifest.samples) for one in (first, second)]
    begin, end = max(span[0] for span in spans), min(span[1] for span in spans)
    if begin >= end:
        raise CacheMismatchError(
            f"{first.place} has samples {spans[0][0]:,} to {spans[0][1] - 1:,} and {second.place} {spans[1][0]:,} to "
            f"{spans[1][1] - 1:,}; compare caches with samples in common."
        )
    return begin, end


@dataclass(frozen=True, slots=True)
class ImageRows:
    """Samples that both caches contain, in views with the same rendition, or in view 0 of each cache if there are none.

    Attributes:
        both: Caches.
        views: Pairs of views.
        alike: Whether the views of a pair have the same rendition.
    """

    both: tuple[Cache, Cache]
    views: list[tuple[int, int]]
    alike: bool

    @classmethod
    def of(cls, first: Cache, second: Cache) -> "ImageRows":
        """Pair the views of two caches."""
        keys = [
            {tuple(view[word] for word in _SAME_VIEW): view["index"] for view in one.manifest.views}
            for one in (first, second)
        ]
        found = [(index, keys[1][key]) for key, index in keys[0].items() if key in keys[1]]
        return cls((first, second), found or [(0, 0)], bool(found))

    def parts(self, most: int, at_once: int) -> Iterator[Part]:
        """Yield evenly spaced rows, of different samples in each view.

        Args:
            most: Maximum number of rows in total.
            at_once: Maximum number of rows per part.
        """
        (begin, end), firsts = common_samples(*self.both), [one.manifest.data["first"] for one in self.both]
        left_out = [sample for one in self.both for sample in one.manifest.excluded]
        labels, step = self.both[0].labels(), -(-(end - begin) * len(self.views) // most)
        for turn, pair in enumerate(self.views):
            samples = np.arange(begin + turn % step, end, step)
            samples = samples[~np.isin(samples, left_out)]
            for start in range(0, len(samples), at_once):
                part = samples[start : start + at_once]
                done = (turn + (int(part[-1]) + 1 - begin) / (end - begin)) / len(self.views)
                yield Part(pair, (part - firsts[0], part - firsts[1]), labels[part - firsts[0]], None, None, done)


class TextRows:
    """Target tokens with a row in view 0 of both caches.

    Memory: tokens, labels and targets of both caches (up to 9 bytes per token each), and 16 bytes per context.
    """

    views: tuple[tuple[int, int], ...] = ((0, 0),)
    alike = False  # there are no pixels to compare, and the tokens have been compared before

    def __init__(self, first: Cache, second: Cache) -> None:
        """Read the tokens of both caches and compare them.

        Raises:
            CacheMismatchError: The caches have no context in common, or different tokens.
        """
        self.both = (first, second)
        self._begin, self._end = common_samples(first, second)
        self.tokens, self.begins, targets, self._before, kept = [], [], [], [], []
        for one in self.both:
            here = slice(self._begin - one.manifest.data["first"], self._end - one.manifest.data["first"])
            begins = one.array("documents")[here.start : here.stop + 1].astype(np.int64)
            stretch, offsets = slice(int(begins[0]), int(begins[-1])), one.offsets()
            assert offsets is not None  # for text, the number of rows varies between samples
            self.tokens.append(one.array("tokens")[stretch])
            self.begins.append(begins - begins[0])
            targets.append(one.array("targets")[stretch])
            self._before.append(int(offsets[here.start]))
            mask = np.zeros(one.manifest.samples, np.bool_)
            mask[one.kept()] = True
            kept.append(mask[here])
        if not all(np.array_equal(*pair) for pair in (self.tokens, self.begins)):
            raise CacheMismatchError(
                f"{first.place} and {second.place} have different text, or divide it into different contexts; compare caches of one data "
                "set, dumped with the same --sequence-length, --pack, --too-long and --documents-by."
            )
        self._targets = targets
        both_kept = np.repeat(kept[0] & kept[1], np.diff(self.begins[0]))
        self._common = targets[0] & targets[1] & both_kept

    def parts(self, most: int, at_once: int) -> Iterator[Part]:
        """Yield evenly spaced rows (see `ImageRows.parts`).

        Raises:
            CacheMismatchError: No token has a row in both caches.
        """
        count, total = int(self._common.sum()), len(self._common)
        if not count:
            raise CacheMismatchError(
                f"no token has a row in both {self.both[0].place} and {self.both[1].place}; compare caches dumped with the same --rows."
            )
        step, seen, before = -(-count // most), 0, list(self._before)
        for start in range(0, total, _TOKENS):
            here = slice(start, min(start + _TOKENS, total))
            ordinals = np.cumsum(self._common[here]) - 1 + seen
            places = np.flatnonzero(self._common[here] & (ordinals % step == 0))
            rows = [before[side] + np.cumsum(self._targets[side][here])[places] - 1 for side in (0, 1)]
            seen, before = (
                seen + int(self._common[here].sum()),
                [before[side] + int(self._targets[side][here].sum()) for side in (0, 1)],
            )
            for first in range(0, len(places), at_once):
                some = places[first : first + at_once] + start
                documents = np.searchsorted(self.begins[0], some, side="right") - 1
                yield Part(
                    (0, 0),
                    (rows[0][first : first + at_once], rows[1][first : first + at_once]),
                    self.tokens[0][some].astype(np.int32),
                    documents + self._begin,
                    some - self.begins[0][documents],
                    (int(some[-1]) + 1) / total,
                )

    def before(self, document: int, position: int) -> list[int]:
        """Return the tokens before a position of a context, at most 16."""
        begin = int(self.begins[0][document - self._begin])
        tokens: list[int] = self.tokens[0][max(begin, begin + position - _BEFORE) : begin + position].tolist()
        return tokens
