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


_STUDENT = "--student llama:hidden=48,layers=3,heads=4,kv_heads=2,intermediate=96"
_TEXT_TRAINING = f"{_STUDENT} --batch-size 4 --epochs 9 --lr 0.003 --warmup-epochs 0.4 --holdout 0.1"


def text_steps(cache: str, runs: str) -> list[tuple[str, str]]:
    """Return what the demo of a language model does, as `steps`."""
    cache, top, runs = shlex.quote(cache), shlex.quote(cache.removesuffix(".zarr") + "-16.zarr"), shlex.quote(runs)
    teacher = "--teacher hf:stories-mini --data stories-mini --pack stream --sequence-length 256"
    return [
        (
            "Run the teacher once over 169 stories in windows of 256 tokens, and keep its logits of all 512 ids",
            f"dump {teacher} --out {cache}",
        ),
        (
            "And the 16 largest of each row alone, in a byte each",
            f"dump {teacher} --top-k 16 --precision u8 --out {top}",
        ),
        ("Look at what it said", f"stats {cache}"),
        ("Check that the cache is whole and that the tokens are those the teacher saw", f"verify {cache}"),
        (
            "Train students from tokens alone, from the cache, and with calibrated logits, two at a time",
            f"sweep {cache} --method ce --method kd --method loca --seeds 0 --jobs 2 --out {runs} -- {_TEXT_TRAINING}",
        ),
        ("And one from the 16 largest", f"train {top} --method kd {_TEXT_TRAINING} --out {runs}/kd-16"),
        ("Compare", f"compare {runs}"),
    ]


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
    text: Annotated[bool, typer.Option("--text", help="Show a language model instead; needs the extra [lm].")] = False,
) -> None:
    """Dump a teacher, look at the cache, train students from it and compare them: about two minutes on two cores, three with --text.

    Everything it needs ships with logitcache.

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
    console.print(f"\n[bold]Done in {time.monotonic() - started:.0f} s.[/] The same by hand:\n")
    for _, line in made(name, "runs"):
        typer.echo(f"{program} {line}")


def _program() -> str:
    """Spell this program so that a shell here finds it."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return f"{shlex.quote(sys.executable)} -m logitcache"
    if shutil.which("logitcache") == str(called.absolute()):
        return "logitcache"
    return shlex.quote(os.path.relpath(called))
