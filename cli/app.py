"""The `logitcache` command: its subcommands, and the one place that turns exceptions into an error message and an exit code.

Heavy imports are inside the commands, so that `logitcache --help` does not wait for torch.
"""

import importlib.metadata
import logging
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand, TyperGroup

from logitcache.errors import LogitCacheError, first_line, reason_of, speaking_to_the_command_line
from logitcache.runtime.memory import keep_freed_memory
from logitcache.runtime.processes import this_one_leads

from .compare import compare
from .demo import demo
from .dump import dump
from .export import export
from .fidelity import fidelity
from .generate import generate
from .import_ import import_
from .info import info
from .merge import merge
from .methods import methods
from .options import stopped_message
from .slice import slice_
from .stats import stats
from .sweep import sweep
from .train import train
from .verify import verify

__all__ = ["USAGE", "app", "main"]


# ClickException, whose module differs between versions of Typer.
USAGE_ERRORS: type[Any] = typer.BadParameter.__mro__[2]
_RENAMED = {  # old names of options, with their new names
    "--report-to": "--log-to",
    "--rows": "--check-rows",
    "--teacher": "--cached-teacher",
    "--views": "--view-ids",
}


class _Boundary(TyperGroup):
    """Reports any exception as one line on stderr, with exit code 1. Usage errors keep exit code 2."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        with speaking_to_the_command_line():
            return self._invoke(ctx)

    def _invoke(self, ctx: typer.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (USAGE_ERRORS, typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt as error:
            typer.echo(stopped_message(ctx.invoked_subcommand), err=True)
            raise typer.Exit(130) from error
        except BaseException as error:
            if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):  # rich, on `| head`
                raise
            if ctx.params.get("traceback"):
                raise
            Console(stderr=True, highlight=False, soft_wrap=True).print("[bold red]error:[/] ", end="")
            sys.stderr.write(f"{error if isinstance(error, LogitCacheError) else _unexpected(error)}\n")
            raise typer.Exit(1) from error


class _Command(TyperCommand):
    """A command whose help shows flags without a metavar and whose usage line lists the required options."""

    def get_params(self, ctx: Any) -> list[Any]:
        found: list[Any] = super().get_params(ctx)
        for one in found:
            if getattr(one, "is_flag", False):
                one.metavar = ""
        return found

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {word for one in self.params for word in one.opts}
        for word in (arg.partition("=")[0] for arg in args[: args.index("--") if "--" in args else None]):
            if word not in known and (new := _RENAMED.get(word)) in known:
                raise typer.BadParameter(f"it has been renamed to {new}.", ctx=ctx, param_hint=word)
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        needed = [f"{one.opts[0]} {one.metavar}" for one in self.params if one.opts[0].startswith("-") and one.required]
        return [*needed, *super().collect_usage_pieces(ctx)]


def _unexpected(error: BaseException) -> str:
    """Return the message for an unexpected exception: what it is, where it was raised, and how to see the traceback."""
    if isinstance(error, MemoryError):
        return f"out of memory ({first_line(error) or 'none is left'}). Use a smaller --batch-size or fewer --workers."
    last = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"unexpected {reason_of(error)}, in {'/'.join(Path(last.filename).parts[-3:])}, line {last.lineno}. This is a bug in logitcache or "
        "in the code it was given. Run the same command with LOGITCACHE_DEBUG=1 to see the full traceback, and include it in a bug report."
    )


class _Echo(logging.Handler):
    """Prints the library's log messages on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        warns = record.levelno >= logging.WARNING
        typer.echo(typer.style(f"warning: {record.getMessage()}", fg="red") if warns else record.getMessage(), err=True)


_LOG = logging.getLogger("logitcache")
_LOG.addHandler(_Echo())

app = typer.Typer(
    cls=_Boundary,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run a teacher once, then train any student from its cached logits.\n\nStart with [bold]logitcache demo[/].",
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"logitcache {importlib.metadata.version('logitcache')}")
        raise typer.Exit


@app.callback()
def _common(
    traceback: Annotated[
        bool,
        typer.Option(
            "--traceback",
            envvar="LOGITCACHE_DEBUG",
            help="Show the full traceback of an error. LOGITCACHE_DEBUG=1 in the environment does the same.",
            show_envvar=False,
        ),
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    del traceback, version
    _LOG.setLevel(logging.INFO if this_one_leads() else logging.WARNING)


_COMMANDS: dict[str, tuple[Callable[..., None], str]] = {
    "dump": (dump, "Cache"),
    "info": (info, "Cache"),
    "stats": (stats, "Cache"),
    "fidelity": (fidelity, "Cache"),
    "slice": (slice_, "Cache"),
    "merge": (merge, "Cache"),
    "export": (export, "Cache"),
    "import": (import_, "Cache"),
    "verify": (verify, "Cache"),
    "train": (train, "Students"),
    "sweep": (sweep, "Students"),
    "generate": (generate, "Students"),
    "compare": (compare, "Students"),
    "methods": (methods, "Students"),
    "demo": (demo, "Start here"),
}
USAGE = {"train": "--student NAME [OPTIONS]"}  # not declared as required, because a resumed run has it recorded
for _name, (_function, _panel) in _COMMANDS.items():
    _usage = USAGE.get(_name, "[OPTIONS]")
    app.command(_name, cls=_Command, options_metavar=_usage, rich_help_panel=_panel)(_function)


def main() -> None:
    """Run the command line."""
    keep_freed_memory()
    app()
