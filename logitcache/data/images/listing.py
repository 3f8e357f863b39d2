"""Which files of a folder are images: every one that is left out is counted, and every one that cannot be read is named."""

import functools
import logging
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from logitcache.errors import InputError
from logitcache.runtime.wording import counted

__all__ = ["Listing", "list_images", "readable", "suffixes"]

_LOG = logging.getLogger(__name__)
_NAMED = 3  # files of other types, in the log


@dataclass(frozen=True, slots=True)
class Listing:
    """The images of a folder with one folder a class.

    Attributes:
        paths: Sorted paths relative to the folder, with forward slashes.
        classes: Sorted names of the class folders that hold images.
        unreadable: Those of the paths that cannot be opened, with the reason.
    """

    paths: list[str]
    classes: tuple[str, ...]
    unreadable: dict[str, str]


def list_images(root: Path) -> Listing:
    """List ROOT/CLASS/.../IMAGE. Links to folders and files are followed; hidden ones (`.name`) and other types of files are skipped.

    What was found, used and skipped is logged.

    Raises:
        InputError: There are no images, or a folder cannot be opened, such as a link that leads nowhere.
    """
    if not root.is_dir():
        raise InputError(f"there is no folder {root} to read images from")
    paths, skipped, others, folders = list[str](), Counter[str](), list[str](), list[str]()
    unreadable: dict[str, str] = {}
    for entry in sorted(os.scandir(root), key=lambda one: one.name):
        if entry.name.startswith("."):
            skipped["hidden"] += 1
        elif _is_folder(entry):
            before = len(paths)
            _walk(Path(entry.path), root, paths, unreadable, skipped, others, frozenset())
            if len(paths) == before:
                folders.append(entry.name)
        else:
            skipped["outside"] += 1
    if not paths:
        said = _skipped_words(skipped, others, folders)
        raise InputError(
            f"{readable(root)} has no images in class folders (expected {readable(root)}/CLASS/IMAGE.jpg, .png, ...)"
            + (f"; skipped: {said}" if said else "")
        )
    paths.sort()
    classes = tuple(sorted({path.partition("/")[0] for path in paths}))
    _log(root, len(paths), len(classes), skipped, others, folders)
    return Listing(paths, classes, unreadable)


def _walk(
    folder: Path,
    root: Path,
    paths: list[str],
    unreadable: dict[str, str],
    skipped: Counter[str],
    others: list[str],
    above: frozenset[tuple[int, int]],
) -> None:
    """Collect the images below a folder; `above` are the folders on the way here, to which a link may lead back."""
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise InputError(f"{readable(folder)} is a link to a folder that it lies in: it has no end. Remove the link.")
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise InputError(
            f"{readable(folder)} cannot be opened: {error.strerror}. Make it readable, or remove it."
        ) from error
    for entry in entries:
        named_as_image = Path(entry.name).suffix.lower() in suffixes()
        if entry.name.startswith("."):
            skipped["hidden"] += 1
        elif not (named_as_image and _leads_nowhere(entry)) and _is_folder(entry):
            _walk(Path(entry.path), root, paths, unreadable, skipped, others, above | {here})
        elif not named_as_image:
            others.append(entry.name)
        else:
            paths.append(Path(entry.path).relative_to(root).as_posix())
            if _leads_nowhere(entry):
                unreadable[paths[-1]] = "it is a link that leads nowhere"
            elif not os.access(entry.path, os.R_OK):
                unreadable[paths[-1]] = "permission denied"


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Return whether an entry is a folder, through links.

    Raises:
        InputError: It is a link that leads nowhere.
    """
    if _leads_nowhere(entry):
        raise InputError(f"{readable(entry.path)} is a link that leads nowhere: fix it, or remove it.")
    return entry.is_dir()


def _leads_nowhere(entry: "os.DirEntry[str]") -> bool:
    return entry.is_symlink() and not Path(entry.path).exists()


@functools.cache
def suffixes() -> frozenset[str]:
    """Return the suffixes of the formats that Pillow reads; it registers others that it only writes, such as .pdf."""
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def readable(path: str | os.PathLike[str]) -> str:
    """Return a path as text that can be printed and stored; bytes of a name that are not UTF-8 are escaped."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _log(root: Path, images: int, classes: int, skipped: Counter[str], others: list[str], folders: list[str]) -> None:
    said = _skipped_words(skipped, others, folders) or "nothing"
    _LOG.info("%s: %s images in %s classes; skipped: %s", readable(root), f"{images:,}", f"{classes:,}", said)


def _skipped_words(skipped: Counter[str], others: list[str], folders: list[str]) -> str:
    """Describe the entries that were skipped and why; empty if none were."""
    parts = [
        f"{skipped['hidden']:,} hidden" if skipped["hidden"] else "",
        f"{len(others):,} of other types ({', '.join(map(readable, sorted(others)[:_NAMED]))}{', ...' * (len(others) > _NAMED)})"
        if others
        else "",
        f"{skipped['outside']:,} outside of class folders" if skipped["outside"] else "",
        f"{counted(len(folders), 'folder')} without images ({', '.join(map(readable, folders[:_NAMED]))}"
        f"{', ...' * (len(folders) > _NAMED)})"
        if folders
        else "",
    ]
    return ", ".join(part for part in parts if part)
