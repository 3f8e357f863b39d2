"""Draw runs as an SVG file: learning curves, and the final result of every run by method.

So that noise does not look like an effect, an axis spans at least several standard deviations over seeds, or a wide range if a method has
only one seed, whose standard deviation is unknown.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence

from logitcache.report.charts import STYLE, Scale, axes, band, figure, legend, mark, path, text, ticks
from logitcache.report.markup import element, shortened, width_of
from logitcache.runs.metrics import ACCURACY, Metric
from logitcache.runtime.wording import decimals, percent, percents

__all__ = ["draw_runs"]

_WIDTH, _LEFT, _GAP, _HEIGHT, _ROW = 900, 60, 24, 320, 30
_NAME = 26  # maximum length of a method's name next to its runs
_LEAST, _LEAST_OF_ONE = (
    0.02,
    0.1,
)  # minimum range of an axis with several seeds and with one: as a fraction, or for other units relative to the largest value
_DEVIATIONS = 8.0  # minimum range of an axis, in standard deviations of the method that varies most


def draw_runs(curves: Mapping[str, Sequence[Sequence[float]]], metric: Metric = ACCURACY) -> str:
    """Draw runs as SVG, with mean and standard deviation over seeds by epoch on the left, and final results on the right.

    Args:
        curves: Metric after each epoch for the runs of each method.
        metric: Metric of the values, by default test accuracy in [0, 1].
    """
    top = 44 + 18 * len(curves)
    foot = top + max(_HEIGHT, _ROW * len(curves))
    names = [f"{name} ({len(runs)} {'seed' if len(runs) == 1 else 'seeds'})" for name, runs in curves.items()]
    description = "; ".join(
        f"{name}: {_value(metric, statistics.fmean(run[-1] for run in runs))}" for name, runs in curves.items()
    )
    return (
        figure(
            f"{metric.label.capitalize()} of runs",
            f"Mean after the last epoch: {description}.",
            _WIDTH,
            foot + 44,
            element(
                "style",
                f"{STYLE}svg{{background:#fff}}@media (prefers-color-scheme:dark){{svg{{background:#171b20}}}}"
                "@media print{svg{background:#fff}}",
            ),
            *legend(names, _LEFT, 20),
            *_learning_curves(curves, metric, top, foot),
            *_final_results(curves, metric, top, foot),
        )
        + "\n"
    )


def _value(metric: Metric, value: float) -> str:
    return percent(value) if metric.unit == "share" else metric.text(value)


def _spelling(metric: Metric) -> Callable[[Sequence[float]], list[str]]:
    """Return the formatter for the values on an axis; the unit is in the axis label."""
    return percents if metric.unit == "share" else decimals


def _least_span(curves: Mapping[str, Sequence[Sequence[float]]], metric: Metric) -> float:
    """Return the minimum range of an axis."""
    last = [[run[-1] for run in runs] for runs in curves.values()]
    unit = 1.0 if metric.unit == "share" else max(abs(value) for values in last for value in values)
    deviations = [statistics.stdev(values) for values in last if len(values) > 1]
    least = _LEAST if len(deviations) == len(last) else _LEAST_OF_ONE
    return max(least * unit, _DEVIATIONS * max(deviations, default=0.0))


def _scale(values: Sequence[float], least: float, metric: Metric, start: float, end: float) -> Scale:
    """Return a scale for values, with a margin at both ends and at least the given range; fractions are limited to [0, 1]."""
    low, high = min(values), max(values)
    room = max(0.05 * (high - low), (least - (high - low)) / 2) + 1e-3
    low, high = low - room, high + room
    if metric.unit == "share":
        low, high = max(low - max(high - 1, 0), 0.0), min(high + max(-low, 0), 1.0)
    return Scale(low, high, start, end)


def _learning_curves(
    curves: Mapping[str, Sequence[Sequence[float]]], metric: Metric, top: float, foot: float
) -> list[str]:
    """Draw the mean by epoch, with the standard deviation if there are several seeds."""
    epochs = max(len(run) for runs in curves.values() for run in runs)
    values = [value for runs in curves.values() for run in runs for value in run]
    y = _scale(values, _least_span(curves, metric), metric, foot, top)
    x = Scale(1, max(epochs, 2), _LEFT, _WIDTH / 2 - _GAP)
    parts = axes(x, y, "epoch", metric.heading, y_spelling=_spelling(metric), whole=True)
    for number, runs in enumerate(curves.values(), 1):
        length = max(map(len, runs))
        every = [[run[epoch] for run in runs if epoch < len(run)] for epoch in range(length)]
        means = list(map(statistics.fmean, every))
        if len(runs) > 1:
            spread = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in every]
            sides = [
                [(x(e + 1), y(m + way * s)) for e, (m, s) in enumerate(zip(means, spread, strict=True))]
                for way in (1, -1)
            ]
            parts.append(band([*sides[0], *reversed(sides[1])], number))
        points = [(x(epoch + 1), y(mean)) for epoch, mean in enumerate(means)]
        parts.append(path(points if len(points) > 1 else [*points, (points[0][0] + 2, points[0][1])], number))
    return parts


def _final_results(
    curves: Mapping[str, Sequence[Sequence[float]]], metric: Metric, top: float, foot: float
) -> list[str]:
    """Draw each run's final value, with mean and standard deviation over seeds, one row per method."""
    names = [shortened(name, _NAME) for name in curves]
    left = _WIDTH / 2 + _GAP + 6.6 * max(map(width_of, names))
    values = [run[-1] for runs in curves.values() for run in runs]
    x = _scale(values, _least_span(curves, metric), metric, left, _WIDTH - 20)
    places = ticks(x, max(int((x.end - x.start) // 54), 2))
    parts = []
    for place, words in zip(places, _spelling(metric)(places), strict=True):
        parts.append(element("line", x1=x(place), x2=x(place), y1=top, y2=foot, class_="grid"))
        parts.append(text(x(place), foot + 17, words, "middle", "small quiet tick"))
    row = (foot - top) / len(names)
    for number, (name, runs) in enumerate(zip(names, curves.values(), strict=True), 1):
        middle, last = top + row * (number - 0.5), [run[-1] for run in runs]
        mean, spread = statistics.fmean(last), statistics.stdev(last) if len(last) > 1 else 0.0
        colour = f"s{(number - 1) % 7 + 1}"
        level = {"y1": middle, "y2": middle}
        parts += [
            text(left - 10, middle + 4, name, "end"),
            element("line", x1=x(mean - spread), x2=x(mean + spread), **level, class_=colour),
            element("line", x1=x(mean), x2=x(mean), y1=middle - 9, y2=middle + 9, stroke_width=2.5, class_=colour),
            *(mark(x(value), middle, number, f"{name}: {_value(metric, value)}") for value in last),
        ]
    parts.append(element("line", x1=x.start, x2=x.end, y1=foot, y2=foot, class_="axis"))
    seeds = [len(runs) for runs in curves.values()]
    description = "after the last epoch: runs, mean and std over seeds"
    if max(seeds) == 1:
        description = "after the last epoch; one seed each, differences may be noise"
    elif min(seeds) == 1:
        description = "after the last epoch: runs, mean and std over seeds (if several)"
    parts.append(text(x.end, top - 10, description, "end", "small quiet"))
    return parts
