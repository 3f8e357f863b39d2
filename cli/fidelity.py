"""`logitcache fidelity`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from logitcache.runtime.wording import counted, encoding_words

from .options import CacheArgument, JsonOption, TeacherOption, newest_unless, parameters, spelled
from .render import print_json, print_table

if TYPE_CHECKING:
    from logitcache.caches.fidelity import Fidelity

__all__ = ["fidelity"]


def fidelity(
    cache: CacheArgument = None,
    method: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", show_default="all", help="What to measure it for; repeatable."),
    ] = None,
    temperature: Annotated[
        str | None, typer.Option(metavar="T", show_default="the method's", help="As in `logitcache train`.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", show_default=False, help="A parameter of the method; repeatable."),
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Measure the encodings that could have been chosen, too.")
    ] = False,
    teacher: TeacherOption = None,
    json: JsonOption = False,
) -> None:
    """Measure what the stored rows do to a method's loss and gradient, against rows kept in full.

    Two stand in for a student: a fresh one, and a trained one near the teacher. Gradient: norm of its error, relative.

    Example: logitcache fidelity fashion.zarr --method rld --temperature 4
    """
    from logitcache.caches.fidelity import cache_fidelity, sweep_encodings

    path = newest_unless(cache)
    settings = parameters(set_ or []) | ({} if temperature is None else {"temperature": spelled(temperature)})
    if settings and not method:
        raise typer.BadParameter("for which method? Name it with --method NAME.", param_hint="--set, --temperature")
    arguments: dict[str, Any] = {"methods": method or None, "settings": settings, "teacher": teacher}
    found = cache_fidelity(path, **arguments)
    others = sweep_encodings(path, **arguments) if sweep else []
    if json:
        print_json({"stored": found.to_json(), "sweep": [one.to_json() for one in others]})
        return
    _print(str(path), found)
    if others:
        _print_sweep(found, others)


def _print(path: str, found: "Fidelity") -> None:
    divergence = ", ".join(f"{value:.2g} at {word}" for word, value in found.kl_nats.items())
    typer.echo(
        f"{path}: {encoding_words(found.encoding)}, {found.bytes_per_row:.1f} B a row; {counted(found.rows, 'row')} kept in full"
    )
    if divergence:
        typer.echo(f"KL from exact to stored, in nats: {divergence}")
    if found.unknown_nats is not None:
        typer.echo(
            "exact is what was given: the largest, and the mass of the rest. What the shape of the rest would add to this KL at "
            f"T=1: at most {found.unknown_nats:.2g} nats"
        )
    if found.unranked:
        typer.echo(f"label not among the largest, so without rank: {found.unranked:.1%} of rows")
    rows = [
        [
            one.method,
            *(f"{_percent(part['fresh'])} / {_percent(part['trained'])}" for part in (one.loss, one.gradient)),
            f"{one.angle_degrees['fresh']:.2g} / {one.angle_degrees['trained']:.2g}",
        ]
        for one in found.methods
        if not one.refused
    ]
    columns = ["method", "loss error", "gradient error", "angle, degrees"]
    print_table("what a method notices (fresh / trained student)", columns, rows, left=1)
    for one in found.methods:
        if one.refused:
            typer.echo(f"{one.method} is refused: {one.refused}")


def _print_sweep(stored: "Fidelity", others: list["Fidelity"]) -> None:
    names = [one.method for one in stored.methods][:6]
    rows = []
    for one in others:
        errors = {error.method: error for error in one.methods}
        rows.append(
            [
                encoding_words(one.encoding) + (" (stored)" if one.encoding == stored.encoding else ""),
                f"{one.bytes_per_row:.1f}",
                *(
                    f"{one.kl_nats[word]:.1e}" if word in one.kl_nats else "not known" if one.kl_nats else "-"
                    for word in ("T=1", "T=4")
                ),
                *("refused" if errors[name].refused else _percent(errors[name].gradient["trained"]) for name in names),
            ]
        )
    columns = ["encoding", "B a row", "KL, T=1", "KL, T=4", *(f"{name}: gradient" for name in names)]
    print_table("what could have been chosen (trained student)", columns, rows, left=1)


def _percent(share: float) -> str:
    return f"{share:.2%}" if share >= 1e-4 else f"{share:.0e}"
