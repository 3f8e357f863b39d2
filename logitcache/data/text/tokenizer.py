"""A tokenizer of transformers, as reading text needs it: ids of many texts at once, and which of them are answers."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import InputError, first_line
from logitcache.models.language.tokenizer import TokenizerFacts, tokenizer_facts

__all__ = ["Tokenizer"]

_GENERATION = "{% generation"  # what marks the answers in a chat template; `{%-` is read as it


class Tokenizer:
    """Wraps a tokenizer of transformers.

    Attributes:
        wrapped: The tokenizer of transformers, a "fast" one.
        name: Where it comes from, for messages.
        source: Name by which it is found again, where it is not that of the teacher; else None.
    """

    def __init__(self, wrapped: Any, name: str = "the tokenizer", source: str | None = None) -> None:
        """Wrap a tokenizer.

        Raises:
            InputError: It is not backed by the package tokenizers.
        """
        if not getattr(wrapped, "is_fast", False):
            raise InputError(
                f"{name} is of type {type(wrapped).__name__}, which is not backed by the package tokenizers: its vocabulary and merges "
                "cannot be identified. Convert it to tokenizer.json, and load that."
            )
        self.wrapped, self.name, self.source = wrapped, name, source

    def __len__(self) -> int:
        """Return the number of ids that exist, added tokens included."""
        return self.facts.vocabulary

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Return the ids of each text, [L], with the special tokens that the tokenizer adds by itself."""
        return [ids for ids, _ in self.encode_with_ends(texts)]

    def encode_with_ends(self, texts: Sequence[str]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Return the ids of each text, [L], as `encode`, and the character at which each token ends, [L]; 0 for one that was added."""
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
        """The template that makes text of a chat; None: it has none."""
        found = getattr(self.wrapped, "chat_template", None)
        return found if isinstance(found, str) else None

    @functools.cached_property
    def facts(self) -> TokenizerFacts:
        """What identifies it: digests of vocabulary and chat template, and the number of ids that exist."""
        return tokenizer_facts(self.wrapped)

    def to_json(self) -> dict[str, Any]:
        """Return what a manifest records: what identifies it, and where it came from if not from the teacher."""
        return self.facts.to_json() | ({} if self.source is None else {"source": self.source})

    def encode_chat_prompt(self, messages: Sequence[Mapping[str, Any]]) -> NDArray[np.int64]:
        """Return the ids of a chat up to where the assistant begins its next turn, [L].

        Raises:
            InputError: There is no chat template, or it refuses these messages.
        """
        found = self._from_template(messages, add_generation_prompt=True)
        return np.array(found["input_ids"], np.int64)

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the ids of a chat, [L], and which of them the assistant says, [L].

        Raises:
            InputError: There is no chat template, it does not mark answers, or it refuses these messages.
        """
        if (template := self.chat_template) is not None and not _marks_answers(template):
            raise InputError(
                f"the chat template of {self.name} does not mark what the assistant says ({{% generation %}} ... {{% endgeneration %}}), "
                "so that no token would be a target. Add the marks, or give `prompt` and `completion`."
            )
        found = self._from_template(messages, return_assistant_tokens_mask=True)
        return np.array(found["input_ids"], np.int64), np.array(found["assistant_masks"], np.bool_)

    def _from_template(self, messages: Sequence[Mapping[str, Any]], **asked: bool) -> Any:
        if self.chat_template is None:
            raise InputError(
                f"{self.name} has no chat template, which `messages` need. Give `prompt` and `completion`."
            )
        try:
            return self.wrapped.apply_chat_template(list(messages), tokenize=True, return_dict=True, **asked)
        except Exception as error:  # whatever a template of somebody else raises
            raise InputError(f"the chat template of {self.name} refuses it ({first_line(error)})") from error


def _marks_answers(template: str) -> bool:
    return _GENERATION.replace(" ", "") in template.replace(" ", "").replace("{%-", "{%").replace("{%+", "{%")


@contextmanager
def _quiet(wrapped: Any) -> Iterator[None]:
    """Lift the tokenizer's own limit of length, which warns of documents that are divided later."""
    limit = wrapped.model_max_length
    wrapped.model_max_length = 10**30
    try:
        yield
    finally:
        wrapped.model_max_length = limit
