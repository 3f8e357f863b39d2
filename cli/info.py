"""`logitcache info`."""

from typing import Annotated

import typer

from .described_info import print_info
from .options import CacheArgument, JsonOption, cache_or_newest
from .render import print_json

__all__ = ["info"]


def info(
    cache: CacheArgument = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--cached-teacher",
            metavar="SLUG",
            show_default="all of them",
            help="Teacher to describe, if the cache holds several.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Describe a cache without reading its rows: teacher, data, views, encoding, size, state and the methods that can use it.

    Also works on unfinished caches.

    Example: logitcache info fashion.zarr
    """
    from logitcache.stats import cache_info

    found = cache_info(cache_or_newest(cache), teacher=teacher)
    print_json(found.to_json()) if json else print_info(found)
