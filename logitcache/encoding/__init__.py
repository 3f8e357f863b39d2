"""Logits to rows and back, on the device where they are: what is lost on the way is chosen here and nowhere else."""

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
"""A teacher's rows as they come from a cache: logits [R, C], what was kept of them, or draws."""


def read_encoding(entry: Mapping[str, Any]) -> Encoding:
    """Read the entry of the manifest.

    Raises:
        UnknownNameError: Another encoding.
    """
    if entry.get("kind") == "full":
        return FullEncoding(entry["dtype"])
    if entry.get("kind") in ("topk", "topk-mass"):
        return TopKEncoding(entry["k"], entry["dtype"], mass_only=entry["kind"] == "topk-mass")
    if entry.get("kind") == "sampled":
        return SampledEncoding(entry["draws"], entry["seed"], entry["proposal_temperature"])
    raise UnknownNameError(
        f"unknown encoding {entry.get('kind')!r}; this logitcache reads: full, topk, topk-mass, sampled. Upgrade it."
    )


def encode_rows(
    encoding: Encoding, rows: Tensor | TopKRows, labels: Tensor, uniforms: NDArray[np.float64] | None = None
) -> dict[str, Tensor]:
    """Turn logits, [B, C], or rows of which the largest are known, into columns.

    Args:
        encoding: Encoding to use.
        rows: Rows on any device.
        labels: True classes, [B] int64, on the same device.
        uniforms: Random numbers of the rows, [B, N] (`store.row_uniforms`); None where the encoding draws none.

    Raises:
        InputError: The rows hold less than is stored.
    """
    if not isinstance(rows, Tensor):
        if not isinstance(encoding, TopKEncoding):
            raise InputError(f"every class is needed, and {rows.are_no_logits()}")
        return encoding.narrow(rows, labels)
    if isinstance(encoding, SampledEncoding):
        assert uniforms is not None
        return encoding.encode(rows, labels, torch.from_numpy(uniforms))
    return encoding.encode(rows, labels)


def joined_rows(parts: Sequence[Tensor | TopKRows]) -> Tensor | TopKRows:
    """Put rows one after another: logits, or rows of which the largest are known."""
    if isinstance(parts[0], TopKRows):
        return TopKRows.cat([one for one in parts if isinstance(one, TopKRows)])
    return torch.cat([one for one in parts if isinstance(one, Tensor)])


def mean_of(logits: Sequence[Tensor]) -> Tensor:
    """Return the mean of several teachers' logits, [B, C] each, as float32; summed in order, in double precision."""
    return (functools.reduce(torch.add, [one.double() for one in logits]) / len(logits)).float()


def dense(rows: AnyRows, temperature: float) -> Tensor:
    """Return logits of every class, [B, C] float32; what was not kept is completed for this temperature.

    Raises:
        InputError: The temperature is no number above 0; or the rows are draws.
    """
    refuse_temperature(temperature)
    if isinstance(rows, DrawnRows):
        raise InputError(f"there are no logits to complete: {rows.are_no_logits()}")
    return rows if isinstance(rows, Tensor) else rows.at(temperature)


def top_classes(rows: AnyRows) -> Tensor:
    """Return the class of the largest logit of each row, [B] int64; it is the same at any temperature."""
    if isinstance(rows, Tensor):
        return rows.argmax(1)
    if isinstance(rows, DrawnRows):
        return rows.first
    return rows.ids.gather(1, rows.values.argmax(1, keepdim=True)).squeeze(1)


def first_classes(rows: Tensor | TopKRows, count: int) -> Tensor:
    """Return the classes of the largest logits of each row, largest first: [R, count], or as many as are known.

    Args:
        rows: Logits [R, C], or rows of which the largest were kept. Of those the label is among what was kept, whatever its rank.
        count: Number of classes.
    """
    if isinstance(rows, Tensor):
        return rows.topk(min(count, rows.shape[1]), 1).indices
    return rows.ids.gather(1, rows.values.topk(min(count, rows.ids.shape[1] - 1), 1).indices)
