"""The k largest logits and the label's are kept, and what there is to say about the rest: enough to complete it at any temperature.

With n classes that were not kept, their mean m, variance v (over n) and log-sum-exp l at temperature 1, b = 1 / T:

    f(b) = log Σ_rest e^{b z} ≈ log n + m b + v b²/2 + (l - log n - m - v/2) b³        exact at b = 0 and 1, with the slopes at 0

so that every class of the rest gets the logit T (f(1/T) - log n). The mass of the rest is right; its shape is flat.
The k largest are never renormalised.

Rows of a server, or of another tool's cache, are log-probabilities at temperature 1: of the classes that were not kept their mass is
known, and nothing of its shape. `TopKEncoding(mass_only=True)` stores that one number; such rows are completed for temperature 1 alone.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcache.encoding.columns import Column
from logitcache.encoding.full import PRECISIONS
from logitcache.encoding.largest import largest
from logitcache.encoding.quantize import dequantize, half, half_below, quantize
from logitcache.encoding.rows import PartialRows
from logitcache.errors import InputError, unknown_name

__all__ = ["TopKEncoding", "TopKRows", "refuse_temperature"]

_FAR = 255  # code of a label that is not among the k largest: its logit stands in the statistics
_LOWEST = -65504.0  # float16
_AT_ONCE = 1 << 24  # logits that are looked at together
_AT_ONCE_ON_CPU = 1 << 18  # 1 MiB, which stays in the cache of a core while it is gone through
_ROWS_AT_LEAST = 4
_VOCABULARY = 1 << 15  # classes; above, a teacher takes longer over a row than the 50 us that save 3 to 4 % of its ids


def refuse_temperature(temperature: Any) -> None:
    """Raise InputError unless a temperature is a finite number above 0."""
    try:
        good = 0 < temperature < math.inf
    except TypeError:
        good = False
    if not good:
        raise InputError(f"`temperature` must be a number above 0, not {temperature!r}")


@dataclass(frozen=True, slots=True)
class TopKRows(PartialRows):
    """Decoded rows: what was kept, and what is known of the rest.

    Every loss of logitcache takes them where it takes logits, and completes them for its own temperature or refuses them; `at` turns them
    into logits for one temperature.

    Attributes:
        ids: Classes that were kept, ascending, [B, K] int64; K = k + 1.
        values: Their logits, [B, K] float32.
        rest: Of the classes that were not kept: mean, standard deviation (over n), log-sum-exp, minimum, [B, 4] float32.
        classes: C.
        unranked: Rows whose label is not among the k largest, so that its rank among the rest is not known, [B] bool.
        mass_only: Whether of the rest only the log-sum-exp is known; the other statistics are NaN.
    """

    ids: Tensor
    values: Tensor
    rest: Tensor
    classes: int
    unranked: Tensor
    mass_only: bool = False

    def are_no_logits(self) -> str:
        """Return why they are no logits, for an error message."""
        return (
            f"these rows hold the {self.ids.shape[-1] - 1} largest of {self.classes:,} logits. Give them to a loss of logitcache as they "
            "are, or complete them for one temperature with at(temperature)."
        )

    def rest_logit(self, temperature: float) -> Tensor:
        """Return the logit that gives every class of the rest its share of their mass at a temperature, [B, 1].

        Raises:
            InputError: Only the mass at temperature 1 is known, and this is another temperature.
        """
        if self.mass_only and temperature != 1:
            raise InputError(
                "these rows are log-probabilities at temperature 1, as servers give them: the mass of the classes that were not kept is "
                f"not known at temperature {temperature:g}. Use temperature 1."
            )
        n, b = math.log(self.classes - self.ids.shape[1]), 1 / temperature
        if b == 1:
            return self.rest[:, 2:3] - n
        mean, deviation, total, _ = torch.unbind(self.rest[:, :, None].double(), 1)  # terms of a wide row nearly cancel
        estimate = n + mean * b + deviation**2 * b**2 / 2 + (total - n - mean - deviation**2 / 2) * b**3
        if b < 1:  # certified: Jensen below, the chord of a convex function above
            estimate = estimate.maximum(n + mean * b).minimum((1 - b) * n + b * total)
        elif b > 1:
            estimate = (1 - b) * n + b * total
        level: Tensor = (estimate - n) * temperature
        return level.float()

    def at(self, temperature: float, student: Tensor | None = None) -> Tensor:
        """Complete the rows: [B, C] float32, with the mass of the rest right at this temperature; a single row [C].

        With a student in float64 they are float64.

        Args:
            temperature: Of the softmax that will be taken.
            student: Where given, [B, C], the mass of the rest is divided as the student divides it (without gradient), so that
                KL(p || q) has the value and gradient of one bucket for the rest; else evenly.

        Raises:
            InputError: The temperature is no number above 0.
        """
        refuse_temperature(temperature)
        if self.ids.ndim == 1:
            return self[None].at(temperature, None if student is None else student[None])[0]
        level = self.rest_logit(temperature)
        if student is None:
            dense = level.expand(-1, self.classes)
        else:
            own = (student.detach() / temperature).scatter(1, self.ids, -torch.inf)
            n = math.log(self.classes - self.ids.shape[1])
            dense = level + temperature * (own - own.logsumexp(1, keepdim=True) + n)
        return dense.scatter(1, self.ids, self.values.to(dense.dtype))


@dataclass(frozen=True, slots=True)
class TopKEncoding:
    """The k largest logits of a row, the label's, and statistics of the rest.

    Attributes:
        k: How many of the largest are kept; one more column holds the label, or the next largest where it is among them.
        dtype: Of the values: a key of `PRECISIONS`.
        mass_only: Whether of the rest only the log-sum-exp is stored, because nobody knows more.
    """

    k: int
    dtype: str
    mass_only: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in PRECISIONS:
            raise unknown_name("precision", self.dtype, PRECISIONS)
        if self.k < 1:
            raise InputError(f"top-k must be 1 or more, not {self.k}")

    def columns(self, classes: int) -> dict[str, Column]:
        """Return what is stored of a row.

        Raises:
            InputError: There is no rest, or nearly none.
        """
        if self.k + 2 > classes:
            raise InputError(f"top-k {self.k} of {classes} classes leaves no rest: keep every class (--encoding full)")
        width = self.k + 1
        ids = "|u1" if classes <= 1 << 8 else "<u2" if classes <= 1 << 16 else "<u4"
        found = {
            "ids": Column((width,), ids, ("rank",), compression=9 if classes > _VOCABULARY else 1),
            "values": Column((width,), PRECISIONS[self.dtype][1], ("rank",), compression=int(self.dtype == "u8")),
            "rest": Column((1 if self.mass_only else 4,), "<f2", ("statistic",), compression=1),
        }
        if self.dtype == "u8":
            found["scale"] = Column((2,), "<f4", ("top_step",), compression=1)
            found["label"] = Column((), "<f2", (), compression=1)
        return found

    def encode(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Turn logits, [B, C] float32, into columns."""
        most = _AT_ONCE_ON_CPU if logits.device.type == "cpu" else _AT_ONCE
        at_once = max(most // logits.shape[1], _ROWS_AT_LEAST)
        parts, rows = -(-len(logits) // at_once) or 1, len(logits)
        ids, values = labels.new_empty(rows, self.k + 1), logits.new_empty(rows, self.k + 1)
        # All are there before the copies of `_summarize`, so that each copy takes the memory of the one before.
        rest = logits.new_empty(rows, 4)
        whole = (logits, labels, ids, values, rest)
        for some in zip(*(one.tensor_split(parts) for one in whole), strict=True):
            self._summarize(*some)
        return self._packed(ids, values, labels, rest)

    def _summarize(self, logits: Tensor, labels: Tensor, ids: Tensor, values: Tensor, rest: Tensor) -> None:
        """Fill in the classes that are kept, ascending, and their logits, [B, k + 1], and the statistics of the others, [B, 4]."""
        others = logits.scatter(1, labels[:, None], torch.inf)  # the only copy; infinity keeps the label in any case
        ids.copy_(largest(others, self.k + 1))
        torch.gather(logits, 1, ids, out=values)
        n = logits.shape[1] - ids.shape[1]
        mean, deviation, total, minimum = torch.split(rest, 1, 1)
        minimum.copy_(others.amin(1, keepdim=True))
        total.copy_(others.scatter_(1, ids, -torch.inf).logsumexp(1, keepdim=True))
        mean.copy_(others.scatter_(1, ids, 0).sum(1, keepdim=True) / n)
        deviation.copy_((others.sub_(mean).square_().scatter_(1, ids, 0).sum(1, keepdim=True) / n).sqrt())

    def narrow(self, rows: TopKRows, labels: Tensor) -> dict[str, Tensor]:
        """Turn rows of the same or a larger k into columns: what is not kept any more joins the rest.

        Raises:
            InputError: They hold fewer than these, or less of the rest.
        """
        width = rows.ids.shape[1]
        if rows.mass_only and not self.mass_only:
            raise InputError(
                "of the classes that were not kept only the mass is known: their statistics cannot be stored"
            )
        if self.k + 1 > width:
            raise InputError(f"the rows hold the {width - 1} largest: not {self.k}")
        place = (rows.ids == labels[:, None]).int().argmax(1, keepdim=True)
        chosen = largest(rows.values.scatter(1, place, torch.inf), self.k + 1)
        n, more = rows.classes - width, width - chosen.shape[1]
        out = torch.ones_like(rows.ids, dtype=torch.bool).scatter(1, chosen, False)
        mean, deviation, total, minimum = torch.unbind(rows.rest[:, :, None], 1)
        joined = (n * mean + rows.values.masked_fill(~out, 0).sum(1, keepdim=True)) / (n + more)
        square = n * (deviation**2 + mean**2) + rows.values.square().masked_fill(~out, 0).sum(1, keepdim=True)
        variance = (square / (n + more) - joined**2).clamp_min(0)
        total = torch.logaddexp(total, rows.values.masked_fill(~out, -torch.inf).logsumexp(1, keepdim=True))
        minimum = minimum.minimum(rows.values.masked_fill(~out, torch.inf).amin(1, keepdim=True))
        rest = torch.cat([joined, variance.sqrt(), total, minimum], 1)
        return self._packed(rows.ids.gather(1, chosen), rows.values.gather(1, chosen), labels, rest)

    def _packed(self, ids: Tensor, values: Tensor, labels: Tensor, rest: Tensor) -> dict[str, Tensor]:
        """Round what is kept; what is said of the rest becomes relative to the largest value as it is stored."""
        is_label = ids == labels[:, None]
        place = is_label.int().argmax(1)
        own = values.gather(1, place[:, None])
        far = is_label & ((values > own).sum(1, keepdim=True) == self.k)  # the label, where all others are above it
        lowest = values.masked_fill(is_label, torch.inf).amin(1, keepdim=True)  # of the k others
        columns: dict[str, Tensor] = {"ids": torch.diff(ids, dim=1, prepend=torch.zeros_like(ids[:, :1]))}
        if self.dtype == "u8":
            codes, scale = quantize(torch.where(far, lowest, values), place, _FAR - 1)
            columns |= {"values": codes.masked_fill(far, _FAR), "scale": scale}
            top, stored = scale[:, :1], dequantize(codes, scale)
            ceiling = stored.masked_fill(is_label, torch.inf).amin(1, keepdim=True)
            gap = own.minimum(ceiling) - top
            columns["label"] = half_below(gap).masked_fill(gap < _LOWEST, -torch.inf).squeeze(1)  # which a dump refuses
        else:
            rounded = values
            if self.dtype == "f16":  # a label below the k largest stays below them
                rounded = half(values, place)
                others = rounded.masked_fill(is_label, torch.inf).amin(1, keepdim=True).float()
                rounded = torch.where(far, rounded.minimum(half_below(others, strictly=True)), rounded)
            columns["values"] = rounded
            top = rounded.float().amax(1, keepdim=True)
        relative = torch.cat([rest[:, :1] - top, rest[:, 1:2], rest[:, 2:] - top], 1)
        relative = relative[:, 2:3] if self.mass_only else relative
        columns["rest"] = relative.clamp(_LOWEST, -_LOWEST).half()
        return columns

    def top_classes(self, columns: Mapping[str, Tensor]) -> Tensor:
        """Return the class of the largest logit of each row, [B] int64; rounding has kept it."""
        values = columns["values"]
        place = values.argmin(1, keepdim=True) if self.dtype == "u8" else values.argmax(1, keepdim=True)
        return columns["ids"].cumsum(1).gather(1, place).squeeze(1)

    def decode(self, columns: Mapping[str, Tensor], labels: Tensor, classes: int) -> TopKRows:
        """Turn columns into rows, on the columns' device."""
        ids = columns["ids"].long().cumsum(1)
        if self.dtype == "u8":
            far = columns["values"] == _FAR
            top = columns["scale"][:, :1]
            values = dequantize(columns["values"], columns["scale"])
            values = torch.where(far, top + columns["label"].float()[:, None], values)
        else:
            values = columns["values"].float().contiguous()
            top = values.amax(1, keepdim=True)
            is_label = ids == labels[:, None].to(ids.device)
            own = values.masked_fill(~is_label, 0).sum(1, keepdim=True)
            far = is_label & ((values > own).sum(1, keepdim=True) == self.k)
        stored = columns["rest"].float()
        if self.mass_only:
            rest = torch.full_like(stored, torch.nan).repeat(1, 4)
            rest[:, 2:3] = stored + top
        else:
            mean, deviation, total, minimum = torch.unbind(stored[:, :, None], 1)
            rest = torch.cat([mean + top, deviation, total + top, minimum + top], 1)
        return TopKRows(ids, values, rest, classes, far.any(1), self.mass_only)

    def check(self, columns: Mapping[str, NDArray[Any]], classes: int) -> str | None:
        """Say what cannot be in a view that was written whole: a class that does not exist, or one named twice."""
        steps = columns["ids"]
        if len(steps) and (int(steps.sum(1, dtype=np.int64).max()) >= classes or int(steps[:, 1:].min()) < 1):
            return f"a row names classes beyond {classes - 1}, or one twice"
        return None

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the manifest."""
        if self.mass_only:
            return {"kind": "topk-mass", "k": self.k, "dtype": self.dtype}
        return {"kind": "topk", "k": self.k, "dtype": self.dtype, "stats_ddof": 0}
