"""Default settings of methods for language models."""

from typing import Any

from logitcache.methods.composition import parameters_of
from logitcache.methods.table import METHODS

__all__ = ["language_settings"]

_PRESET = "language"


def language_settings(name: str, *, largest_alone: bool) -> dict[str, Any]:
    """Return the default settings of a method for language models, as keyword arguments of `get_loss`.

    These are the method's preset `language`, or temperature 1 if it has none, and a bucket for the classes that top-k rows drop if the
    method supports it.

    Args:
        name: Name of a method; the result is empty if it is not in the table.
        largest_alone: Whether rows keep only the largest logits.
    """
    method = METHODS.get(name)
    if method is None or method.divergence is None:
        return {}
    chosen: dict[str, Any] = {}
    if _PRESET in method.presets:
        chosen["preset"] = _PRESET
    elif isinstance(parameters_of(name).get("temperature"), int | float):
        chosen["temperature"] = 1.0
    if method.takes_bucket and largest_alone:
        chosen["tail"] = "bucket"
    return chosen
