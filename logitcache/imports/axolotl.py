"""Data sets of axolotl's distillation plugin, JSON lines or Parquet, in its two forms.

* `logprobs` (or what its configuration calls `logprobs_field`): of each position a list of {"logprob", "token": "token_id:N"}.
* `logprobs` and `target_token_ids`: of each position a list of log-probabilities and one of ids.

The lists are of the last positions of the tokens, where they are fewer. The tokens are `input_ids`, or what the chat template makes of
`messages`. Whether the list at a token is of this token or of the next one is not written anywhere, so it must be said, and it is compared
with the data. What axolotl has prepared for training (`target_logprobs`) is divided by the sum of the k largest, and refused: the mass of
the others is lost.
"""

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.data.text.tokenizer import Tokenizer
from logitcache.errors import InputError, explain_foreign_errors
from logitcache.imports.reader import Document, Line, files_of, json_line, json_lines
from logitcache.teachers.given import KnownRows, rectangular

__all__ = ["AxolotlReader"]


class AxolotlReader:
    """Reads files of one form."""

    own = False
    vocabulary: int | None = None

    def __init__(
        self,
        source: str | Path,
        alignment: str | None,
        tokenizer: Tokenizer | None,
        messages: str = "messages",
        logprobs: str = "logprobs",
    ) -> None:
        """Find the files; nothing is read yet.

        Args:
            source: A file, or a folder of them.
            alignment: `next` or `token`: the token that the list at a token is the distribution of.
            tokenizer: Tokenizer that makes ids of chats.
            messages: Column of the chats.
            logprobs: Column of the lists.

        Raises:
            InputError: There are none, or nobody said how lists and tokens are aligned.
        """
        if alignment is None:
            raise InputError(
                "a data set of axolotl does not say whether the list at a token is its own distribution (--alignment token, as vLLM lists "
                "prompt_logprobs) or that of the next token (--alignment next): say which"
            )
        self._files = files_of(source, ".jsonl", ".json", ".parquet")
        self._shift, self._tokenizer = alignment, tokenizer
        self._messages, self._logprobs = messages, logprobs
        self._places: list[Line] = []
        self._held: tuple[Path, list[dict[str, Any]]] | None = None
        self.facts: dict[str, Any] = {"alignment": alignment}

    def documents(self) -> Iterator[Document]:
        """Yield the documents in order."""
        self._places = []
        for file in self._files:
            for place, entry in self._entries(file):
                tokens, lists = self._tokens(entry, file), self._lists(entry, file)
                self._places.append(place)
                targets = np.zeros(len(tokens), np.bool_)
                targets[[at for at, one in self._positions(len(tokens), lists) if one[0]]] = True
                yield Document(tokens, targets)

    def rows(self, number: int, largest: int) -> KnownRows:
        """Return the rows of a document."""
        del largest
        place = self._places[number]
        entry = self._entry(place)
        tokens, lists = self._tokens(entry, place.file), self._lists(entry, place.file)
        found: list[tuple[Sequence[int], Sequence[float]]] = [((), ()) for _ in tokens[1:]]
        for at, one in self._positions(len(tokens), lists):
            found[at - 1] = one
        return rectangular(found)

    def _positions(
        self, tokens: int, lists: Sequence[tuple[list[int], list[float]]]
    ) -> list[tuple[int, tuple[list[int], list[float]]]]:
        """Return the token that each list is the distribution of, as far as there is one before it."""
        if len(lists) > tokens:
            raise InputError(
                f"a document has {tokens:,} tokens and {len(lists):,} lists of log-probabilities: the tokenizer or chat template is not "
                "the one that was used"
            )
        first = tokens - len(lists) + (self._shift == "next")
        return [(first + n, one) for n, one in enumerate(lists) if 1 <= first + n < tokens]

    def _tokens(self, entry: dict[str, Any], file: Path) -> NDArray[np.int64]:
        if entry.get("target_logprobs") is not None:
            raise InputError(
                f"{file} was prepared for training: its log-probabilities are divided by the sum of the k largest, so that the mass of the "
                "others is lost. Import the data set from before axolotl prepared it."
            )
        if entry.get("input_ids") is not None:
            return np.array(entry["input_ids"]) if len(entry["input_ids"]) else np.empty(0, np.int64)
        if (messages := entry.get(self._messages)) is None:
            raise InputError(
                f"{file} has neither input_ids nor {self._messages}, but {_names(entry)}: name the column of the chats with "
                "--field-messages"
            )
        if self._tokenizer is None:
            raise InputError(f"{file} has chats and no ids: name the tokenizer that was used with --tokenizer hf:PATH")
        wrapped = self._tokenizer.wrapped
        with explain_foreign_errors(f"a chat of {file} cannot be made tokens with the template of its tokenizer"):
            found = wrapped.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
        return np.array(found, np.int64)

    def _lists(self, entry: dict[str, Any], file: Path) -> list[tuple[list[int], list[float]]]:
        logprobs, ids = entry.get(self._logprobs), entry.get("target_token_ids")
        if not isinstance(logprobs, list):
            raise InputError(
                f"{file} has no lists {self._logprobs}, but {_names(entry)}: name the column of the log-probabilities with "
                "--logprobs-field"
            )
        try:
            if ids is not None:
                return [(list(some or ()), list(values or ())) for some, values in zip(ids, logprobs, strict=True)]
            return [
                (
                    [int(item["token"].removeprefix("token_id:")) for item in one or ()],
                    [item["logprob"] for item in one or ()],
                )
                for one in logprobs
            ]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f'{file} has lists that are neither of {{"logprob", "token": "token_id:N"}} nor, beside target_token_ids, of numbers'
            ) from error

    def _entries(self, file: Path) -> Iterator[tuple[Line, dict[str, Any]]]:
        """Yield each entry of a file and where it stands; of Parquet its row."""
        if file.suffix == ".parquet":
            yield from ((Line(file, row, row), entry) for row, entry in enumerate(self._table(file)))
        else:
            yield from ((place, _an_object(found, place)) for place, found in json_lines(file))

    def _entry(self, place: Line) -> dict[str, Any]:
        if place.file.suffix == ".parquet":
            return self._table(place.file)[place.at]
        return _an_object(json_line(place), place)

    def _table(self, file: Path) -> list[dict[str, Any]]:
        if self._held is None or self._held[0] != file:
            try:
                self._held = file, import_module("pyarrow.parquet").read_table(file).to_pylist()
            except ImportError as error:
                raise InputError("Parquet needs the package pyarrow: pip install 'logitcache[parquet]'") from error
        return self._held[1]


def _names(entry: dict[str, Any]) -> str:
    return ", ".join(map(str, entry)) or "nothing"


def _an_object(found: Any, place: Line) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise InputError(f"{place} is {type(found).__name__}, not an object")
    return found
