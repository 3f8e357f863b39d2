"""Versions of installed packages."""

import functools
from importlib.metadata import PackageNotFoundError, version

__all__ = ["installed_version"]


@functools.cache
def installed_version(name: str) -> str | None:
    """Return the version of an installed package, or None. It is looked up once, because that parses the package's whole description."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
