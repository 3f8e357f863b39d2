"""`logitcache demo`: the other commands, one after the other, on the data that ships with logitcache."""

import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .options import at_home

__all__ = ["demo", "steps"]

_TRAINING = "--student resnet8 --epochs 6 --lr 0.05 --sched cosine --warmup-epochs 1"


def steps(cache: str, runs: str) -> list[tuple[str, str]]:
    """Return what the demo does: what for, and the command line after `logitcache`."""
    cache, runs = shlex.quote(cache), shlex.quote(runs)
    return [
        (
            "Run the teacher once, over four augmented views of 10,000 images",
            f"dump --teacher resnet20 --teacher-weights demo --data fashion-mnist-mini --augment pad-crop-flip --views 4 --out {cache}",
        ),
        ("Look at what it said", f"stats {cache}"),
        ("Check that the cache is whole and that the data still looks as the teacher saw it", f"verify {cache}"),
        ("Train a student from labels alone", f"train {cache} --method ce {_TRAINING} --out {runs}/ce"),
        ("Train it from the cache: knowledge distillation", f"train {cache} --method kd {_TRAINING} --out {runs}/kd"),
        ("And with refined logits", f"train {cache} --method rld {_TRAINING} --out {runs}/rld"),
        ("Compare", f"compare {runs}/ce {runs}/kd {runs}/rld"),
    ]


def demo(
    ctx: typer.Context,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", callback=at_home, show_default="a new folder here", help="Where cache and runs go."
        ),
    ] = None,
) -> None:
    """Dump a teacher, look at the cache, train three students from it and compare them: about two minutes on two cores.

    Everything it needs ships with logitcache.

    Example: logitcache demo
    """
    from logitcache.runs.directory import free_name

    folder = out or free_name(Path(), "logitcache-demo")
    folder.mkdir(parents=True, exist_ok=True)
    console, started, group = Console(highlight=False), time.monotonic(), ctx.find_root().command
    for title, line in steps(str(folder / "fashion.zarr"), str(folder / "runs")):
        console.print(f"\n[bold]{title}[/]")
        console.print(f"[dim]$ logitcache {line}[/]", soft_wrap=True)
        group.main(shlex.split(line), prog_name="logitcache", standalone_mode=False)
    program = _program()
    console.print(f"\n[bold]Done in {time.monotonic() - started:.0f} s.[/] The same by hand:\n")
    for _, line in steps("fashion.zarr", "runs"):
        typer.echo(f"{program} {line}")


def _program() -> str:
    """Spell this program so that a shell here finds it."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m logitcache"
    if shutil.which("logitcache") == str(called.absolute()):
        return "logitcache"
    return shlex.quote(os.path.relpath(called))
