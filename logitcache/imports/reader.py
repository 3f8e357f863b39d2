"""What a reader of another tool's files gives: documents of token ids, and of each the log-probabilities that are known."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import InputError

__all__ = ["Document", "Reader", "Rows", "files_of", "rectangular"]


class Document(NamedTuple):
    """Tokens of a document, [L], and which of them have rows, [L] bool; None: all but the first."""

    tokens: NDArray[np.int64]
    targets: NDArray[np.bool_] | None = None


class Rows(NamedTuple):
    """Row i is the distribution of token i + 1: ids and log-probabilities, [L - 1, M] each; -1 and -inf where there is none."""

    ids: NDArray[np.int64]
    logprobs: NDArray[Any]


class Reader(Protocol):
    """Reads one source.

    Attributes:
        own: Whether every row names its own token, whatever its rank.
        vocabulary: Number of ids that exist, where the source says it.
        facts: What else the manifest records of where the rows come from.
    """

    own: bool
    vocabulary: int | None
    facts: dict[str, Any]

    def documents(self) -> Iterator[Document]:
        """Yield the documents in order.

        Raises:
            InputError: A document cannot be read; says which.
        """

    def rows(self, number: int, largest: int) -> Rows:
        """Return the rows of a document, of `largest` classes at least where it has them.

        Raises:
            InputError: They cannot be read, or are not aligned with the tokens.
        """


def files_of(source: str | Path, *endings: str) -> list[Path]:
    """Return the files of a source, a file or a folder, in the order of their names.

    Raises:
        InputError: There are none.
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


def rectangular(rows: Sequence[tuple[Sequence[int], Sequence[float]]]) -> Rows:
    """Put lists of ids and log-probabilities of different lengths into arrays."""
    width = max((len(ids) for ids, _ in rows), default=0)
    ids = np.full((len(rows), width), -1, np.int64)
    logprobs = np.full((len(rows), width), -np.inf)
    for row, (some, values) in enumerate(rows):
        ids[row, : len(some)], logprobs[row, : len(some)] = some, values
    return Rows(ids, logprobs)
