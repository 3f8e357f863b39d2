"""Wrapper of a transformers tokenizer that encodes many texts at once and marks the tokens of answers."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import InputError, first_line
from logitcache.models.language.tokenizer import TokenizerFacts, tokenizer_facts

__all__ = ["Tokenizer"]

_GENERATION = "{% generation"  # marks answers in a chat template; `{%-` counts as the same


class Tokenizer:
    """A transformers tokenizer.

    Attributes:
        wrapped: Fast tokenizer of transformers.
        name: Name in messages.
        source: Name to load it by again, or None if it is the tokenizer of the teacher.
    """

    def __init__(self, wrapped: Any, name: str = "the tokenizer", source: str | None = None) -> None:
        """Wrap a tokenizer.

        Raises:
            InputError: If it is not a fast tokenizer, backed by the package tokenizers.
        """
        if not getattr(wrapped, "is_fast", False):
            raise InputError(
                f"{name} is of type {type(wrapped).__name__}, which is not backed by the package tokenizers: its vocabulary and merges "
                "cannot be identified. Convert it to tokenizer.json, and load that."
            )
        self.wrapped, self.name, self.source = wrapped, name, source

    def __len__(self) -> int:
        """Return the size of the vocabulary, including added tokens."""
        return self.facts.vocabulary

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Return the ids of each text, [L], including the special tokens that the tokenizer adds."""
        return [ids for ids, _ in self.encode_with_ends(texts)]

    def encode_with_ends(self, texts: Sequence[str]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Return the ids of each text, as `encode`, and the character offset at which each token ends (0 for added tokens), [L] each."""
        if not len(texts):
            return []
        with _quiet(self.wrapped):
            found = self.wrapped(list(texts), return_offsets_mapping=True, verbose=False)
        return [
            (np.array(ids, np.int64), np.array([end for _, end in spans], np.int64))
            for ids, spans in zip(found["input_ids"], found["offset_mapping"], strict=True)
        ]

    @property
    def chat_template(self) -> str | None:
        """Chat template, or None if it has none."""
        found = getattr(self.wrapped, "chat_template", None)
        return found if isinstance(found, str) else None

    @functools.cached_property
    def facts(self) -> TokenizerFacts:
        """Facts that identify it: digests of vocabulary and chat template, and the size of the vocabulary."""
        return tokenizer_facts(self.wrapped)

    def to_json(self) -> dict[str, Any]:
        """Return the manifest entry: the facts that identify it, and its source if that is not the teacher."""
        return self.facts.to_json() | ({} if self.source is None else {"source": self.source})

    def encode_chat_prompt(self, messages: Sequence[Mapping[str, Any]]) -> NDArray[np.int64]:
        """Return the ids of a chat up to the beginning of the assistant's next turn, [L].

        Raises:
            InputError: If there is no chat template, or it rejects these messages.
        """
        found = self._from_template(messages, add_generation_prompt=True)
        return np.array(found["input_ids"], np.int64)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the ids of a chat, [L], and the mask of the assistant's tokens, [L].

        Raises:
            InputError: If there is no chat template, it does not mark answers, or it rejects these messages.
        """
        if (template := self.chat_template) is not None and not _marks_answers(template):
            raise InputError(
                f"the chat template of {self.name} does not mark the assistant's turns ({{% generation %}} ... {{% endgeneration %}}), "
                "so no token would be a target. Add the marks, or provide `prompt` and `completion`."
            )
        found = self._from_template(messages, return_assistant_tokens_mask=True)
        return np.array(found["input_ids"], np.int64), np.array(found["assistant_masks"], np.bool_)

    def _from_template(self, messages: Sequence[Mapping[str, Any]], **asked: bool) -> Any:
        if self.chat_template is None:
            raise InputError(
                f"{self.name} has no chat template, which `messages` need. Provide `prompt` and `completion`."
            )
        try:
            return self.wrapped.apply_chat_template(list(messages), tokenize=True, return_dict=True, **asked)
        except Exception as error:  # a template may raise anything
            raise InputError(f"the chat template of {self.name} rejects the chat ({first_line(error)})") from error


def _marks_answers(template: str) -> bool:
    return _GENERATION.replace(" ", "") in template.replace(" ", "").replace("{%-", "{%").replace("{%+", "{%")


@contextmanager
def _quiet(wrapped: Any) -> Iterator[None]:
    """Remove the tokenizer's own length limit, which would warn about documents that are split later."""
    limit = wrapped.model_max_length
    wrapped.model_max_length = 10**30
    try:
        yield
    finally:
        wrapped.model_max_length = limit
