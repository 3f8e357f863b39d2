#!/usr/bin/env python3
"""Draw docs/demo.svg: run `logitcache demo` in an empty folder and keep what its terminal shows in the end (needs `pip install pyte`).

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
    """Play terminal output into an emulator and return its lines."""
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


def run_in_terminal(command: list[str], folder: str) -> bytes:
    """Run a command in a pseudo-terminal of our width and return what it sent there."""
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
    """Run the demo and export its screen."""
    with tempfile.TemporaryDirectory() as folder:
        output = run_in_terminal([str(Path(sys.executable).with_name("logitcache")), "demo"], folder)
    console = Console(record=True, width=WIDTH, file=io.StringIO())
    for line in screen_of(output.decode()):
        console.print(line, style="dim" if line.plain.startswith("$ ") else None)
    target.write_text(console.export_svg(title="logitcache demo"))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
