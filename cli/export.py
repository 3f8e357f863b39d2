"""`logitcache export`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import CacheArgument, TeacherOption, cache_or_newest, expand_home, numbers, show_progress

__all__ = ["export"]


def export(
    cache: CacheArgument = None,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            callback=expand_home,
            show_default=False,
            help="File to write: FILE.parquet, or FILE.safetensors (one file per view).",
        ),
    ] = ...,  # type: ignore[assignment]
    view_ids: Annotated[
        str | None,
        typer.Option(metavar="V,V", show_default="all", help="Comma-separated numbers of the views to export."),
    ] = None,
    teacher: TeacherOption = None,
    layout: Annotated[
        str,
        typer.Option(
            metavar="rows|documents",
            help="One row per row of the cache, or for text one row per document, with lists of token ids and log-probabilities.",
        ),
    ] = "rows",
    anonymous: Annotated[
        bool,
        typer.Option("--anonymous", help="Remove paths and addresses from the manifest in the file."),
    ] = False,
) -> None:
    """Export rows for other tools, as Parquet (pandas, polars, DuckDB, Spark) or safetensors.

    Columns: view, sample, label, digest and logits; for a top-k cache, ids, values and rest (the logit of each other class) instead of
    logits. With --layout documents: input_ids, token_ids and top_values, where list i is the distribution of token i + 1.

    Example: logitcache export fashion.zarr --out fashion.parquet --view-ids 0,1
    """
    from logitcache.caches.export import export_cache

    path, chosen = cache_or_newest(cache), numbers(view_ids, int, "--view-ids")
    with show_progress() as display:
        files = export_cache(
            path, out, view_ids=chosen, teacher=teacher, layout=layout, anonymous=anonymous, on_progress=display
        )
    for file in files:
        typer.echo(f"{file}: {file.stat().st_size:,} bytes")
