"""`logitcache verify`."""

from typing import TYPE_CHECKING, Annotated

import typer

from logitcache.runtime.wording import counted

from .options import CacheArgument, JsonOption, newest_unless, show_progress
from .render import print_json

if TYPE_CHECKING:
    from logitcache.caches.verify import VerifyReport

__all__ = ["verify"]


def verify(
    cache: CacheArgument = None,
    data: Annotated[
        str | None, typer.Option(metavar="SPEC", show_default="as dumped", help="The data, where it has moved.")
    ] = None,
    check_rows: Annotated[
        int,
        typer.Option(
            min=0,
            help="Rows of each view to render again and compare with what the teacher was shown; 0 leaves the data alone.",
        ),
    ] = 256,
    replay: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="Run the teacher again on N rows over all views, and compare with what is stored."
        ),
    ] = 0,
    teacher: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", show_default="as dumped", help="For --replay: the teacher, under the name it has now."
        ),
    ] = None,
    teacher_weights: Annotated[
        str | None,
        typer.Option(metavar="FILE", show_default="as dumped", help="For --replay: its weights, where they are now."),
    ] = None,
    device: Annotated[str, typer.Option(metavar="NAME", help="For --replay: where the teacher runs.")] = "auto",
    repair: Annotated[
        bool, typer.Option("--repair", help="Drop damaged blocks; the dump's own command then writes them again.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Check that a cache is whole, and that the data still looks as the teacher saw it.

    Exit code 0: all is well. 1: something is not, and it is said what.

    Example: logitcache verify fashion.zarr
    """
    from logitcache.caches.verify import verify_cache

    path = newest_unless(cache)
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
        typer.echo(f"{report.path}: {count} {'file is' if count == 1 else 'files are'} not what was written.")
        if report.repaired:
            typer.echo("They were dropped; the cache is unfinished until the dump's own command is run again.")
        else:
            typer.echo(
                f"`logitcache verify --repair {report.path}` drops them, so that the dump's own command writes them again."
            )
        return
    exact = "within rounding" if report.probe_gap == 0 else f"to {report.probe_gap:.1e}, relative"
    are = "is" if report.blocks == 1 else "are"
    typer.echo(f"{report.path}: {counted(report.blocks, 'block')} {are} what was written; the probe agrees {exact}")
    if report.pixels_problem:
        typer.echo(report.pixels_problem)
    elif report.pixels_checked is None:
        typer.echo(
            "pixels were not compared (--check-rows 0, or images that another tool augmented in a way that cannot be repeated)"
        )
    else:
        same = "the same pixels as" if report.counted == "rows" else "the same as"
        typer.echo(f"{report.pixels_checked:,} {report.counted} rendered again: {same} the teacher was shown")
    if report.replay_problem:
        typer.echo(report.replay_problem)
    elif report.replayed is not None:
        gap = "within rounding" if report.replay_gap == 0 else f"to {report.replay_gap:.1e}, relative"
        typer.echo(f"{report.replayed:,} {report.counted} asked of the teacher again: it agrees {gap}")
