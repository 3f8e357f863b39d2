"""Convert token ids to text, if the tokenizer is available."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from logitcache.errors import LogitCacheError

__all__ = ["Speller", "after", "speller_of", "visible"]

Speller = Callable[[Sequence[int]], str]


def speller_of(manifest: Mapping[str, Any]) -> Speller:
    """Return a function that converts the tokens of a cache to text, or to their ids if the tokenizer cannot be loaded.

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
    """Return the text of a token in context, with its leading space, which many tokenizers drop when decoding a single token."""
    beginning, whole = spell(before), spell([*before, token])
    return whole[len(beginning) :] if whole.startswith(beginning) and len(whole) > len(beginning) else spell([token])


def visible(text: str) -> str:
    """Replace control and other non-printable characters by escapes."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
