"""Building blocks of a page: tables, figures with captions, collapsible parts, tiles, class names and images."""

import base64
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from logitcache.report.markup import clean, element, escape, shortened, with_code
from logitcache.report.style import SHEET

__all__ = [
    "ClassNames",
    "captioned",
    "class_list",
    "facts",
    "fold",
    "page",
    "paragraph",
    "picture",
    "section",
    "table",
    "tiles",
]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_NAME = 60  # maximum length of a class name
_NARROW = 3  # number of columns that fit on a phone
_PIXELATED = 64  # images smaller than this, in pixels, are enlarged without smoothing


@dataclass(frozen=True, slots=True)
class ClassNames:
    """Names of classes in a form that is safe to display; some data sets have empty names or ones that would break a page."""

    names: Sequence[str]

    def __getitem__(self, number: int) -> str:
        """Return the name of a class as plain text."""
        return shortened(self.names[number], _NAME) or f"class {number} (unnamed)"

    def marked(self, number: int) -> str:
        """Return the name of a class as markup, isolated from the direction of the text around it."""
        full, shown = clean(self.names[number]), self[number]
        tip = {"title": full} if len(full) > len(shown) else {}
        return element("bdi", escape(shown), **tip)


def page(title: str, *body: str) -> str:
    """Return a self-contained page, without scripts and with a policy that forbids loading anything."""
    head = element(
        "head",
        '<meta charset="utf-8">',
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", escape(title)),
        element("style", SHEET),
    )
    return f"<!doctype html>\n{element('html', head, element('body', *body), lang='en')}\n"


def section(title: str, *body: str) -> str:
    """Return a section."""
    return element("section", element("h2", escape(title)), *body)


def paragraph(words: str, class_: str = "") -> str:
    """Return a paragraph of plain text, with code in backticks."""
    return element("p", with_code(words), **({"class_": class_} if class_ else {}))


def captioned(title: str, picture: str, caption: str, *more: str) -> str:
    """Return a figure with its title and caption, and with further markup below."""
    figcaption = element("figcaption", with_code(caption))
    return element("figure", element("h3", escape(title)), picture, figcaption, *more)


def tiles(rows: Iterable[tuple[str, str, str, str]]) -> str:
    """Return headline numbers as tiles: (name, number, note, CSS class)."""
    made = (
        element(
            "div",
            element("span", escape(what)),
            element("b", escape(number), class_=mood),
            element("span", escape(note)),
            class_="tile",
        )
        for what, number, note, mood in rows
    )
    return element("div", *made, class_="tiles")


def facts(pairs: Mapping[str, str]) -> str:
    """Return a list of names and descriptions in plain text, without those that are empty."""
    made = (element("dt", escape(name)) + element("dd", with_code(words)) for name, words in pairs.items() if words)
    return element("dl", *made)


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1, sums: int = 0, text: int | None = None
) -> str:
    """Return a table that scrolls horizontally if it is too wide.

    Args:
        head: Column headings as plain text.
        rows: Cells as markup.
        left: Number of columns with text, left-aligned; the others have numbers.
        sums: Number of rows at the top that are totals.
        text: Index of the column with sentences, which keeps a minimum width on phones.
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
        element("table", element("thead", row("th", [escape(word) for word in head])), element("tbody", "", *body)),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label="table",
    )


def fold(summary: str, *body: str) -> str:
    """Return a collapsible part."""
    return element("details", element("summary", escape(summary)), *body)


def class_list(names: ClassNames, values: Sequence[tuple[int, str]]) -> str:
    """Return a list of classes with a number each, in columns."""
    rows = (element("li", names.marked(number), element("span", escape(words))) for number, words in values)
    return element("ul", *rows, class_="columns")


def picture(png: bytes | None, description: str) -> str:
    """Return an image embedded in the page, or an empty string if there is none."""
    if png is None:
        return ""
    width, height = struct.unpack(">II", png[16:24])
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    small = {"class_": "small"} if max(width, height) < _PIXELATED else {}
    return element("img", src=source, alt=description, width=width, height=height, **small)
