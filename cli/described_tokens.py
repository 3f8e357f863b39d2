"""Terminal output of `logitcache stats` about tokens: of one cache of text, and of two compared."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from logitcache.runtime.wording import counted

from .render import bar, print_pairs, print_table

if TYPE_CHECKING:
    from logitcache.stats import CacheStats, PairedBin, PositionBin, TokenComparison, TokenStats

__all__ = ["print_paired_tokens", "print_tokens"]

_LINES = 5  # maximum number of lines of each list
_CONTEXT = 48  # maximum length of the text before a token


def print_tokens(found: "CacheStats", tokens: "TokenStats") -> None:
    """Print the surprisal by position, the most surprising tokens, and outlier documents."""
    if not tokens.rows:
        return
    from logitcache.report.words import after, speller_of

    spell, most = speller_of(found.manifest), max(one.surprise_nats for one in tokens.positions)
    print_pairs(
        f"Surprisal by position: mean {tokens.surprise_nats:.3f} nats per token, perplexity {tokens.perplexity:.2f}",
        {
            _span(one): (
                f"{bar(one.surprise_nats / most):<24} {one.surprise_nats:.3f} nats, "
                f"entropy {one.entropy_nats:.3f}, {one.accuracy:.1%} accuracy, {counted(one.rows, 'token')}"
            )
            for one in tokens.positions
        },
    )
    print_table(
        "Most surprising tokens",
        ["document", "preceding text", "token", "prediction", "nats"],
        [
            [
                f"{one.document:,}",
                spell(one.before)[-_CONTEXT:],
                after(spell, one.before, one.label),
                after(spell, one.before, one.says),
                f"{one.surprise_nats:.2f}",
            ]
            for one in tokens.surprising[:_LINES]
        ],
        left=4,
    )
    copies = ", ".join(f"{one:,} = {other:,}" for one, other in tokens.copies[:_LINES])
    odd = ", ".join(f"{one.document:,} ({one.surprise_nats:.2f} nats)" for one in tokens.odd_documents[:_LINES])
    print_pairs(
        f"Outliers among {counted(tokens.documents, 'document')}",
        {
            "high surprisal": f"{tokens.odd_total:,}{': ' * bool(odd)}{odd}",
            "copies of earlier ones": f"{tokens.copies_total:,}{': ' * bool(copies)}{copies}",
        },
    )


def print_paired_tokens(tokens: "TokenComparison", manifest: Mapping[str, Any]) -> None:
    """Print the agreement of two text teachers by position, and the tokens on which they differ most."""
    from logitcache.report.words import after, speller_of

    spell = speller_of(manifest)
    print_pairs(
        "Agreement on the top token, by position",
        {
            _span(one): (
                f"{bar(one.agreement):<24} {one.agreement:.2%}, KL {one.kl_nats:.2g} nats, surprisal {one.first_surprise_nats:.3f} and "
                f"{one.second_surprise_nats:.3f}, {counted(one.rows, 'token')}"
            )
            for one in tokens.positions
        },
    )
    print_table(
        "Tokens with the largest KL divergence",
        ["document", "preceding text", "token", "first prediction", "second prediction", "KL (nats)"],
        [
            [
                f"{one.document:,}",
                spell(one.before)[-_CONTEXT:],
                after(spell, one.before, one.label),
                after(spell, one.before, one.first_says),
                after(spell, one.before, one.second_says),
                f"{one.kl_nats:.2g}",
            ]
            for one in tokens.differing[:_LINES]
        ],
        left=5,
    )


def _span(one: "PositionBin | PairedBin") -> str:
    """Format the range of positions of a bin."""
    return f"{one.first:,} to {one.last:,}" if one.last > one.first else f"{one.first:,}"
