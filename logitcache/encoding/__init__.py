"""Encode logits as rows of a cache and decode them, on their device. All lossy steps are in this package."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcache.encoding.columns import Column, widest_bytes
from logitcache.encoding.full import PRECISIONS, FullEncoding
from logitcache.encoding.given import rows_of_logprobs
from logitcache.encoding.sampled import DrawnRows, SampledEncoding
from logitcache.encoding.topk import TopKEncoding, TopKRows, refuse_temperature
from logitcache.errors import InputError, UnknownNameError

__all__ = [
    "PRECISIONS",
    "AnyRows",
    "Column",
    "DrawnRows",
    "Encoding",
    "FullEncoding",
    "SampledEncoding",
    "TopKEncoding",
    "TopKRows",
    "dense",
    "encode_rows",
    "first_classes",
    "joined_rows",
    "mean_of",
    "read_encoding",
    "rows_of_logprobs",
    "top_classes",
    "widest_bytes",
]

Encoding = FullEncoding | SampledEncoding | TopKEncoding
AnyRows = Tensor | TopKRows | DrawnRows
"""A teacher's rows as read from a cache: logits [R, C], top-k rows, or sampled rows."""


def read_encoding(entry: Mapping[str, Any]) -> Encoding:
    """Return the encoding of a manifest entry.

    Raises:
        UnknownNameError: If the encoding is unknown.
    """
    if entry.get("kind") == "full":
        return FullEncoding(entry["dtype"])
    if entry.get("kind") in ("topk", "topk-mass"):
        return TopKEncoding(entry["k"], entry["dtype"], mass_only=entry["kind"] == "topk-mass")
    if entry.get("kind") == "sampled":
        return SampledEncoding(entry["draws"], entry["seed"], entry["proposal_temperature"])
    raise UnknownNameError(
        f"unknown encoding {entry.get('kind')!r}; expected full, topk, topk-mass or sampled. Upgrade logitcache to read it."
    )


def encode_rows(
    encoding: Encoding, rows: Tensor | TopKRows, labels: Tensor, uniforms: NDArray[np.float64] | None = None
) -> dict[str, Tensor]:
    """Encode logits or top-k rows as columns.

    Args:
        encoding: Encoding to use.
        rows: Logits, [B, C], or top-k rows, on any device.
        labels: True class of each row, [B] int64, on the same device.
        uniforms: Random numbers of each row, [B, N] (`store.row_uniforms`), or None if the encoding does not sample.

    Raises:
        InputError: If the rows hold less than the encoding stores.
    """
    if not isinstance(rows, Tensor):
        if not isinstance(encoding, TopKEncoding):
            raise InputError(f"the encoding needs the logits of every class, but {rows.why_not_logits()}")
        return encoding.narrow(rows, labels)
    if isinstance(encoding, SampledEncoding):
        assert uniforms is not None
        return encoding.encode(rows, labels, torch.from_numpy(uniforms))
    return encoding.encode(rows, labels)


def joined_rows(parts: Sequence[Tensor | TopKRows]) -> Tensor | TopKRows:
    """Concatenate batches of logits or of top-k rows."""
    if isinstance(parts[0], TopKRows):
        return TopKRows.cat([one for one in parts if isinstance(one, TopKRows)])
    return torch.cat([one for one in parts if isinstance(one, Tensor)])


def mean_of(logits: Sequence[Tensor]) -> Tensor:
    """Return the mean of several teachers' logits, [B, C] each, as float32. Sums in float64 and in the given order."""
    return (functools.reduce(torch.add, [one.double() for one in logits]) / len(logits)).float()


def dense(rows: AnyRows, temperature: float) -> Tensor:
    """Return the logits of every class, [B, C] float32, with top-k rows completed for a temperature.

    Raises:
        InputError: If the temperature is not a positive number, or if the rows are sampled rows.
    """
    refuse_temperature(temperature)
    if isinstance(rows, DrawnRows):
        raise InputError(f"sampled rows cannot be converted to logits: {rows.why_not_logits()}")
    return rows if isinstance(rows, Tensor) else rows.at(temperature)


def top_classes(rows: AnyRows) -> Tensor:
    """Return the class with the largest logit of each row, [B] int64; it does not depend on the temperature."""
    if isinstance(rows, Tensor):
        return rows.argmax(1)
    if isinstance(rows, DrawnRows):
        return rows.first
    return rows.ids.gather(1, rows.values.argmax(1, keepdim=True)).squeeze(1)


def first_classes(rows: Tensor | TopKRows, count: int) -> Tensor:
    """Return the top classes of each row, largest logit first, [R, count], or fewer columns if the rows hold fewer.

    Args:
        rows: Logits [R, C], or top-k rows, which always keep the label, whatever its rank.
        count: Number of classes to return.
    """
    if isinstance(rows, Tensor):
        return rows.topk(min(count, rows.shape[1]), 1).indices
    return rows.ids.gather(1, rows.values.topk(min(count, rows.ids.shape[1] - 1), 1).indices)
