#!/usr/bin/env python3
"""Draw docs/demo.svg: run `logitcache demo` in a pseudo-terminal and save its output (requires `pip install pyte`).

To keep the picture short, it shows only the last epoch of each student and leaves out the list of commands at the end.

python docs/picture.py docs/demo.svg
"""

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path

import pyte
from rich.console import Console
from rich.text import Text

WIDTH = 150


def screen_of(output: str) -> list[Text]:
    """Return the lines that terminal output leaves on the screen of an emulator."""
    screen = pyte.Screen(WIDTH, 300)
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


def shortened(lines: list[Text]) -> list[Text]:
    """Return the lines up to the duration, with only the last epoch of each run."""
    kept = []
    for line, following in zip(lines, [*lines[1:], Text()], strict=True):
        if line.plain.startswith("Done in "):
            return [*kept, line[: line.plain.index("s.") + len("s.")]]
        if not (line.plain.startswith("epoch ") and following.plain.startswith("epoch ")):
            kept.append(line)
    return kept


def run_in_terminal(command: list[str], folder: str) -> bytes:
    """Run a command in a pseudo-terminal of width `WIDTH` and return its output."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 300, WIDTH, 0, 0))
    process = subprocess.Popen(command, cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    output = b""
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # Linux's end of file on a pseudo-terminal
            part = b""
        if not part:
            break
        output += part
    if process.wait():
        sys.exit(output.decode(errors="replace"))
    return output


def main(target: Path) -> None:
    """Run the demo and draw its output."""
    with tempfile.TemporaryDirectory() as folder:
        output = run_in_terminal([str(Path(sys.executable).with_name("logitcache")), "demo"], folder)
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    for line in shortened(screen_of(output.decode())):
        console.print(line, style="dim" if line.plain.startswith("$ ") else None)
    target.write_text(console.export_svg(title="logitcache demo"))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
