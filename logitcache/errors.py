"""What can go wrong, grouped by what the user does next.

    LogitCacheError
    ├── CacheNotFoundError      (also FileNotFoundError)   check the path
    ├── CacheIncompleteError                               run the dump again
    ├── CacheMismatchError      (also ValueError)          cache and request disagree: change one
    ├── CorruptCacheError                                  repair, and dump these blocks again
    ├── FormatVersionError                                 upgrade logitcache
    ├── InputError              (also ValueError)          the data, weights or option given cannot be used
    │   └── UnreadableError                                mend the sample, or leave it out
    ├── StoppedError                                       go on when you like: what was done is saved
    └── UnknownNameError        (also ValueError)          pick one of the names listed

Every message says what was attempted, what was expected, what was found and what to do.
"""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "CacheIncompleteError",
    "CacheMismatchError",
    "CacheNotFoundError",
    "CorruptCacheError",
    "FormatVersionError",
    "InputError",
    "LogitCacheError",
    "StoppedError",
    "UnknownNameError",
    "UnreadableError",
    "first_line",
    "unknown_name",
]


class LogitCacheError(Exception):
    """Base of every error that this package raises on purpose."""


class CacheNotFoundError(LogitCacheError, FileNotFoundError):
    """There is no cache at this path."""


class CacheIncompleteError(LogitCacheError):
    """The dump of this cache has not finished."""


class CacheMismatchError(LogitCacheError, ValueError):
    """The cache and the request disagree."""


class CorruptCacheError(LogitCacheError):
    """Bytes of the cache are not those that were written."""


class FormatVersionError(LogitCacheError):
    """The cache was written by a newer version of this package."""


class InputError(LogitCacheError, ValueError):
    """Data, weights or an option cannot be used."""


class UnreadableError(InputError):
    """A sample of the data cannot be read.

    Attributes:
        reason: Why, without the sample's name and without a remedy.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


class StoppedError(LogitCacheError):
    """This process was asked to stop, and did."""


class UnknownNameError(LogitCacheError, ValueError):
    """A name is not in the list of known names."""


def first_line(error: BaseException) -> str:
    """Return the first line of somebody else's message, to put into one of ours."""
    return str(error).partition("\n")[0]


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Name what was meant: "unknown method 'rdl'; did you mean 'rld'? Known: ce, kd, rld"."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return UnknownNameError(f"unknown {kind} {name!r}{hint} Known: {', '.join(names)}")
