"""Caches made from caches, without the teacher: what `slice` and `merge` share."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.data import find_modality
from logitcache.encoding import Encoding, read_encoding
from logitcache.errors import CorruptCacheError, InputError
from logitcache.runtime.progress import OnProgress, Progress
from logitcache.store import Cache, CacheWriter, Carried, Manifest, check_files, open_cache, open_place

__all__ = ["Rows", "encoding_of", "exclusions_within", "open_sources", "origin", "write_derived"]

Rows = Callable[[int, NDArray[np.int64]], dict[str, NDArray[Any]]]
# (view, ascending rows of the new cache) -> `digests` and the encoding's columns of these rows


def open_sources(caches: list[str | Path | Cache], out: str | Path) -> list[Cache]:
    """Open caches and compare every byte with what was written.

    Raises:
        InputError: One of them is what is to be written.
        CorruptCacheError: A file is damaged: in a cache with checksums of its own it would look right.
    """
    opened, target = [open_cache(cache) for cache in caches], open_place(out)
    for cache in opened:
        if target == cache.place:
            raise InputError(
                f"--out {out} is one of the caches that are read: what is made is a cache of its own. Choose another path."
            )
        if problems := check_files(cache):
            raise CorruptCacheError(
                f"{cache.place}: {problems[0].file} {problems[0].problem} ({len(problems)} such files). `logitcache verify --repair "
                f"{cache.place}` and the dump's own command put it right; then try again."
            )
    return opened


def origin(cache: Cache) -> dict[str, Any]:
    """Return what a derived cache remembers of one it was made from."""
    manifest = cache.manifest
    return {
        "fingerprint": cache.fingerprint,
        "teachers": list(manifest.teachers),
        "encoding": manifest.encoding,
        "views": len(manifest.views),
        "first": manifest.data["first"],
        "samples": manifest.samples,
        "derived": manifest.derived,
    }


def exclusions_within(manifest: Manifest, first: int, last: int) -> tuple[int, ...]:
    """Return what a stretch of a cache leaves out; of views that mix samples all, because others would be mixed with them."""
    if any(cache_view.mixes for cache_view in map(find_modality(manifest.modality).read_view, manifest.views)):
        return manifest.excluded
    return tuple(sample for sample in manifest.excluded if first <= sample < last)


def encoding_of(cache: Cache) -> Encoding:
    """Return how its rows are stored."""
    return read_encoding(cache.manifest.encoding)


def write_derived(
    out: str | Path,
    manifest: Manifest,
    labels: NDArray[np.int32],
    offsets: NDArray[np.int64] | None,
    probe: tuple[NDArray[np.int64], NDArray[np.float32]],
    rows: Rows,
    *,
    command: str,
    doing: str,
    on_progress: OnProgress,
    carried: Carried | None = None,
    anonymous: bool = False,
) -> Cache:
    """Write a cache of one teacher block by block, or go on where that was stopped.

    Args:
        out: Where.
        manifest: What it is.
        labels: Class of each row, [R].
        offsets: Row at which each sample begins, [N + 1]; None where each sample is one row.
        probe: Row ids of the probe, [P], and their exact logits, [P, C].
        rows: Where its rows come from.
        command: What would continue this.
        doing: The word for it.
        on_progress: Called after every block.
        carried: Arrays of the data that it carries.
        anonymous: Whether its history leaves out host and command.

    Raises:
        InputError: There is no probe: all of its rows are of samples that are left out.
        LogitCacheError: The cache cannot be written.
    """
    if not len(probe[0]):
        raise InputError(
            f"{out} would have no rows that are kept exactly, because all of them are of samples that are left out: {doing} could not be "
            "checked afterwards. Leave out fewer samples."
        )
    slug, encoding = manifest.teachers[0]["slug"], read_encoding(manifest.encoding)
    columns = {slug: encoding.columns(len(manifest.classes))}
    with CacheWriter(
        out, manifest, columns, labels, offsets, command=command, carried=carried, anonymous=anonymous
    ) as writer:
        if not writer.complete:
            writer.begin(probe[0], {slug: probe[1]})
            for view, block in writer.missing():
                first, last = manifest.span(block)
                found: Mapping[str, NDArray[Any]] = rows(view, np.arange(first, last))
                writer.write(
                    view,
                    block,
                    {
                        name if name == "digests" else f"teachers/{slug}/{name}": column
                        for name, column in found.items()
                    },
                )
                done = view * manifest.view_rows + last
                on_progress(Progress(doing, done, len(manifest.views) * manifest.view_rows, "rows"))
            writer.finish()
    return open_cache(out)
