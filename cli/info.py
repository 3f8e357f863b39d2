"""`logitcache info`."""

from typing import Annotated

import typer

from .described import print_info
from .options import CacheArgument, JsonOption, newest_unless
from .render import print_json

__all__ = ["info"]


def info(
    cache: CacheArgument = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--cached-teacher",
            metavar="SLUG",
            show_default="all of them together",
            help="Teacher in the cache to describe, if it holds several.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show what a cache is, at once and without reading its rows: teacher, data, views, encoding, size, state, methods it serves.

    Works on unfinished caches too.

    Example: logitcache info fashion.zarr
    """
    from logitcache.stats import cache_info

    found = cache_info(newest_unless(cache), teacher=teacher)
    print_json(found.to_json()) if json else print_info(found)
