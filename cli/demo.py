"""`logitcache demo`: run the main commands in sequence on the data that ships with logitcache."""

import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .options import expand_home

__all__ = ["demo", "steps"]

_TRAINING = "--student resnet8 --epochs 6 --lr 0.05 --sched cosine --warmup-epochs 1"


_STUDENT = "--student llama:hidden=48,layers=3,heads=4,kv_heads=2,intermediate=96"
_TEXT_TRAINING = f"{_STUDENT} --batch-size 4 --epochs 9 --lr 0.003 --warmup-epochs 0.4 --holdout 0.1"


def text_steps(cache: str, runs: str) -> list[tuple[str, str]]:
    """Return the steps of the demo of a language model, like `steps`."""
    cache, top, runs = shlex.quote(cache), shlex.quote(cache.removesuffix(".zarr") + "-16.zarr"), shlex.quote(runs)
    teacher = "--teacher hf:stories-mini --data stories-mini --pack stream --sequence-length 256"
    return [
        (
            "Run the teacher once over 169 stories in windows of 256 tokens, and store its logits for all 512 token ids",
            f"dump {teacher} --out {cache}",
        ),
        (
            "Store only the 16 largest logits of each row, in one byte each",
            f"dump {teacher} --top-k 16 --precision u8 --out {top}",
        ),
        ("Inspect the cache", f"stats {cache}"),
        ("Check that the cache is intact and that the tokens are those the teacher saw", f"verify {cache}"),
        (
            "Train students without a teacher, from the cache, and with calibrated logits, two at a time",
            f"sweep {cache} --method ce --method kd --method loca --seeds 0 --jobs 2 --out {runs} -- {_TEXT_TRAINING}",
        ),
        ("Train one from the 16 largest logits", f"train {top} --method kd {_TEXT_TRAINING} --out {runs}/kd-16"),
        ("Compare the runs", f"compare {runs}"),
    ]


def steps(cache: str, runs: str) -> list[tuple[str, str]]:
    """Return the steps of the demo: a title, and the command line after `logitcache`."""
    cache, runs = shlex.quote(cache), shlex.quote(runs)
    return [
        (
            "Run the teacher once, over four augmented views of 10,000 images",
            f"dump --teacher resnet20 --teacher-weights demo --data fashion-mnist-mini --augment pad-crop-flip --views 4 --out {cache}",
        ),
        ("Inspect the cache", f"stats {cache}"),
        ("Check that the cache is intact and that the data is what the teacher saw", f"verify {cache}"),
        ("Train a student from labels only", f"train {cache} --method ce {_TRAINING} --out {runs}/ce"),
        ("Train it with knowledge distillation", f"train {cache} --method kd {_TRAINING} --out {runs}/kd"),
        ("Train it with refined logits (RLD)", f"train {cache} --method rld {_TRAINING} --out {runs}/rld"),
        ("Compare the runs", f"compare {runs}/ce {runs}/kd {runs}/rld"),
    ]


def demo(
    ctx: typer.Context,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            callback=expand_home,
            show_default="a new folder here",
            help="Folder for the cache and the runs.",
        ),
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="Use a language model instead of images; requires the [lm] extra.")
    ] = False,
) -> None:
    """Dump a teacher's logits, inspect the cache, train students from it and compare them.

    Takes two to four minutes on two cores. The data and weights ship with logitcache.

    Example: logitcache demo
    """
    from logitcache.runs.directory import free_name

    folder = out or free_name(Path(), "logitcache-demo")
    folder.mkdir(parents=True, exist_ok=True)
    console, started, group = Console(highlight=False), time.monotonic(), ctx.find_root().command
    name, made = ("stories.zarr", text_steps) if text else ("fashion.zarr", steps)
    for title, line in made(str(folder / name), str(folder / "runs")):
        console.print(f"\n[bold]{title}[/]")
        console.print(f"[dim]$ logitcache {line}[/]", soft_wrap=True)
        if status := group.main(shlex.split(line), prog_name="logitcache", standalone_mode=False):
            raise typer.Exit(status)
    program = _program()
    console.print(f"\n[bold]Done in {time.monotonic() - started:.0f} s.[/] To run the same commands yourself:\n")
    for _, line in made(name, "runs"):
        typer.echo(f"{program} {line}")


def _program() -> str:
    """Return how to call this program from a shell in the current folder."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m logitcache"
    if shutil.which("logitcache") == str(called.absolute()):
        return "logitcache"
    return shlex.quote(os.path.relpath(called))
