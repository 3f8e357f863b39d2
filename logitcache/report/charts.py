"""Figures as SVG, generated as text.

The colors are those of Okabe and Ito, which are distinguishable with color blindness; dashes and markers distinguish the series in
grayscale print. A figure is as wide as a phone, so that its text keeps its size, and a page places several side by side.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from logitcache.report.markup import clean, element, escape, shortened, width_of
from logitcache.runtime.wording import counted, decimals, number, percent, percents

if TYPE_CHECKING:
    from logitcache.stats import Bin, Quantiles

__all__ = [
    "STYLE",
    "WIDTH",
    "Bar",
    "Scale",
    "axes",
    "band",
    "bars",
    "columns",
    "figure",
    "heat_map",
    "legend",
    "lines",
    "mark",
    "path",
    "quantile_strips",
    "reliability_diagram",
    "text",
    "thinned",
    "ticks",
]

WIDTH = 320  # pixels, the width of a phone without margins
SERIES = 7
_LIGHT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_DARK = ("#56b4e9", "#e8743b", "#1fb58a", "#cc79a7", "#3d94cc", "#e69f00", "#f2f2f2")
_DASHES = ("", "6 3", "2 2", "8 3 2 3", "1 3", "12 4", "4 1")
_LEAST_RANGE = 0.05  # minimum range of a heat map, as a fraction
_FEW = 30  # number of rows below which a fraction is unreliable
_LETTER, _DIGIT = 6.4, 7.7  # width in pixels of an average letter and of a digit, at 12 px


def _rules(colours: Sequence[str], ink: str, quiet: str, grid: str, paper: str) -> str:
    series = "".join(
        f"svg .f{place}{{fill:{colour}}}svg .s{place}{{stroke:{colour}}}" for place, colour in enumerate(colours, 1)
    )
    return (
        f"{series}svg text{{fill:{ink}}}svg .quiet{{fill:{quiet}}}svg .paper{{fill:{paper}}}svg .grid{{stroke:{grid}}}"
        f"svg .axis{{stroke:{quiet}}}svg .ink{{stroke:{ink}}}svg .band{{fill:{grid}}}svg .ring{{fill:{paper}}}"
    )


_BY_DAY = _rules(_LIGHT, "#1d2329", "#5b6570", "#dde2e7", "#ffffff")
_BY_NIGHT = _rules(_DARK, "#e6e9ec", "#9aa5b1", "#343c45", "#171b20")
# Colors are written out instead of using var(), because many programs that open SVG files do not support custom properties.
STYLE = (
    'svg text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}'
    f"svg .small{{font-size:11px}}{_BY_DAY}"
    f"@media (prefers-color-scheme:dark){{{_BY_NIGHT}}}"
    f"@media print{{{_BY_DAY}}}"
)


@dataclass(frozen=True, slots=True)
class Scale:
    """Mapping from the values of an axis to pixels.

    Attributes:
        low, high: Values at the ends of the axis.
        start, end: Positions of the ends in pixels.
        logarithmic: Whether the axis is logarithmic; `low` must then be positive, and smaller values are clipped to it.
    """

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def __call__(self, value: float) -> float:
        """Return the position of a value in pixels."""
        low, high = self.low, self.high
        if self.logarithmic:
            value, low, high = (math.log(max(one, self.low)) for one in (value, low, high))
        return self.start + (value - low) / ((high - low) or 1) * (self.end - self.start)


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a chart.

    Attributes:
        name: Label of the bar; shortened if there is no room, with the full name as a tooltip.
        value: Length of the bar.
        value_text: Formatted value.
        series: Index of its color, from 1.
        interval: Ends of an error bar; None draws none.
    """

    name: str
    value: float
    value_text: str
    series: int = 1
    interval: tuple[float, float] | None = None


def figure(name: str, description: str, width: float, height: float, *parts: str) -> str:
    """Return a figure, for a page or, with `STYLE` among its elements, for a separate file.

    Args:
        name: Title for screen readers.
        description: Description for screen readers, one sentence.
        width: Width in pixels.
        height: Height in pixels.
        parts: SVG elements.
    """
    return element(
        "svg",
        element("title", escape(name)),
        element("desc", escape(description)),
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width:g} {height:g}",
        width=width,
        height=height,
        role="img",
    )


def text(x: float, y: float, words: str, anchor: str = "start", class_: str = "") -> str:
    """Draw text."""
    return element("text", escape(words), x=x, y=y, text_anchor=anchor, **({"class_": class_} if class_ else {}))


def path(points: Sequence[tuple[float, float]], series: int) -> str:
    """Draw a line in the color and dash pattern of a series."""
    return element(
        "polyline",
        points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points),
        fill="none",
        stroke_width=2,
        stroke_dasharray=_DASHES[(series - 1 + (series - 1) // SERIES) % SERIES],
        class_=f"s{_colour(series)}",
    )


def band(points: Sequence[tuple[float, float]], series: int) -> str:
    """Fill an area in a pale shade of the color of a series."""
    around = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return element("polygon", points=around, fill_opacity=0.15, class_=f"f{_colour(series)}")


def mark(x: float, y: float, series: int, tip: str = "") -> str:
    """Draw a marker: a disc for odd series, a ring for even ones."""
    tips = (element("title", escape(tip)),) if tip else ()
    colour = _colour(series)
    if series % 2:
        return element("circle", *tips, cx=x, cy=y, r=4, fill_opacity=0.6, class_=f"f{colour}")
    return element("circle", *tips, cx=x, cy=y, r=3.5, stroke_width=1.5, class_=f"ring s{colour}")


def legend(names: Sequence[str], x: float, y: float, *, marks: bool = False) -> list[str]:
    """Draw a legend with one series per line of 18 pixels, with line or marker samples."""
    parts = []
    for place, name in enumerate(names):
        level = y + 18 * place
        sample = mark(x + 14, level, place + 1) if marks else path([(x, level), (x + 28, level)], place + 1)
        parts += [sample, text(x + 36, level + 4, name)]
    return parts


def ticks(scale: Scale, at_most: int = 6, *, whole: bool = False) -> list[float]:
    """Return tick values within a scale, at steps of 1, 2 or 5 times a power of ten; powers of ten if it is logarithmic."""
    if scale.logarithmic:
        first, last = math.ceil(math.log10(scale.low) - 1e-9), math.floor(math.log10(scale.high) + 1e-9)
        every = max(-(-(last - first + 1) // at_most), 1)
        return [10.0**power for power in range(first, last + 1, every)]
    span = scale.high - scale.low
    if not span > 0:
        return [scale.low]
    power = 10.0 ** math.floor(math.log10(span / at_most))
    step = next(size for size in (power, 2 * power, 5 * power, 10 * power, 20 * power) if span / size <= at_most)
    step = max(step, 1.0) if whole else step
    below, above = math.ceil(scale.low / step - 1e-6), math.floor(scale.high / step + 1e-6)
    return [place * step for place in range(below, above + 1)]


Spelling = Callable[[Sequence[float]], list[str]]


def axes(
    x: Scale,
    y: Scale,
    x_name: str = "",
    y_name: str = "",
    *,
    x_spelling: Spelling = decimals,
    y_spelling: Spelling = percents,
    whole: bool = False,
) -> list[str]:
    """Draw horizontal grid lines, ticks with their values, and axis labels.

    Args:
        x: Horizontal scale, from left to right.
        y: Vertical scale, from bottom to top, so its start is the larger pixel position.
        x_name: Label of the horizontal axis, drawn below it.
        y_name: Label of the vertical axis, drawn above its upper end.
        x_spelling: Formatter for the values on the horizontal axis.
        y_spelling: Formatter for the values on the vertical axis.
        whole: Whether to place ticks of the horizontal axis only at integers.
    """
    parts = _levels(x, y, max(int(abs(y.end - y.start) // 32), 2), y_spelling)
    places = ticks(x, max(int(abs(x.end - x.start) // 44), 2), whole=whole)
    for place, words in zip(places, x_spelling(places), strict=True):
        parts.append(element("line", x1=x(place), x2=x(place), y1=y.start, y2=y.start + 4, class_="axis"))
        parts.append(text(x(place), y.start + 17, words, "middle", "small quiet tick"))
    parts.append(element("line", x1=x.start, x2=x.end, y1=y.start, y2=y.start, class_="axis"))
    if x_name:
        parts.append(text((x.start + x.end) / 2, y.start + 34, x_name, "middle", "small quiet"))
    if y_name:
        parts.append(text(max(x.start - 36, 2), y.end - 10, y_name, "start", "small quiet"))
    return parts


def _levels(x: Scale, y: Scale, at_most: int, spelling: Spelling) -> list[str]:
    """Draw horizontal grid lines with their values on the left."""
    parts, levels = list[str](), ticks(y, at_most)
    for level, words in zip(levels, spelling(levels), strict=True):
        parts.append(element("line", x1=x.start, x2=x.end, y1=y(level), y2=y(level), class_="grid"))
        parts.append(text(x.start - 6, y(level) + 4, words, "end", "small quiet tick"))
    return parts


def lines(
    name: str,
    description: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    x_name: str,
    y_name: str,
    *,
    low: float | None = None,
    high: float | None = None,
    logarithmic: bool = False,
    points: bool = False,
    y_spelling: Spelling = percents,
    height: float = 200,
) -> str:
    """Draw a line chart or, with `points`, a scatter plot, of fractions or other values over integers.

    Args:
        name: Title, as in `figure`.
        description: Description, as in `figure`.
        series: Points of each series, (integer, value), by name; with a legend if there are several.
        x_name: Label of the horizontal axis.
        y_name: Label of the vertical axis.
        low: Lower end of the vertical axis; None chooses it from the smallest value.
        high: Upper end of the vertical axis; None chooses it from the largest value.
        logarithmic: Whether the vertical axis is logarithmic.
        points: Whether to draw markers instead of lines.
        y_spelling: Formatter for the values on the vertical axis, if it is not `logarithmic`.
        height: Height of the plot area in pixels.
    """
    named = list(series) if len(series) > 1 else []
    top = 26 + 18 * len(named)
    xs = [x for one in series.values() for x, _ in one]
    ys = [y for one in series.values() for _, y in one]
    room = 0.06 * (max(ys) - min(ys)) or 0.02 * max(abs(max(ys)), 1e-6)
    bottom = max(min(ys) - room, 0.0) if low is None else low
    peak = max(ys) + room if high is None else high
    edge = 0.5 if points or min(xs) == max(xs) else 0
    x = Scale(min(xs) - edge, max(xs) + edge, 50, WIDTH - 18)
    y = Scale(bottom, peak, top + height, top, logarithmic)
    spelling = _powers if logarithmic else y_spelling
    parts = axes(x, y, x_name, y_name, y_spelling=spelling, whole=True)
    for place, (one, values) in enumerate(series.items(), 1):
        if points:
            parts += [mark(x(a), y(b), place, f"{one}, {x_name} {a:g}: {percent(b)}") for a, b in values]
        else:
            parts.append(path([(x(a), y(b)) for a, b in values], place))
    return figure(name, description, WIDTH, top + height + 42, *legend(named, 14, 10, marks=points), *parts)


def bars(
    name: str, description: str, rows: Sequence[Bar], *, full: float | None = None, line: float | None = None
) -> str:
    """Draw horizontal bars with names on the left and values on the right.

    Args:
        name: Title, as in `figure`.
        description: Description, as in `figure`.
        rows: Bars, from top to bottom.
        full: Value of a bar of full width; None uses the largest value.
        line: Value to mark with a dashed line.
    """
    left = min(max(_LETTER * max(width_of(clean(bar.name)) for bar in rows) + 4, 40), 132) + 8
    right = _DIGIT * max(len(bar.value_text) for bar in rows) + 8
    x = Scale(0, (max(bar.value for bar in rows) if full is None else full) or 1, left, WIDTH - right)
    parts = []
    for place, bar in enumerate(rows):
        y = 4 + 22 * place
        long = min(max(x(bar.value), left), x.end) - left
        parts.append(
            element(
                "g",
                element("title", escape(f"{bar.name}: {bar.value_text}")),
                text(left - 8, y + 13, shortened(bar.name, (left - 11) / _LETTER), "end"),
                element("rect", x=left, y=y, width=x.end - left, height=16, rx=2, fill_opacity=0.5, class_="band"),
                element("rect", x=left, y=y, width=max(long, 1.5), height=16, rx=2, class_=f"f{_colour(bar.series)}"),
                *_whisker(x, bar.interval, y + 8),
                text(WIDTH - 2, y + 13, bar.value_text, "end"),
            )
        )
    foot = 4 + 22 * len(rows)
    if line is not None:
        parts.append(
            element(
                "line", x1=x(line), x2=x(line), y1=0, y2=foot, stroke_width=1.5, stroke_dasharray="3 3", class_="ink"
            )
        )
    return figure(name, description, WIDTH, foot, *parts)


def _whisker(x: Scale, interval: tuple[float, float] | None, y: float) -> list[str]:
    """Draw an error bar at the end of a bar."""
    if interval is None:
        return []
    low, high = map(x, interval)
    ends = ((low, low, y - 4, y + 4), (high, high, y - 4, y + 4), (low, high, y, y))
    return [element("line", x1=x1, x2=x2, y1=y1, y2=y2, stroke_width=1.5, class_="ink") for x1, x2, y1, y2 in ends]


def columns(name: str, description: str, values: Sequence[tuple[str, float]], x_name: str, y_name: str) -> str:
    """Draw vertical bars of fractions, from left to right."""
    x = Scale(0, len(values), 50, WIDTH - 18)
    y = Scale(0, max((share for _, share in values), default=0) * 1.02 or 1, 206, 26)
    parts = _levels(x, y, 5, percents)
    wide = x(1) - x(0)
    every = -(-max(int(_LETTER * max(map(len, (word for word, _ in values)))) + 6, 1) // max(int(wide), 1))
    for place, (word, share) in enumerate(values):
        tip = element("title", escape(f"{x_name} {word}: {percent(share)}"))
        size = {"x": x(place) + 0.12 * wide, "width": 0.76 * wide, "y": y(share), "height": y.start - y(share)}
        parts.append(element("rect", tip, **size, class_="f1"))
        if (len(values) - 1 - place) % every == 0:  # the last one always has a label
            parts.append(text(x(place + 0.5), y.start + 17, word, "middle", "small quiet tick"))
    parts.append(element("line", x1=x.start, x2=x.end, y1=y.start, y2=y.start, class_="axis"))
    parts.append(text((x.start + x.end) / 2, y.start + 34, x_name, "middle", "small quiet"))
    parts.append(text(14, 14, y_name, "start", "small quiet"))
    return figure(name, description, WIDTH, 246, *parts)


def reliability_diagram(name: str, description: str, bins: "Sequence[Bin]") -> str:
    """Draw accuracy by confidence with the diagonal of perfect calibration, and the number of rows of each bin below."""
    x, y = Scale(0, 1, 50, WIDTH - 18), Scale(0, 1, 236, 26)
    parts = axes(x, y, "", "accuracy", x_spelling=percents)
    most = max((one.rows for one in bins), default=0) or 1
    for one in bins:
        if not one.rows:
            continue
        lower, upper = percents([one.lower, one.upper])
        tip = (
            f"confidence {lower} to {upper}: "
            f"{counted(one.rows, 'row')}, accuracy {percent(one.accuracy)}, mean confidence {percent(one.confidence)}"
        )
        wide = {"x": x(one.lower) + 1, "width": max(x(one.upper) - x(one.lower) - 2, 1)}
        tall = {"y": y(one.accuracy), "height": max(y.start - y(one.accuracy), 1)}
        paleness = 0.3 if one.rows < _FEW else 1
        share = 44 * one.rows / most
        parts += [
            element("rect", element("title", escape(tip)), **wide, **tall, fill_opacity=paleness, class_="f1"),
            element("rect", element("title", escape(tip)), **wide, y=316 - share, height=max(share, 1), class_="quiet"),
        ]
    parts += [
        element("line", x1=x(0), y1=y(0), x2=x(1), y2=y(1), stroke_width=1.5, stroke_dasharray="5 4", class_="s2"),
        *(mark(x(one.confidence), y(one.accuracy), 2) for one in bins if one.rows >= _FEW),
        element("line", x1=x.start, x2=x.end, y1=316, y2=316, class_="axis"),
        text((x.start + x.end) / 2, 332, "confidence; gray: number of rows", "middle", "small quiet"),
    ]
    return figure(name, description, WIDTH, 340, *parts)


def heat_map(name: str, description: str, matrix: Sequence[Sequence[float | None]], axis: str) -> str:
    """Draw a symmetric matrix of fractions, without None and the diagonal, which is 1 and would reduce the contrast of the others."""
    size = len(matrix)
    cell = min((WIDTH - 32) / size, 56)
    others = [value for a, row in enumerate(matrix) for b, value in enumerate(row) if a != b and value is not None]
    high = max(others)
    low = min(*others, high - _LEAST_RANGE)  # so that noise does not look like a difference
    decimal_places = 1 if size <= 7 else None
    parts = []
    for a in range(size):
        middle = 24 + cell * (a + 0.5)
        parts += [
            text(24, middle + 4, str(a), "end", "small quiet"),
            text(middle + 8, 18, str(a), "middle", "small quiet"),
        ]
        for b in range(size):
            at = {"x": 32 + cell * b, "y": 24 + cell * a}
            share = matrix[a][b]
            if a == b or share is None:
                parts.append(element("rect", **at, width=cell - 1, height=cell - 1, class_="band"))
                continue
            depth = 0.12 + 0.88 * ((share - low) / (high - low) if high > low else 1)
            tip = element("title", escape(f"{axis} {a} and {b}: {percent(share)}"))
            parts.append(element("rect", tip, **at, width=cell - 1, height=cell - 1, fill_opacity=depth, class_="f1"))
            if decimal_places is not None:
                shade = "small paper" if depth > 0.55 else "small"
                words = f"{100 * share:.{decimal_places}f}"
                parts.append(text(at["x"] + cell / 2 - 0.5, at["y"] + cell / 2 + 4, words, "middle", shade))
    foot = 24 + cell * size
    parts += [
        element("rect", x=32, y=foot + 12, width=24, height=12, fill_opacity=0.12, class_="f1"),
        text(62, foot + 22, percent(low), "start", "small"),
        element("rect", x=128, y=foot + 12, width=24, height=12, fill_opacity=1, class_="f1"),
        text(158, foot + 22, percent(high), "start", "small"),
        element("rect", x=224, y=foot + 12, width=24, height=12, class_="band"),
        text(254, foot + 22, "diagonal", "start", "small"),
    ]
    return figure(name, description, WIDTH, foot + 32, *parts)


def quantile_strips(name: str, description: str, strips: "Mapping[str, Quantiles]", x_name: str) -> str:
    """Draw box plots: a line from the 5th to the 95th percentile, a box from the 25th to the 75th, the median and, as a ring, the mean."""
    low, high = min(one.p5 for one in strips.values()), max(one.p95 for one in strips.values())
    means = [one.mean for one in strips.values()]
    low, high = min(low, *means), max(high, *means)
    room = 0.05 * (high - low) or 0.5 * max(abs(high), 1e-3)
    x = Scale(low - room, high + room, 12, WIDTH - 12)
    foot = 52.0 * len(strips) + 4
    parts = []
    places = ticks(x, 6)
    for place, words in zip(places, decimals(places), strict=True):
        parts.append(element("line", x1=x(place), x2=x(place), y1=0, y2=foot, class_="grid"))
        parts.append(text(x(place), foot + 15, words, "middle", "small quiet tick"))
    for row, (word, one) in enumerate(strips.items()):
        middle = 52 * row + 34
        ends = f"{number(one.low)} to {number(one.high)}"
        parts += [
            text(12, middle - 16, word),
            text(WIDTH - 12, middle - 16, ends, "end", "small quiet"),
            element("line", x1=x(one.p5), x2=x(one.p95), y1=middle, y2=middle, stroke_width=2, class_="s1"),
            *(
                element("line", x1=x(end), x2=x(end), y1=middle - 4, y2=middle + 4, stroke_width=2, class_="s1")
                for end in (one.p5, one.p95)
            ),
            element(
                "rect", x=x(one.p25), width=max(x(one.p75) - x(one.p25), 2), y=middle - 8, height=16, rx=2, class_="f1"
            ),
            element(
                "line", x1=x(one.median), x2=x(one.median), y1=middle - 10, y2=middle + 10, stroke_width=3, class_="ink"
            ),
            mark(x(one.mean), middle, 2, f"{word}: mean {number(one.mean)}, median {number(one.median)}"),
        ]
    parts.append(element("line", x1=x.start, x2=x.end, y1=foot, y2=foot, class_="axis"))
    parts.append(text(WIDTH / 2, foot + 32, x_name, "middle", "small quiet"))
    return figure(name, description, WIDTH, foot + 38, *parts)


def thinned(values: Sequence[float]) -> list[tuple[float, float]]:
    """Thin out a long monotonic sequence to about one point per pixel; return (position from 1, value)."""
    step = max(len(values) // WIDTH, 1)
    chosen = sorted({*range(0, len(values), step), len(values) - 1})
    return [(place + 1, values[place]) for place in chosen]


def _powers(shares: Sequence[float]) -> list[str]:
    return [f"{100 * share:.6f}".rstrip("0").rstrip(".") + "%" for share in shares]


def _colour(series: int) -> int:
    return (series - 1) % SERIES + 1
