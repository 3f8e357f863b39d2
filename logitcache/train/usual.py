"""What a training does where nobody says it: the recipe of the kind of data, in the place of the defaults for images."""

import logging
from collections.abc import Collection
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from logitcache.data.contract import cache_modality
from logitcache.data.open import named_modality
from logitcache.data.optional import usual_training
from logitcache.methods import METHODS, method_name, parameters_of
from logitcache.store import Cache, open_cache
from logitcache.train.settings import TrainSettings

__all__ = ["with_usual"]

_LOG = logging.getLogger(__name__)
_LANGUAGE = "language"  # preset with which a method is used on language models


def with_usual(
    cache: str | Path | Cache | None, student: Any, settings: TrainSettings, said: Collection[str]
) -> TrainSettings:
    """Give a training the usual settings of its kind of data.

    Args:
        cache: The cache; its kind of data has a recipe of its own, or none. None: the data of the settings has.
        student: The student, as it was asked for.
        settings: What was asked for.
        said: Names of settings that were asked for one by one; they, and others that differ from their default, stay as they are.

    Returns:
        The settings to train with. Those that were chosen here are logged.
    """
    opened = None if cache is None else open_cache(cache)
    modality = named_modality(settings.data) if opened is None else cache_modality(opened)
    usual = {} if modality is None else usual_training(modality, student)
    if not usual:
        return settings
    default = {one.name: one.default for one in fields(settings)}
    free = {name for name in default if name not in said and getattr(settings, name) == default[name]}
    chosen = {name: value for name, value in usual.items() if name in free}
    if opened is not None:
        chosen |= {name: value for name, value in _of_method(settings, opened).items() if name in free}
    if "opt" not in chosen and settings.opt != usual.get("opt"):  # moments are settings of that optimizer
        chosen = {name: value for name, value in chosen.items() if name not in ("betas", "lr", "weight_decay")}
    if chosen:
        listed = ", ".join(f"{TrainSettings.flag(name)} {_spelled(value)}" for name, value in sorted(chosen.items()))
        _LOG.info("usual for this data, as nothing else was said: %s", listed)
    return replace(settings, **chosen)


def _of_method(settings: TrainSettings, cache: Cache) -> dict[str, Any]:
    """Return how a method is used on language models: with its preset for them, or at temperature 1; and what tops leave as one class."""
    found = METHODS.get(method_name(settings.method)) if isinstance(settings.method, str) else None
    if found is None or found.divergence is None:
        return {}
    chosen: dict[str, Any] = {}
    if _LANGUAGE in found.presets:
        chosen["preset"] = _LANGUAGE
    elif isinstance(parameters_of(str(settings.method)).get("temperature"), int | float):
        chosen["temperature"] = 1.0
    if found.takes_bucket and cache.manifest.encoding["kind"] == "topk" and not settings.live_teacher:
        chosen["tail"] = "bucket"
    return chosen


def _spelled(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_spelled, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
