"""What a cache is, from its manifest and the sizes of its files: no row is read. Without torch."""

from pathlib import Path

from logitcache.stats.contents import made, preprocessing_from
from logitcache.stats.records import CacheInfo
from logitcache.stats.serves import methods_served
from logitcache.store import Cache, disk_use, open_cache

__all__ = ["cache_info"]


def cache_info(cache: str | Path | Cache, *, teacher: str | None = None) -> CacheInfo:
    """Describe a cache without reading a row: teacher, data, views, encoding, size, state, and the methods that it serves.

    Two small files are opened, and the others listed, so it takes as long for 100 million rows as for ten thousand of as many files.
    An unfinished cache will do from its first block on.

    Args:
        cache: Its path or address.
        teacher: Slug of one of several teachers; None describes all of them together.

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
