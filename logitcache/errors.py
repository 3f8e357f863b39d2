"""Exceptions, grouped by what the user does next.

    LogitCacheError
    ├── CacheNotFoundError      (also FileNotFoundError)   check the path
    ├── CacheIncompleteError                               run the dump again
    ├── CacheMismatchError      (also ValueError)          change the request, or the cache
    ├── CorruptCacheError                                  repair, and dump these blocks again
    ├── FormatVersionError                                 upgrade logitcache
    ├── InputError              (also ValueError)          the data, weights or option given cannot be used
    │   └── UnreadableError                                fix the sample, or exclude it
    ├── StoppedError                                       resume at any time: all work was saved
    └── UnknownNameError        (also ValueError)          pick one of the names listed

Each message states what was attempted, what was expected, what was found and what to do. Messages refer to settings
as options (--image-size); in Python they show argument names instead (`image_size`).
"""

import contextlib
import re
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
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
    "explain_foreign_errors",
    "first_line",
    "name_settings",
    "reason_of",
    "speaking_to_the_command_line",
    "unknown_name",
]

_typed = ContextVar("typed", default=False)
_LITERAL = re.compile(r"(`[^`]*`|^ .*$)", re.MULTILINE)  # code, and indented lines
_OPTION = re.compile(r"(?<![\w-])--(?:no-)?([a-z]+(?:-[a-z]+)*)")
_LISTED = 40  # names in a message
_CLOSEST = 3  # suggestions if there are more names
_OTHER_NAMES = {"cached-teacher": "teacher", "compile": "compiled", "set": "parameters"}


@contextlib.contextmanager
def speaking_to_the_command_line() -> Iterator[None]:
    """Within this block, name settings in error messages as command-line options."""
    before = _typed.set(True)
    try:
        yield
    finally:
        _typed.reset(before)


def name_settings(text: str) -> str:
    """Name settings in the reader's terms: --image-size on the command line, `image_size` in Python.

    Text in backquotes and indented lines, such as commands, are left unchanged.
    """
    if _typed.get():
        return text
    parts = _LITERAL.split(text)
    parts[::2] = [_OPTION.sub(_as_argument, part) for part in parts[::2]]
    return "".join(parts)


def _as_argument(option: re.Match[str]) -> str:
    return f"`{_OTHER_NAMES.get(option[1], option[1].replace('-', '_'))}`"


class LogitCacheError(Exception):
    """Base of every error that this package raises on purpose."""

    def __str__(self) -> str:
        return name_settings(super().__str__())


class CacheNotFoundError(LogitCacheError, FileNotFoundError):
    """There is no cache at this path."""


class CacheIncompleteError(LogitCacheError):
    """The dump of this cache has not finished."""


class CacheMismatchError(LogitCacheError, ValueError):
    """The cache and the request disagree."""


class CorruptCacheError(LogitCacheError):
    """The cache is damaged."""


class FormatVersionError(LogitCacheError):
    """The cache was written by a newer version of this package."""


class InputError(LogitCacheError, ValueError):
    """Data, weights or an option cannot be used."""


class UnreadableError(InputError):
    """A sample of the data cannot be read.

    Attributes:
        reason: Reason without the sample's name and without a remedy.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


class StoppedError(LogitCacheError):
    """This process was told to stop, and saved its work."""


class UnknownNameError(LogitCacheError, ValueError):
    """A name is not in the list of known names."""


def first_line(error: BaseException) -> str:
    """Return the first non-blank line of an exception's message, or an empty string."""
    lines = list[str]()
    with contextlib.suppress(Exception):  # a third-party class, whose __str__ may fail too
        lines = str(error).splitlines()
    return next((line.strip() for line in lines if line.strip()), "")


def reason_of(error: BaseException) -> str:
    """Return an exception's type and message in one line, without the type for our own errors.

    >>> reason_of(KeyError("annotation"))
    "KeyError: 'annotation'"
    """
    said = first_line(error)
    if isinstance(error, LogitCacheError):
        return said
    name = type(error).__name__
    return f"{name}: {said}" if said else name


@contextlib.contextmanager
def explain_foreign_errors(attempt: str, remedy: str = "") -> Iterator[None]:
    """Turn any exception of third-party code in this block, SystemExit included, into an InputError.

    Our own errors and KeyboardInterrupt pass through.

    Args:
        attempt: Beginning of the message: "data set mine:make cannot be made".
        remedy: Advice to append, one sentence or more.
    """
    try:
        yield
    except (LogitCacheError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise InputError(f"{attempt}: {reason_of(error)}{remedy and f'. {remedy}'}") from error


def unknown_name(kind: str, name: str, known: Iterable[str], listed: str = "") -> UnknownNameError:
    """Return the error for an unknown name, with the closest known names.

    "unknown method 'rdl'; did you mean 'rld'? Known: ce, kd, rld"

    Args:
        kind: Kind of thing for the message, e.g. "method".
        name: Unknown name.
        known: All known names.
        listed: Command that lists all names, if there are too many for a message, e.g. "`timm.list_models()`".
    """
    names = sorted(known)
    close = [repr(one) for one in get_close_matches(str(name), names, n=_CLOSEST if len(names) > _LISTED else 1)]
    hint = f"; did you mean {' or '.join(filter(None, (', '.join(close[:-1]), close[-1])))}?" if close else "."
    if len(names) <= _LISTED:
        every = f"Known: {', '.join(names)}"
    else:
        every = f"{listed} lists all {len(names):,}." if listed else f"Known: {', '.join(names[:_LISTED])}, ..."
    return UnknownNameError(f"unknown {kind} {name!r}{hint} {every}")
