"""Lazy import of the packages in the extra `[lm]`."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from logitcache.errors import InputError

__all__ = ["import_extra", "no_progress_bars"]


def import_extra(name: str, needed_by: str) -> Any:
    """Import a package of the extra `[lm]`.

    Args:
        name: Package or module, e.g. `transformers` or `gguf.quants`.
        needed_by: Subject of the error message.

    Raises:
        InputError: If the package is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise InputError(f"{needed_by} needs the package {package}: pip install 'logitcache[lm]'") from error


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Disable the progress bars of transformers in this block."""
    logging_of = import_extra("transformers", "a language model").utils.logging
    shown = logging_of.is_progress_bar_enabled()
    logging_of.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging_of.enable_progress_bar()
