"""`logitcache methods`."""

import inspect
from typing import Annotated

import typer

from .options import JsonOption
from .render import print_json, print_pairs, print_table

__all__ = ["methods"]


def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="[METHOD]", show_default=False, help="Show this one in full.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """List the methods: what they do, their paper and defaults; or show one with its equation.

    Example: logitcache methods rld
    """
    from logitcache.methods import METHODS, parameters_of

    if name is None:
        rows = {
            key: {
                "summary": method.summary,
                "paper": method.paper,
                "parameters": parameters_of(key),
                "ce_weight": method.ce_weight,
                "kd_weight": method.kd_weight,
                "kd_warmup": method.warmup,
                "needs": method.needs,
            }
            for key, method in METHODS.items()
        }
        if json:
            print_json(rows)
            return
        print_table(
            "methods",
            ["method", "what it does", "paper", "parameters", "CE / KD weight", "needs"],
            [
                [
                    key,
                    method.summary,
                    method.paper,
                    " ".join(f"{parameter}={value:g}" for parameter, value in parameters_of(key).items()) or "-",
                    f"{method.ce_weight:g} / {method.kd_weight:g}",
                    method.needs,
                ]
                for key, method in METHODS.items()
            ],
            left=4,
        )
        return
    known = parameters_of(name)
    method = METHODS[name]
    text = inspect.getdoc(method.loss) or method.summary
    if json:
        print_json({"name": name, "paper": method.paper, "parameters": known, "text": text})
        return
    weights = f"{method.ce_weight:g} · CE + {method.kd_weight:g} · {name}" if method.loss else "CE"
    warmup = f", the second growing over the first {method.warmup:.1%} of the epochs" if method.warmup else ""
    print_pairs(name, {"paper": method.paper, "objective": weights + warmup, "needs": method.needs})
    typer.echo(f"\n{text}")
