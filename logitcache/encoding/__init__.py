"""Logits to rows and back, on the device where they are: what is lost on the way is chosen here and nowhere else."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from logitcache.encoding.columns import Column, widest_bytes
from logitcache.encoding.full import PRECISIONS, FullEncoding
from logitcache.encoding.topk import TopKEncoding, TopKRows, refuse_temperature
from logitcache.errors import UnknownNameError

__all__ = [
    "PRECISIONS",
    "Column",
    "Encoding",
    "FullEncoding",
    "TopKEncoding",
    "TopKRows",
    "dense",
    "first_classes",
    "mean_of",
    "read_encoding",
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
    if entry.get("kind") == "topk":
        return TopKEncoding(entry["k"], entry["dtype"])
    raise UnknownNameError(f"unknown encoding {entry.get('kind')!r}; this logitcache reads: full, topk. Upgrade it.")


def mean_of(logits: Sequence[Tensor]) -> Tensor:
    """Return the mean of several teachers' logits, [B, C] each, as float32; summed in order, in double precision."""
    return (functools.reduce(torch.add, [one.double() for one in logits]) / len(logits)).float()


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
