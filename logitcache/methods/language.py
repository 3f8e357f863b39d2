"""How methods are used on language models where nobody says it."""

from typing import Any

from logitcache.methods.composition import parameters_of
from logitcache.methods.table import METHODS

__all__ = ["language_settings"]

_PRESET = "language"


def language_settings(name: str, *, largest_alone: bool) -> dict[str, Any]:
    """Return the settings with which a method is used on language models, in the words of `get_loss`.

    It is used with its preset for them, or at temperature 1; and where it can, it counts the classes that rows of the largest leave
    over as one.

    Args:
        name: Name of a method; one that is not in the table has no such settings.
        largest_alone: Whether rows keep the largest logits alone.
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
