"""`logitcache fidelity`."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from logitcache.runtime.wording import counted, encoding_words

from .options import CacheArgument, JsonOption, TeacherOption, cache_or_newest, parameters, parse_value
from .render import print_json, print_table

if TYPE_CHECKING:
    from logitcache.caches.fidelity import Fidelity

__all__ = ["fidelity"]


def fidelity(
    cache: CacheArgument = None,
    method: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", show_default="all", help="Method to measure; repeatable."),
    ] = None,
    temperature: Annotated[
        str | None,
        typer.Option(metavar="T", show_default="the method's", help="Temperature, as in `logitcache train`."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", show_default=False, help="Parameter of the method; repeatable."),
    ] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Also measure alternative encodings.")] = False,
    teacher: TeacherOption = None,
    json: JsonOption = False,
) -> None:
    """Measure the error that the encoding causes in each method's loss and gradient, compared with rows stored in full.

    The errors are measured for two simulated students, an untrained one and a trained one close to the teacher. The gradient error is the
    relative norm of the difference.

    Example: logitcache fidelity fashion.zarr --method rld --temperature 4
    """
    from logitcache.caches.fidelity import cache_fidelity, sweep_encodings

    path = cache_or_newest(cache)
    settings = parameters(set_ or []) | ({} if temperature is None else {"temperature": parse_value(temperature)})
    if settings and not method:
        raise typer.BadParameter("requires a method; add --method NAME.", param_hint="--set, --temperature")
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
        f"{path}: {encoding_words(found.encoding)}, {found.bytes_per_row:.1f} bytes per row; measured on {counted(found.rows, 'row')}"
    )
    if divergence:
        typer.echo(f"KL(exact || stored), nats: {divergence}")
    if found.unknown_nats is not None:
        typer.echo(
            "exact means the rows as imported: the largest log-probabilities and the mass of the rest. The unknown shape of the rest could "
            f"add at most {found.unknown_nats:.2g} nats to this KL at T=1"
        )
    if found.unranked:
        typer.echo(f"label outside the k largest, rank unknown: {found.unranked:.1%} of rows")
    rows = [
        [
            one.method,
            *(f"{_percent(part['fresh'])} / {_percent(part['trained'])}" for part in (one.loss, one.gradient)),
            f"{one.angle_degrees['fresh']:.2g} / {one.angle_degrees['trained']:.2g}",
        ]
        for one in found.methods
        if not one.refused
    ]
    columns = ["method", "loss error", "gradient error", "angle (degrees)"]
    print_table("error by method (untrained / trained student)", columns, rows, left=1)
    for one in found.methods:
        if one.refused:
            typer.echo(f"{one.method} cannot use these rows: {one.refused}")


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
                    f"{one.kl_nats[word]:.1e}" if word in one.kl_nats else "unknown" if one.kl_nats else "-"
                    for word in ("T=1", "T=4")
                ),
                *("refused" if errors[name].refused else _percent(errors[name].gradient["trained"]) for name in names),
            ]
        )
    columns = ["encoding", "bytes per row", "KL at T=1", "KL at T=4", *(f"{name}: gradient" for name in names)]
    print_table("gradient error by encoding (trained student)", columns, rows, left=1)


def _percent(share: float) -> str:
    return f"{share:.2%}" if share >= 1e-4 else f"{share:.0e}"
