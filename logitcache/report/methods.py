"""Report section about methods: their effect on the rows of a cache, and the error that the encoding causes."""

from itertools import accumulate
from math import isfinite
from typing import TYPE_CHECKING

from logitcache.report.charts import Bar, bars, lines, quantile_strips
from logitcache.report.markup import element, escape
from logitcache.report.parts import captioned, fold, paragraph, section, table
from logitcache.runtime.wording import counted, error_text, number, percent

if TYPE_CHECKING:
    from logitcache.caches.fidelity import Fidelity, MethodError
    from logitcache.stats import CacheStats, MethodPreview

__all__ = ["methods_section"]

_POOR = 0.1  # relative gradient error above which it is marked
_FLOOR = 1e-5  # lower end of the probability axis
_DRAWN = 16  # maximum number of methods in the chart
_STUDENTS = ("untrained", "trained")


def methods_section(stats: "CacheStats", fidelity: "Fidelity | None") -> str:
    """Return the section about methods."""
    preview = stats.preview
    title = "Effect of methods"
    if stats.manifest["encoding"]["kind"] == "sampled":
        words = (
            "Draws are suitable for methods that are linear in the teacher's probabilities. The effect of other methods cannot be computed "
            "from them."
        )
        return section(title, paragraph(words), *_fidelity(fidelity))
    if not preview.rows:
        return section(title, paragraph("No statistics, because no rows can be read."))
    least = "at least " if "k" in stats.manifest["encoding"] else ""
    by_row = [_by_row(preview)] if isfinite(preview.deviation.median) else []
    figures = [*_edits(preview, least), *by_row, *_mass(preview), *_outside(stats)]
    return section(
        title,
        paragraph(
            f"Computed on {counted(preview.rows, 'row')} with the settings of the papers, without a student.", "quiet"
        ),
        element("div", *figures, class_="grid"),
        *_fidelity(fidelity),
    )


def _edits(preview: "MethodPreview", least: str) -> list[str]:
    if not preview.labelled:
        return []
    rows = [
        Bar("LoCa", preview.loca_changed, percent(preview.loca_changed)),
        Bar("swap", preview.swap_changed, percent(preview.swap_changed)),
        Bar("RLD", preview.rld_masked, percent(preview.rld_masked)),
    ]
    return [
        captioned(
            "Rows changed by label-aware methods",
            bars(
                "Rows changed by method",
                "; ".join(f"{bar.name} {bar.value_text}" for bar in rows) + ".",
                rows,
                full=1.0,
            ),
            f"On average, {_moved('LoCa', preview.loca_moved)}swap moves {percent(preview.swap_moved)} of the probability in the rows that "
            f"it changes. Where RLD masks classes besides the label, it masks {least}{number(preview.rld_hidden)} classes. Near 0%, "
            "these methods have nothing to correct in this cache. A large fraction is good if the teacher is wrong and bad if the labels "
            "are: see the last section.",
        )
    ]


def _moved(name: str, share: float) -> str:
    """Return a clause on how much probability a method moves, if it is known."""
    return f"{name} moves {percent(share)} and " if isfinite(share) else ""


def _by_row(preview: "MethodPreview") -> str:
    strips = {"ATKD": preview.atkd_temperature, "NormKD": preview.normkd_temperature}
    chosen = "; ".join(f"{name}: median {number(one.median)}" for name, one in strips.items())
    spread = {"standard deviation": preview.deviation}
    wide = f"Median {number(preview.deviation.median)}."
    return captioned(
        "Temperatures and spread by row",
        quantile_strips("Temperatures by row", f"{chosen}.", strips, "temperature")
        + quantile_strips("Standard deviation of a row's logits", wide, spread, "standard deviation of a row's logits"),
        "Line: 5th to 95th percentile; box: middle half; tick: median; ring: mean; on the right: minimum and maximum. If the temperature "
        "is nearly the same for every row, it has the same effect as a fixed one; far above 10, it flattens the teacher's distribution "
        "completely. Standard deviations near 0 are bad: such rows carry no information, and z-scores amplify their noise.",
    )


def _mass(preview: "MethodPreview") -> list[str]:
    ranked = preview.mass_by_rank
    if len(ranked) < 2:
        return []
    beyond = [max(1 - total, 0.0) for total in accumulate(ranked)]
    series = {
        "class at this rank": [(place + 1.0, share) for place, share in enumerate(ranked)],
        "all further classes": [(place + 1.0, share) for place, share in enumerate(beyond) if share > _FLOOR],
    }
    drawn = {name: points for name, points in series.items() if points}
    description = f"The first class has {percent(ranked[0])}, the second {percent(ranked[1])}."
    low = max(min(share for points in drawn.values() for _, share in points), _FLOOR)
    return [
        captioned(
            "Probability by rank",
            lines(
                "Mean probability by rank",
                description,
                drawn,
                "rank of the class in its row",
                "",
                low=low,
                high=1.0,
                logarithmic=True,
            ),
            f"{description} Mean probability over rows at T=1, on a logarithmic scale. The dashed line at k is the probability that a "
            "top-k row leaves out. If the first class has nearly all of it, there is little to distill at T=1: use a higher temperature.",
        )
    ]


def _outside(stats: "CacheStats") -> list[str]:
    encoding = stats.manifest["encoding"]
    if encoding["kind"] != "topk" or not stats.preview.mass_outside:
        return []
    rows = [Bar(word, share, percent(share)) for word, share in stats.preview.mass_outside.items()]
    description = ", ".join(f"{percent(bar.value)} at {bar.name}" for bar in rows) + "."
    return [
        captioned(
            f"Probability outside the top {encoding['k']}",
            bars(
                "Probability outside the top-k, by temperature",
                description,
                rows,
                full=max(0.5, *(bar.value for bar in rows)),
            ),
            "Mean probability of the classes that are not stored; an estimate above T=1. It is spread evenly over these classes when rows "
            "are read, so a large fraction at the training temperature is bad: dump with a larger `--top-k` or with every class.",
        )
    ]


def _fidelity(fidelity: "Fidelity | None") -> list[str]:
    if fidelity is None:
        return [
            paragraph("The effect of the encoding was not measured here; run `logitcache fidelity` for it.", "quiet")
        ]
    measured = sorted((one for one in fidelity.methods if not one.refused), key=lambda one: -one.gradient["trained"])
    refused = [one for one in fidelity.methods if one.refused]
    parts = []
    if measured:
        head = ["method", *(f"{what}, {student}" for what in ("loss", "gradient", "angle") for student in _STUDENTS)]
        shown = table(head, map(_cells, measured))
        without_rank = (
            f" In {percent(fidelity.unranked)} of the rows, the label is not among the k largest logits."
            if fidelity.unranked
            else ""
        )
        parts = [
            element("h3", "Effect of the encoding on each method"),
            paragraph(
                "Relative errors of loss and gradient, and the angle between exact and stored "
                f"gradient, on {counted(fidelity.rows, 'row')} stored in full, for a simulated untrained student and a trained one. Above "
                f"{_POOR:.0%} (marked !), the student learns something different from what the teacher predicts.{without_rank}",
                "quiet",
            ),
            element("div", _gradients(measured), shown, class_="split turned"),
        ]
    if refused:
        rows = [[escape(one.method), escape(one.refused)] for one in refused]
        words = f"{counted(len(refused), 'method')} cannot use these rows: {', '.join(one.method for one in refused)}"
        parts.append(fold(words, table(["method", "reason"], rows, left=2)))
    return parts


def _cells(one: "MethodError") -> list[str]:
    poor = one.gradient["trained"] > _POOR
    gradient = error_text(one.gradient["trained"])
    return [
        escape(one.method),
        error_text(one.loss["fresh"]),
        error_text(one.loss["trained"]),
        error_text(one.gradient["fresh"]),
        element("b", f"! {gradient}", class_="bad") if poor else gradient,
        f"{one.angle_degrees['fresh']:.2g}°",
        f"{one.angle_degrees['trained']:.2g}°",
    ]


def _gradients(measured: "list[MethodError]") -> str:
    rows = [
        Bar(
            one.method,
            one.gradient["trained"],
            error_text(one.gradient["trained"]),
            2 if one.gradient["trained"] > _POOR else 1,
        )
        for one in measured[:_DRAWN]
    ]
    description = f"The largest error is that of {rows[0].name}, {rows[0].value_text} of its gradient."
    return captioned(
        "Gradient error, trained student",
        bars("Gradient error by method", description, rows, full=max(2 * _POOR, rows[0].value), line=_POOR),
        f"{description} Bars beyond the dashed line ({_POOR:.0%}) are bad.",
    )
