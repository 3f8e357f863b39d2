#!/usr/bin/env python3
"""Take a screenshot of sections of a report by `logitcache stats --report`, for the documentation (requires Chromium).

python docs/screens.py fashion.html docs/pictures/report.png --header Cache Teacher
"""

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

WIDTH, HEIGHT = 1160, 6000
COLOURS = 256


def part_of(page: str, titles: list[str], *, header: bool) -> str:
    """Return the page with only the given sections and, if requested, the header."""
    page = re.sub(
        r"<section>.*?</section>",
        lambda found: found[0] if any(f"<h2>{title}</h2>" in found[0] for title in titles) else "",
        page,
        flags=re.DOTALL,
    )
    left_out = ["footer"] if header else ["footer", "header"]
    for name in left_out:
        page = re.sub(rf"<{name}>.*?</{name}>", "", page, flags=re.DOTALL)
    return page


def photograph(page: str) -> Image.Image:
    """Take a screenshot of a page in a tall window and crop the empty space below it."""
    with tempfile.TemporaryDirectory() as folder:
        file, target = Path(folder) / "page.html", Path(folder) / "page.png"
        file.write_text(page)
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage"]
        options += [f"--user-data-dir={folder}/profile", f"--window-size={WIDTH},{HEIGHT}", f"--screenshot={target}"]
        subprocess.run(["chromium", *options, file.as_uri()], check=True, capture_output=True)
        shown = Image.open(target).convert("RGB")
    paper = Image.new("RGB", shown.size, shown.getpixel((0, shown.height - 1)))
    _, _, _, lowest = ImageChops.difference(shown, paper).getbbox() or (0, 0, 0, shown.height)
    return shown.crop((0, 0, WIDTH, min(lowest + 24, HEIGHT)))


def main() -> None:
    """Save the screenshot as a PNG with a palette."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("titles", nargs="*")
    parser.add_argument("--header", action="store_true")
    parser.add_argument("--lines", type=int, help="number of pixel rows to keep from the top")
    given = parser.parse_intermixed_args()
    shown = photograph(part_of(given.page.read_text(), given.titles, header=given.header))
    if given.lines:
        shown = shown.crop((0, 0, WIDTH, given.lines))
    shown.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(given.target, optimize=True)
    print(f"{given.target}: {shown.width} x {shown.height}, {given.target.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
