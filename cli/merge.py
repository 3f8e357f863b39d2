"""`logitcache merge`."""

from typing import Annotated

import typer

from logitcache.runtime.wording import shape_words

from .options import show_progress

__all__ = ["merge"]


def merge(
    caches: Annotated[list[str], typer.Argument(metavar="CACHE", show_default=False, help="Two caches or more.")],
    out: Annotated[str, typer.Option(metavar="PATH", show_default=False, help="Where the new cache goes.")],
    average: Annotated[
        bool, typer.Option("--average", help="Store the mean of several teachers' logits for the same views.")
    ] = False,
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Accept other devices, batch sizes and library versions.")
    ] = False,
) -> None:
    """Put caches together: other samples of one data set are joined, other views follow one another, teachers are averaged.

    Everything else must be the same; what differs is named.

    Example: logitcache merge first-half.zarr second-half.zarr --out whole.zarr
    """
    from logitcache.caches.merge import merge_caches

    with show_progress() as display:
        manifest = merge_caches(caches, out, average=average, allow_mixed=allow_mixed, on_progress=display).manifest
    typer.echo(f"{out}: {shape_words(manifest.samples, len(manifest.views))}, complete")
