"""Report section about the teacher: quality by view, by confidence and by class."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from logitcache.report.charts import (
    Bar,
    bars,
    columns,
    heat_map,
    lines,
    reliability_diagram,
    thinned,
)
from logitcache.report.markup import element, escape
from logitcache.report.parts import ClassNames, captioned, class_list, fold, paragraph, section, table
from logitcache.runtime.wording import counted, percent
from logitcache.stats import wilson_interval

if TYPE_CHECKING:
    from logitcache.stats import CacheStats, ViewStats

__all__ = ["class_figures", "teacher_section"]

_VIEWS_SHOWN, _VIEWS_FOLDED = 16, 240
_CLASSES_DRAWN, _CLASSES_NAMED, _CLASSES_LISTED = 24, 16, 1000
_PLACES = 12  # number of ranks to show separately
_PAIRS = 12
_MATRIX = 3  # number of views up to which a sentence replaces the matrix
_LOW_AGREEMENT = "Low agreement means that the augmentation removes what the teacher relies on."
_MARKED = 40  # number of views up to which markers are drawn instead of a line


def teacher_section(stats: "CacheStats", names: ClassNames) -> str:
    """Return the section about the teacher."""
    views = stats.views
    if not any(view.rows for view in views):
        return section("Teacher", paragraph("No statistics, because no rows can be read."))
    figures = [
        _reliability(stats),
        _ranks(stats),
        *_by_view(views),
        *_by_class(stats, names),
        *_agreement(stats),
    ]
    return section("Teacher", _table(stats), element("div", *figures, class_="grid"))


def _by_class(stats: "CacheStats", names: ClassNames) -> list[str]:
    """Return the figures about classes; none for text, whose classes are tokens."""
    if stats.tokens is not None:
        return []
    return [
        *class_figures(
            stats.class_accuracy(),
            names,
            "Accuracy by class",
            "Accuracy of the teacher by class, over all views. A student cannot learn a class with a far lower accuracy than the others "
            "from this teacher: check its labels and confusions. Error bars are 95% intervals (Wilson) for the number of samples of the "
            "class.",
            stats.class_samples(),
        ),
        *_confusions(stats, names),
    ]


def _table(stats: "CacheStats") -> str:
    head = ["view", "recipe", "rows", "accuracy", "top-5", "error rate", "confidence", "entropy", "calibration error"]
    numbers = ("accuracy", "top5_accuracy", "mis_instruction_rate", "confidence", "entropy_nats", "calibration_error")

    def cells(view: str, recipe: str, rows: int, values: Sequence[float]) -> list[str]:
        right, five, errs, confidence, entropy, error = values
        named = [escape(view), escape(recipe), f"{rows:,}"]
        if not rows:
            return [*named, *("-" * len(numbers))]
        return [
            *named,
            *map(percent, (right, five, errs)),
            f"{confidence:.3f}",
            f"{entropy:.3f} nats",
            percent(error),
        ]

    rows = [
        cells(str(view.view), view.recipe, view.rows, [float(getattr(view, name)) for name in numbers])
        for view in stats.views
    ]
    total = sum(view.rows for view in stats.views)
    means = cells("all", "", total, [stats.mean(name) for name in numbers])
    sums = [means] if len(rows) > 1 else []
    shown = table(head, [*sums, *rows[:_VIEWS_SHOWN]], left=2, sums=len(sums))
    folded = rows[_VIEWS_SHOWN:_VIEWS_FOLDED]
    more = []
    if folded:
        left_out = len(rows) - _VIEWS_FOLDED
        rest = f"; {left_out:,} more are left out" if left_out > 0 else ""
        more.append(fold(f"{counted(len(folded), 'more view')}{rest}", table(head, folded, left=2)))
    return shown + "".join(more)


def _reliability(stats: "CacheStats") -> str:
    surer = stats.mean("confidence") - stats.mean("accuracy")
    trend = "overconfident" if surer > 0 else "underconfident"
    description = f"On average, the teacher is {trend} by {percent(abs(surer))}."
    return captioned(
        "Calibration",
        reliability_diagram("Reliability diagram", description, stats.reliability()),
        f"{description} Bars show the accuracy at each level of confidence; on the dashed line, the two are equal. Bars far below the line "
        "are bad: the teacher is less accurate than its probabilities claim. Pale bars have fewer than 30 rows. Gray: number of rows.",
    )


def _ranks(stats: "CacheStats") -> str:
    """Return the figure with the rank of the label in rows that the teacher gets wrong."""
    counts = stats.rank_of_label()
    wrong = sum(counts[1:])
    title = "Rank of the true class in wrong rows"
    if not wrong:
        return captioned(
            title, "", "The teacher is correct in every row, so methods that correct its mistakes have no effect."
        )
    kept = counts[1:_PLACES]
    values = [(str(place + 2), count / wrong) for place, count in enumerate(kept)]
    tail = sum(counts[_PLACES:])
    if tail:
        values.append((f"{_PLACES + 1}+", tail / wrong))
    elif len(counts) <= _PLACES:
        values[-1] = (f"{values[-1][0]}+", values[-1][1])
    description = (
        f"In {percent(counts[1] / wrong)} of {counted(wrong, 'wrong row')}, the label is the teacher's second choice."
    )
    return captioned(
        title,
        columns(
            "Rank of the true class",
            description,
            values,
            "rank of the true class",
            "fraction of wrong rows",
        ),
        f"{description} Near misses are good: methods that raise the label's logit (LoCa, swap) then change little. A tall last bar "
        "is bad: the teacher does not consider the label at all, or the label is wrong.",
    )


def _by_view(views: "Sequence[ViewStats]") -> list[str]:
    counted_views = [view for view in views if view.rows]
    if len(counted_views) < 3:
        return []
    series = {
        "accuracy": [(float(view.view), view.accuracy) for view in counted_views],
        "mean confidence": [(float(view.view), view.confidence) for view in counted_views],
    }
    worst = min(counted_views, key=lambda view: view.accuracy)
    best = max(counted_views, key=lambda view: view.accuracy)
    description = (
        f"View {worst.view} has the lowest accuracy, {percent(worst.accuracy)}; "
        f"view {best.view} the highest, {percent(best.accuracy)}."
    )
    return [
        captioned(
            "Accuracy by view",
            lines(
                "Accuracy and confidence by view", description, series, "view", "", points=len(counted_views) <= _MARKED
            ),
            f"{description} Views of one recipe should differ little. The augmentation of a view far below the others is too strong for "
            "this teacher.",
        )
    ]


def class_figures(
    shares: Sequence[float | None], names: ClassNames, title: str, caption: str, counts: Sequence[int] | None = None
) -> list[str]:
    """Draw a fraction by class, lowest first: bars for all of few classes; for many, bars for the lowest, a curve and a collapsed list.

    Args:
        shares: Fraction of each class, in index order; None for classes without rows.
        names: Names of the classes.
        title: Title of the figure.
        caption: Caption of the figure.
        counts: Number of samples of each class, for intervals; None draws no intervals.
    """
    ranked = sorted((share, number) for number, share in enumerate(shares) if share is not None)
    if not ranked:
        return []
    absent = len(shares) - len(ranked)
    without = f" {absent:,} of {len(shares):,} classes have no rows." if absent else ""
    few = len(ranked) <= _CLASSES_DRAWN
    drawn = ranked if few else ranked[:_CLASSES_NAMED]
    named_shares = [
        (number, _counted_share(share, None if counts is None else counts[number]))
        for share, number in ranked[:_CLASSES_LISTED]
    ]
    rows = [
        Bar(
            names[number],
            share,
            percent(share),
            interval=None if counts is None else wilson_interval(share, counts[number]),
        )
        for share, number in drawn
    ]
    worst = f"Lowest: {names[ranked[0][1]]}, {percent(ranked[0][0])}."
    first = captioned(
        title if few else f"{title}: lowest {len(drawn)}",
        bars(title, worst, rows, full=1.0),
        f"{caption}{without}",
        *(
            [fold(f"All {len(named_shares):,}, with intervals and number of samples", class_list(names, named_shares))]
            if few and counts
            else []
        ),
    )
    if few:
        return [first]
    middle = ranked[len(ranked) // 2][0]
    description = f"{worst} Half of the {len(ranked):,} classes are above {percent(middle)}."
    curve = lines(
        title,
        description,
        {"": thinned([share for share, _ in ranked])},
        "classes, from lowest to highest",
        "",
        low=0.0,
        high=1.0,
    )
    listed = ranked[:_CLASSES_LISTED]
    rest = f", {len(ranked) - len(listed):,} higher ones left out" if len(ranked) > len(listed) else ""
    every = fold(
        f"Lowest {len(listed):,} by name{rest}" if rest else f"All {len(listed):,} by name",
        class_list(names, named_shares),
    )
    return [
        first,
        captioned(
            f"{title}: all {len(ranked):,}",
            curve,
            f"{description} A flat, high curve is good; a long ramp on the left is bad.",
            every,
        ),
    ]


def _counted_share(share: float, count: int | None) -> str:
    """Format a fraction, with its interval and number of samples if that is known."""
    if count is None:
        return percent(share)
    low, high = wilson_interval(share, count)
    return f"{percent(share)} ({low:.1%} to {high:.1%}, n {count:,})"


def _confusions(stats: "CacheStats", names: ClassNames) -> list[str]:
    pairs = stats.confusions[:_PAIRS]
    if not pairs:
        return []
    rows = [
        [names.marked(pair.label), names.marked(pair.says), f"{pair.rows:,} ({percent(pair.share)})"] for pair in pairs
    ]
    return [
        captioned(
            "Most confused classes",
            table(["label", "prediction", "rows"], rows, left=2),
            "Number of rows with this label and prediction over all views, and their fraction of the label's rows. Similar classes are "
            "expected here. A pair in both directions may be one class with two names; a pair that makes no sense is a reason to check "
            "the labels.",
        )
    ]


def _agreement(stats: "CacheStats") -> list[str]:
    matrix = stats.agreement
    if all(value is None for a, row in enumerate(matrix) for b, value in enumerate(row) if a != b):
        return []
    description = "No sample has all views."
    if stats.agreement_of_all is not None:
        description = f"All views have the same top class in {percent(stats.agreement_of_all)} of samples."
    if len(matrix) <= _MATRIX:
        pairs = [(b, a, matrix[a][b]) for a in range(len(matrix)) for b in range(a)]
        by_pair = "; ".join(
            f"views {one} and {other}: {percent(share)}" for one, other, share in pairs if share is not None
        )
        detail = f" Pairs of views: {by_pair}." if len(matrix) > 2 else ""
        return [captioned("Agreement between views", "", f"{description}{detail} {_LOW_AGREEMENT}")]
    limit = f" The first {len(matrix)} of {len(stats.views)} views are shown." if len(stats.views) > len(matrix) else ""
    return [
        captioned(
            "Agreement between views",
            heat_map("Agreement between views", description, matrix, "views"),
            f"{description} Each cell is the percentage of samples for which two views have the same top class; darker is higher.{limit} "
            f"{_LOW_AGREEMENT}",
        )
    ]
