"""`logitcache slice`."""

from typing import Annotated, Any

import typer

from logitcache.caches.settings import SliceRequest, SliceSettings
from logitcache.runtime.wording import shape_words

from .options import read_options, show_progress, with_options

__all__ = ["slice_"]


@with_options(SliceRequest, SliceSettings)
def slice_(
    ctx: typer.Context,
    cache: Annotated[str, typer.Argument(metavar="CACHE", show_default=False, help="Cache to slice.")],
    **options: Any,
) -> None:
    """Write a part of a cache as a new cache, without the teacher: fewer views, samples, teachers, logits per row or bits.

    Example: logitcache slice fashion.zarr --out small.zarr --views 2 --top-k 4 --precision u8
    """
    given = read_options(ctx, SliceRequest, SliceSettings)
    from logitcache.caches.slice import slice_cache

    with show_progress() as display:
        part = slice_cache(cache, **given, on_progress=display)
    manifest = part.manifest
    typer.echo(f"{given['out']}: {shape_words(manifest.samples, len(manifest.views))}, finished")
