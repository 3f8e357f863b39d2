"""`logitcache stats`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from logitcache.runtime.files import check_target

from .described import print_advice, print_compared, print_described
from .options import CacheArgument, JsonOption, cache_or_newest, expand_home, show_progress
from .render import print_json

if TYPE_CHECKING:
    from logitcache.caches.fidelity import Fidelity
    from logitcache.stats import CacheStats

__all__ = ["stats"]

_GOOD = ["none; the encoding costs the usual methods little of their gradient"]
_NONE = ["not available until the cache is finished, because it is measured on the probe"]


def stats(
    cache: CacheArgument = None,
    other: Annotated[
        str | None,
        typer.Argument(metavar="OTHER", show_default=False, help="A second cache of the same data, to compare with."),
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--cached-teacher",
            metavar="SLUG",
            show_default="the only one",
            help="Teacher to read, if a cache holds several; for two caches SLUG,SLUG, or one SLUG for both.",
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Print all statistics, not only the summary.")] = False,
    json: JsonOption = False,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="FILE.html",
            callback=expand_home,
            show_default=False,
            help="Also write an HTML report with figures and images.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="SPEC",
            show_default="as dumped",
            help="Data set with the images for the report, if it has moved.",
        ),
    ] = None,
    advise: Annotated[
        bool,
        typer.Option("--advise", help="Measure what the encoding costs the usual methods, and suggest a better one."),
    ] = False,
) -> None:
    """Describe the rows of a cache: quality of the teacher, size, effect of each method, likely label errors and duplicates.

    Teacher accuracy, calibration, agreement between views (perplexity for text) and bytes per row come first; --all prints the rest.
    With two caches, print their agreement, their KL divergence, and which to prefer.

    Example: logitcache stats fashion.zarr
    """
    from logitcache.stats import cache_stats

    if report is not None:
        check_target(report)
    if other is not None:
        if advise or data or (teacher or "").count(",") > 1:
            raise typer.BadParameter("two caches cannot be combined with --advise, --data or more than two teachers.")
        _compare(cache_or_newest(cache), other, teacher, report, json)
        return
    path = cache_or_newest(cache)
    if report is not None:
        from logitcache.report import refuse_report
        from logitcache.store import open_cache

        refuse_report(open_cache(path, unfinished=True).manifest.modality, path)
    with show_progress(quiet=json) as display:
        found = cache_stats(path, teacher=teacher, on_progress=display)
    if not json:
        print_described(found, everything=everything)
    fidelity, sentences = _measure(found, path, teacher, report) if advise or report else (None, None)
    if json:
        print_json(found.to_json() | ({"advice": sentences} if advise else {}))
    elif advise:
        print_advice(_NONE if sentences is None else sentences or _GOOD)
    if report is not None:
        from logitcache.report import write_report

        why = write_report(report, found, path, fidelity=fidelity, advice=sentences or [], data=data)
        typer.echo(f"wrote {report}. {why}".strip(), err=True)


def _measure(
    found: "CacheStats", path: str, teacher: str | None, report: Path | None
) -> "tuple[Fidelity | None, list[str] | None]":
    """Return the fidelity of every method if there is a report, and the advice; both None if the cache is incomplete."""
    from logitcache.caches.fidelity import advice, cache_fidelity

    if not found.health.whole:
        return None, None
    fidelity = None if report is None else cache_fidelity(path, teacher=teacher)
    return fidelity, advice(path, teacher=teacher, measured=fidelity)


def _compare(path: str, other: str, teacher: str | None, report: Path | None, json: bool) -> None:
    from logitcache.stats import compare_caches
    from logitcache.store import open_cache

    slugs = (teacher or "").split(",")
    chosen = (slugs[0] or None, slugs[-1] or None)
    with show_progress(quiet=json) as display:
        opened = open_cache(other)
        compared = compare_caches(path, opened, teachers=chosen, on_progress=display)
    manifest = opened.manifest.to_json()
    print_json(compared.to_json()) if json else print_compared(compared, manifest)
    if report is not None:
        from logitcache.report import write_comparison

        write_comparison(report, compared, opened.manifest.classes, manifest)
        typer.echo(f"wrote {report}.", err=True)
