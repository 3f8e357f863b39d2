"""Logits to rows and back, on the device where they are: what is lost on the way is chosen here and nowhere else."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from logitcache.encoding.columns import Column, widest_bytes
from logitcache.encoding.full import PRECISIONS, FullEncoding
from logitcache.encoding.given import rows_of_logprobs
from logitcache.encoding.topk import TopKEncoding, TopKRows, refuse_temperature
from logitcache.errors import InputError, UnknownNameError

__all__ = [
    "PRECISIONS",
    "Column",
    "Encoding",
    "FullEncoding",
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

Encoding = FullEncoding | TopKEncoding


def read_encoding(entry: Mapping[str, Any]) -> Encoding:
    """Read the entry of the manifest.

    Raises:
        UnknownNameError: Another encoding.
    """
    if entry.get("kind") == "full":
        return FullEncoding(entry["dtype"])
    if entry.get("kind") in ("topk", "topk-mass"):
        return TopKEncoding(entry["k"], entry["dtype"], mass_only=entry["kind"] == "topk-mass")
    raise UnknownNameError(
        f"unknown encoding {entry.get('kind')!r}; this logitcache reads: full, topk, topk-mass. Upgrade it."
    )


def mean_of(logits: Sequence[Tensor]) -> Tensor:
    """Return the mean of several teachers' logits, [B, C] each, as float32; summed in order, in double precision."""
    return (functools.reduce(torch.add, [one.double() for one in logits]) / len(logits)).float()


def encode_rows(encoding: Encoding, rows: Tensor | TopKRows, labels: Tensor) -> dict[str, Tensor]:
    """Turn logits, [B, C], or rows of which the largest are known, into columns.

    Args:
        encoding: How they are stored.
        rows: On any device.
        labels: True classes, [B], on the same device.

    Raises:
        InputError: The rows hold less than is stored.
    """
    if isinstance(rows, Tensor):
        return encoding.encode(rows, labels)
    if not isinstance(encoding, TopKEncoding):
        raise InputError(f"every class is to be stored, and {rows.are_no_logits()}")
    return encoding.narrow(rows, labels)


def joined_rows(parts: Sequence[Tensor | TopKRows]) -> Tensor | TopKRows:
    """Put rows one after another: logits, or rows of which the largest are known."""
    if isinstance(parts[0], TopKRows):
        return TopKRows.cat([one for one in parts if isinstance(one, TopKRows)])
    return torch.cat([one for one in parts if isinstance(one, Tensor)])


def dense(rows: Tensor | TopKRows, temperature: float) -> Tensor:
    """Return logits of every class, [B, C] float32; what was not kept is completed for this temperature.

    Raises:
        InputError: The temperature is no number above 0.
    """
    refuse_temperature(temperature)
    return rows if isinstance(rows, Tensor) else rows.at(temperature)


def top_classes(rows: Tensor | TopKRows) -> Tensor:
    """Return the class of the largest logit of each row, [B] int64; it is the same at any temperature."""
    if isinstance(rows, Tensor):
        return rows.argmax(1)
    return rows.ids.gather(1, rows.values.argmax(1, keepdim=True)).squeeze(1)


def first_classes(rows: Tensor | TopKRows, count: int) -> Tensor:
    """Return the classes of the largest logits of each row, largest first: [R, count], or as many as are known.

    Args:
        rows: Logits [R, C], or rows of which the largest were kept. Of those the label is among what was kept, whatever its rank.
        count: How many.
    """
    if isinstance(rows, Tensor):
        return rows.topk(min(count, rows.shape[1]), 1).indices
    return rows.ids.gather(1, rows.values.topk(min(count, rows.ids.shape[1] - 1), 1).indices)
