"""`logitcache merge`."""

from typing import Annotated

import typer

from logitcache.runtime.wording import shape_words

from .options import show_progress

__all__ = ["merge"]


def merge(
    caches: Annotated[
        list[str], typer.Argument(metavar="CACHE", show_default=False, help="Caches to merge, two or more.")
    ],
    out: Annotated[str, typer.Option(metavar="PATH", show_default=False, help="Path of the new cache.")],
    average: Annotated[
        bool, typer.Option("--average", help="Average the logits of several teachers for the same views.")
    ] = False,
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Allow different devices, batch sizes and library versions.")
    ] = False,
) -> None:
    """Merge caches: join ranges of samples of one data set, append views, or average teachers.

    Everything else must be the same. If not, the error message names the differences.

    Example: logitcache merge first-half.zarr second-half.zarr --out whole.zarr
    """
    from logitcache.caches.merge import merge_caches

    with show_progress() as display:
        manifest = merge_caches(caches, out, average=average, allow_mixed=allow_mixed, on_progress=display).manifest
    typer.echo(f"{out}: {shape_words(manifest.samples, len(manifest.views))}, finished")
