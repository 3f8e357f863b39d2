"""Format numbers and manifest entries as text, in the same way in the terminal, in reports and in advice."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

__all__ = [
    "bytes_text",
    "chance_words",
    "class_map_words",
    "counted",
    "decimals",
    "encoding_words",
    "error_text",
    "is_chance",
    "kept_words",
    "number",
    "origin_words",
    "percent",
    "percents",
    "preprocessing_words",
    "samples_words",
    "shape_words",
    "teacher_words",
]


_ORIGINS = {"timm": "timm's configuration"}  # words for the origins of preprocessing that are not their own
_NAMED = 5  # classes of a class map to list
_ENOUGH = 1000  # minimum number of rows to distinguish a teacher's accuracy from chance


def percent(share: float) -> str:
    """Format a fraction in percent, e.g. 82.00%."""
    return f"{share:.2%}" if math.isfinite(share) else "-"


def error_text(share: float) -> str:
    """Format a relative error in percent, e.g. 0.05%, or "< 0.01%"."""
    return "< 0.01%" if 0 < share < 5e-5 else percent(share)


def number(value: float) -> str:
    """Format a number with three significant digits, e.g. 1.53."""
    return f"{value:.3g}" if math.isfinite(value) else "-"


def counted(count: int, thing: str) -> str:
    """Format a count with its noun, e.g. "1 row", "10,000 rows", "10 classes"."""
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}{'es' if thing.endswith('s') else 's'}"


def bytes_text(count: float) -> str:
    """Format a number of bytes, e.g. 1.53 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def percents(shares: Sequence[float]) -> list[str]:
    """Format fractions in percent with the fewest decimals that distinguish them, e.g. 50%, 55%; 99.85%, 99.90%."""
    return _exactly(shares, lambda share, places: f"{share:.{places}%}", 0.01)


def decimals(values: Sequence[float]) -> list[str]:
    """Format numbers with the fewest decimals that distinguish them."""
    return _exactly(values, lambda value, places: f"{value:,.{places}f}", 1.0)


def encoding_words(encoding: Mapping[str, Any]) -> str:
    """Return the name of an encoding, e.g. "top-20 u8" or "50 draws"."""
    if encoding["kind"] == "sampled":
        tempered = encoding["proposal_temperature"]
        return f"{counted(encoding['draws'], 'draw')}{f' at temperature {tempered:g}' if tempered != 1 else ''}"
    known = " with the mass of the rest" if encoding["kind"] == "topk-mass" else ""
    return f"{'full' if encoding['kind'] == 'full' else 'top-' + str(encoding['k'])} {encoding['dtype']}{known}"


def kept_words(encoding: Mapping[str, Any]) -> str:
    """Describe what an encoding stores for each row, e.g. "every class, as f16"."""
    if encoding["kind"] == "sampled":
        return f"{encoding_words(encoding)} from the distribution, its entropy, and the log probabilities of its first class and the label"
    kept = (
        "every class"
        if encoding["kind"] == "full"
        else f"the {encoding['k']} largest log-probabilities, the label's and the mass of the rest"
        if encoding["kind"] == "topk-mass"
        else f"the {encoding['k']} largest logits, the label's and statistics of the rest"
    )
    return f"{kept}, as {encoding['dtype']}"


def samples_words(manifest: Mapping[str, Any]) -> str:
    """Describe the samples of a cache, e.g. "10,000 samples", "samples 0 to 999 of 10,000", "90 samples of 415 rows"."""
    first, count, total = manifest["data"]["first"], manifest["samples"], manifest["data"]["length"]
    rows = f" of {counted(manifest['rows'], 'row')}" if "rows" in manifest else ""
    gone = sum(first <= sample < first + count for sample in manifest.get("excluded", ()))
    return (
        f"{counted(count, 'sample')}{rows}"
        if count == total
        else f"samples {first:,} to {first + count - 1:,} of {total:,}{rows}"
    ) + (f" ({gone:,} left out)" if gone else "")


def shape_words(samples: int, views: int) -> str:
    """Describe the size of a cache, e.g. "10,000 samples x 4 views"."""
    return f"{counted(samples, 'sample')} x {counted(views, 'view')}"


def teacher_words(teacher: Mapping[str, Any]) -> str:
    """Return the name of a teacher, with the digest of its weights if it is known."""
    name, digest = teacher["name"], teacher["weights_sha256"]
    return f"{name}, weights sha256 {digest[:12]}" if digest else f"{name}"


def preprocessing_words(entry: Mapping[str, Any], origins: Mapping[str, str] | None = None) -> str:
    """Describe the preprocessing of a network's input, e.g. "28 x 28 pixels, mean 0.286, std 0.353".

    Args:
        entry: Preprocessing entry of a teacher in the manifest.
        origins: Origin of each setting, as far as it is known.
    """
    if entry.keys() == {"length", "packs"}:  # text
        return f"one document at a time, of at most {entry['length']:,} tokens"
    if not {"image_size", "crop_pct", "resize", "mean", "std"} <= entry.keys():  # another kind of data
        return ", ".join(f"{name} {value}" for name, value in entry.items())

    def source(name: str) -> str:
        return f" ({_ORIGINS.get(origins[name], origins[name])})" if origins and name in origins else ""

    resized = {
        "none": "",
        "stretch": ", stretched to them",
        "center-crop": f", center crop of {entry['crop_pct']:g}{source('crop_pct')}",
    }
    numbers = {
        name: ", ".join(f"{x:g}" for x in (values[:1] if len(set(values)) == 1 else values))
        for name, values in (("mean", entry["mean"]), ("std", entry["std"]))
    }
    return (
        f"{entry['image_size']} x {entry['image_size']} pixels{source('image_size')}{resized[entry['resize']]}, "
        f"mean {numbers['mean']}{source('mean')}, std {numbers['std']}{source('std')}"
        + (", as grey images" if entry.get("channels", 3) == 1 else "")
    )


def class_map_words(entry: Mapping[str, Any] | None, classes: Sequence[str]) -> str:
    """Describe a class map, e.g. "cat is 281, dog is 235, of 1,000"; empty if there is none."""
    if entry is None:
        return ""
    named = [f"{name} is {number}" for name, number in zip(classes[:_NAMED], entry["indices"], strict=False)]
    more = f" and {len(classes) - _NAMED:,} more" if len(classes) > _NAMED else ""
    return f"{', '.join(named)}{more}, of {entry['classes']:,}"


def is_chance(right: int, rows: int, classes: int) -> bool:
    """Return whether an accuracy is indistinguishable from chance; always False below 1,000 rows."""
    chance = 1 / classes
    return rows >= _ENOUGH and right / rows < chance + 3 * (chance * (1 - chance) / rows) ** 0.5


def chance_words(name: str, accuracy: float, rows: int, classes: int, *, text: bool = False) -> str:
    """Return the warning for a teacher of images or text that is no better than chance, with the likely causes."""
    images = "mean and std, image size and crop, the order of its classes (--class-map)"
    return (
        f"teacher {name} is right for {accuracy:.2%} of {rows:,} rows, which is chance ({1 / classes:.2%}). Suspect, in this order: "
        f"{'the tokenizer, whose ids must be those of the teacher' if text else images}, its weights."
    )


def origin_words(derived: Mapping[str, Any]) -> str:
    """Describe the sources of a derived cache, and how it was made; empty for a dumped cache."""
    return f"{', '.join(one['fingerprint'] for one in derived['from'])}, by {derived['by']}" if derived else ""


def _exactly(values: Sequence[float], spell: Callable[[float, int], str], unit: float) -> list[str]:
    step = min((abs(b - a) for a, b in pairwise(values)), default=max(map(abs, values), default=1))
    places = next(
        (n for n in range(12) if all(abs(round(v / unit, n) - v / unit) <= 1e-6 * step / unit for v in values)), 12
    )
    return [spell(value, places) for value in values]
