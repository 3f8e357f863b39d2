#!/usr/bin/env python3
"""Draw docs/demo.svg: run `logitcache demo` in an empty folder and keep what its terminal shows in the end (needs `pip install pyte`).

python docs/picture.py docs/demo.svg
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyte
from rich.console import Console
from rich.text import Text

WIDTH = 150


def screen_of(output: str) -> list[Text]:
    """Play terminal output into an emulator and return its lines."""
    screen = pyte.Screen(WIDTH, 300)
    screen.set_mode(pyte.modes.LNM)  # the output came through a pipe: a new line begins at the left
    pyte.Stream(screen).feed(output)
    lines = []
    for row in range(screen.lines):
        line = Text()
        for column in range(WIDTH):
            cell = screen.buffer[row][column]
            line.append(cell.data, "bold" if cell.bold else "")
        line.rstrip()
        lines.append(line)
    while lines and not lines[-1].plain:
        lines.pop()
    return lines


def main(target: Path) -> None:
    """Run the demo and export its screen."""
    environment = {**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(WIDTH), "GOMP_SPINCOUNT": "1000"}
    with tempfile.TemporaryDirectory() as folder:
        shown = subprocess.run(
            [Path(sys.executable).with_name("logitcache"), "demo"],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        ).stdout
    console = Console(record=True, width=WIDTH, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    for line in screen_of(shown):
        console.print(line, style="dim" if line.plain.startswith("$ ") else None)
    target.write_text(console.export_svg(title="logitcache demo"))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
