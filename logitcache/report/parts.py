"""What a page is made of: tables, figures with captions, folds, tiles, names of classes, images."""

import base64
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from logitcache.report.markup import element, plain, shortened, told, with_code
from logitcache.report.style import SHEET

__all__ = [
    "ClassNames",
    "captioned",
    "facts",
    "fold",
    "page",
    "paragraph",
    "picture",
    "section",
    "table",
    "tiles",
    "yields",
]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_NAME = 60  # letters of a class's name
_NARROW = 3  # columns that fit a phone
_PIXELATED = 64  # pixels: smaller images are shown pixel by pixel


@dataclass(frozen=True, slots=True)
class ClassNames:
    """Names of classes, as they can be shown: some data sets have none, or such as break a page."""

    names: Sequence[str]

    def __getitem__(self, number: int) -> str:
        """Return the name of a class as plain words."""
        return shortened(self.names[number], _NAME) or f"class {number} (unnamed)"

    def marked(self, number: int) -> str:
        """Return the name of a class as markup that does not turn the words beside it."""
        full, shown = plain(self.names[number]), self[number]
        tip = {"title": full} if len(full) > len(shown) else {}
        return element("bdi", told(shown), **tip)


def page(title: str, *body: str) -> str:
    """Put a page together: whole in itself, without script, and forbidden to fetch anything."""
    head = element(
        "head",
        '<meta charset="utf-8">',
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", told(title)),
        element("style", SHEET),
    )
    return f"<!doctype html>\n{element('html', head, element('body', *body), lang='en')}\n"


def section(title: str, *body: str) -> str:
    """Write a section."""
    return element("section", element("h2", told(title)), *body)


def paragraph(words: str, class_: str = "") -> str:
    """Write a paragraph of plain words, code between backticks."""
    return element("p", with_code(words), **({"class_": class_} if class_ else {}))


def captioned(title: str, picture: str, caption: str, *more: str) -> str:
    """Write a figure with its title and how to read it; and more, as markup, below."""
    said = element("figcaption", with_code(caption))
    return element("figure", element("h3", told(title)), picture, said, *more)


def tiles(rows: Iterable[tuple[str, str, str, str]]) -> str:
    """Write numbers to be seen first: (what, number, note, class)."""
    made = (
        element(
            "div",
            element("span", told(what)),
            element("b", told(number), class_=mood),
            element("span", told(note)),
            class_="tile",
        )
        for what, number, note, mood in rows
    )
    return element("div", *made, class_="tiles")


def facts(pairs: Mapping[str, str]) -> str:
    """Write names and what they are, in plain words; what is empty is left out."""
    made = (element("dt", told(name)) + element("dd", with_code(words)) for name, words in pairs.items() if words)
    return element("dl", *made)


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1, sums: int = 0, text: int | None = None
) -> str:
    """Write a table that scrolls inside itself where it is too wide.

    Args:
        head: Plain words.
        rows: Cells as markup.
        left: How many columns hold words; the others hold numbers.
        sums: How many of the first rows sum up the others.
        text: Which column holds sentences, and gets room on a phone too.
    """

    def row(kind: str, cells: Sequence[str], class_: str = "") -> str:
        names = ("word text" if place == text else "word" if place < left else "" for place in range(len(cells)))
        made = (
            element(kind, cell, **({"class_": name} if name else {})) for name, cell in zip(names, cells, strict=True)
        )
        return element("tr", *made, **({"class_": class_} if class_ else {}))

    body = (row("td", cells, "sum" if place < sums else "") for place, cells in enumerate(rows))
    hint = element("p", "This table scrolls sideways.", class_="hint") if len(head) > _NARROW else ""
    return hint + element(
        "div",
        element("table", element("thead", row("th", [told(word) for word in head])), element("tbody", "", *body)),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label="table",
    )


def fold(summary: str, *body: str) -> str:
    """Write what is seen when asked for."""
    return element("details", element("summary", told(summary)), *body)


def yields(names: ClassNames, values: Sequence[tuple[int, str]]) -> str:
    """List classes with a number each, in columns."""
    rows = (element("li", names.marked(number), element("span", told(words))) for number, words in values)
    return element("ul", *rows, class_="columns")


def picture(png: bytes | None, says: str) -> str:
    """Show an image that the page carries inside itself; nothing where there is none."""
    if png is None:
        return ""
    width, height = struct.unpack(">II", png[16:24])
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    small = {"class_": "small"} if max(width, height) < _PIXELATED else {}
    return element("img", src=source, alt=says, width=width, height=height, **small)
