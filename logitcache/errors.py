"""What can go wrong, grouped by what the user does next.

    LogitCacheError
    ├── CacheNotFoundError      (also FileNotFoundError)   check the path
    ├── CacheIncompleteError                               run the dump again
    ├── CacheMismatchError      (also ValueError)          cache and request disagree: change one
    ├── CorruptCacheError                                  repair, and dump these blocks again
    ├── FormatVersionError                                 upgrade logitcache
    ├── InputError              (also ValueError)          the data, weights or option given cannot be used
    │   └── UnreadableError                                fix the sample, or leave it out
    ├── StoppedError                                       go on when you like: what was done is saved
    └── UnknownNameError        (also ValueError)          pick one of the names listed

Every message says what was attempted, what was expected, what was found and what to do. Settings are
written as options (--image-size); in Python the message shows argument names instead (`image_size`).
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
_CLOSEST = 3  # of more names
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
    """Return the first line of an exception's message that is not blank, for use in our own messages; empty if there is none."""
    lines = list[str]()
    with contextlib.suppress(Exception):  # somebody else's class, whose __str__ may fail as well
        lines = str(error).splitlines()
    return next((line.strip() for line in lines if line.strip()), "")


def reason_of(error: BaseException) -> str:
    """Return the type and the message of an exception in one line; of our own errors only the message.

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
    """Return the error for a name that is not known, with the names that were perhaps meant.

    "unknown method 'rdl'; did you mean 'rld'? Known: ce, kd, rld"

    Args:
        kind: Kind of thing that is named, for the message: "method".
        name: The name.
        known: All names there are.
        listed: Command that lists all names, if they are too many for a message: "`timm.list_models()`".
    """
    names = sorted(known)
    close = [repr(one) for one in get_close_matches(str(name), names, n=_CLOSEST if len(names) > _LISTED else 1)]
    hint = f"; did you mean {' or '.join(filter(None, (', '.join(close[:-1]), close[-1])))}?" if close else "."
    if len(names) <= _LISTED:
        every = f"Known: {', '.join(names)}"
    else:
        every = f"{listed} lists all {len(names):,}." if listed else f"Known: {', '.join(names[:_LISTED])}, ..."
    return UnknownNameError(f"unknown {kind} {name!r}{hint} {every}")
