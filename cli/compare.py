"""`logitcache compare`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from logitcache.runtime.wording import counted

from .options import JsonOption, expand_home
from .render import print_json, print_table

if TYPE_CHECKING:
    from logitcache.runs.compare import GroupSummary, Published, RunSummary
    from logitcache.runs.metrics import Metric

_Summary = TypeVar("_Summary", "RunSummary", "GroupSummary")

__all__ = ["compare", "print_comparison"]


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders, or folders that contain runs.")],
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown table of means over seeds.")] = False,
    picture: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.svg",
            callback=expand_home,
            show_default=False,
            help="Draw learning curves and the final result of each method.",
        ),
    ] = None,
    published: Annotated[
        Path | None,
        typer.Option(
            metavar="RECIPE.toml",
            callback=expand_home,
            show_default=False,
            help="Show a recipe's published accuracies next to the measured ones.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Compare runs: test metric, agreement with the teacher, time and memory, with mean, standard deviation and gain over seeds.

    The test metric is the accuracy, or the run's own headline metric, after the last epoch. The best epoch has its own column, because it
    was selected on the test data. A positive gain means that the method is better, also for metrics where lower is better. Unfinished runs
    are listed, but left out of means, gains and pictures.

    Example: logitcache compare runs/ce runs/kd runs/rld
    """
    from logitcache.runs.compare import compare_runs, curves, group_runs, headlines, read_published

    found, theirs = compare_runs(runs), None if published is None else read_published(published)
    _print_unfinished(found)
    if picture is not None:
        from logitcache.errors import InputError
        from logitcache.report import draw_runs
        from logitcache.runtime.files import write_bytes

        finished = [run for run in found if run.finished]
        drawn = curves(finished)
        if not drawn:
            raise InputError("cannot draw: none of these runs has finished with a test result")
        (metric,) = headlines(run for run in finished if run.value is not None)
        write_bytes(picture, draw_runs(drawn, metric).encode())
        typer.echo(f"wrote {picture}", err=True)
    if json:
        print_json(
            {
                "runs": [run.to_json() for run in found],
                "groups": [one.to_json() for one in group_runs(found)],
                "published": {} if theirs is None else theirs.accuracies,
                "published_under_other_conditions": [] if theirs is None else theirs.differences(found),
            }
        )
    elif markdown:
        groups = group_runs(found)
        for number, part in enumerate(_by_headline(groups) or [groups]):
            typer.echo("\n" * (number > 0) + "\n".join(_markdown(part, theirs)))
        _print_headlines(groups)
        _print_conditions(found, theirs)
    else:
        print_comparison(found, theirs)


def print_comparison(found: "list[RunSummary]", published: "Published | None" = None) -> None:
    """Print a table of runs, and a table of means if there are several seeds or published numbers."""
    from logitcache.runs.compare import group_runs

    for runs in _by_headline(found) or [found]:
        _print_runs(runs)
    groups = group_runs(found)
    if published or any(group.seeds > 1 for group in groups):
        for part in _by_headline(groups) or [groups]:
            head, *rows = _rows(part, published)
            print_table("over seeds", head, rows, left=2)
    _print_headlines(found)
    _print_conditions(found, published)
    for again in (path for group in groups for path in group.repeats):
        typer.echo(f"{again} has the same seed as another run and is left out of the means", err=True)


def _by_headline(found: "Sequence[_Summary]") -> "list[list[_Summary]]":
    """Group runs, or groups of runs, by headline metric."""
    from logitcache.runs.compare import headlines

    return [[one for one in found if one.headline == metric] for metric in headlines(found)]


def _print_unfinished(found: "Sequence[RunSummary]") -> None:
    """Name each unfinished run with the epoch that it has reached; its values cannot be compared with those of finished runs."""
    for run in found:
        if not run.finished:
            typer.echo(
                f"{run.run} is unfinished: it has done {run.epochs_done} of {counted(run.epochs, 'epoch')}. It is listed with its last "
                "values, and left out of means, gains and pictures; train with --resume to finish it.",
                err=True,
            )


def _print_headlines(found: "Sequence[RunSummary | GroupSummary]") -> None:
    from logitcache.runs.compare import headlines

    if len(different := headlines(found)) > 1:
        names = "; ".join(f"{one.heading}, {one.better} is better" for one in different)
        typer.echo(f"these runs have different headline metrics ({names}); each metric has its own table", err=True)


def _print_conditions(found: "Sequence[RunSummary]", published: "Published | None") -> None:
    """Warn if the published numbers were measured under different conditions than the runs."""
    if published and (differ := published.differences(found)):
        typer.echo(
            f"the published numbers were measured under different conditions ({'; '.join(differ)}) and are no baseline for these runs",
            err=True,
        )


def _head(metric: "Metric") -> list[str]:
    gain = "over" if metric.better == "higher" else "gain over"
    return ["method", "settings", "seeds", metric.heading, f"{gain} ce", f"{gain} kd", "s / epoch"]


def _group(group: "GroupSummary", *, with_training: bool = False) -> list[str]:
    """Return a row of the table of means; with `with_training`, student and epochs are always included in the settings."""
    metric, trained = group.headline, f"{group.student}, {counted(group.epochs, 'epoch')}"
    return [
        f"{group.method} {group.changes}".strip(),
        f"{trained}, {group.differs}" if group.differs and with_training else group.differs or trained,
        str(group.seeds),
        metric.cell(group.mean) + ("" if group.deviation is None else f" ± {metric.spread(group.deviation)}"),
        *(_gain(metric, group.over.get(base)) for base in ("ce", "kd")),
        "-" if group.seconds_per_epoch is None else f"{group.seconds_per_epoch:.1f}",
    ]


def _gain(metric: "Metric", over: "tuple[float, float | None] | None") -> str:
    if over is None:
        return "-"
    return metric.difference(over[0]) + ("" if over[1] is None else f" ± {metric.spread(over[1])}")


def _rows(groups: "list[GroupSummary]", published: "Published | None") -> list[list[str]]:
    """Return the header and rows of the table of means, with a column of published accuracies if there are any."""
    from logitcache.runs.metrics import ACCURACY

    metric = groups[0].headline if groups else ACCURACY
    if not published or metric != ACCURACY:
        return [_head(metric), *map(_group, groups)]
    of = "best epoch" if published.epochs is None else f"best of {counted(published.epochs, 'epoch')}"
    numbers = [published.accuracies.get(one.method) for one in groups]
    theirs = [f"published ({of})", *("-" if number is None else f"{number:.2f}%" for number in numbers)]
    rows = [_head(metric), *(_group(one, with_training=True) for one in groups)]
    return [[*row[:4], number, *row[4:]] for row, number in zip(rows, theirs, strict=True)]


def _markdown(groups: "list[GroupSummary]", published: "Published | None") -> list[str]:
    head, *found = _rows(groups, published)
    rows = [head, ["---"] * len(head), *found]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]


def _print_runs(found: "list[RunSummary]") -> None:
    from logitcache.runs.metrics import ACCURACY

    metric = found[0].headline if found else ACCURACY
    top5, kl = (
        any(getattr(run, name) is not None for run in found) for name in ("test_top5_accuracy", "kl_to_teacher")
    )
    head = ["run", "method", "student", "epochs", metric.heading, "(best epoch)", *["top-5"] * top5]
    head += ["KL to teacher (nats)"] * kl
    rows = [
        [
            run.run,
            run.method
            + (f" {run.changes}" if run.changes else "")
            + (" (live teacher)" if run.logits == "live" else ""),
            run.student,
            ("" if run.finished else f"{run.epochs_done} of ")
            + str(run.epochs)
            + f" ({run.extended})" * bool(run.extended),
            metric.cell(run.value),
            metric.cell(run.best),
            *[_share(run.test_top5_accuracy)] * top5,
            *["-" if run.kl_to_teacher is None else f"{run.kl_to_teacher:.3f}"] * kl,
            _share(run.teacher_agreement),
            "-" if run.seconds_per_epoch is None else f"{run.seconds_per_epoch:.1f}",
            str(run.bytes_per_sample or "-"),
        ]
        for run in found
    ]
    memory = f"in memory, B / {'sample' if metric == ACCURACY else 'row'}"  # for images, each sample is one row
    print_table("runs", [*head, "teacher agreement", "s / epoch", memory], rows, left=3)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
