"""Objects that hold a document, one a line of JSONL or a row of Parquet, and the forms that they may have."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitcache.data.tables import open_hub_table
from logitcache.data.text.reading import TextReading
from logitcache.errors import InputError

__all__ = ["Entry", "hub_entries", "jsonl_entries", "parquet_entries"]

_KEYS = ("text", "prompt", "completion", "messages")
_FORMS = "`text`, `prompt` and `completion`, or `messages`"


@dataclass(frozen=True, slots=True)
class Entry:
    """A document that is not tokenized yet.

    Attributes:
        where: File and line, for messages.
        text: All of it; of a chat empty.
        answer: Character at which the completion begins; None: there is no prompt.
        messages: A chat, or None.
    """

    where: str
    text: str = ""
    answer: int | None = None
    messages: Sequence[Mapping[str, Any]] | None = None


def jsonl_entries(file: Path, reading: TextReading) -> Iterator[Entry]:
    """Yield the documents of a JSONL file, one a line.

    Raises:
        InputError: The file cannot be read, or a line has none of the forms; names file and line.
    """
    del reading
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _entry(_parsed(line, f"{file}:{number}"), f"{file}:{number}")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read as UTF-8 text: {error}") from error


def _parsed(line: str, where: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is no JSON: {error}") from error


def parquet_entries(file: Path, reading: TextReading) -> Iterator[Entry]:
    """Yield the documents of a Parquet file, one a row.

    Raises:
        InputError: The package pyarrow is missing, the file cannot be read, or a row has none of the forms.
    """
    del reading
    try:
        import pyarrow as pa  # noqa: PLC0415  (an extra)
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError as error:
        raise InputError("Parquet needs the package pyarrow: pip install 'logitcache[parquet]'") from error
    try:
        opened, number = pq.ParquetFile(file), 0
        present = opened.schema_arrow.names
        wanted = [name for name in present if name in _KEYS]
        if not wanted:
            raise InputError(f"{file} needs the columns {_FORMS}; it has {', '.join(present)}")
        for batch in opened.iter_batches(columns=wanted):
            for row in batch.to_pylist():
                number += 1
                yield _entry(row, f"{file}, row {number}")
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{file} cannot be read as Parquet: {error}") from error


def hub_entries(path: str) -> Iterator[Entry]:
    """Yield the documents of a data set of Hugging Face `datasets`, one a row.

    Raises:
        InputError: The data set cannot be read, or a row has none of the forms.
    """
    table = open_hub_table(path)
    if not set(table.column_names) & set(_KEYS):
        raise InputError(f"hf:{path} needs the columns {_FORMS}; it has {', '.join(table.column_names)}")
    for number in range(len(table)):
        yield _entry(table[number], f"hf:{path}, row {number + 1}")


def _entry(value: Any, where: str) -> Entry:
    """Read an object.

    Raises:
        InputError: It has none of the forms.
    """
    if not isinstance(value, dict):
        raise InputError(f"{where} is {type(value).__name__}, not an object with {_FORMS}")
    present = {name for name, inner in value.items() if inner is not None}
    if "messages" in present:
        messages = value["messages"]
        if not isinstance(messages, list) or not all(isinstance(one, dict) and "role" in one for one in messages):
            raise InputError(f"{where}: `messages` must be a list of objects with `role` and `content`")
        if not messages:
            raise InputError(f"{where}: the document is empty. Leave it out.")
        return Entry(where, messages=messages)
    names = ("prompt", "completion") if present & {"prompt", "completion"} else ("text",)
    if missing := [name for name in names if name not in present]:
        raise InputError(
            f"{where} has no `{missing[0]}`: an object needs {_FORMS}; it has {', '.join(sorted(present)) or 'nothing'}"
        )
    if wrong := [name for name in names if not isinstance(value[name], str)]:
        raise InputError(f"{where}: `{wrong[0]}` must be text, not {type(value[wrong[0]]).__name__}")
    if broken := [name for name in names if not _is_encodable(value[name])]:
        raise InputError(
            f"{where}: `{broken[0]}` holds half of a surrogate pair, which is no character. Mend or leave it out."
        )
    if not value[names[-1]]:
        raise InputError(f"{where}: `{names[-1]}` is empty. Leave it out.")
    if names == ("text",):
        return Entry(where, value["text"])
    return Entry(where, value["prompt"] + value["completion"], len(value["prompt"]))


def _is_encodable(text: str) -> bool:
    """Whether a text can be written as UTF-8: JSON may name halves of surrogate pairs, which cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
