"""Files by path, folder or pattern."""

import glob
from pathlib import Path

from logitcache.errors import InputError

__all__ = ["matching_files"]


def matching_files(path: str, ending: str) -> list[Path]:
    """Return the files that a path names, in the order of their names.

    Args:
        path: A file, a folder, which stands for all files below it with this ending, or a pattern.
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
    found = sorted(one for one in map(Path, glob.glob(str(whole), recursive=True)) if one.is_file())  # noqa: PTH207  (an absolute pattern)
    if not found:
        raise InputError(f"there is no file, folder or pattern {path}")
    return found
