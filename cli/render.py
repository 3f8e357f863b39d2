"""Tables, key-value lists and bars for the terminal, or plain text if the output is not a terminal."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["bar", "print_json", "print_pairs", "print_table"]

_PLAIN_WIDTH = 160  # columns, if the output goes to a file or a pipe


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PLAIN_WIDTH)


def _clean_text(text: str) -> Text:
    """Return text without markup or control characters: a class may be named "[red]", or contain escape sequences."""
    return Text("".join(letter if letter.isprintable() else "?" for letter in text))


def bar(share: float, width: int = 24) -> str:
    """Draw a fraction in [0, 1] as a bar with a resolution of 1/8 character, or with # if stdout cannot encode block characters."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    drawn = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
    try:
        drawn.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return "#" * round(eighths / 8)
    return drawn


def print_json(content: Any) -> None:
    """Print JSON to stdout."""
    typer.echo(json.dumps(content, indent=2))


def print_pairs(title: str, pairs: Mapping[str, str]) -> None:
    """Print keys and values in two columns."""
    table = Table(
        title=_clean_text(title),
        title_justify="left",
        title_style="bold",
        show_header=False,
        box=None,
        padding=(0, 2, 0, 0),
    )
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs.items():
        table.add_row(_clean_text(name), _clean_text(value))
    _console().print(table)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 2) -> None:
    """Print a table; the first `left` columns are left-aligned, the others right-aligned."""
    table = Table(title=_clean_text(title), title_justify="left", title_style="bold", header_style="dim")
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(_clean_text, row))
    _console().print(table)
