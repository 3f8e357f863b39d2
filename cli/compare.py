"""`logitcache compare`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import JsonOption
from .render import print_json, print_table

if TYPE_CHECKING:
    from logitcache.runs.compare import GroupSummary, RunSummary

__all__ = ["compare", "print_comparison"]


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, or folders that hold runs.")],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table of means over seeds.")] = False,
    picture: Annotated[
        Path | None,
        typer.Option(metavar="FILE.svg", show_default=False, help="Draw learning curves, and accuracy against method."),
    ] = None,
    published: Annotated[
        Path | None,
        typer.Option(metavar="RECIPE.toml", show_default=False, help="Show a recipe's published numbers beside ours."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Show runs side by side: accuracy, agreement with the teacher, time, bytes; and over seeds mean, deviation and what is gained.

    Accuracy is that of the last epoch; the best of all epochs stands apart, because it was chosen on the test images.

    Example: logitcache compare runs/ce runs/kd runs/rld
    """
    from logitcache.runs.compare import compare_runs, curves, group_runs, read_published

    found, theirs = compare_runs(runs), {} if published is None else read_published(published)
    if picture is not None:
        from logitcache.errors import InputError
        from logitcache.report import draw_runs
        from logitcache.runtime.files import write_bytes

        drawn = curves(found)
        if not drawn:
            raise InputError("none of these runs was tested: there is nothing to draw")
        write_bytes(picture, draw_runs(drawn).encode())
        typer.echo(f"{picture} drawn", err=True)
    if json:
        print_json(
            {
                "runs": [run.to_json() for run in found],
                "groups": [one.to_json() for one in group_runs(found)],
                "published": theirs,
            }
        )
    elif markdown:
        for line in _markdown(group_runs(found), theirs):
            typer.echo(line)
    else:
        print_comparison(found, theirs)


def print_comparison(found: "list[RunSummary]", published: "Mapping[str, float] | None" = None) -> None:
    """Print runs, and where one of them has other seeds or published numbers beside it, means."""
    from logitcache.runs.compare import group_runs

    _print_runs(found)
    groups = group_runs(found)
    if published or any(group.seeds > 1 for group in groups):
        head, *rows = _rows(groups, published or {})
        print_table("over seeds", head, rows, left=2)
    for again in (path for group in groups for path in group.repeats):
        typer.echo(f"{again} repeats another run's seed and is not in the means", err=True)


_HEAD = ["method", "settings", "seeds", "test accuracy", "over ce", "over kd", "s / epoch"]


def _group(group: "GroupSummary") -> list[str]:
    return [
        f"{group.method} {group.changes}".strip(),
        group.differs or f"{group.student}, {group.epochs} epochs",
        str(group.seeds),
        f"{group.test_accuracy:.2%}" + ("" if group.deviation is None else f" ± {100 * group.deviation:.2f}"),
        *(_gain(group.over.get(base)) for base in ("ce", "kd")),
        "-" if group.seconds_per_epoch is None else f"{group.seconds_per_epoch:.1f}",
    ]


def _gain(over: "tuple[float, float | None] | None") -> str:
    if over is None:
        return "-"
    return f"{100 * over[0]:+.2f}" + ("" if over[1] is None else f" ± {100 * over[1]:.2f}")


def _rows(groups: "list[GroupSummary]", published: "Mapping[str, float]") -> list[list[str]]:
    """Return head and rows of a table of means; published numbers in a column of their own, where there are any."""
    rows = [_HEAD, *map(_group, groups)]
    if not published:
        return rows
    theirs = ["published (best epoch)"]
    theirs += [f"{published[one.method]:.2f}%" if one.method in published else "-" for one in groups]
    return [[*row[:4], number, *row[4:]] for row, number in zip(rows, theirs, strict=True)]


def _markdown(groups: "list[GroupSummary]", published: "Mapping[str, float]") -> list[str]:
    head, *found = _rows(groups, published)
    rows = [head, ["---"] * len(head), *found]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]


def _print_runs(found: "list[RunSummary]") -> None:
    print_table(
        "runs",
        [
            "run",
            "method",
            "student",
            "epochs",
            "test accuracy",
            "(best epoch)",
            "agrees with teacher",
            "s / epoch",
            "bytes / sample",
        ],
        [
            [
                run.run,
                run.method
                + (f" {run.changes}" if run.changes else "")
                + (" (live teacher)" if run.logits == "live" else ""),
                run.student,
                str(run.epochs) + ("" if run.finished else ", unfinished"),
                _share(run.test_accuracy),
                _share(run.best_test_accuracy),
                _share(run.teacher_agreement),
                "-" if run.seconds_per_epoch is None else f"{run.seconds_per_epoch:.1f}",
                str(run.bytes_per_sample or "-"),
            ]
            for run in found
        ],
        left=3,
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
