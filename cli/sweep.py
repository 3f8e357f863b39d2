"""`logitcache sweep`."""

from pathlib import Path
from typing import Annotated

import typer

from .compare import print_comparison
from .options import cache_or_newest, catch_signals, expand_home, numbers

__all__ = ["sweep"]


def sweep(
    cache: Annotated[
        str | None,
        typer.Argument(metavar="CACHE", show_default=False, help="Cache to train from; default: the newest one here."),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Argument(metavar="-- OPTIONS", show_default=False, help="Options for every `train`, after `--`."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            show_default="ce, kd",
            help="Method, or `all` for every method; repeatable.",
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(metavar="N,N,...", help="Comma-separated seeds.")] = "0,1,2",
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OPTION=V,V",
            show_default=False,
            help="Option of `train`, or set.PARAMETER, with comma-separated values; repeatable.",
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="Number of runs at a time.")] = 1,
    out: Annotated[Path, typer.Option(metavar="FOLDER", callback=expand_home, help="Folder for the runs.")] = Path(
        "runs/sweep"
    ),
) -> None:
    """Train every combination of method, setting and seed, and compare means and standard deviations over seeds.

    Finished runs are not repeated. If it is stopped or killed, the same command resumes it.

    Example: logitcache sweep fashion.zarr --method ce --method kd --seeds 0,1 -- --student resnet8 --epochs 6 --sched cosine
    """
    from logitcache.runs.compare import compare_runs
    from logitcache.runs.sweep import plan_sweep, run_sweep

    varied = {}
    for one in vary or []:
        name, equals, values = one.partition("=")
        if not equals or not name or not all(values.split(",")):
            raise typer.BadParameter(f"expected OPTION=VALUE,VALUE, not {one!r}", param_hint="--vary")
        varied[name.removeprefix("--")] = values.split(",")
    if cache is not None and cache.startswith("-"):  # as in `sweep -- OPTIONS`
        cache, options = None, [str(cache), *(options or [])]
    methods, words = _named(method or ["ce", "kd"]), options or []
    on_labels = set(methods) == {"ce"} and any(word.partition("=")[0] == "--data" for word in words)  # as `train` does
    planned = plan_sweep(
        cache if on_labels else cache_or_newest(cache),
        out,
        methods=methods,
        seeds=numbers(seeds, int, "--seeds") or [],
        vary=varied,
        options=words,
    )
    with catch_signals("step") as should_stop:
        result = run_sweep(
            planned, jobs=jobs, should_stop=should_stop, on_change=lambda line: typer.echo(line, err=True)
        )
    if result.runs:
        print_comparison(compare_runs(result.runs))
    if result.failed:
        for run, line in result.failed.items():
            typer.echo(f"{run} failed: {line} (full log in {run}.log)", err=True)
        raise typer.Exit(1)


def _named(methods: list[str]) -> list[str]:
    """Replace `all` by the names of all methods."""
    if "all" not in methods:
        return methods
    from logitcache.methods import METHODS

    return list(dict.fromkeys(name for one in methods for name in (METHODS if one == "all" else [one])))
