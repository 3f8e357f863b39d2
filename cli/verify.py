"""`logitcache verify`."""

from typing import TYPE_CHECKING, Annotated

import typer

from logitcache.runtime.wording import counted

from .options import CacheArgument, JsonOption, cache_or_newest, show_progress
from .render import print_json

if TYPE_CHECKING:
    from logitcache.caches.verify import VerifyReport

__all__ = ["verify"]


def verify(
    cache: CacheArgument = None,
    data: Annotated[
        str | None, typer.Option(metavar="SPEC", show_default="as dumped", help="Data set, if it has moved.")
    ] = None,
    check_rows: Annotated[
        int,
        typer.Option(
            min=0,
            help="Rows of each view to render again and compare with the stored digests; 0 skips the data.",
        ),
    ] = 256,
    replay: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="Run the teacher again on N rows in total and compare with the stored logits.",
        ),
    ] = 0,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default="as dumped", help="For --replay: teacher, if its name has changed."),
    ] = None,
    teacher_weights: Annotated[
        str | None,
        typer.Option(metavar="FILE", show_default="as dumped", help="For --replay: weights, if they have moved."),
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="For --replay: device to run the teacher on.")] = "auto",
    repair: Annotated[
        bool, typer.Option("--repair", help="Drop damaged blocks; the dump command then writes them again.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Check that a cache is intact and that the data is still what the teacher saw.

    The exit code is 0 if all checks pass and 1 otherwise.

    Example: logitcache verify fashion.zarr
    """
    from logitcache.caches.verify import verify_cache

    path = cache_or_newest(cache)
    with show_progress(quiet=json) as display:
        report = verify_cache(
            path,
            data=data,
            check_rows=check_rows,
            replay=replay,
            teacher=teacher,
            teacher_weights=teacher_weights,
            device=device,
            repair=repair,
            on_progress=display,
        )
    if json:
        print_json(report.to_json())
    else:
        _print(report)
    if not report.ok:
        raise typer.Exit(1)


def _print(report: "VerifyReport") -> None:
    for problem in report.problems:
        typer.echo(f"  {problem.file}: {problem.problem}")
    if report.problems:
        count = len(report.problems)
        typer.echo(f"{report.path}: {count} {'file is' if count == 1 else 'files are'} missing or damaged.")
        if report.repaired:
            typer.echo("The damaged blocks were dropped. Run the dump command again to write them.")
        else:
            typer.echo(
                f"`logitcache verify --repair {report.path}` drops the damaged blocks, so that the dump command writes them again."
            )
        return
    exact = "within rounding" if report.probe_gap == 0 else f"to a relative difference of {report.probe_gap:.1e}"
    typer.echo(f"{report.path}: {counted(report.blocks, 'block')} intact; the probe agrees {exact}")
    if report.pixels_problem:
        typer.echo(report.pixels_problem)
    elif report.pixels_checked is None:
        typer.echo("pixels were not compared (--check-rows 0, or another tool's augmentation that cannot be repeated)")
    else:
        same = "the same pixels as" if report.counted == "rows" else "the same as"
        typer.echo(f"{report.pixels_checked:,} {report.counted} rendered again: {same} the teacher saw")
    if report.replay_problem:
        typer.echo(report.replay_problem)
    elif report.replayed is not None:
        gap = "within rounding" if report.replay_gap == 0 else f"to a relative difference of {report.replay_gap:.1e}"
        typer.echo(f"teacher run again on {report.replayed:,} {report.counted}: its logits agree {gap}")
