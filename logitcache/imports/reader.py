"""Interface of readers of other tools' rows of text: documents of token ids, with their known log-probabilities."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import InputError, reason_of
from logitcache.teachers.given import KnownRows

__all__ = ["Document", "Line", "Reader", "documents_of", "files_of", "json_line", "json_lines", "rows_of_document"]

_OF_ANOTHER_FORM = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class Document(NamedTuple):
    """Tokens of a document, [L], and whether each has a row, [L] bool; None means all but the first."""

    tokens: NDArray[np.int64]
    targets: NDArray[np.bool_] | None = None


class Line(NamedTuple):
    """Location of a line of JSON: the file, its first byte, and its number from 1."""

    file: Path
    at: int
    number: int

    def __str__(self) -> str:
        return f"{self.file}:{self.number}"


class Reader(Protocol):
    """Reads one source.

    Attributes:
        own: Whether every row contains its own token, whatever its rank.
        vocabulary: Size of the vocabulary, if the source records it.
        facts: Further facts about the source for the manifest.
    """

    own: bool
    vocabulary: int | None
    facts: dict[str, Any]

    def documents(self) -> Iterator[Document]:
        """Yield the documents in order.

        Raises:
            InputError: A document cannot be read; the message names it.
        """

    def rows(self, number: int, largest: int) -> KnownRows:
        """Return the rows of a document, with at least the `largest` largest classes if the source has them.

        Raises:
            InputError: The rows cannot be read, or are not aligned with the tokens.
        """


def documents_of(reader: Reader, subject: str) -> Iterator[Document]:
    """Yield the documents of a source in order.

    Args:
        reader: Reader of the source.
        subject: Source, for messages.

    Raises:
        InputError: A document cannot be read, or has an unexpected form.
    """
    documents, number = reader.documents(), 0
    while True:
        with _explained(subject, number):
            found = next(documents, None)
            if found is None:
                return
            if found.tokens.ndim != 1 or found.tokens.dtype.kind not in "iu":
                raise InputError(f"the tokens of document {number:,} of {subject} are not a list of ids")
            if len(found.tokens) and not 0 <= found.tokens.min() <= found.tokens.max() < 2**32:
                raise InputError(
                    f"the tokens of document {number:,} of {subject} are out of range; expected ids from 0"
                )
        yield found
        number += 1


def rows_of_document(reader: Reader, number: int, largest: int, subject: str) -> KnownRows:
    """Return the rows of a document, like `Reader.rows`.

    Raises:
        InputError: The rows cannot be read, or have an unexpected form.
    """
    with _explained(subject, number):
        return reader.rows(number, largest)


@contextlib.contextmanager
def _explained(subject: str, number: int) -> Iterator[None]:
    """Turn the exceptions of a reader on files of an unexpected form into InputError."""
    try:
        yield
    except _OF_ANOTHER_FORM as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"document {number:,} of {subject} does not have the expected form ({reason_of(error)})"
        ) from error


def files_of(source: str | Path, *endings: str) -> list[Path]:
    """Return the files of a source, which is a file or a folder, sorted by name.

    Raises:
        InputError: There are no files.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        found = sorted(one for one in path.iterdir() if one.suffix in endings)
        if not found:
            raise InputError(f"{path} has no files that end in {' or '.join(endings)}")
        return found
    if not path.is_file():
        raise InputError(f"there is no file or folder {path}")
    return [path]


def json_lines(file: Path) -> Iterator[tuple[Line, Any]]:
    """Yield the location and content of each line of a file that is not blank.

    Raises:
        InputError: A line is not valid JSON; the message names it.
    """
    with file.open("rb") as lines:
        at = 0
        for number, line in enumerate(lines, 1):
            if line.strip():
                here = Line(file, at, number)
                yield here, _parsed(line, here)
            at += len(line)


def json_line(place: Line) -> Any:
    """Return the content of the line at a location.

    Raises:
        InputError: The line is no longer valid JSON.
    """
    with place.file.open("rb") as lines:
        lines.seek(place.at)
        return _parsed(lines.readline(), place)


def _parsed(line: bytes, place: Line) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise InputError(f"{place} is not valid JSON: {error}") from error
