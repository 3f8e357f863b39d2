"""`logitcache slice`."""

from typing import Annotated

import typer

from logitcache.runtime.wording import shape_words

from .options import TeacherOption, show_progress, span

__all__ = ["slice_"]


def slice_(
    cache: Annotated[str, typer.Argument(metavar="CACHE", show_default=False, help="The larger cache.")],
    out: Annotated[str, typer.Option(metavar="PATH", show_default=False, help="Where the smaller one goes.")],
    views: Annotated[
        int | None, typer.Option(metavar="V", min=1, show_default="all", help="How many of its views, the first ones.")
    ] = None,
    samples: Annotated[
        str | None,
        typer.Option(metavar="A:B", show_default="all", help="Which samples of the data, from A to one before B."),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(metavar="K", min=1, show_default="all there are", help="How many of the largest logits of a row."),
    ] = None,
    precision: Annotated[
        str | None, typer.Option(metavar="f32|f16|u8", show_default="as it is", help="Of what is kept.")
    ] = None,
    teacher: TeacherOption = None,
) -> None:
    """Write a part of a cache as a cache of its own, without the teacher: fewer views, samples, teachers, logits, bits.

    Example: logitcache slice fashion.zarr --out small.zarr --views 2 --top-k 4 --precision u8
    """
    from logitcache.caches.slice import slice_cache

    with show_progress() as display:
        part = slice_cache(
            cache,
            out,
            views=views,
            samples=span(samples, "--samples"),
            top_k=top_k,
            precision=precision,
            teacher=teacher,
            on_progress=display,
        )
    manifest = part.manifest
    typer.echo(f"{out}: {shape_words(manifest.samples, len(manifest.views))}, complete")
