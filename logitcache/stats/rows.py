"""Stored rows and the teacher's predictions from them, computed in pieces that fit into the CPU cache, without making top-k rows dense.

All logits are relative to the row's largest logit. The tail of a top-k row is represented by its stored statistics.
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
Columns = Mapping[str, NDArray[Any]]  # arrays of an encoding by name

_VALUES_AT_ONCE = 1 << 18  # 1 MB as float32
# Rows whose sum of exp(z - max z), relative to C, is below this are not constant, whatever the rounding to float16 did.
_NEARLY_FLAT = 0.98


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch of stored rows.

    Attributes:
        ids: Kept classes, ascending, [B, K]; None if every class is kept, in order.
        gaps: Logits of the kept classes minus the row's largest logit, [B, K] float32, at most 0.
        first: Column of the largest logit, [B]; the first one if there is a tie.
        label: Column of the label, [B].
        rest: Mean, standard deviation, log-sum-exp and minimum of the logits of the tail, minus the largest logit, [B, 4] as stored; or
            None.
        classes: Number of classes, C.
    """

    ids: Ints | None
    gaps: Floats
    first: Ints
    label: Ints
    rest: NDArray[Any] | None
    classes: int

    @property
    def others(self) -> int:
        """Number of classes in the tail."""
        return self.classes - int(self.gaps.shape[1])

    @property
    def own(self) -> Floats:
        """Logit of the label, relative to the largest, [B]."""
        found: Floats = self.gaps[np.arange(len(self.gaps)), self.label]
        return found

    @property
    def wrong(self) -> Bools:
        """Whether the top class is not the label, [B]."""
        found: Bools = self.first != self.label
        return found

    def class_at(self, place: Ints) -> Ints:
        """Return the class in the given column of each row, [B]."""
        return place if self.ids is None else self.ids[np.arange(len(place)), place]

    def level(self, temperature: float) -> Floats:
        """Return the logit of each class in the tail at a temperature, relative to the largest, [B]."""
        assert self.rest is not None
        return completion(self.rest, self.others, temperature)


def pieces(columns: Columns) -> Iterator[slice]:
    """Split rows into pieces whose logits fit into the CPU cache."""
    widest = next(columns[name] for name in ("logits", "values", "draws") if name in columns)
    step = max(_VALUES_AT_ONCE // widest.shape[1], 1)
    for start in range(0, len(widest), step):
        yield slice(start, start + step)


def read_rows(encoding: Mapping[str, Any], columns: Columns, labels: NDArray[np.int32], classes: int) -> Rows:
    """Read stored rows.

    Args:
        encoding: Encoding entry of the manifest.
        columns: Arrays by name, [B, ...] each.
        labels: True classes, [B].
        classes: Number of classes, C.

    Raises:
        CorruptCacheError: A row has a class out of range, or lacks its label.
    """
    ids, values = kept_values(encoding, columns)
    every, label = np.arange(len(values)), labels.astype(np.int64)
    if ids is not None:
        label = (ids == labels[:, None]).argmax(1)
        if len(ids) and (ids[:, -1].max() >= classes or (ids[every, label] != labels).any()):
            raise CorruptCacheError(f"a row has a class above {classes - 1}, or lacks its label")
    first = values.argmax(1)
    with np.errstate(invalid="ignore"):
        gaps = values - values[every, first][:, None]
    return Rows(ids, gaps, first, label, columns.get("rest"), classes)


@dataclass(frozen=True, slots=True)
class Answers:
    """The teacher's predictions for B rows, at temperature 1.

    Attributes:
        says: Top class, [B].
        rank: Rank of the label, from 0, [B]; C if it is unknown because the label is not among the k largest.
        confidence: Largest probability, [B].
        label_probability: Probability of the label, [B].
        entropy: Entropy in nats, [B].
        constant: Whether all logits are equal, [B].
        finite: Whether all values are finite, [B]; the other attributes are meaningless if not.
    """

    says: Ints
    rank: Ints
    confidence: Floats
    label_probability: Floats
    entropy: Floats
    constant: Bools
    finite: Bools


def answers(rows: Rows) -> Answers:
    """Compute the teacher's predictions from rows."""
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
    """Compute the teacher's predictions from stored arrays; see `read_rows` for the arguments."""
    if encoding["kind"] != "sampled":
        return answers(read_rows(encoding, columns, labels, classes))
    says, facts = columns["first"].astype(np.int64), columns["facts"].astype(np.float32)
    if len(says) and says.max() >= classes:
        raise CorruptCacheError(f"a row has a class above {classes - 1}")
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
    """Return the rank of each row's label, [B]; 0 for the largest logit, C if it is unknown.

    Classes with the same logit as the label rank above it unless the label is the top class, because rounding keeps the set of classes
    that rank at or above the label, but may turn them into ties (docs/format.md, RLD's mask).
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
    """Concatenate the predictions of several pieces."""
    return Answers(*(np.concatenate([getattr(part, name) for part in parts]) for name in Answers.__slots__))


def chosen(found: Answers, mask: Bools) -> Answers:
    """Return the predictions of the rows selected by a mask, [B]."""
    return found if mask.all() else Answers(*(getattr(found, name)[mask] for name in Answers.__slots__))
