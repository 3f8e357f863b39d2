"""The section about text: what surprises the teacher, and where; documents that stand out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from logitcache.report.charts import lines
from logitcache.report.markup import element, told
from logitcache.report.parts import captioned, paragraph, section, table
from logitcache.report.words import after
from logitcache.runtime.wording import counted, decimals, number, percent

if TYPE_CHECKING:
    from logitcache.report.words import Speller
    from logitcache.stats import PairedBin, PositionBin, TokenComparison, TokenStats

__all__ = ["two_on_text", "what_text_is"]


def what_text_is(tokens: "TokenStats", spell: "Speller") -> str:
    """Write the section about the text."""
    heading = "Surprise of the teacher"
    if not tokens.rows:
        return section(heading, paragraph("No row can be read, so nothing can be said about the text."))
    says = (
        f"A token surprises the teacher by {number(tokens.surprise_nats)} nats in the mean, a perplexity of "
        f"{number(tokens.perplexity)}, over {counted(tokens.rows, 'token')} of {counted(tokens.documents, 'document')}."
    )
    return section(
        heading,
        paragraph(says),
        element("div", _by_position(tokens.positions), class_="grid"),
        *_surprising(tokens, spell),
        *_documents(tokens),
    )


def _by_position(bins: "Sequence[PositionBin]") -> str:
    says = (
        f"Mean surprise is {number(bins[0].surprise_nats)} nats after {_span(bins[0])} and {number(bins[-1].surprise_nats)} after "
        f"{_span(bins[-1])}."
        if len(bins) > 1
        else f"All tokens come after {_span(bins[0])}."
    )
    series = {
        name: [(one.first.bit_length() - 1, getattr(one, field)) for one in bins]
        for name, field in (("surprise of the token", "surprise_nats"), ("entropy of the teacher", "entropy_nats"))
    }
    return captioned(
        "Surprise by position in the document",
        lines(
            "Surprise by position",
            says,
            series,
            "tokens before it, as a power of two",
            "nats",
            low=0.0,
            y_spelling=decimals,
        ),
        f"{says} Where the two lines lie on each other the teacher is calibrated: it is as surprised as it expects to be. Where "
        "surprise is high after few tokens alone, a longer `--sequence-length` has fewer of these.",
    )


def _span(one: "PositionBin | PairedBin") -> str:
    return f"{one.first:,} to {one.last:,} tokens" if one.last > one.first else counted(one.first, "token")


def _surprising(tokens: "TokenStats", spell: "Speller") -> list[str]:
    head = ["document", "after", "text before it", "the token", "the teacher says", "surprise, nats", "confidence"]
    rows = [
        [
            f"{one.document:,}",
            f"{one.position:,}",
            told(spell(one.before)),
            element("b", told(after(spell, one.before, one.label))),
            told(after(spell, one.before, one.says)),
            f"{one.surprise_nats:.2f}",
            percent(one.confidence),
        ]
        for one in tokens.surprising
    ]
    return [
        element("h3", "The most surprising tokens"),
        paragraph(
            "A rare name surprises any model. Broken words, marks of a converter and text of another language do too, and a student learns "
            "them like everything else: look at each, and leave its document out with `--exclude` where it is damaged."
        ),
        table(head, rows, left=5, text=2),
    ]


def _documents(tokens: "TokenStats") -> list[str]:
    parts = [element("h3", "Documents that stand out")]
    if tokens.odd_documents:
        parts += [
            paragraph(
                f"{counted(tokens.odd_total, 'document')} of {tokens.documents:,} surprise the teacher far more than the others (over 5 "
                "deviations above the median): damaged, of another kind, or noise. The farthest come first."
            ),
            table(
                ["document", "tokens", "mean surprise, nats", "deviations"],
                [
                    [f"{one.document:,}", f"{one.rows:,}", f"{one.surprise_nats:.2f}", f"{one.deviations:.1f}"]
                    for one in tokens.odd_documents
                ],
            ),
        ]
    else:
        parts.append(paragraph("None surprises the teacher far more than the others do."))
    if not tokens.copies_total:
        return [*parts, paragraph("No two documents have the same tokens.")]
    pairs = ", ".join(f"{one:,} = {other:,}" for one, other in tokens.copies)
    more = f" and {tokens.copies_total - len(tokens.copies):,} more" if tokens.copies_total > len(tokens.copies) else ""
    copies = (
        "1 document has the tokens of an earlier one, and counts twice"
        if tokens.copies_total == 1
        else f"{tokens.copies_total:,} documents have the tokens of an earlier one, and count again"
    )
    return [*parts, paragraph(f"Of {tokens.documents:,}, {copies} in training: {pairs}{more}.")]


def two_on_text(tokens: "TokenComparison", spell: "Speller") -> list[str]:
    """Write how two teachers of the same text differ: by position, and token by token."""
    bins = tokens.positions
    agreement = [(one.first.bit_length() - 1, one.agreement) for one in bins]
    surprises = {
        f"surprise of {side}": [(one.first.bit_length() - 1, getattr(one, field)) for one in bins]
        for side, field in (("A", "first_surprise_nats"), ("B", "second_surprise_nats"))
    }
    first, last = bins[0], bins[-1]
    says = f"They agree on {percent(first.agreement)} of tokens after {_span(first)}, on {percent(last.agreement)} after {_span(last)}."
    axis = "tokens before it, as a power of two"
    figures = (
        captioned(
            "Agreement by position",
            lines("Agreement by position", says, {"": agreement}, axis, "", low=0.0, high=1.0),
            f"{says} Share of tokens for which both teachers have the same likeliest token.",
        ),
        captioned(
            "Surprise by position in the document",
            lines(
                "Surprise by position", "Mean surprise of both.", surprises, axis, "nats", low=0.0, y_spelling=decimals
            ),
            "Mean of -log of the token's probability. The lower teacher predicts this text better.",
        ),
    )
    head = ["document", "after", "text before it", "the token", "A says", "B says", "by A", "by B", "KL, nats"]
    rows = [
        [
            f"{one.document:,}",
            f"{one.position:,}",
            told(spell(one.before)),
            element("b", told(after(spell, one.before, one.label))),
            told(after(spell, one.before, one.first_says)),
            told(after(spell, one.before, one.second_says)),
            percent(one.first_probability),
            percent(one.second_probability),
            number(one.kl_nats),
        ]
        for one in tokens.differing
    ]
    return [
        element("div", *figures, class_="grid"),
        element("h3", "Tokens about which they differ most"),
        paragraph("By A and by B: the probability that each gives the token."),
        table(head, rows, left=6, text=2),
    ]
