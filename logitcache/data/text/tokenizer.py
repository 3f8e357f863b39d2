"""A tokenizer of transformers, as reading text needs it: ids of many texts at once, and digests that tell whether it is the same."""

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import InputError, first_line

__all__ = ["Tokenizer", "load_tokenizer"]

_GENERATION = "{% generation"  # what marks the answers in a chat template; `{%-` is read as it


class Tokenizer:
    """Wraps a tokenizer of transformers.

    Attributes:
        wrapped: The tokenizer of transformers, a "fast" one.
        name: Where it comes from, for messages.
    """

    def __init__(self, wrapped: Any, name: str = "the tokenizer") -> None:
        """Wrap a tokenizer.

        Raises:
            InputError: It is not backed by the package tokenizers.
        """
        if not getattr(wrapped, "is_fast", False):
            raise InputError(
                f"{name} is of type {type(wrapped).__name__}, which is not backed by the package tokenizers: its vocabulary and merges "
                "cannot be identified. Convert it to tokenizer.json, and load that."
            )
        self.wrapped, self.name = wrapped, name

    def __len__(self) -> int:
        """Return the number of ids that exist, added tokens included: the highest and one."""
        return int(self._facts["vocabulary"])

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Return the ids of each text, [L]; without special tokens."""
        return [ids for ids, _ in self.encode_with_ends(texts)]

    def encode_with_ends(self, texts: Sequence[str]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Return the ids of each text, [L], and the character at which each token ends, [L]; without special tokens."""
        if not len(texts):
            return []
        with _quiet(self.wrapped):
            found = self.wrapped(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return [
            (np.array(ids, np.int64), np.array([end for _, end in spans], np.int64))
            for ids, spans in zip(found["input_ids"], found["offset_mapping"], strict=True)
        ]

    @property
    def special_ids(self) -> dict[str, int]:
        """Ids of the special tokens that it has: `bos`, `eos`, `pad`, `unk`."""
        found = {name: getattr(self.wrapped, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "unk")}
        return {name: int(number) for name, number in found.items() if number is not None}

    @property
    def digest(self) -> str:
        """Digest of vocabulary with ids, merges and added tokens: the same in every version of the library."""
        return str(self._facts["digest"])

    @property
    def chat_template(self) -> str | None:
        """The template that makes text of a chat; None: it has none."""
        found = getattr(self.wrapped, "chat_template", None)
        return found if isinstance(found, str) else None

    def facts(self) -> dict[str, Any]:
        """Return what a manifest records: `vocabulary`, the number of ids; `digest`; `bos` and `eos`; `chat_template_digest`."""
        return dict(self._facts)

    @functools.cached_property
    def _facts(self) -> dict[str, Any]:
        content = json.loads(self.wrapped.backend_tokenizer.to_str())
        vocabulary = content["model"].get("vocab", {})
        if isinstance(vocabulary, list):  # pieces with scores, in the order of their ids
            ids = [[place, *entry] for place, entry in enumerate(vocabulary)]
        else:
            ids = sorted([number, piece] for piece, number in vocabulary.items())
        merges = [one.split(" ") if isinstance(one, str) else list(one) for one in content["model"].get("merges") or ()]
        added = sorted([one["id"], one["content"]] for one in content["added_tokens"])
        return {
            "vocabulary": max((number for number, *_ in (*ids, *added)), default=-1) + 1,
            "digest": _digest([ids, merges, added]),
            "bos": self.special_ids.get("bos"),
            "eos": self.special_ids.get("eos"),
            "chat_template_digest": None if self.chat_template is None else _digest(self.chat_template),
        }

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the ids of a chat, [L], and which of them the assistant says, [L].

        Raises:
            InputError: There is no chat template, it does not mark answers, or it refuses these messages.
        """
        template = self.chat_template
        if template is None:
            raise InputError(
                f"{self.name} has no chat template, which `messages` need. Give `prompt` and `completion`."
            )
        if not _marks_answers(template):
            raise InputError(
                f"the chat template of {self.name} does not mark what the assistant says ({{% generation %}} ... {{% endgeneration %}}), "
                "so that no token would be a target. Add the marks, or give `prompt` and `completion`."
            )
        try:
            found = self.wrapped.apply_chat_template(
                list(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
            )
        except Exception as error:  # whatever a template of somebody else raises
            raise InputError(f"the chat template of {self.name} refuses it ({first_line(error)})") from error
        return np.array(found["input_ids"], np.int64), np.array(found["assistant_masks"], np.bool_)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Load the tokenizer of a local folder, or one that transformers finds by its name.

    Raises:
        InputError: transformers is missing, or finds none.
    """
    try:
        from transformers import AutoTokenizer  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise InputError("reading text needs the package transformers: pip install 'logitcache[lm]'") from error
    try:
        return Tokenizer(AutoTokenizer.from_pretrained(str(path)), f"the tokenizer of {path}")
    except InputError:
        raise
    except Exception as error:  # a dozen kinds, from files that are missing to those of another version
        raise InputError(f"there is no tokenizer that can be loaded in {path} ({first_line(error)})") from error


def _marks_answers(template: str) -> bool:
    return _GENERATION.replace(" ", "") in template.replace(" ", "").replace("{%-", "{%").replace("{%+", "{%")


def _digest(content: Any) -> str:
    text = json.dumps(content, ensure_ascii=True, sort_keys=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=16).hexdigest()


@contextmanager
def _quiet(wrapped: Any) -> Iterator[None]:
    """Lift the tokenizer's own limit of length, which warns of documents that are divided later."""
    limit = wrapped.model_max_length
    wrapped.model_max_length = 10**30
    try:
        yield
    finally:
        wrapped.model_max_length = limit
