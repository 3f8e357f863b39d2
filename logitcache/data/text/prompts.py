"""Prompts to complete, and reference completions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.data.text.documents import Documents
from logitcache.data.text.forms import PromptEntry, as_prompt
from logitcache.data.text.sources import read_objects
from logitcache.data.text.tokenizer import Tokenizer
from logitcache.errors import InputError
from logitcache.store import Ids

__all__ = ["Prompt", "prompts_in", "prompts_of", "read_prompts"]


@dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """A prompt to complete.

    Attributes:
        number: Position among all prompts of its source, from 0.
        ids: Token ids, [L] int64.
        references: Reference completions, possibly none.
    """

    number: int
    ids: NDArray[np.int64]
    references: tuple[str, ...] = ()


def read_prompts(kind: str, path: str, tokenizer: Tokenizer, prompt_tokens: int | None = None) -> list[Prompt]:
    """Read the prompts of JSONL or Parquet files, or of a Hugging Face data set.

    Args:
        kind: Kind of the source: `jsonl`, `parquet` or `hf`.
        path: Path of a file or a folder, or a pattern.
        tokenizer: Tokenizer; its chat template is applied to chats.
        prompt_tokens: Number of tokens at the beginning of plain text to use as its prompt.

    Raises:
        InputError: If they cannot be read, or plain text is found and `prompt_tokens` is None.
    """
    entries = [as_prompt(value, where) for where, value in read_objects(kind, path)]
    if not entries:
        raise InputError(f"{kind}:{path} has no prompts")
    plain = iter(tokenizer.encode_with_ends([one.prompt for one in entries if isinstance(one.prompt, str)]))
    found = []
    for number, entry in enumerate(entries):
        if not isinstance(entry.prompt, str):
            ids, references = _chat(tokenizer, entry), entry.references
        else:
            ids, ends = next(plain)
            ids = (
                ids[: np.flatnonzero(ends)[-1] + 1] if ends.any() else ids[:1]
            )  # without special tokens added at the end
            references = entry.references
        if entry.plain:
            if prompt_tokens is None:
                raise InputError(
                    f"{entry.where} is plain text, which has no prompt; set the number of tokens to use as the prompt with --prompt-tokens"
                )
            references = _texts(tokenizer.wrapped, ids[prompt_tokens:])
            ids = ids[:prompt_tokens]
        if not len(ids):
            raise InputError(f"{entry.where}: the prompt has no tokens. Leave it out.")
        found.append(Prompt(number, ids, references))
    return found


def _chat(tokenizer: Tokenizer, entry: PromptEntry) -> NDArray[np.int64]:
    try:
        return tokenizer.encode_chat_prompt(entry.prompt)  # type: ignore[arg-type]
    except InputError as error:
        raise InputError(f"{entry.where}: {error}") from error


def prompts_of(documents: Documents, tokenizer: Any, ids: Ids) -> list[Prompt]:
    """Return the prompts of contexts that have a completion, with the completion as reference.

    Args:
        documents: Contexts; the last answer of each is its completion.
        tokenizer: Transformers tokenizer that made the tokens.
        ids: Context ids, [N].
    """
    found = []
    last = documents.answers if documents.completions is None else documents.completions
    asked = documents.targets if last is None else last
    for context in ids.tolist():
        begin, end = documents.documents[context : context + 2]
        places = np.flatnonzero(asked[begin:end])
        if len(places) and places[0] > 1 - (last is not None):
            tokens = documents.tokens[begin:end].astype(np.int64)
            found.append(Prompt(context, tokens[: places[0]], _texts(tokenizer, tokens[places])))
    return found


def prompts_in(documents: Documents, tokenizer: Any, prompt_tokens: int | None, name: str) -> list[Prompt]:
    """Return the prompts of a tokenized data set: the tokens before each completion, or the first tokens of each context.

    Args:
        documents: Contexts.
        tokenizer: Transformers tokenizer that made the tokens.
        prompt_tokens: Number of tokens at the beginning of a context to use as its prompt; shorter contexts are left out.
        name: Name of the data set in messages.

    Raises:
        InputError: If there are none.
    """
    every = np.arange(len(documents))
    if prompt_tokens is None:
        found = prompts_of(documents, tokenizer, every)
        remedy = "set the number of tokens of each document to use as its prompt with --prompt-tokens"
    else:
        starts = [documents.tokens[begin:end].astype(np.int64) for begin, end in _spans(documents)]
        found = [
            Prompt(number, one[:prompt_tokens], _texts(tokenizer, one[prompt_tokens:]))
            for number, one in enumerate(starts)
            if len(one) > prompt_tokens
        ]
        remedy = f"use a smaller --prompt-tokens than {prompt_tokens:,}"
    if not found:
        raise InputError(f"{name} has no prompts: {remedy}")
    return found


def _spans(documents: Documents) -> Sequence[tuple[int, int]]:
    return list(zip(documents.documents[:-1].tolist(), documents.documents[1:].tolist(), strict=True))


def _texts(tokenizer: Any, ids: NDArray[np.int64]) -> tuple[str, ...]:
    """Return the text of tokens as a reference completion, or none if it is empty."""
    text = tokenizer.decode(ids.tolist(), skip_special_tokens=True).strip()
    return (text,) if text else ()
