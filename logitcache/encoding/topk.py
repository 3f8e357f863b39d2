"""Top-k encoding: the k largest logits, the label's, and statistics of the rest from which it can be completed at any temperature.

Let n be the number of dropped classes, m their mean, v their variance (over n), l their log-sum-exp at temperature 1, and b = 1 / T:

    f(b) = log Σ_rest e^{b z} ≈ log n + m b + v b²/2 + (l - log n - m - v/2) b³        exact at b = 0 and 1, with the slopes at 0

Every dropped class then gets the logit T (f(1/T) - log n). The mass of the rest is preserved, with a flat distribution.
The k largest logits are never renormalized.

Rows from a server or another tool's cache are log-probabilities at temperature 1, for which only the mass of the dropped classes is known.
`TopKEncoding(mass_only=True)` stores that one number; such rows can only be completed for temperature 1.
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

_FAR = 255  # code of a label that is not among the k largest; its logit is stored with the statistics
_LOWEST = -65504.0  # float16
_AT_ONCE = 1 << 24  # logits to encode at a time
_AT_ONCE_ON_CPU = 1 << 18  # 1 MiB, which fits into a core's cache
_ROWS_AT_LEAST = 4
_VOCABULARY = (
    1 << 15
)  # classes; teachers with more take so long per row that 50 us to save 3 to 4 % of its ids are worth it


def refuse_temperature(temperature: Any) -> None:
    """Raise InputError unless a temperature is a finite positive number."""
    try:
        good = 0 < temperature < math.inf
    except TypeError:
        good = False
    if not good:
        raise InputError(f"`temperature` must be a number above 0, not {temperature!r}")


@dataclass(frozen=True, slots=True)
class TopKRows(PartialRows):
    """Decoded top-k rows: the kept logits, and statistics of the rest.

    Losses of logitcache accept them in place of logits, and complete them for their own temperature or refuse them. `at` returns logits
    for one temperature.

    Attributes:
        ids: Kept classes, ascending, [B, K] int64, with K = k + 1.
        values: Logits of the kept classes, [B, K] float32.
        rest: Statistics of the dropped classes, [B, 4] float32: mean, standard deviation (over n), log-sum-exp, minimum.
        classes: Number of classes C.
        unranked: Rows whose label is not among the k largest, so that its rank is unknown, [B] bool.
        mass_only: Whether only the log-sum-exp of the rest is known; the other statistics are then NaN.
    """

    ids: Tensor
    values: Tensor
    rest: Tensor
    classes: int
    unranked: Tensor
    mass_only: bool = False

    def __repr__(self) -> str:
        return self.in_one_line(
            self.values, k=self.ids.shape[-1] - 1, **({"mass_only": True} if self.mass_only else {})
        )

    def why_not_logits(self) -> str:
        """Return why these rows are not logits, for an error message."""
        return (
            f"these rows hold the {self.ids.shape[-1] - 1} largest of {self.classes:,} logits. Pass them to a logitcache loss as they "
            "are, or complete them for one temperature with at(temperature)."
        )

    def rest_logit(self, temperature: float) -> Tensor:
        """Return the logit of each dropped class that preserves their total mass at a temperature, [B, 1].

        Raises:
            InputError: If only the mass at temperature 1 is known and the temperature is another.
        """
        if self.mass_only and temperature != 1:
            raise InputError(
                "these rows are log-probabilities at temperature 1, as returned by servers, so the mass of the dropped classes is "
                f"unknown at temperature {temperature:g}. Use temperature 1."
            )
        n, b = math.log(self.classes - self.ids.shape[1]), 1 / temperature
        if b == 1:
            return self.rest[:, 2:3] - n
        mean, deviation, total, _ = torch.unbind(self.rest[:, :, None].double(), 1)  # terms of a wide row nearly cancel
        estimate = n + mean * b + deviation**2 * b**2 / 2 + (total - n - mean - deviation**2 / 2) * b**3
        if b < 1:  # clamp to rigorous bounds: Jensen's inequality below, the chord of a convex function above
            estimate = estimate.maximum(n + mean * b).minimum((1 - b) * n + b * total)
        elif b > 1:
            estimate = (1 - b) * n + b * total
        rest_logit: Tensor = (estimate - n) * temperature
        return rest_logit.float()

    def at(self, temperature: float, student: Tensor | None = None) -> Tensor:
        """Return completed logits, [B, C] float32, that preserve the mass of the rest at a temperature; [C] for a single row.

        The result is float64 if the student is.

        Args:
            temperature: Temperature of the softmax that will be taken.
            student: Student logits, [B, C]. If given, the mass of the rest is split in the student's proportions (detached), so that
                KL(p || q) has the value and gradient of a single bucket for the rest. If None, it is split evenly.

        Raises:
            InputError: If the temperature is not a positive number.
        """
        refuse_temperature(temperature)
        if self.ids.ndim == 1:
            return self[None].at(temperature, None if student is None else student[None])[0]
        rest_logit = self.rest_logit(temperature)
        if student is None:
            dense = rest_logit.expand(-1, self.classes)
        else:
            own = (student.detach() / temperature).scatter(1, self.ids, -torch.inf)
            n = math.log(self.classes - self.ids.shape[1])
            dense = rest_logit + temperature * (own - own.logsumexp(1, keepdim=True) + n)
        return dense.scatter(1, self.ids, self.values.to(dense.dtype))


@dataclass(frozen=True, slots=True)
class TopKEncoding:
    """Encoding that stores the k largest logits of a row, the label's, and statistics of the rest.

    Attributes:
        k: Number of largest logits to keep. One more column holds the label, or the next largest if the label is among them.
        dtype: Precision of the values, a key of `PRECISIONS`.
        mass_only: Whether only the log-sum-exp of the rest is stored, because nothing else is known.
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
        """Return the columns that are stored for each row.

        Raises:
            InputError: If fewer than two classes would remain for the rest.
        """
        if self.k + 2 > classes:
            raise InputError(
                f"top-k {self.k} of {classes} classes leaves no rest; keep every class with --encoding full"
            )
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
        """Encode logits, [B, C] float32, as columns."""
        most = _AT_ONCE_ON_CPU if logits.device.type == "cpu" else _AT_ONCE
        at_once = max(most // logits.shape[1], _ROWS_AT_LEAST)
        parts, rows = -(-len(logits) // at_once) or 1, len(logits)
        ids, values = labels.new_empty(rows, self.k + 1), logits.new_empty(rows, self.k + 1)
        # Allocate all outputs before `_summarize` copies logits, so that each of its copies reuses the memory of the previous one.
        rest = logits.new_empty(rows, 4)
        whole = (logits, labels, ids, values, rest)
        for some in zip(*(one.tensor_split(parts) for one in whole), strict=True):
            self._summarize(*some)
        return self._packed(ids, values, labels, rest)

    def _summarize(self, logits: Tensor, labels: Tensor, ids: Tensor, values: Tensor, rest: Tensor) -> None:
        """Write the kept classes, ascending, and their logits, [B, k + 1], and the statistics of the rest, [B, 4], in place."""
        others = logits.scatter(
            1, labels[:, None], torch.inf
        )  # the only copy; infinity makes sure that the label is kept
        ids.copy_(largest(others, self.k + 1))
        torch.gather(logits, 1, ids, out=values)
        n = logits.shape[1] - ids.shape[1]
        mean, deviation, total, minimum = torch.split(rest, 1, 1)
        minimum.copy_(others.amin(1, keepdim=True))
        total.copy_(others.scatter_(1, ids, -torch.inf).logsumexp(1, keepdim=True))
        mean.copy_(others.scatter_(1, ids, 0).sum(1, keepdim=True) / n)
        deviation.copy_((others.sub_(mean).square_().scatter_(1, ids, 0).sum(1, keepdim=True) / n).sqrt())

    def narrow(self, rows: TopKRows, labels: Tensor) -> dict[str, Tensor]:
        """Encode top-k rows of the same or a larger k as columns, moving the surplus classes to the rest.

        Raises:
            InputError: If the rows hold fewer classes, or fewer statistics of the rest.
        """
        width = rows.ids.shape[1]
        if rows.mass_only and not self.mass_only:
            raise InputError(
                "the rows give only the mass of the dropped classes, so their other statistics cannot be stored"
            )
        if self.k + 1 > width:
            raise InputError(f"cannot keep the {self.k} largest logits: the rows hold only {width - 1}")
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
        """Round the kept logits, and store the statistics of the rest relative to the largest stored value."""
        is_label = ids == labels[:, None]
        place = is_label.int().argmax(1)
        own = values.gather(1, place[:, None])
        far = is_label & ((values > own).sum(1, keepdim=True) == self.k)  # the label if all others are above it
        lowest = values.masked_fill(is_label, torch.inf).amin(1, keepdim=True)  # lowest of the k others
        columns: dict[str, Tensor] = {"ids": torch.diff(ids, dim=1, prepend=torch.zeros_like(ids[:, :1]))}
        if self.dtype == "u8":
            codes, scale = quantize(torch.where(far, lowest, values), place, _FAR - 1)
            columns |= {"values": codes.masked_fill(far, _FAR), "scale": scale}
            top, stored = scale[:, :1], dequantize(codes, scale)
            ceiling = stored.masked_fill(is_label, torch.inf).amin(1, keepdim=True)
            gap = own.minimum(ceiling) - top
            columns["label"] = half_below(gap).masked_fill(gap < _LOWEST, -torch.inf).squeeze(1)  # `dump` refuses these
        else:
            rounded = values
            if self.dtype == "f16":  # keep a label below the k largest below them
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
        """Return the class with the largest logit of each row, [B] int64; rounding preserves it."""
        values = columns["values"]
        place = values.argmin(1, keepdim=True) if self.dtype == "u8" else values.argmax(1, keepdim=True)
        return columns["ids"].cumsum(1).gather(1, place).squeeze(1)

    def decode(self, columns: Mapping[str, Tensor], labels: Tensor, classes: int) -> TopKRows:
        """Decode columns to rows, on the columns' device."""
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
        """Return a problem with a fully written view (a class that does not exist, or a duplicate), or None."""
        steps = columns["ids"]
        if len(steps) and (int(steps.sum(1, dtype=np.int64).max()) >= classes or int(steps[:, 1:].min()) < 1):
            return f"a row lists classes beyond {classes - 1}, or a class twice"
        return None

    def to_json(self) -> dict[str, Any]:
        """Return the manifest entry."""
        if self.mass_only:
            return {"kind": "topk-mass", "k": self.k, "dtype": self.dtype}
        return {"kind": "topk", "k": self.k, "dtype": self.dtype, "stats_ddof": 0}
