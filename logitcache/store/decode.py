"""Decode rows with numpy only, for commands that do not import torch. Tests check that it agrees with `encoding`."""

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
    """Return the kept class ids of each row, [B, K] (None for every class in order), and their logits, [B, K] float32.

    Args:
        encoding: Encoding entry of the manifest.
        columns: Stored columns by name.

    Raises:
        FormatVersionError: If the encoding is unknown.
        InputError: If the cache holds sampled rows.
    """
    kind, dtype = encoding["kind"], encoding["dtype"]
    if kind == "sampled":
        raise InputError(
            "the cache holds classes sampled from the teacher's distribution, which cannot be converted to logits"
        )
    if kind not in ("full", "topk", "topk-mass"):
        raise FormatVersionError(
            f"unknown encoding {kind!r}; expected full, topk, topk-mass or sampled. Upgrade logitcache to read it."
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
    """Decode columns to logits of every class, [B, C] float32.

    Dropped classes all get the same logit, which preserves their mass at this temperature.
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
    """Return the logit of each dropped class at a temperature, [B], given the kept logits, [B, K]."""
    top = columns["scale"][:, 0] if encoding["dtype"] == "u8" else values.max(1)
    level: Floats = top + completion(columns["rest"], classes - values.shape[1], temperature)
    return level


def completion(rest: NDArray[Any], others: int, temperature: float) -> Floats:
    """Return the logit of each dropped class relative to the largest, [B], by the formula of docs/format.md.

    Args:
        rest: Stored statistics of the rest, [B, 4], or only the log-sum-exp for `topk-mass`, [B, 1].
        others: Number of dropped classes.
        temperature: Temperature at which to preserve their mass.

    Returns:
        Logits, [B]; NaN if only the mass at temperature 1 is known and the temperature is another.
    """
    n, b = np.log(others), 1 / temperature
    if rest.shape[1] == 1:
        known = rest[:, 0].astype(np.float32) - np.float32(n)
        return known if b == 1 else np.full_like(known, np.nan)
    mean, deviation, total, _ = rest.astype(np.float64).T  # terms of a wide row nearly cancel
    estimate = n + mean * b + deviation**2 * b**2 / 2 + (total - n - mean - deviation**2 / 2) * b**3
    if b < 1:  # Jensen below, the chord of a convex function above
        estimate = np.minimum(np.maximum(estimate, n + mean * b), (1 - b) * n + b * total)
    elif b > 1:
        estimate = (1 - b) * n + b * total
    level: Floats = ((estimate - n) * temperature).astype(np.float32)
    return level


def rounding(encoding: Mapping[str, Any], columns: Mapping[str, NDArray[Any]], exact: Floats) -> Floats:
    """Return an upper bound on the rounding error of each kept logit, [B, K], given the exact logits."""
    if encoding["dtype"] == "u8":
        top, step = columns["scale"][:, :1], columns["scale"][:, 1:]
        far = (columns["values"] == _FAR) * (top - exact) if encoding["kind"] != "full" else 0
        return 2.01 * step + np.float32(2**-9) * far + np.abs(exact) * np.float32(2**-20)
    spacing = {"f32": 0.0, "f16": 2.0**-9}[encoding["dtype"]]
    return np.abs(exact) * np.float32(spacing) + np.float32(2**-13 if spacing else 0)


def total_variation(one: Floats, other: Floats) -> float:
    """Return the mean total variation between two sets of log-probabilities, [B, C] each, in [0, 1]; 0 without rows."""
    if not len(one):
        return 0.0
    return float(np.abs(np.exp(one.astype(np.float64)) - np.exp(other.astype(np.float64))).sum(1).mean() / 2)
