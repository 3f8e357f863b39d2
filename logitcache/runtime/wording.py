"""How numbers are spelled, and what a manifest says: the same words in a terminal, on a page and in advice."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

__all__ = [
    "bytes_text",
    "counted",
    "decimals",
    "encoding_words",
    "error_text",
    "kept_words",
    "number",
    "origin_words",
    "percent",
    "percents",
    "samples_words",
    "shape_words",
    "teacher_words",
]


def percent(share: float) -> str:
    """Write a share: 82.00%."""
    return f"{share:.2%}" if math.isfinite(share) else "-"


def error_text(share: float) -> str:
    """Write a relative error: 0.05%; a tiny one as that."""
    return "< 0.01%" if 0 < share < 5e-5 else percent(share)


def number(value: float) -> str:
    """Write a number with three digits: 1.53."""
    return f"{value:.3g}" if math.isfinite(value) else "-"


def counted(count: int, thing: str) -> str:
    """Write a number of things: 1 row, 10,000 rows; 1 class, 10 classes."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}{'es' if thing.endswith('s') else 's'}"


def bytes_text(count: float) -> str:
    """Write a number of bytes: 1.53 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def percents(shares: Sequence[float]) -> list[str]:
    """Write shares with as many decimals as tell them apart, and no more: 50%, 55%; 99.85%, 99.90%."""
    return _exactly(shares, lambda share, places: f"{share:.{places}%}", 0.01)


def decimals(values: Sequence[float]) -> list[str]:
    """Write numbers with as many decimals as tell them apart, and no more."""
    return _exactly(values, lambda value, places: f"{value:,.{places}f}", 1.0)


def encoding_words(encoding: Mapping[str, Any]) -> str:
    """Name an encoding: "top-20 u8"."""
    return f"{'full' if encoding['kind'] == 'full' else 'top-' + str(encoding['k'])} {encoding['dtype']}"


def kept_words(encoding: Mapping[str, Any]) -> str:
    """Say what an encoding keeps of a row: "every class, as f16"."""
    kept = (
        "every class"
        if encoding["kind"] == "full"
        else f"the {encoding['k']} largest logits, the label's and statistics of the rest"
    )
    return f"{kept}, as {encoding['dtype']}"


def samples_words(manifest: Mapping[str, Any]) -> str:
    """Name the samples that a cache holds: "10,000 samples", "samples 0 to 999 of 10,000", "90 samples of 415 rows"."""
    first, count, total = manifest["data"]["first"], manifest["samples"], manifest["data"]["length"]
    rows = f" of {counted(manifest['rows'], 'row')}" if "rows" in manifest else ""
    return (
        f"{counted(count, 'sample')}{rows}"
        if count == total
        else f"samples {first:,} to {first + count - 1:,} of {total:,}{rows}"
    )


def shape_words(samples: int, views: int) -> str:
    """Say how large a cache is: "10,000 samples x 4 views"."""
    return f"{counted(samples, 'sample')} x {counted(views, 'view')}"


def teacher_words(teacher: Mapping[str, Any]) -> str:
    """Name a teacher and its weights."""
    name, digest = teacher["name"], teacher["weights_sha256"]
    return f"{name}, weights sha256 {digest[:12]}" if digest else f"{name}"


def origin_words(derived: Mapping[str, Any]) -> str:
    """Say which caches a cache was made from, and how; nothing of one that was dumped."""
    return f"{', '.join(one['fingerprint'] for one in derived['from'])}, by {derived['by']}" if derived else ""


def _exactly(values: Sequence[float], spell: Callable[[float, int], str], unit: float) -> list[str]:
    step = min((abs(b - a) for a, b in pairwise(values)), default=max(map(abs, values), default=1))
    places = next(
        (n for n in range(12) if all(abs(round(v / unit, n) - v / unit) <= 1e-6 * step / unit for v in values)), 12
    )
    return [spell(value, places) for value in values]
