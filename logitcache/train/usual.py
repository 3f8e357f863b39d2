"""Default settings of a modality, which replace the general defaults for images."""

import logging
from collections.abc import Collection
from dataclasses import fields, replace
from typing import Any

from logitcache.data.contract import cache_modality
from logitcache.data.open import named_modality
from logitcache.data.optional import usual_training
from logitcache.methods import language_settings, method_name
from logitcache.store import Cache
from logitcache.train.settings import TrainSettings

__all__ = ["with_usual"]

_LOG = logging.getLogger(__name__)


def with_usual(
    cache: Cache | None, student: Any, settings: TrainSettings, said: Collection[str]
) -> tuple[TrainSettings, dict[str, Any]]:
    """Apply the default training settings of the modality.

    Args:
        cache: Cache, whose modality is used. None uses the modality of the data in `settings`.
        student: Student, as given by the user.
        settings: Settings, as given by the user.
        said: Names of settings that the user gave explicitly. They do not change, and neither do settings that differ from their default.

    Returns:
        Settings to train with, and those that were chosen here, as in run.json. The latter are logged.
    """
    modality = named_modality(settings.data) if cache is None else cache_modality(cache)
    usual = {} if modality is None else usual_training(modality, student)
    if not usual:
        return settings, {}
    default = {one.name: one.default for one in fields(settings)}
    free = {name for name in default if name not in said and getattr(settings, name) == default[name]}
    chosen = {name: value for name, value in usual.items() if name in free}
    if cache is not None:
        chosen |= {name: value for name, value in _of_method(settings, cache).items() if name in free}
    if "opt" not in chosen and settings.opt != usual.get("opt"):  # moments are settings of that optimizer
        chosen = {name: value for name, value in chosen.items() if name not in ("betas", "lr", "weight_decay")}
    if chosen:
        listed = ", ".join(
            f"{TrainSettings.flag(name)} {_format_value(value)}" for name, value in sorted(chosen.items())
        )
        _LOG.info("defaults for this data: %s", listed)
    found = replace(settings, **chosen)
    return found, {name: value for name, value in found.to_json().items() if name in chosen}


def _of_method(settings: TrainSettings, cache: Cache) -> dict[str, Any]:
    """Return the settings of a method for language models."""
    if not isinstance(settings.method, str):
        return {}
    largest_alone = "k" in cache.manifest.encoding and not settings.live_teacher
    return language_settings(method_name(settings.method), largest_alone=largest_alone)


def _format_value(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_format_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
