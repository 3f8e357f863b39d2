"""Read responses of vLLM and SGLang, one JSON object per line, as saved by a client or by vLLM's batch runner.

Each line must have the token ids of the prompt, because tokenizing the text again may give different tokens.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from logitcache.errors import InputError
from logitcache.imports.reader import Document, Line, files_of, json_line, json_lines
from logitcache.teachers.given import KnownRows
from logitcache.teachers.servers.answers import error_message, sglang_answer, vllm_answer

__all__ = ["ResponseReader"]


class ResponseReader:
    """Reads files of JSON lines."""

    own = True
    vocabulary: int | None = None

    def __init__(self, kind: str, source: str | Path) -> None:
        """Find the files, without reading them.

        Raises:
            InputError: There are no files.
        """
        self._kind, self._files = kind, files_of(source, ".jsonl", ".json")
        self._places: list[Line] = []
        self.facts: dict[str, Any] = {}

    def documents(self) -> Iterator[Document]:
        """Yield the prompts in order."""
        self._places = []
        for file in self._files:
            for place, entry in json_lines(file):
                _, tokens = self._read(entry, place)
                self._places.append(place)
                yield Document(tokens)

    def rows(self, number: int, largest: int) -> KnownRows:
        """Return the rows of a prompt."""
        del largest
        place = self._places[number]
        body, tokens = self._read(json_line(place), place)
        read = vllm_answer if self._kind == "vllm" else sglang_answer
        try:
            return read(body, tokens.tolist())
        except InputError as error:
            raise InputError(f"{place}: {error}") from error

    def _read(self, entry: Any, place: Line) -> tuple[dict[str, Any], Any]:
        body = entry.get("response", entry) if isinstance(entry, dict) else None
        body = body.get("body", body) if isinstance(body, dict) else body
        if isinstance(entry, dict) and entry.get("error"):
            raise InputError(
                f"{place} is a failed request: {error_message(entry) or entry['error']}. Send it again, or remove the line."
            )
        if not isinstance(body, dict):
            raise InputError(f"{place} is not a response of {self._kind}")
        found = self._tokens(entry, body)
        if not isinstance(found, list) or not found or not all(type(one) is int for one in found):
            asked = "return_token_ids" if self._kind == "vllm" else "return_logprob and logprob_start_len 0"
            raise InputError(
                f"{place} lacks the token ids of its prompt. Send the request to {self._kind} again with {asked}, or add the ids as "
                "`prompt_token_ids`."
            )
        return body, np.array(found, np.int64)

    def _tokens(self, entry: dict[str, Any], body: dict[str, Any]) -> Any:
        """Return the ids of the prompt, from any of the places where a line may have them."""
        if self._kind == "sglang":
            said = body.get("meta_info")
            own = said.get("input_token_logprobs") if isinstance(said, dict) else None
            return [one[1] for one in own] if own else entry.get("input_ids")
        choices = body.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else {}
        places = [one for one in (first, body, entry) if isinstance(one, dict)]
        found = next((one["prompt_token_ids"] for one in places if one.get("prompt_token_ids")), None)
        if found is None:
            request = entry.get("request")
            sent = (request.get("body", request) if isinstance(request, dict) else entry).get("prompt")
            found = sent if isinstance(sent, list) else None
        return found
