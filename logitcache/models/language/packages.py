"""Packages of the extra `[lm]`, imported where they are needed."""

from importlib import import_module
from typing import Any

from logitcache.errors import InputError

__all__ = ["import_extra"]


def import_extra(name: str, needed_by: str) -> Any:
    """Import a package of the extra `[lm]`.

    Args:
        name: Package or module: `transformers`, `gguf.quants`.
        needed_by: Subject of the error message.

    Raises:
        InputError: It is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise InputError(f"{needed_by} needs the package {package}: pip install 'logitcache[lm]'") from error
