"""Import of user code by name, `package.module:attribute`, and of the packages in extras."""

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from logitcache.errors import InputError, explain_foreign_errors, first_line

__all__ = ["import_extra", "resolve", "working_directory_importable"]


def import_extra(name: str, needed_by: str, extra: str) -> Any:
    """Import a package that an extra of logitcache installs.

    Args:
        name: Package or module, e.g. `timm` or `pyarrow.parquet`.
        needed_by: Subject of the error message.
        extra: Name of the extra.

    Raises:
        InputError: If the package is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise InputError(f"{needed_by} needs the package {package}: pip install 'logitcache[{extra}]'") from error


def resolve(spec: str, what: str) -> Any:
    """Import `package.module:attribute`, also from the working directory.

    Args:
        spec: Name of the attribute, as `package.module:attribute`.
        what: Kind of object for the error message, e.g. "teacher" or "data set".

    Raises:
        InputError: If it cannot be imported.
    """
    importlib.invalidate_caches()
    attempt = f"{what} {spec!r} cannot be imported"
    try:
        with working_directory_importable(), explain_foreign_errors(attempt):
            found = pkgutil.resolve_name(spec)
    except InputError as error:
        if isinstance(error.__cause__, ImportError | AttributeError | ValueError):
            raise InputError(f"{attempt}: {first_line(error.__cause__)}. Expected package.module:name.") from error
        raise
    if (here := str(Path.cwd())) not in sys.path and "" not in sys.path:
        sys.path.append(here)  # at the end, where it hides no package, for imports when the object is called
    return found


@contextmanager
def working_directory_importable() -> Iterator[None]:
    """Make modules in the working directory importable in this block."""
    added = "" not in sys.path
    if added:
        sys.path.insert(0, "")
    try:
        yield
    finally:
        if added and "" in sys.path:
            sys.path.remove("")
