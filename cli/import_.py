"""`logitcache import`."""

from typing import Annotated, Any

import typer

from logitcache.imports.settings import KINDS, ImportRequest, ImportSettings
from logitcache.runtime.wording import counted, kept_words, samples_words

from .options import read_options, show_progress, with_options

__all__ = ["import_"]

_SHOWN = {  # recipe of the views to what students are shown
    "recorded-boxes": "images: students are shown the boxes that the teacher was shown, mirrored as they were",
    "recorded-seeds": "images: their augmentation cannot be repeated here, so that `train` refuses these rows; a loop that makes the same "
    "images takes them from logitcache.open_dataset (docs/servers.md)",
}


@with_options(ImportRequest, ImportSettings)
def import_(
    ctx: typer.Context,
    kind: Annotated[
        str, typer.Argument(metavar="KIND", show_default=False, help=f"Format of the source: {', '.join(KINDS)}.")
    ],
    source: Annotated[str, typer.Argument(metavar="SOURCE", show_default=False, help="A file, or a folder of them.")],
    **options: Any,
) -> None:
    """Make a cache of rows that a server or another tool has computed already, and verify it.

    What the source does not say, and cannot be found out from it, is asked for.

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
    typer.echo(f"{given['out']}: {held}, {counted(len(manifest.classes), 'class')}, complete and verified")
    typer.echo(f"rows: {kept_words(manifest.encoding)}; temperature 1 alone")
    if "label" in gives:
        what = "label" if manifest.of_images else "token"
        typer.echo(
            f"the source does not say how likely a {what} is that is not among the largest: methods that read labels refuse these rows"
        )
    if manifest.views[0].get("recipe") in _SHOWN:
        typer.echo(_SHOWN[manifest.views[0]["recipe"]])
