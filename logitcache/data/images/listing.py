"""Find the images in a folder. Skipped files are counted, and unreadable images are listed by name."""

import functools
import logging
import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from logitcache.data.images.strings import PackedStrings
from logitcache.errors import InputError
from logitcache.runtime.wording import counted

__all__ = ["Listing", "list_images", "readable", "suffixes"]

_LOG = logging.getLogger(__name__)
_ASKED = 100  # files of a folder to ask about first whether they may be read
_NAMED = 3  # files of other types to name in the log


@dataclass(frozen=True, slots=True)
class Listing:
    """Images of a folder that has one subfolder per class.

    Attributes:
        paths: Sorted paths relative to the folder, with forward slashes.
        labels: Class of each image, [N] int64.
        classes: Sorted names of the class folders that hold images.
        unreadable: Positions in `paths` of the images that cannot be opened, with the reason.
    """

    paths: PackedStrings
    labels: NDArray[np.int64]
    classes: tuple[str, ...]
    unreadable: dict[int, str]


def list_images(root: Path) -> Listing:
    """List ROOT/CLASS/.../IMAGE. Symbolic links are followed; hidden entries (`.name`) and files of other types are skipped.

    Logs the number of images and classes, and what was skipped.

    Raises:
        InputError: If there are no images, or a folder cannot be opened, such as a broken link.
    """
    if not root.is_dir():
        raise InputError(f"cannot read images: there is no folder {root}")
    walk, folders = _Walk(), list[str]()
    for entry in sorted(os.scandir(root), key=lambda one: one.name):
        if entry.name.startswith("."):
            walk.skipped["hidden"] += 1
        elif _is_folder(entry):
            folders.append(entry.name)
        else:
            walk.skipped["outside"] += 1
    paths = PackedStrings.of(walk.classes(root, folders))
    counts = walk.counts
    empty = [name for name in folders if not counts[name]]
    said = _skipped_words(walk, empty)
    if not len(paths):
        raise InputError(
            f"{readable(root)} has no images in class folders (expected {readable(root)}/CLASS/IMAGE.jpg, .png, ...)"
            + (f"; skipped: {said}" if said else "")
        )
    classes = [name for name in folders if counts[name]]
    labels = np.repeat([bisect_left(classes, name) for name in counts], list(counts.values()))
    sizes = f"{len(paths):,}", f"{len(classes):,}"
    _LOG.info("%s: %s images in %s classes; skipped: %s", readable(root), *sizes, said or "nothing")
    return Listing(paths, labels, tuple(classes), walk.unreadable)


class _Walk:
    """A walk through class folders.

    A folder may hold millions of files, so the work per file is kept to a minimum: a path is a string, not a `Path`.

    Attributes:
        skipped: Number of skipped entries, by reason.
        others: Names of a few files of other types, the first in sorted order.
        counts: Number of images in each class folder, in the order of their paths.
        unreadable: Positions of images that cannot be opened, with the reason.
    """

    def __init__(self) -> None:
        self.skipped, self.others = Counter[str](), list[str]()
        self.counts, self.unreadable = dict[str, int](), dict[int, str]()
        self._asks = os.geteuid() != 0  # the superuser may read every file

    def classes(self, root: Path, folders: Sequence[str]) -> Iterator[list[str]]:
        """Yield the image paths of each class folder, sorted as paths, so that `a-b/` comes before `a/`."""
        for name in sorted(folders, key=lambda name: f"{name}/"):
            before, found = sum(self.counts.values()), list[str]()
            refused = self._images(f"{root}/{name}", f"{name}/", found)
            found.sort()
            self.counts[name] = len(found)
            self.unreadable |= {before + bisect_left(found, path): why for path, why in refused.items()}
            yield found

    def _images(
        self, folder: str, prefix: str, found: list[str], above: frozenset[tuple[int, int]] = frozenset()
    ) -> dict[str, str]:
        """Append the image paths below a folder to `found`, and return those that cannot be opened, with the reason.

        Args:
            folder: Folder to search.
            prefix: Prefix of the paths.
            found: List that the paths are appended to, unsorted.
            above: Device and inode of the parent folders, to detect links that form a cycle.

        Raises:
            InputError: If a folder cannot be opened, or links form a cycle.
        """
        here, refused, endings = _identity(folder), dict[str, str](), suffixes()
        images, others = list[str](), list[str]()
        if here in above:
            raise InputError(
                f"{readable(folder)} is a link to one of its own parent folders, which makes a cycle. Remove the link."
            )
        for entry in _entries(folder):
            name = entry.name
            if name.startswith("."):
                self.skipped["hidden"] += 1
                continue
            is_file, is_image = entry.is_file(follow_symlinks=False), name[name.rfind(".") :].lower() in endings
            is_broken = not is_file and is_image and _is_broken_link(entry)
            if not is_file and not is_broken and _is_folder(entry):
                refused |= self._images(entry.path, f"{prefix}{name}/", found, above | {here})
            elif not is_image:
                others.append(name)
            else:
                images.append(name)
                if is_broken:
                    refused[prefix + name] = "it is a broken link"
        found += [prefix + name for name in images]
        if self._asks:
            refused = {prefix + name: "permission denied" for name in _refused(folder, images)} | refused
        self.skipped["others"] += len(others)
        self.others = sorted([*self.others, *others])[:_NAMED]
        return refused


def _refused(folder: str, names: Sequence[str]) -> Sequence[str]:
    """Return the files of a folder that may not be read.

    Asking takes as long as listing, so in a large folder some files are asked about first, and all of them if one is refused.
    """
    step = -(-len(names) // _ASKED) or 1
    for some in (names[::step], names):
        refused = [name for name in some if not os.access(f"{folder}/{name}", os.R_OK)]
        if step == 1 or not refused:
            return refused
    return refused


def _identity(folder: str) -> tuple[int, int]:
    status = os.stat(folder)  # noqa: PTH116
    return status.st_dev, status.st_ino


def _entries(folder: str) -> "list[os.DirEntry[str]]":
    try:
        return list(os.scandir(folder))
    except OSError as error:
        raise InputError(
            f"{readable(folder)} cannot be opened: {error.strerror}. Make it readable, or remove it."
        ) from error


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Return whether an entry is a folder, following links.

    Raises:
        InputError: If it is a broken link.
    """
    if _is_broken_link(entry):
        raise InputError(f"{readable(entry.path)} is a broken link: fix or remove it.")
    return entry.is_dir()


def _is_broken_link(entry: "os.DirEntry[str]") -> bool:
    return entry.is_symlink() and not Path(entry.path).exists()


@functools.cache
def suffixes() -> frozenset[str]:
    """Return the suffixes of the formats that Pillow can read; it also registers formats that it only writes, such as .pdf."""
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def readable(path: str | os.PathLike[str]) -> str:
    """Return a path as text that can be printed and stored, with bytes that are not UTF-8 escaped."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _skipped_words(walk: _Walk, folders: list[str]) -> str:
    """Describe the entries that were skipped and why; empty if none were.

    Args:
        walk: Finished walk.
        folders: Class folders without images.
    """
    skipped = walk.skipped
    more = ", ..." * (skipped["others"] > _NAMED)
    parts = [
        f"{skipped['hidden']:,} hidden" if skipped["hidden"] else "",
        f"{skipped['others']:,} of other types ({', '.join(map(readable, walk.others))}{more})"
        if skipped["others"]
        else "",
        f"{skipped['outside']:,} outside class folders" if skipped["outside"] else "",
        f"{counted(len(folders), 'folder')} without images ({', '.join(map(readable, folders[:_NAMED]))}"
        f"{', ...' * (len(folders) > _NAMED)})"
        if folders
        else "",
    ]
    return ", ".join(part for part in parts if part)
