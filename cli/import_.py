"""`logitcache import`."""

from typing import Annotated, Any

import typer

from logitcache.imports.settings import KINDS, ImportRequest, ImportSettings
from logitcache.runtime.wording import counted, kept_words, samples_words

from .options import read_options, show_progress, with_options

__all__ = ["import_"]

_SHOWN = {  # by recipe of the views: what the student sees
    "recorded-boxes": "images: the student sees the same crops as the teacher, with the same flips",
    "recorded-seeds": "images: this augmentation cannot be repeated here, so `train` refuses these rows; use logitcache.open_dataset in a "
    "training loop that makes the same images (docs/servers.md)",
}


@with_options(ImportRequest, ImportSettings)
def import_(
    ctx: typer.Context,
    kind: Annotated[
        str, typer.Argument(metavar="KIND", show_default=False, help=f"Format of the source: {', '.join(KINDS)}.")
    ],
    source: Annotated[str, typer.Argument(metavar="SOURCE", show_default=False, help="A file, or a folder of files.")],
    **options: Any,
) -> None:
    """Make a cache from rows that a server or another tool has already computed, and verify it.

    Options supply what the source does not record.

    Example: logitcache import vllm answers.jsonl --tokenizer hf:PATH --out rows.zarr
    """
    given = read_options(ctx, ImportRequest, ImportSettings)
    from logitcache.imports.import_rows import import_rows

    with show_progress() as display:
        cache = import_rows(kind, source, **given, on_progress=display)
    manifest, gives = cache.manifest, cache.manifest.teachers[0]["gives"]
    held = samples_words(manifest.to_json())
    if manifest.of_images:
        held += f" x {counted(len(manifest.views), 'view')}"
    typer.echo(f"{given['out']}: {held}, {counted(len(manifest.classes), 'class')}, finished and verified")
    typer.echo(f"rows: {kept_words(manifest.encoding)}; for temperature 1 only")
    if "label" in gives:
        what = "label" if manifest.of_images else "token"
        typer.echo(
            f"the source has no probability for a {what} outside the largest, so methods that read labels refuse these rows"
        )
    if manifest.views[0].get("recipe") in _SHOWN:
        typer.echo(_SHOWN[manifest.views[0]["recipe"]])
