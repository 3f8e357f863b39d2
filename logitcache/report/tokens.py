"""Report section about text: surprisal by position, the most surprising tokens, and outlier documents."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from logitcache.report.charts import lines
from logitcache.report.markup import element, escape
from logitcache.report.parts import captioned, paragraph, section, table
from logitcache.report.words import after
from logitcache.runtime.wording import counted, decimals, number, percent

if TYPE_CHECKING:
    from logitcache.report.words import Speller
    from logitcache.stats import PairedBin, PositionBin, TokenComparison, TokenStats

__all__ = ["text_comparison", "text_section"]


def text_section(tokens: "TokenStats", spell: "Speller") -> str:
    """Return the section about the text."""
    heading = "Surprisal"
    if not tokens.rows:
        return section(heading, paragraph("No statistics, because no rows can be read."))
    description = (
        f"The mean surprisal is {number(tokens.surprise_nats)} nats per token, a perplexity of "
        f"{number(tokens.perplexity)}, over {counted(tokens.rows, 'token')} of {counted(tokens.documents, 'document')}."
    )
    return section(
        heading,
        paragraph(description),
        element("div", _by_position(tokens.positions), class_="grid"),
        *_surprising(tokens, spell),
        *_documents(tokens),
    )


def _by_position(bins: "Sequence[PositionBin]") -> str:
    description = (
        f"The mean surprisal is {number(bins[0].surprise_nats)} nats after {_span(bins[0])} and {number(bins[-1].surprise_nats)} after "
        f"{_span(bins[-1])}."
        if len(bins) > 1
        else f"All tokens come after {_span(bins[0])}."
    )
    series = {
        name: [(one.first.bit_length() - 1, getattr(one, field)) for one in bins]
        for name, field in (("surprisal of the token", "surprise_nats"), ("entropy of the teacher", "entropy_nats"))
    }
    return captioned(
        "Surprisal by position in the document",
        lines(
            "Surprisal by position",
            description,
            series,
            "log2 of the number of preceding tokens",
            "nats",
            low=0.0,
            y_spelling=decimals,
        ),
        f"{description} The teacher is calibrated where the two lines coincide, because entropy is the surprisal that it expects. If the "
        "surprisal is high only after few tokens, a longer `--sequence-length` has fewer of these.",
    )


def _span(one: "PositionBin | PairedBin") -> str:
    return f"{one.first:,} to {one.last:,} tokens" if one.last > one.first else counted(one.first, "token")


def _surprising(tokens: "TokenStats", spell: "Speller") -> list[str]:
    head = ["document", "position", "preceding text", "token", "prediction", "surprisal (nats)", "confidence"]
    rows = [
        [
            f"{one.document:,}",
            f"{one.position:,}",
            escape(spell(one.before)),
            element("b", escape(after(spell, one.before, one.label))),
            escape(after(spell, one.before, one.says)),
            f"{one.surprise_nats:.2f}",
            percent(one.confidence),
        ]
        for one in tokens.surprising
    ]
    return [
        element("h3", "Most surprising tokens"),
        paragraph(
            "Rare names surprise any model. Broken words, artifacts of file conversion and text in another language do so too, and a "
            "student learns them like everything else. Check these tokens, and exclude damaged documents with `--exclude`."
        ),
        table(head, rows, left=5, text=2),
    ]


def _documents(tokens: "TokenStats") -> list[str]:
    parts = [element("h3", "Outlier documents")]
    if tokens.odd_documents:
        parts += [
            paragraph(
                f"{counted(tokens.odd_total, 'document')} of {tokens.documents:,} with a far higher surprisal than the others (more than 5 "
                "deviations above the median): damaged, of another kind, or noise. The farthest come first."
            ),
            table(
                ["document", "tokens", "mean surprisal (nats)", "deviations"],
                [
                    [f"{one.document:,}", f"{one.rows:,}", f"{one.surprise_nats:.2f}", f"{one.deviations:.1f}"]
                    for one in tokens.odd_documents
                ],
            ),
        ]
    else:
        parts.append(paragraph("No document has a far higher surprisal than the others."))
    if not tokens.copies_total:
        return [*parts, paragraph("No two documents have the same tokens.")]
    pairs = ", ".join(f"{one:,} = {other:,}" for one, other in tokens.copies)
    more = f" and {tokens.copies_total - len(tokens.copies):,} more" if tokens.copies_total > len(tokens.copies) else ""
    copies = (
        "1 is a copy of an earlier one, which counts twice"
        if tokens.copies_total == 1
        else f"{tokens.copies_total:,} are copies of earlier ones, which count several times"
    )
    return [*parts, paragraph(f"Of {counted(tokens.documents, 'document')}, {copies} in training: {pairs}{more}.")]


def text_comparison(tokens: "TokenComparison", spell: "Speller") -> list[str]:
    """Return the part about two teachers of the same text: agreement and surprisal by position, and differing tokens."""
    bins = tokens.positions
    agreement = [(one.first.bit_length() - 1, one.agreement) for one in bins]
    surprises = {
        f"surprisal of {side}": [(one.first.bit_length() - 1, getattr(one, field)) for one in bins]
        for side, field in (("A", "first_surprise_nats"), ("B", "second_surprise_nats"))
    }
    first, last = bins[0], bins[-1]
    description = (
        f"They agree on {percent(first.agreement)} of tokens after {_span(first)}, "
        f"and on {percent(last.agreement)} after {_span(last)}."
    )
    axis = "log2 of the number of preceding tokens"
    figures = (
        captioned(
            "Agreement by position",
            lines("Agreement by position", description, {"": agreement}, axis, "", low=0.0, high=1.0),
            f"{description} Percentage of tokens for which both teachers have the same most likely token.",
        ),
        captioned(
            "Surprisal by position in the document",
            lines(
                "Surprisal by position",
                "Mean surprisal of both.",
                surprises,
                axis,
                "nats",
                low=0.0,
                y_spelling=decimals,
            ),
            "Mean of -log of the token's probability. The teacher with the lower surprisal predicts this text better.",
        ),
    )
    head = ["document", "position", "preceding text", "token", "top of A", "top of B", "p by A", "p by B", "KL (nats)"]
    rows = [
        [
            f"{one.document:,}",
            f"{one.position:,}",
            escape(spell(one.before)),
            element("b", escape(after(spell, one.before, one.label))),
            escape(after(spell, one.before, one.first_says)),
            escape(after(spell, one.before, one.second_says)),
            percent(one.first_probability),
            percent(one.second_probability),
            number(one.kl_nats),
        ]
        for one in tokens.differing
    ]
    return [
        element("div", *figures, class_="grid"),
        element("h3", "Tokens with the largest KL divergence"),
        paragraph("“p by A” and “p by B” are the probabilities of the token according to each teacher."),
        table(head, rows, left=6, text=2),
    ]
