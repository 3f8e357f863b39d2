"""Rows to logits with numpy alone, for readers that must not wait for torch; the tests hold it equal to `encoding`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import FormatVersionError, InputError

__all__ = ["completion", "decode_rows", "kept_values", "rest_level", "rounding", "total_variation"]

Floats = NDArray[np.float32]
_FAR = 255  # code of a label that is not among the k largest


def kept_values(
    encoding: Mapping[str, Any], columns: Mapping[str, NDArray[Any]]
) -> tuple[NDArray[np.int64] | None, Floats]:
    """Return what was kept of each row: class ids, [B, K] (None: every class in order), and logits, [B, K] float32.

    Args:
        encoding: The manifest's entry.
        columns: Name to rows.

    Raises:
        FormatVersionError: This logitcache does not know the encoding.
        InputError: It is of draws.
    """
    kind, dtype = encoding["kind"], encoding["dtype"]
    if kind == "sampled":
        raise InputError(
            "the cache holds classes drawn from the teacher's distribution, of which no logits can be made"
        )
    if kind not in ("full", "topk", "topk-mass"):
        raise FormatVersionError(
            f"the cache has encoding {kind!r}; this logitcache reads: full, topk, topk-mass, sampled. Upgrade it."
        )
    stored = columns["logits" if kind == "full" else "values"]
    values = stored.astype(np.float32)
    if dtype == "u8":
        top, step = columns["scale"][:, :1], columns["scale"][:, 1:]
        values = top - step * values
        if kind != "full":
            values = np.where(stored == _FAR, top + columns["label"][:, None].astype(np.float32), values)
    ids = None if kind == "full" else columns["ids"].astype(np.int64).cumsum(1)
    return ids, values


def decode_rows(
    encoding: Mapping[str, Any], columns: Mapping[str, NDArray[Any]], classes: int, temperature: float = 1.0
) -> Floats:
    """Turn columns into logits of every class, [B, C] float32.

    What was not kept gets one logit a row, so that its mass at this temperature is right.
    """
    ids, values = kept_values(encoding, columns)
    if ids is None:
        return values
    dense = np.repeat(rest_level(encoding, columns, values, classes, temperature)[:, None], classes, 1)
    np.put_along_axis(dense, ids, values, 1)
    return dense


def rest_level(
    encoding: Mapping[str, Any],
    columns: Mapping[str, NDArray[Any]],
    values: Floats,
    classes: int,
    temperature: float = 1.0,
) -> Floats:
    """Return the logit that each class that was not kept counts with at a temperature, [B], given the kept ones, [B, K]."""
    top = columns["scale"][:, 0] if encoding["dtype"] == "u8" else values.max(1)
    level: Floats = top + completion(columns["rest"], classes - values.shape[1], temperature)
    return level


def completion(rest: NDArray[Any], others: int, temperature: float) -> Floats:
    """Return the logit of every class of the rest, relative to the largest, [B]: the formula of docs/format.md.

    Args:
        rest: Its statistics as they are stored, [B, 4]; or of `topk-mass` the log-sum-exp alone, [B, 1].
        others: How many classes they are of.
        temperature: At which their mass is to be right.

    Returns:
        NaN where only the mass at temperature 1 is known, and the temperature is another.
    """
    n, b = np.log(others), 1 / temperature
    if rest.shape[1] == 1:
        known = rest[:, 0].astype(np.float32) - np.float32(n)
        return known if b == 1 else np.full_like(known, np.nan)
    mean, deviation, total, _ = rest.astype(np.float64).T  # the terms of a wide row nearly cancel
    estimate = n + mean * b + deviation**2 * b**2 / 2 + (total - n - mean - deviation**2 / 2) * b**3
    if b < 1:  # Jensen below, the chord of a convex function above
        estimate = np.minimum(np.maximum(estimate, n + mean * b), (1 - b) * n + b * total)
    elif b > 1:
        estimate = (1 - b) * n + b * total
    level: Floats = ((estimate - n) * temperature).astype(np.float32)
    return level


def rounding(encoding: Mapping[str, Any], columns: Mapping[str, NDArray[Any]], exact: Floats) -> Floats:
    """Return by how much a kept logit may differ from the exact one, [B, K], given the exact ones."""
    if encoding["dtype"] == "u8":
        top, step = columns["scale"][:, :1], columns["scale"][:, 1:]
        far = (columns["values"] == _FAR) * (top - exact) if encoding["kind"] != "full" else 0
        return 2.01 * step + np.float32(2**-9) * far + np.abs(exact) * np.float32(2**-20)
    spacing = {"f32": 0.0, "f16": 2.0**-9}[encoding["dtype"]]
    return np.abs(exact) * np.float32(spacing) + np.float32(2**-13 if spacing else 0)


def total_variation(one: Floats, other: Floats) -> float:
    """Return the mean over rows of half the sum of |p - q|, in [0, 1], for log-probabilities [B, C] each; 0 where there are no rows."""
    if not len(one):
        return 0.0
    return float(np.abs(np.exp(one.astype(np.float64)) - np.exp(other.astype(np.float64))).sum(1).mean() / 2)
