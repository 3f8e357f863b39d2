"""Files by path, folder or pattern."""

import glob
import re
from collections.abc import Iterator
from pathlib import Path

from logitcache.errors import InputError

__all__ = ["matching_files"]

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


def matching_files(path: str, ending: str) -> list[Path]:
    """Return the files that a path names, in the order of their names.

    Args:
        path: A file, a folder, which stands for all files below it with this ending, or a pattern: `part-*.tar`, `part-{000..146}.tar`.
        ending: Ending of their names, with the dot.

    Raises:
        InputError: There are none.
    """
    whole = Path(path).expanduser()
    if whole.is_dir():
        found = sorted(one for one in whole.rglob(f"*{ending}") if one.is_file())
        if not found:
            raise InputError(f"{path} has no files that end in {ending}")
        return found
    if whole.is_file():
        return [whole]
    named = [Path(one) for pattern in _expanded(str(whole)) for one in glob.glob(pattern, recursive=True)]  # noqa: PTH207  (an absolute pattern)
    found = sorted(one for one in named if one.is_file())
    if not found:
        raise InputError(f"there is no file, folder or pattern {path}")
    return found


def _expanded(pattern: str) -> Iterator[str]:
    """Yield a pattern once for each number of a range in braces, written with as many digits as its beginning."""
    if (braces := _BRACES.search(pattern)) is None:
        yield pattern
        return
    first, last = braces.groups()
    for number in range(int(first), int(last) + 1):
        yield from _expanded(f"{pattern[: braces.start()]}{number:0{len(first)}}{pattern[braces.end() :]}")
