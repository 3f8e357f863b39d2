"""Other people's code by name: `package.module:attribute`."""

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from logitcache.errors import InputError, LogitCacheError, reason_of

__all__ = ["resolve", "working_directory_importable"]


def resolve(spec: str, what: str) -> Any:
    """Import `package.module:attribute`, from the working directory too.

    Args:
        spec: What to import.
        what: What it is for, for the message: "teacher", "data set".

    Raises:
        InputError: It cannot be imported.
    """
    importlib.invalidate_caches()
    try:
        with working_directory_importable():
            return pkgutil.resolve_name(spec)
    except (LogitCacheError, KeyboardInterrupt):
        raise
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{what} {spec!r} cannot be imported: {error}. It is read as package.module:name.") from error
    except BaseException as error:  # whatever somebody else's module does while it is imported, sys.exit included
        raise InputError(f"{what} {spec!r} cannot be imported: {reason_of(error)}") from error


@contextmanager
def working_directory_importable() -> Iterator[None]:
    """Find modules in the working directory too."""
    added = "" not in sys.path
    if added:
        sys.path.insert(0, "")
    try:
        yield
    finally:
        if added and "" in sys.path:
            sys.path.remove("")
