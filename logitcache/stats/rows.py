"""Rows as they are kept, and what they say of the teacher: in pieces that fit a processor's cache, a top-k row never made dense.

Everything is read relative to a row's largest logit. What a top-k row did not keep takes part through its stored statistics.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import CorruptCacheError
from logitcache.store import completion, kept_values

__all__ = [
    "Answers",
    "Columns",
    "Floats",
    "Ints",
    "Rows",
    "answers",
    "answers_of",
    "chosen",
    "joined",
    "label_ranks",
    "pieces",
    "read_rows",
]

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Columns = Mapping[str, NDArray[Any]]  # of an encoding: name to rows

_VALUES_AT_ONCE = 1 << 18  # 1 MB as float32
_NEARLY_FLAT = 0.98  # of C: rows whose sum of exp(z - max z) is less are not constant, whatever float16 did to the rest


@dataclass(frozen=True, slots=True)
class Rows:
    """Some rows, of B samples.

    Attributes:
        ids: Classes that were kept, ascending, [B, K]; None: every class, in order.
        gaps: Their logits less the row's largest, [B, K] float32, at most 0.
        first: Where the largest logit stands among them, [B]; of equal ones the first.
        label: Where the label stands among them, [B].
        rest: Mean, deviation, log-sum-exp and minimum of what was not kept, less the largest logit, [B, 4] as stored; or None.
        classes: C.
    """

    ids: Ints | None
    gaps: Floats
    first: Ints
    label: Ints
    rest: NDArray[Any] | None
    classes: int

    @property
    def others(self) -> int:
        """How many classes were not kept."""
        return self.classes - int(self.gaps.shape[1])

    @property
    def own(self) -> Floats:
        """Logit of the label, relative, [B]."""
        found: Floats = self.gaps[np.arange(len(self.gaps)), self.label]
        return found

    @property
    def wrong(self) -> Bools:
        """Which rows have another class first, [B]."""
        found: Bools = self.first != self.label
        return found

    def class_at(self, place: Ints) -> Ints:
        """Return the class that stands at a place of each row, [B]."""
        return place if self.ids is None else self.ids[np.arange(len(place)), place]

    def level(self, temperature: float) -> Floats:
        """Return the logit, relative, that every class of the rest counts with at a temperature, [B]."""
        assert self.rest is not None
        return completion(self.rest, self.others, temperature)


def pieces(columns: Columns) -> Iterator[slice]:
    """Cut rows so that the logits of one piece stay in a processor's cache."""
    widest = next(columns[name] for name in ("logits", "values", "draws") if name in columns)
    step = max(_VALUES_AT_ONCE // widest.shape[1], 1)
    for start in range(0, len(widest), step):
        yield slice(start, start + step)


def read_rows(encoding: Mapping[str, Any], columns: Columns, labels: NDArray[np.int32], classes: int) -> Rows:
    """Read rows as they are kept.

    Args:
        encoding: The manifest's entry.
        columns: Name to rows, [B, ...].
        labels: True classes, [B].
        classes: C.

    Raises:
        CorruptCacheError: A row names classes that there are not, or not its label.
    """
    ids, values = kept_values(encoding, columns)
    every, label = np.arange(len(values)), labels.astype(np.int64)
    if ids is not None:
        label = (ids == labels[:, None]).argmax(1)
        if len(ids) and (ids[:, -1].max() >= classes or (ids[every, label] != labels).any()):
            raise CorruptCacheError(f"a row names classes beyond {classes - 1}, or not its label")
    first = values.argmax(1)
    with np.errstate(invalid="ignore"):
        gaps = values - values[every, first][:, None]
    return Rows(ids, gaps, first, label, columns.get("rest"), classes)


@dataclass(frozen=True, slots=True)
class Answers:
    """What the teacher says about B rows, at temperature 1.

    Attributes:
        says: The class of the largest logit, [B].
        rank: Of the label, [B]; as many as there are classes where it is not known, because the label is not among the k largest.
        confidence: Largest probability, [B].
        label_probability: That of the label, [B].
        entropy: In nats, [B].
        constant: Whether all logits are equal, [B].
        finite: Whether there is no NaN and no infinity, [B]; where there is, nothing else counts.
    """

    says: Ints
    rank: Ints
    confidence: Floats
    label_probability: Floats
    entropy: Floats
    constant: Bools
    finite: Bools


def answers(rows: Rows) -> Answers:
    """Work out what rows say."""
    with np.errstate(invalid="ignore", over="ignore"):
        weights = np.exp(rows.gaps)
        total = weights.sum(1)
        moment = np.einsum("ij,ij->i", weights, rows.gaps)
        if rows.rest is not None:
            level = rows.level(1.0)
            mass = np.exp(level) * np.float32(rows.others)
            total, moment = total + mass, moment + mass * level
        entropy = np.log(total) - moment / total
        finite = np.isfinite(entropy)
        if rows.rest is not None:
            finite &= np.isfinite(rows.rest).all(1)
        return Answers(
            rows.class_at(rows.first),
            label_ranks(rows),
            1 / total,
            np.exp(rows.own) / total,
            np.maximum(entropy, 0),
            _constant(rows, total),
            finite,
        )


def answers_of(encoding: Mapping[str, Any], columns: Columns, labels: NDArray[np.int32], classes: int) -> Answers:
    """Work out what stored rows say; see `read_rows`."""
    if encoding["kind"] != "sampled":
        return answers(read_rows(encoding, columns, labels, classes))
    says, facts = columns["first"].astype(np.int64), columns["facts"].astype(np.float32)
    if len(says) and says.max() >= classes:
        raise CorruptCacheError(f"a row names classes beyond {classes - 1}")
    confidence, of_label = np.exp(facts[:, :2]).T
    finite: Bools = np.isfinite(facts[:, 0] + facts[:, 1] + facts[:, 2])
    constant: Bools = facts[:, 0] <= -math.log(classes) * _NEARLY_FLAT
    return Answers(
        says,
        np.where(says == labels, 0, classes),
        confidence,
        of_label,
        np.maximum(facts[:, 2], 0),
        constant,
        finite,
    )


def label_ranks(rows: Rows) -> Ints:
    """Rank the label of each row, 0 for the largest, [B]; C where it is not known.

    Classes at the label's logit count as above it, unless it is the row's first: rounding keeps what ranks at or above the label,
    and makes ties of it (docs/format.md, RLD's mask).
    """
    found, wrong = np.zeros(len(rows.gaps), np.int64), np.flatnonzero(rows.wrong)
    found[wrong] = (rows.gaps[wrong] >= rows.own[wrong, None]).sum(1) - 1
    if rows.ids is not None:
        found[found >= rows.gaps.shape[1] - 1] = rows.classes
    return found


def _constant(rows: Rows, total: Floats) -> Bools:
    found = total > _NEARLY_FLAT * rows.classes
    likely = np.flatnonzero(found)
    found[likely] = (rows.gaps[likely] == 0).all(1)
    if rows.rest is not None and rows.rest.shape[1] > 1:
        found[likely] &= (rows.rest[likely][:, [0, 1, 3]] == 0).all(1)
    return found


def joined(parts: list[Answers]) -> Answers:
    """Put the answers of several pieces one after another."""
    return Answers(*(np.concatenate([getattr(part, name) for part in parts]) for name in Answers.__slots__))


def chosen(found: Answers, mask: Bools) -> Answers:
    """Return the answers of some rows, of a mask [B]."""
    return found if mask.all() else Answers(*(getattr(found, name)[mask] for name in Answers.__slots__))
