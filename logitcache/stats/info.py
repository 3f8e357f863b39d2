"""Describe a cache from its manifest and file sizes, without reading rows. Does not need torch."""

from pathlib import Path

from logitcache.stats.contents import made, preprocessing_from
from logitcache.stats.records import CacheInfo
from logitcache.stats.serves import methods_served
from logitcache.store import Cache, disk_use, open_cache

__all__ = ["cache_info"]


def cache_info(cache: str | Path | Cache, *, teacher: str | None = None) -> CacheInfo:
    """Describe a cache without reading rows: teacher, data, views, encoding, size, state, and the methods that can use it.

    Two small files are read and the others are only listed, so the time depends on the number of files, not of rows. Works on unfinished
    caches that have at least one block.

    Args:
        cache: Cache, or its path or address.
        teacher: Slug of the teacher to describe; None describes all of them together.

    Raises:
        LogitCacheError: The cache cannot be opened.
    """
    opened = open_cache(cache, unfinished=True)
    if teacher is not None:
        opened = opened.of(teacher)
    manifest, use = opened.manifest, disk_use(opened)
    serves, refuses = methods_served(manifest)
    return CacheInfo(
        path=str(opened.place),
        fingerprint=opened.fingerprint,
        finished=opened.finished,
        blocks=manifest.blocks * len(manifest.views),
        blocks_there=use.blocks,
        rows=manifest.view_rows * len(manifest.views),
        rows_there=use.rows,
        made=made(opened),
        preprocessing_from=preprocessing_from(opened),
        manifest=manifest.to_json(),
        bytes_by_array=use.by_array,
        bytes_total=use.total,
        bytes_per_row=use.per_row,
        ratio_to_float32=use.per_row / (4 * len(manifest.classes) * len(manifest.teachers)),
        serves=serves,
        refuses=refuses,
    )
