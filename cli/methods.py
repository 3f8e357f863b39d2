"""`logitcache methods`."""

from dataclasses import asdict
from typing import Annotated

import typer

from .options import JsonOption
from .render import print_json, print_pairs, print_table

__all__ = ["methods"]


def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="METHOD", show_default=False, help="Method to describe in full.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """List the methods with their papers and defaults, or describe one with its equation.

    Example: logitcache methods rld
    """
    from logitcache.methods import METHODS, describe, expected_tasks, spell

    if name is None:
        found = [describe(key) for key in METHODS]
        if json:
            print_json({one.name: asdict(one) for one in found})
            return
        rows = [
            [
                one.name,
                one.summary,
                one.paper,
                " ".join(f"{word}={default}" for word, default, _ in one.parameters) or "-",
                one.objective.partition(",")[0],
                one.needs.partition(";")[0]
                + (", coupled" if METHODS[one.name].couples_batch else "")
                + (", or draws" if "draws" in one.needs else ""),
                *([_gains(one.name)] if expected_tasks() else []),
            ]
            for one in found
        ]
        heads = ["method", "what it does", "paper", "parameters", "objective", "needs"]
        if expected_tasks():
            heads.append("gain over ce (points)")
        print_table("methods", heads, rows, left=6)
        return
    one = describe(name)
    if json:
        print_json(asdict(one))
        return
    facts = {
        "paper": one.paper,
        "checked against": one.source,
        "objective": one.objective,
        "pieces": one.pieces,
        "needs": one.needs,
    }
    print_pairs(name, {word: fact for word, fact in facts.items() if fact})
    typer.echo(f"\n{one.text or one.summary}\n")
    if one.parameters:
        print_table("parameters", ["--set", "default", "description"], [list(row) for row in one.parameters], left=3)
    if one.presets:
        settings = [
            [key, " ".join(f"{word}={spell(value)}" for word, value in preset.items())]
            for key, preset in one.presets.items()
        ]
        print_table("presets", ["--preset", "settings"], settings)
    for word, text in one.notes.items():
        typer.echo(f"\n{word}: {text}")
    if one.expected:
        typer.echo("\nTest accuracy with the defaults (see docs/methods.md for how it was measured):")
        for task, text in one.expected.items():
            typer.echo(f"  {task}: {text}")
        for changes, measured in one.variants.items():
            typer.echo(f"With {changes}:")
            for task, text in measured.items():
                typer.echo(f"  {task}: {text}")
    if one.warning:
        typer.echo(typer.style(f"\n{one.warning[0].upper()}{one.warning[1:]}.", fg="red"))


def _gains(name: str) -> str:
    """Format a method's gain over cross-entropy on each task, e.g. `demo +3.2 ± 0.3`."""
    from logitcache.methods import expected_of

    gaps = [(one.task.name, one.over["ce"]) for one in expected_of(name) if "ce" in one.over]
    return ", ".join(f"{task} {gap}" for task, gap in gaps) or "-"
