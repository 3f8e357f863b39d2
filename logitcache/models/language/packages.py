"""Lazy import of the packages in the extra `[lm]`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from logitcache.runtime.plugins import import_extra

__all__ = ["import_language_package", "no_progress_bars"]


def import_language_package(name: str, needed_by: str) -> Any:
    """Import a package of the extra `[lm]` (see `import_extra`)."""
    return import_extra(name, needed_by, "lm")


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Disable the progress bars of transformers in this block."""
    logging_of = import_language_package("transformers", "a language model").utils.logging
    shown = logging_of.is_progress_bar_enabled()
    logging_of.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging_of.enable_progress_bar()
