"""Read data sets of axolotl's distillation plugin, JSON lines or Parquet, in either of its two forms.

* `logprobs` (or the column that its configuration names as `logprobs_field`): for each position, a list of {"logprob", "token":
  "token_id:N"}.
* `logprobs` and `target_token_ids`: for each position, a list of log-probabilities and a list of ids.

If there are fewer lists than tokens, they belong to the last tokens. The tokens are `input_ids`, or `messages` formatted with the chat
template. The files do not record whether the list at a token is the distribution of this token or of the next one, so it must be given,
and it is checked against the data. Rows that axolotl has prepared for training (`target_logprobs`) are normalized over the k largest
and are refused, because the mass of the others is lost.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.data.text.tokenizer import Tokenizer
from logitcache.errors import InputError, explain_foreign_errors
from logitcache.imports.reader import Document, Line, files_of, json_line, json_lines
from logitcache.runtime.plugins import import_extra
from logitcache.teachers.given import KnownRows, rectangular

__all__ = ["AxolotlReader"]


class AxolotlReader:
    """Reads the files of a data set."""

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
        """Find the files, without reading them.

        Args:
            source: File, or folder of files.
            alignment: Whether the list at a token is the distribution of the `next` token or of this `token`.
            tokenizer: Tokenizer for chats.
            messages: Column of the chats.
            logprobs: Column of the lists of log-probabilities.

        Raises:
            InputError: There are no files, or the alignment is missing.
        """
        if alignment is None:
            raise InputError(
                "axolotl data sets do not record whether the list at a token is the distribution of this token (--alignment token, as in "
                "vLLM's prompt_logprobs) or of the next one (--alignment next); set --alignment"
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
        """Return each list with the position of the token that it predicts, without lists for the first token."""
        if len(lists) > tokens:
            raise InputError(
                f"a document has {tokens:,} tokens but {len(lists):,} lists of log-probabilities; use the tokenizer and chat template that "
                "the data set was made with"
            )
        first = tokens - len(lists) + (self._shift == "next")
        return [(first + n, one) for n, one in enumerate(lists) if 1 <= first + n < tokens]

    def _tokens(self, entry: dict[str, Any], file: Path) -> NDArray[np.int64]:
        if entry.get("target_logprobs") is not None:
            raise InputError(
                f"{file} was prepared for training: its probabilities are normalized over the k largest, so the mass of the others is "
                "lost. Import the data set from before this step."
            )
        if entry.get("input_ids") is not None:
            return np.array(entry["input_ids"]) if len(entry["input_ids"]) else np.empty(0, np.int64)
        if (messages := entry.get(self._messages)) is None:
            raise InputError(
                f"{file} has neither input_ids nor {self._messages}, but {_names(entry)}; name the column of the chats with "
                "--field-messages"
            )
        if self._tokenizer is None:
            raise InputError(f"{file} has chats but no ids; name their tokenizer with --tokenizer hf:PATH")
        wrapped = self._tokenizer.wrapped
        with explain_foreign_errors(f"cannot tokenize a chat of {file} with the chat template of the tokenizer"):
            found = wrapped.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
        return np.array(found, np.int64)

    def _lists(self, entry: dict[str, Any], file: Path) -> list[tuple[list[int], list[float]]]:
        logprobs, ids = entry.get(self._logprobs), entry.get("target_token_ids")
        if not isinstance(logprobs, list):
            raise InputError(
                f"{file} has no lists {self._logprobs}, but {_names(entry)}; name the column of the log-probabilities with "
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
                f'{file} has lists of an unknown form; expected {{"logprob", "token": "token_id:N"}}, or numbers with target_token_ids'
            ) from error

    def _entries(self, file: Path) -> Iterator[tuple[Line, dict[str, Any]]]:
        """Yield the entries of a file with their locations; for Parquet, the location is the row."""
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
            parquet = import_extra("pyarrow.parquet", "Parquet", "parquet")
            self._held = file, parquet.read_table(file).to_pylist()
        return self._held[1]


def _names(entry: dict[str, Any]) -> str:
    return ", ".join(map(str, entry)) or "nothing"


def _an_object(found: Any, place: Line) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise InputError(f"{place} is {type(found).__name__}, not an object")
    return found
