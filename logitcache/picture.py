"""A picture of runs as SVG, drawn with nothing but text: learning curves, and accuracy against method. Readable in print."""

import statistics
from collections.abc import Mapping, Sequence
from html import escape

__all__ = ["draw_runs"]

_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
    "#000000",
)  # Okabe and Ito: told apart by all eyes
_DASHES = ("", "6 3", "2 2", "8 3 2 3", "1 3", "12 4", "4 1")
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _GAP = 900, 380, 60, 44, 80


def draw_runs(curves: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Draw runs.

    Args:
        curves: For each method its runs' test accuracy after each epoch, in [0, 1].

    Returns:
        An SVG file: on the left mean accuracy by epoch, on the right every run's last one, with mean and deviation.
    """
    values = [value for runs in curves.values() for run in runs for value in run]
    low, high = min(values), max(values)
    low, high = low - 0.05 * (high - low) - 1e-3, high + 0.05 * (high - low) + 1e-3
    epochs = max(len(run) for runs in curves.values() for run in runs)
    half = (_WIDTH - 2 * _LEFT - _GAP) / 2
    top = 44 + 18 * len(curves)
    foot = top + _HEIGHT - _BOTTOM

    def y(value: float) -> float:
        return foot - (value - low) / (high - low) * (foot - top)

    def x(epoch: float) -> float:
        return _LEFT + (epoch - 1) / max(epochs - 1, 1) * half

    parts = []
    for tick in _ticks(low, high):
        level = f'y1="{y(tick):.1f}" y2="{y(tick):.1f}" class="grid"'
        begins = (_LEFT, _LEFT + half + _GAP)
        parts += [f'<line x1="{begin:.1f}" x2="{begin + half:.1f}" {level}/>' for begin in begins]
        parts.append(f'<text x="{_LEFT - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:.0%}</text>')
    for number, (name, runs) in enumerate(curves.items()):
        colour, dash = _COLOURS[number % len(_COLOURS)], _DASHES[number % len(_DASHES)]
        style = f'stroke="{colour}" stroke-dasharray="{dash}"'
        length = max(map(len, runs))
        means = [statistics.fmean(run[epoch] for run in runs if epoch < len(run)) for epoch in range(length)]
        line = " ".join(f"{x(epoch + 1):.1f},{y(mean):.1f}" for epoch, mean in enumerate(means))
        parts.append(f'<polyline points="{line}" fill="none" stroke-width="2" {style}/>')
        parts.append(
            f'<line x1="{_LEFT}" y1="{24 + 18 * number}" x2="{_LEFT + 34}" y2="{24 + 18 * number}" stroke-width="2" {style}/>'
        )
        label = f"{name} ({len(runs)} {'seed' if len(runs) == 1 else 'seeds'})"
        parts.append(f'<text x="{_LEFT + 42}" y="{28 + 18 * number}">{escape(label)}</text>')
        centre = _LEFT + half + _GAP + half * (number + 0.5) / len(curves)
        last = [run[-1] for run in runs]
        parts += [
            f'<circle cx="{centre:.1f}" cy="{y(value):.1f}" r="4" fill="{colour}" fill-opacity="0.5"/>'
            for value in last
        ]
        mean, spread = statistics.fmean(last), statistics.stdev(last) if len(last) > 1 else 0.0
        level = f'x1="{centre - 14:.1f}" y1="{y(mean):.1f}" x2="{centre + 14:.1f}" y2="{y(mean):.1f}"'
        parts.append(f'<line {level} stroke="{colour}" stroke-width="2"/>')
        bar = f'x1="{centre:.1f}" y1="{y(mean - spread):.1f}" x2="{centre:.1f}" y2="{y(mean + spread):.1f}"'
        parts.append(f'<line {bar} stroke="{colour}"/>')
        parts.append(f'<text x="{centre:.1f}" y="{foot + 18}" text-anchor="middle">{escape(name)}</text>')
    parts += [
        f'<text x="{x(epoch):.1f}" y="{foot + 18}" text-anchor="middle">{epoch}</text>' for epoch in _whole(epochs)
    ]
    parts.append(f'<text x="{_LEFT + half / 2:.1f}" y="{foot + 36}" text-anchor="middle">epoch</text>')
    parts.append(f'<text x="{_LEFT}" y="{top - 10}">test accuracy</text>')
    parts.append(
        f'<text x="{_LEFT + half + _GAP:.1f}" y="{top - 10}">after the last epoch: runs, mean, deviation over seeds</text>'
    )
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {foot + _BOTTOM}" font-family="sans-serif" font-size="12">\n'
        "<style>.grid{stroke:#ccc} @media (prefers-color-scheme:dark){svg{background:#111} text{fill:#eee} .grid{stroke:#444}}</style>\n"
        f"{body}\n</svg>\n"
    )


def _ticks(low: float, high: float) -> list[float]:
    """Return four to ten round values between two."""
    step = next(
        (one for one in (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2) if (high - low) / one <= 10), 0.5
    )
    first = int(low / step) + 1
    return [number * step for number in range(first, int(high / step) + 1)]


def _whole(epochs: int) -> list[int]:
    step = max(epochs // 6, 1)
    return list(range(1, epochs + 1, step))
