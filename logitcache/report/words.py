"""Token ids as text, where the tokenizer is at hand."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from logitcache.errors import LogitCacheError

__all__ = ["Speller", "after", "speller_of", "visible"]

Speller = Callable[[Sequence[int]], str]


def speller_of(manifest: Mapping[str, Any]) -> Speller:
    """Return what writes the tokens of a cache of text as text: its tokenizer, or where that cannot be loaded their ids.

    Args:
        manifest: Manifest of the cache, as JSON.
    """
    from logitcache.data.text.reading import tokenizer_named  # noqa: PLC0415  (torch)

    source = manifest["data"].get("tokenizer", {}).get("source") or manifest["teachers"][0]["name"]
    try:
        tokenizer = tokenizer_named(source)
    except LogitCacheError:
        return lambda ids: " ".join(f"<{one}>" for one in ids)
    return lambda ids: visible(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def after(spell: Speller, before: Sequence[int], token: int) -> str:
    """Write a token as it stands after others: with its space, which many tokenizers leave out of a token alone."""
    beginning, whole = spell(before), spell([*before, token])
    return whole[len(beginning) :] if whole.startswith(beginning) and len(whole) > len(beginning) else spell([token])


def visible(text: str) -> str:
    """Write control characters, and what else does not print, as escapes."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
