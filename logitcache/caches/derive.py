"""Derive caches from other caches without the teacher: code shared by `slice` and `merge`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.data import find_modality
from logitcache.encoding import Encoding, read_encoding
from logitcache.errors import CorruptCacheError, InputError
from logitcache.runtime.progress import OnProgress, Progress
from logitcache.store import (
    Cache,
    CacheWriter,
    Carried,
    Manifest,
    check_files,
    open_cache,
    open_place,
    read_manifest,
    recorded_arrays,
    refuse_other_cache,
)

__all__ = ["Rows", "encoding_of", "exclusions_within", "open_sources", "origin", "write_derived"]

Rows = Callable[[int, NDArray[np.int64]], dict[str, NDArray[Any]]]
# (view, ascending rows of the new cache) -> what `Cache.shown_of` returns and the encoding's columns of these rows


def open_sources(caches: list[str | Path | Cache], out: str | Path) -> list[Cache]:
    """Open the source caches.

    Raises:
        InputError: If one of them is also the output, or if the output is not a cache.
    """
    opened, target = [open_cache(cache) for cache in caches], open_place(out)
    for cache in opened:
        if target == cache.place:
            raise InputError(f"--out {out} is one of the source caches, but must be a new cache. Choose another path.")
    read_manifest(target)
    return opened


def _refuse_damaged(sources: Sequence[Cache]) -> None:
    """Verify every byte of the source caches.

    Raises:
        CorruptCacheError: If a file is damaged. Copied to a new cache with new checksums, it would look intact.
    """
    for cache in sources:
        if problems := check_files(cache):
            raise CorruptCacheError(
                f"{cache.place}: {problems[0].file} {problems[0].problem} (damaged files: {len(problems)}). Repair it with `logitcache "
                f"verify --repair {cache.place}` and the dump's own command, then try again."
            )


def origin(cache: Cache) -> dict[str, Any]:
    """Return the manifest entry that describes a source of a derived cache."""
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
    """Return the excluded samples in a range; all of them if views mix samples, because they may be mixed into others."""
    if any(cache_view.mixes for cache_view in map(find_modality(manifest.modality).read_view, manifest.views)):
        return manifest.excluded
    return tuple(sample for sample in manifest.excluded if first <= sample < last)


def encoding_of(cache: Cache) -> Encoding:
    """Return the encoding of a cache."""
    return read_encoding(cache.manifest.encoding)


def write_derived(
    sources: Sequence[Cache],
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
    """Write a cache of one teacher block by block, or resume one that was interrupted.

    Args:
        sources: Caches to derive it from; every byte of them is verified first.
        out: Path of the cache.
        manifest: Manifest of the cache.
        labels: Class of each row, [R].
        offsets: First row of each sample, [N + 1], or None if each sample is one row.
        probe: Row ids of the probe, [P], and their exact logits, [P, C].
        rows: Function that returns the rows of a view.
        command: Command that would resume this.
        doing: Name of the operation for progress reports, e.g. "merging".
        on_progress: Called after every block.
        carried: Arrays copied from the data.
        anonymous: Whether to leave host and command out of the history.

    Raises:
        InputError: If the probe is empty because all of its samples are excluded.
        CorruptCacheError: If a source is damaged.
        CacheMismatchError: If `out` is a different cache.
        LogitCacheError: If the cache cannot be written.
    """
    if not len(probe[0]):
        raise InputError(
            f"{out} would have no probe, because all of its samples are excluded, so the result of {doing} could not be verified. "
            "Exclude fewer samples."
        )
    refuse_other_cache(open_place(out), manifest)  # before the sources are read, which may take minutes
    _refuse_damaged(sources)
    slug, encoding = manifest.teachers[0]["slug"], read_encoding(manifest.encoding)
    columns = {slug: encoding.columns(len(manifest.classes))}
    shown = {"digests", *recorded_arrays(manifest)}
    with CacheWriter(
        out, manifest, columns, labels, offsets, command=command, carried=carried, anonymous=anonymous
    ) as writer:
        if not writer.finished:
            writer.begin(probe[0], {slug: probe[1]})
            for view, block in writer.missing():
                first, last = manifest.span(block)
                found: Mapping[str, NDArray[Any]] = rows(view, np.arange(first, last))
                writer.write(
                    view,
                    block,
                    {name if name in shown else f"teachers/{slug}/{name}": column for name, column in found.items()},
                )
                done = view * manifest.view_rows + last
                on_progress(Progress(doing, done, len(manifest.views) * manifest.view_rows, "rows"))
            writer.finish()
    return open_cache(out)
