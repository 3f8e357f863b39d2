"""Other people's code by name: `package.module:attribute`."""

import importlib
import pkgutil
import sys
from typing import Any

from logitcache.errors import InputError

__all__ = ["resolve"]


def resolve(spec: str, what: str) -> Any:
    """Import `package.module:attribute`, from the working directory too.

    Args:
        spec: What to import.
        what: What it is for, for the message: "teacher", "data set".

    Raises:
        InputError: It cannot be imported.
    """
    importlib.invalidate_caches()
    added = "" not in sys.path
    if added:
        sys.path.insert(0, "")
    try:
        return pkgutil.resolve_name(spec)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{what} {spec!r} cannot be imported: {error}. It is read as package.module:name.") from error
    finally:
        if added:
            sys.path.remove("")
