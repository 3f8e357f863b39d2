"""`logitcache train`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from logitcache.errors import InputError
from logitcache.runtime.processes import started_by_torchrun, this_one_leads
from logitcache.runtime.progress import Callbacks, Progress
from logitcache.train.settings import TrainRequest, TrainSettings

from .options import (
    CacheArgument,
    ConfigOption,
    Display,
    cache_or_newest,
    catch_signals,
    read_options,
    show_progress,
    with_options,
)

__all__ = ["train"]


@with_options(TrainRequest, TrainSettings)
def train(ctx: typer.Context, cache: CacheArgument = None, config: ConfigOption = None, **options: Any) -> None:
    """Train a student from a cache. Data, views and encoding are read from the cache.

    The defaults are the papers' CIFAR-100 recipe; for text, those that docs/text.md lists, which are printed.

    Example: logitcache train fashion.zarr --method rld --student resnet8 --epochs 6 --sched cosine
    """
    given, resumed = {"cache": cache, **read_options(ctx, TrainRequest, TrainSettings)}, dict[str, Any]()
    if given["resume"]:
        if given["out"] is None:
            raise typer.BadParameter("requires the folder of the run; add --out RUN.", param_hint="--resume")
        from logitcache.runs.directory import read_run

        run = Path(given["out"]).expanduser()
        if not (run / "run.json").exists():
            raise InputError(f"{run} has no run to resume; leave out --resume to start one.")
        recorded = read_run(run)["settings"]
        resumed = {name: recorded[name] for name in given if name in recorded and _is_default(ctx, name)}
        given |= resumed
    if given["student"] is None:
        raise typer.BadParameter("missing; add --student NAME.", param_hint="--student")
    if given["cache"] is None and not (given["method"] == "ce" and given["data"]):
        given["cache"] = cache_or_newest(None)
    if started_by_torchrun():  # torch's C++ code would warn in each process about what replicas.py does on purpose
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from logitcache.runs.metrics import read_headline
    from logitcache.train.train import train_student

    leads = this_one_leads()
    required = {"cache", "student"}
    explicit = {name: given[name] for name in given if name in {*required, *resumed} or not _is_default(ctx, name)}
    with show_progress(quiet=not leads) as display, catch_signals("step") as should_stop:
        result = train_student(**explicit, callbacks=_TrainingDisplay(display), should_stop=should_stop)
    if not leads:
        return
    line = [f"{result.path}: {given['method']}, {given['student']}"]
    headline = read_headline({"results": result.results}, {})
    if headline.name in result.results:
        line.append(f"{headline.label} {headline.text(result.results[headline.name])}")
    if "teacher_agreement" in result.results:
        line.append(f"teacher agreement {result.results['teacher_agreement']:.1%}")
    typer.echo(", ".join(line))


class _TrainingDisplay(Callbacks):
    """Shows steps in the progress bar and prints a line per epoch."""

    def __init__(self, display: Display) -> None:
        self._display = display

    def on_step(self, progress: Progress) -> None:
        self._display(progress)

    def on_epoch(self, metrics: Mapping[str, Any]) -> None:
        self._display.print(_epoch_line(metrics))


def _is_default(ctx: typer.Context, name: str) -> bool:
    """Return whether a parameter is set neither on the command line nor by --config."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "DEFAULT"


def _epoch_line(metrics: Mapping[str, Any]) -> str:
    windows = f"  in {metrics['windows']} windows" if "windows" in metrics else ""
    test = f"  test {metrics['test_accuracy']:.2%}" if "test_accuracy" in metrics else ""
    test += f"  top-5 {metrics['test_top5_accuracy']:.2%}" if "test_top5_accuracy" in metrics else ""
    test += f"  perplexity {metrics['perplexity']:.2f}" if "perplexity" in metrics else ""
    test += f"  KL {metrics['kl_to_teacher']:.4f}" if "kl_to_teacher" in metrics else ""
    test += (
        f"  teacher agreement {metrics['test_teacher_agreement']:.2%}" if "test_teacher_agreement" in metrics else ""
    )
    test += f"  ROUGE-L {metrics['rouge_l']:.2%}" if "rouge_l" in metrics else ""
    refined = f"  refined {metrics['refined_rows']:.2%}" if "refined_rows" in metrics else ""
    return (
        f"epoch {metrics['epoch']:>3}  lr {metrics['lr']:.3g}  loss {metrics['loss']:.4f}{refined}  "
        f"train {metrics['train_accuracy']:.2%}{test}  {metrics['seconds']:.1f} s{windows}"
    )
