"""Shared parts of the commands: options from settings classes, `--config`, parsing of values, progress and signals."""

import inspect
import re
import signal
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, Field
from difflib import get_close_matches
from json import JSONDecodeError, loads
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from logitcache.errors import CacheIncompleteError, StoppedError
from logitcache.runs.directory import upgrade_settings
from logitcache.runtime.progress import Progress
from logitcache.runtime.settings import Form, Settings, option_of, options_in, panel_of

from . import completion

__all__ = [
    "CacheArgument",
    "ConfigOption",
    "Display",
    "JsonOption",
    "TeacherOption",
    "cache_or_newest",
    "catch_signals",
    "expand_home",
    "numbers",
    "parameters",
    "parse_value",
    "read_options",
    "rows_or_auto",
    "samples",
    "show_progress",
    "size",
    "span",
    "stopped_message",
    "with_options",
]

_STOPPED = {  # messages for a stopped command
    "generate": "stopped; nothing was written, and the same command starts again",
    "train": "stopped; if the run has saved its state, resume it with --resume",
    **dict.fromkeys(
        ("dump", "import", "merge", "slice", "sweep"),
        "stopped; committed data is intact, and the same command resumes from there",
    ),
}
_SECONDS_BETWEEN_LINES = 10.0


def stopped_message(verb: str | None) -> str:
    """Return the message for a stopped command, with how to resume it."""
    return _STOPPED.get(verb or "", "stopped")


def expand_home(path: Path | None) -> Path | None:
    """Expand a leading `~`, which shells do not expand after `=`."""
    return path and path.expanduser()


def _load_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Use the settings in a file as defaults of this command; options on the command line take precedence."""
    if path is None:
        return None
    path = path.expanduser()
    try:
        text = path.read_text()
        content = loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, JSONDecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path} cannot be read: {error}") from error
    if isinstance(content, dict) and path.suffix == ".json":
        content = content.get("settings", content)
    if not isinstance(content, dict):
        raise typer.BadParameter(f"{path} has no settings; expected name = value")
    content = {word: value for word, value in content.items() if word != "published"}  # in recipes, for `compare`
    content = upgrade_settings(content) if path.suffix == ".json" else content
    known = _options_by_word(ctx)
    chosen: dict[str, Any] = {}
    for word, value in content.items():
        name = word.replace("-", "_")
        if name not in known:
            close = get_close_matches(name, known, n=1)
            raise typer.BadParameter(
                f"{path}: {word!r} is not an option of this command"
                + (f"; did you mean {close[0]!r}?" if close else "")
            )
        if value is not None:
            option = known[name]
            chosen[option.name] = _as_argument(value, f"{path}: {word}", option)
    ctx.default_map = {**(ctx.default_map or {}), **chosen}
    return path


def _options_by_word(ctx: typer.Context) -> dict[str, Any]:
    """Return the options of a command by their names in Python and on the command line, without dashes."""
    found: dict[str, Any] = {}
    for one in ctx.command.params:
        if one.name not in (None, "config", "help"):
            found[str(one.name)] = one
            found |= {word.strip("-").replace("-", "_"): one for word in one.opts if word.startswith("--")}
    return found


def _as_argument(value: Any, where: str, option: Any) -> Any:
    """Format a value from a file like an argument on the command line."""
    flag, assignments = getattr(option, "is_flag", False), "--set" in option.opts
    if option.multiple and not assignments:
        return [_format_value(inner) for inner in (value if isinstance(value, list) else [value])]
    if assignments:
        if isinstance(value, dict):
            return [f"{key}={_format_value(inner)}" for key, inner in value.items()]
        if isinstance(value, list) and all(isinstance(inner, str) for inner in value):
            return value
        raise typer.BadParameter(f'{where} must be a table, or a list of "name=value", not {value!r}')
    if isinstance(value, bool) != flag or isinstance(value, dict):
        raise typer.BadParameter(
            f"{where} must be {'true or false' if flag else 'a number or a string'}, not {value!r}"
        )
    return value if flag else _format_value(value)


def _format_value(value: Any) -> str:
    """Format a number, string or boolean, or a list of them."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(_format_value, value)) if isinstance(value, list | tuple) else str(value)


ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        callback=_load_config,
        is_eager=True,
        help="Read options from a TOML file or a run's run.json; options on the command line take precedence.",
        rich_help_panel="Run",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
CacheArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="CACHE",
        show_default=False,
        help="Path of the cache, or s3://BUCKET/PATH; default: the newest one here.",
        autocompletion=completion.caches,
    ),
]


TeacherOption = Annotated[
    str | None,
    typer.Option(
        "--cached-teacher",
        metavar="SLUG",
        show_default="the only one",
        help="Teacher to read, if the cache holds several; `logitcache info` lists them.",
    ),
]


# Type that Typer parses an option of each form as; optional if the default is None.
_TYPES: dict[Form, Any] = {
    "flag": bool,
    "switch": bool,
    "integer": int,
    "number": float,
    "repeated": list[str],
    "one-or-more": list[str],
    "assignments": list[str],
    "rows": Any,
}
_NOT_OPTIONS = ("argument", "python")
_COMPLETED = {"--method": completion.methods, "--student": completion.networks, "--teacher": completion.networks}


def with_options(*kinds: type[Settings]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add an option to a command for every field of the settings classes, except fields that the command declares itself."""

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(function)
        own = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
        fields = [one for kind in kinds for one in options_in(kind) if one.name not in signature.parameters]
        panels = {one.name: panel_of(kind, one) for kind in kinds for one in options_in(kind)}
        made = [_parameter(one, panels[one.name]) for one in fields if option_of(one).form not in _NOT_OPTIONS]
        keyword_only = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in [*made, *own]]
        function.__signature__ = signature.replace(parameters=keyword_only)  # type: ignore[attr-defined]
        return function

    return decorate


def _parameter(one: "Field[Any]", panel: str) -> inspect.Parameter:
    """Return the function parameter that Typer turns into the option of a field, in a panel of `--help`."""
    entry, flag = option_of(one), Settings.flag_of(one)
    assert entry.form is not None  # derived from the annotation
    required = one.default is MISSING
    words = f"{flag}/--no-{flag.removeprefix('--')}" if entry.form == "switch" else flag
    kind = _TYPES.get(entry.form, str)
    info = typer.Option(
        words,
        metavar=entry.metavar,
        min=entry.minimum,
        show_default=entry.shown or one.default is not None,
        parser=rows_or_auto if entry.form == "rows" else None,
        help=entry.help,
        rich_help_panel=panel,
        autocompletion=_COMPLETED.get(flag),
    )
    return inspect.Parameter(
        one.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if required else one.default,
        annotation=Annotated[kind | None if one.default is None else kind, info],
    )


def read_options(ctx: typer.Context, *kinds: type[Settings]) -> dict[str, Any]:
    """Return the option values of settings classes, converted to the types of their fields."""
    fields = [one for kind in kinds for one in options_in(kind) if option_of(one).form not in _NOT_OPTIONS]
    return {one.name: _read(ctx.params[one.name], option_of(one).form, Settings.flag_of(one)) for one in fields}


def _read(value: Any, form: Form | None, flag: str) -> Any:
    if form == "assignments":
        return parameters(value or [])
    if form == "repeated":
        return value or None  # None keeps a resumed run's setting
    if form == "one-or-more":
        return value[0] if value and len(value) == 1 else value or None
    if value is None:
        return None
    match form:
        case "numbers":
            return numbers(value, float, flag)
        case "integers":
            return numbers(value, int, flag)
        case "value":
            return parse_value(value)
        case "bytes":
            return size(value, flag)
        case "span":
            return span(value, flag)
        case "samples":
            return samples(value)
        case _:
            return value


def cache_or_newest(cache: str | None) -> str:
    """Return the given cache, or the newest one here, whose path is then printed on stderr."""
    if cache is not None:
        return cache
    from logitcache.store import find_newest

    found = str(find_newest())
    typer.echo(f"using {found} (the newest cache here)", err=True)
    return found


def numbers(text: str | None, kind: type, option: str) -> list[Any] | None:
    """Parse comma-separated numbers, e.g. `0.5,0.5,0.5`."""
    if text is None:
        return None
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"expected comma-separated numbers, not {text!r}", param_hint=option) from error


def rows_or_auto(text: str | int) -> int | str:
    """Parse a number of rows, or "auto"."""
    if text == "auto" or isinstance(text, int):
        return text
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise typer.BadParameter(f"expected a positive integer or auto, not {text!r}")
    return int(text)


def span(text: str | None, option: str) -> tuple[int, int] | None:
    """Parse a half-open range, e.g. `0:50000`."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+):(\d+)", text.strip())
    if not found:
        raise typer.BadParameter(f"expected FIRST:LAST, e.g. 0:50000, not {text!r}", param_hint=option)
    return int(found[1]), int(found[2])


def samples(text: str) -> str | list[int] | None:
    """Parse sample ids, e.g. `5,37`, as recorded in run.json; anything else is the path of a file."""
    if re.fullmatch(r"[0-9]+(,[0-9]+)*", text) and not Path(text).exists():
        return [int(number) for number in text.split(",")]
    return text or None


def size(text: str, option: str) -> int:
    """Parse a size in bytes, e.g. 500MB, 8GB, 1.5TB or a plain number."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*([kMGT]?)B?\s*", text)
    try:
        return int(float(found[1]) * 1000 ** " kMGT".index(found[2] or " ")) if found else int(text)
    except ValueError as error:
        raise typer.BadParameter(f"expected a size such as 500MB or 8GB, not {text!r}", param_hint=option) from error


def parameters(settings: list[str]) -> dict[str, Any]:
    """Parse `--set` arguments, e.g. `--set beta=4 --set reduction=sum`."""
    found: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise typer.BadParameter(f"expected name=value, not {setting!r}", param_hint="--set")
        if name.strip() in found:
            raise typer.BadParameter(f"{name.strip()} is set twice", param_hint="--set")
        found[name.strip()] = parse_value(value)
    return found


def parse_value(text: str) -> Any:
    """Parse a value: a number, a boolean, a string, or a comma-separated list of them."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > 1:
        return tuple(parse_value(part) for part in parts)
    try:
        return float(text)
    except ValueError:
        return {"true": True, "false": False}.get(parts[0].lower(), parts[0])


class Display(Protocol):
    """Shows progress and prints lines on stderr."""

    def __call__(self, progress: Progress) -> None:
        """Show the current progress."""

    def print(self, line: str) -> None:
        """Print a line on stderr."""


@contextmanager
def show_progress(*, quiet: bool = False) -> Iterator[Display]:
    """Show progress on stderr: a bar on a terminal, a line every ten seconds otherwise, nothing if `quiet`."""
    if quiet or not sys.stderr.isatty():  # rich would obey FORCE_COLOR and fill a log with redrawn bars
        yield _Lines(quiet=quiet)
        return
    with Bars(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
        console=Console(stderr=True, highlight=False),
        transient=True,
    ) as bars:
        yield _Bar(bars)


@contextmanager
def catch_signals(unit: str = "block") -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether the process should stop after the current unit.

    The first SIGINT or SIGTERM requests the stop and the second one stops at once. Before the function was called for the first time, no
    work has started, so the first signal stops at once.
    """
    received: list[int] = []
    when, is_polled = 0.0, False

    def on_signal(number: int, _frame: object) -> None:
        nonlocal when
        if received and time.monotonic() - when < 1:  # one request, forwarded by both the scheduler and torchrun
            return
        received.append(number)
        when = time.monotonic()
        if len(received) > 1 or not is_polled:
            raise KeyboardInterrupt
        typer.echo(f"stopping after the current {unit}; repeat to stop at once", err=True)

    def should_stop() -> bool:
        nonlocal is_polled
        is_polled = True
        return bool(received)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield should_stop
    except (CacheIncompleteError, StoppedError) as error:
        if not received:
            raise
        typer.echo(str(error), err=True)
        raise typer.Exit(128 + received[0]) from error
    except KeyboardInterrupt as error:
        typer.echo(stopped_message("train" if unit == "step" else "dump"), err=True)
        raise typer.Exit(128 + (received or [signal.SIGINT])[0]) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Bar:
    """A progress bar for the current task, with lines printed above it."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._task: TaskID | None = None
        self._name = ""

    def __call__(self, progress: Progress) -> None:
        if self._task is None or progress.task != self._name:
            if self._task is not None:
                self._bars.remove_task(self._task)
            # Starts with what was done before, so that the rows of an earlier start do not count towards the speed.
            self._task = self._bars.add_task(
                progress.task, completed=progress.done, total=progress.total, unit=progress.unit, note=progress.note
            )
            self._name = progress.task
        self._bars.update(self._task, completed=progress.done, total=progress.total, note=progress.note)

    def print(self, line: str) -> None:
        self._bars.console.print(line, markup=False, soft_wrap=True)


class _Lines:
    """Plain lines for logs, every ten seconds and at the end of each task."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet, self._name, self._last = quiet, "", 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if progress.task != self._name:
            self._name, self._last = progress.task, now
        if progress.done == progress.total or now - self._last >= _SECONDS_BETWEEN_LINES:
            self._last = now
            note = f", {progress.note}" if progress.note else ""
            self.print(f"{progress.task}: {progress.done:,}/{progress.total:,} {progress.unit}{note}")

    def print(self, line: str) -> None:
        if not self._quiet:
            typer.echo(line, err=True)
