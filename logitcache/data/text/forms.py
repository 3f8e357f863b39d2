"""Documents in JSONL lines and Parquet rows, and the forms that they may have.

| form | keys |
|---|---|
| plain text | `text` |
| a prompt and its completion | `prompt`, `completion`: text, or messages (TRL's conversational form) |
| an instruction and its response | `instruction`, optionally `context` or `input`, and `response` or `output` (Dolly, Alpaca) |
| a chat | `messages` |
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitcache.data.tables import TEXT_COLUMNS, open_hub_table
from logitcache.errors import InputError
from logitcache.runtime.plugins import import_extra

__all__ = ["Entry", "PromptEntry", "as_document", "as_prompt", "hub_objects", "jsonl_objects", "parquet_objects"]

_FORMS = "`text`, `prompt` and `completion`, `instruction` and `response`, or `messages`"
# Alpaca's prompt, which MiniLLM and DistiLLM train and evaluate with (tools/process_data_dolly.py).
_INSTRUCTION = (
    "Below is an instruction that describes a task{with_context}. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n{instruction}\n\n{context}### Response:\n"
)
_WITH_CONTEXT = ", paired with an input that provides further context"

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Entry:
    """A document before tokenization.

    Attributes:
        where: File and line, for messages.
        text: Whole text; empty for a chat.
        answer: Character offset of the completion, or None if there is no prompt.
        messages: Messages of a chat, or None.
        ends: Whether the tokenizer's end-of-sequence token follows the text.
    """

    where: str
    text: str = ""
    answer: int | None = None
    messages: Messages | None = None
    ends: bool = False


@dataclass(frozen=True, slots=True)
class PromptEntry:
    """A prompt before tokenization.

    Attributes:
        where: File and line, for messages.
        prompt: Text, or the messages of a chat before the turn to generate.
        references: Reference completions, possibly none.
        plain: Whether the text is a plain document without a prompt.
    """

    where: str
    prompt: str | Messages
    references: tuple[str, ...] = ()
    plain: bool = False


def jsonl_objects(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield the location (file and line) and the value of each line of a JSONL file.

    Raises:
        InputError: If the file cannot be read, or a line is not valid JSON.
    """
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{file}:{number}", _parsed(line, f"{file}:{number}")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as UTF-8 text: {error}") from error


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is not valid JSON: {error}") from error


def parquet_objects(file: Path) -> Iterator[tuple[str, Any]]:
    """Yield the location (file and row) and the value of each row of a Parquet file.

    Raises:
        InputError: If the package pyarrow is missing, or the file cannot be read or has none of the columns.
    """
    pa, pq = (import_extra(name, "Parquet", "parquet") for name in ("pyarrow", "pyarrow.parquet"))
    try:
        opened, number = pq.ParquetFile(file), 0
        present = opened.schema_arrow.names
        wanted = [name for name in present if name in TEXT_COLUMNS]
        if not wanted:
            raise InputError(f"{file} needs the columns {_FORMS}; it has {', '.join(present)}")
        for batch in opened.iter_batches(columns=wanted):
            for row in batch.to_pylist():
                number += 1
                yield f"{file}, row {number}", row
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{file} cannot be read as Parquet: {error}") from error


def hub_objects(path: str) -> Iterator[tuple[str, Any]]:
    """Yield the location (path and row) and the value of each row of a Hugging Face data set.

    Raises:
        InputError: If the data set cannot be read, or has none of the columns.
    """
    table = open_hub_table(path)
    if not set(table.column_names) & set(TEXT_COLUMNS):
        raise InputError(f"hf:{path} needs the columns {_FORMS}; it has {', '.join(table.column_names)}")
    for number in range(len(table)):
        yield f"hf:{path}, row {number + 1}", table[number]


def as_document(value: Any, where: str) -> Entry:
    """Convert an object to a document.

    Raises:
        InputError: If it has none of the forms.
    """
    form = _form(value, where)
    if form == "messages":
        return Entry(where, messages=_messages(value["messages"], where))
    if form == "text":
        return Entry(where, _text(value, "text", where))
    if form == "instruction":
        prompt, name = _instruction(value, where), _present(value, "response", "output")
        response = _text(value, name or "response", where)
        return Entry(where, prompt + response, len(prompt), ends=True)
    if isinstance(value.get("prompt"), list) and isinstance(value.get("completion"), list):
        messages = [*_messages(value["prompt"], where), *_messages(value["completion"], where)]
        return Entry(where, messages=messages)
    prompt = _text(value, "prompt", where, empty=True)
    return Entry(where, prompt + _text(value, "completion", where), len(prompt))


def as_prompt(value: Any, where: str) -> PromptEntry:
    """Convert an object to a prompt. Its completion becomes a reference; a list of texts becomes several references.

    Raises:
        InputError: If it has none of the forms.
    """
    form = _form(value, where)
    if form == "text":
        return PromptEntry(where, _text(value, "text", where), plain=True)
    if form == "instruction":
        name = _present(value, "response", "output")
        return PromptEntry(where, _instruction(value, where), _references(value, name, where))
    if form == "messages":
        messages = _messages(value["messages"], where)
        answered = messages[-1]["role"] == "assistant"
        said = _references({"content": messages[-1].get("content")}, "content", where) if answered else ()
        if answered and len(messages) == 1:
            raise InputError(f"{where}: the chat has no turn before the assistant's, so there is no prompt")
        return PromptEntry(where, messages[:-1] if answered else messages, said)
    if isinstance(value.get("prompt"), list):
        turns = _messages(value["completion"], where) if value.get("completion") else [{}]
        references = _references(turns[-1], _present(turns[-1], "content"), where)
        return PromptEntry(where, _messages(value["prompt"], where), references)
    return PromptEntry(where, _text(value, "prompt", where), _references(value, _present(value, "completion"), where))


def _form(value: Any, where: str) -> str:
    """Return the form of an object; `instruction` takes precedence over `text` and `prompt`."""
    if not isinstance(value, dict):
        raise InputError(f"{where} is a {type(value).__name__}, not an object with {_FORMS}")
    if _present(value, "messages"):
        return "messages"
    if _present(value, "completion") or (_present(value, "prompt") and not _present(value, "instruction")):
        return "prompt"
    return "instruction" if _present(value, "instruction") else "text"


def _present(value: Mapping[str, Any], *names: str) -> str | None:
    """Return the first key that has a value, or None."""
    return next((name for name in names if value.get(name) is not None), None)


def _instruction(value: Mapping[str, Any], where: str) -> str:
    """Return the prompt for an instruction."""
    name = _present(value, "context", "input")
    context = _text(value, name, where, empty=True) if name else ""
    return _INSTRUCTION.format(
        with_context=_WITH_CONTEXT if context else "",
        instruction=_text(value, "instruction", where),
        context=f"### Input:\n{context}\n\n" if context else "",
    )


def _text(value: Mapping[str, Any], name: str, where: str, *, empty: bool = False) -> str:
    """Return the text under a key.

    Args:
        value: Object.
        name: Key.
        where: File and line, for messages.
        empty: Whether the text may be empty.

    Raises:
        InputError: If it is missing, not a string, or cannot be encoded as UTF-8.
    """
    found = value.get(name)
    if found is None:
        has = ", ".join(sorted(key for key, inner in value.items() if inner is not None)) or "nothing"
        raise InputError(f"{where} has no `{name}`: an object needs {_FORMS}; it has {has}")
    if not isinstance(found, str):
        raise InputError(f"{where}: `{name}` must be text, not {type(found).__name__}")
    if not _is_encodable(found):
        raise InputError(
            f"{where}: `{name}` contains an unpaired surrogate, which is not a character. Fix it or leave it out."
        )
    if not found and not empty:
        raise InputError(f"{where}: `{name}` is empty. Leave it out.")
    return found


def _references(value: Mapping[str, Any], name: str | None, where: str) -> tuple[str, ...]:
    """Return the completions under a key, which is a text or a list of texts."""
    if name is None or value[name] in (None, "", []):
        return ()
    every = value[name] if isinstance(value[name], list) else [value[name]]
    return tuple(_text({name: one}, name, where) for one in every)


def _messages(value: Any, where: str) -> Messages:
    """Return the messages of a chat.

    Raises:
        InputError: If the value is not a list of messages, or is empty.
    """
    if not isinstance(value, list) or not all(isinstance(one, dict) and "role" in one for one in value):
        raise InputError(f"{where}: `messages` must be a list of objects with `role` and `content`")
    if not value:
        raise InputError(f"{where}: the document is empty. Leave it out.")
    return value


def _is_encodable(text: str) -> bool:
    """Return whether a text can be encoded as UTF-8; JSON may contain unpaired surrogates, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
