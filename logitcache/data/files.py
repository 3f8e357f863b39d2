"""Find files by path, folder or pattern."""

import glob
import re
from collections.abc import Iterator
from pathlib import Path

from logitcache.errors import InputError

__all__ = ["matching_files"]

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


def matching_files(path: str, ending: str) -> list[Path]:
    """Return the files that match a path, sorted by name.

    Args:
        path: Path of a file, a folder to search recursively for files with this ending, or a pattern: `part-*.tar`,
            `part-{000..146}.tar`.
        ending: Ending of file names, with the dot.

    Raises:
        InputError: If there are none.
    """
    whole = Path(path).expanduser()
    if whole.is_dir():
        found = sorted(one for one in whole.rglob(f"*{ending}") if one.is_file())
        if not found:
            raise InputError(f"{path} has no {ending} files")
        return found
    if whole.is_file():
        return [whole]
    named = [Path(one) for pattern in _expanded(str(whole)) for one in glob.glob(pattern, recursive=True)]  # noqa: PTH207  (an absolute pattern)
    found = sorted(one for one in named if one.is_file())
    if not found:
        raise InputError(f"no file or folder matches {path}")
    return found


def _expanded(pattern: str) -> Iterator[str]:
    """Expand ranges in braces; numbers are padded with zeros to the width of the first number."""
    if (braces := _BRACES.search(pattern)) is None:
        yield pattern
        return
    first, last = braces.groups()
    for number in range(int(first), int(last) + 1):
        yield from _expanded(f"{pattern[: braces.start()]}{number:0{len(first)}}{pattern[braces.end() :]}")
