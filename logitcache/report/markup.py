"""SVG and HTML elements as text. All escaping happens here."""

import html
import re
import unicodedata

__all__ = ["clean", "element", "escape", "shortened", "width_of", "with_code"]

# Characters that XML 1.0 does not allow, and those that change the direction of the text after them.
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_BIDI_CONTROLS = re.compile("[\u202a-\u202e\u2066-\u2069]")


def element(name: str, /, *children: str, **attributes: str | float) -> str:
    """Return an element as markup.

    Args:
        name: Name of the element.
        children: Content as markup: other elements, or text escaped by `escape`. Without children, the element is self-closing.
        attributes: Attributes, whose values are escaped. `class_` becomes `class` and `stroke_width` becomes `stroke-width`.
    """
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(_spelled(value))}"' for key, value in attributes.items()
    )
    return f"<{name}{words}>{''.join(children)}</{name}>" if children else f"<{name}{words}/>"


def escape(words: object) -> str:
    """Escape text as markup."""
    return html.escape(clean(words))


def with_code(words: object) -> str:
    """Escape text as markup, with code elements for parts in backticks."""
    parts = escape(words).split("`")
    if len(parts) % 2 == 0:
        return "`".join(parts)
    return "".join(f"<code>{part}</code>" if place % 2 else part for place, part in enumerate(parts))


def clean(words: object) -> str:
    """Return text without characters that XML does not allow or that change the direction of the text after them."""
    return _BIDI_CONTROLS.sub("", _NOT_IN_XML.sub("\ufffd", str(words)))


def shortened(words: str, width: float) -> str:
    """Shorten text to a width in average letters, at the end, or at the beginning if it is a path."""
    words = " ".join(clean(words).split())
    if width_of(words) <= width:
        return words
    if "/" in words:
        return "…" + _kept(words[::-1], width)[::-1].lstrip()
    return _kept(words, width).rstrip() + "…"


def _kept(words: str, width: float) -> str:
    """Return the first letters that fit together with an ellipsis."""
    room, kept = width - _width("…"), ""
    for letter in words:
        room -= _width(letter)
        if room < 0:
            break
        kept += letter
    return kept


def width_of(words: str) -> float:
    """Estimate the width of text in average letters, conservatively."""
    return sum(map(_width, words))


def _width(letter: str) -> float:
    if unicodedata.category(letter) in ("Cf", "Me", "Mn"):  # combined with the preceding letter
        return 0
    if unicodedata.east_asian_width(letter) in "WF":
        return 2.4
    if letter in "mwMWQ@%…":
        return 1.9
    if letter in " .,:;'|!()[]/\\fijltrI":
        return 0.75
    return 1.15 if letter.islower() else 1.3


def _spelled(value: str | float) -> str:
    return clean(value) if isinstance(value, str) else f"{round(value, 2):.10g}"
