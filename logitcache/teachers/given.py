"""A teacher that runs elsewhere: its log-probabilities are requested document by document.

It takes the place of a `Teacher`, but yields top-k rows instead of logits of every class.
"""

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcache.data import Ids, Inputs, Rendition
from logitcache.data.protocol import Renderer
from logitcache.encoding import TopKEncoding, TopKRows, encode_rows, rows_of_logprobs, widest_bytes
from logitcache.errors import InputError

__all__ = ["AskingAhead", "GivenRows", "GivenTeacher", "KnownRows", "RowSource", "rectangular"]

_SHOWN = 4  # tokens of a document to show in a message
_ENDING = 2.0  # seconds to wait for threads to end


class KnownRows(NamedTuple):
    """Known log-probabilities for a document of L tokens. Row i is the distribution of token i + 1.

    Attributes:
        ids: Token ids of each row, [L - 1, M], padded with -1.
        logprobs: Log-probabilities of these ids, [L - 1, M], padded with -inf.
    """

    ids: NDArray[np.int64]
    logprobs: NDArray[Any]


def rectangular(rows: Sequence[tuple[Sequence[int], Sequence[float]]]) -> KnownRows:
    """Convert lists of ids and log-probabilities, one pair per row, to padded arrays."""
    width = max((len(ids) for ids, _ in rows), default=0)
    ids = np.full((len(rows), width), -1, np.int64)
    logprobs = np.full((len(rows), width), -np.inf)
    for row, (some, values) in enumerate(rows):
        ids[row, : len(some)], logprobs[row, : len(some)] = some, values
    return KnownRows(ids, logprobs)


class RowSource(Protocol):
    """Source of log-probabilities.

    Attributes:
        name: Name of the teacher, for messages.
    """

    @property
    def name(self) -> str:
        """Name of the teacher."""

    def ask(self, tokens: Sequence[int], largest: int, subject: str, /) -> KnownRows:
        """Return at least the `largest` log-probabilities for each token except the first, and that of the token itself.

        Args:
            tokens: Token ids of a document, [L].
            largest: Number of largest classes needed.
            subject: Description of the document, for messages.

        Raises:
            LogitCacheError: If they cannot be obtained.
        """

    def stop(self) -> None:
        """Stop retrying failed requests."""

    def close(self) -> None:
        """Release all resources."""


class GivenTeacher:
    """A teacher whose rows come from a source, with several concurrent requests.

    Attributes:
        name: Name of the teacher.
        preprocessing: Preprocessing of its input; one context per sequence.
        ahead: Number of documents to request in advance.
    """

    def __init__(
        self, source: RowSource, preprocessing: Inputs, *, k: int, classes: int, concurrency: int, own: bool = True
    ) -> None:
        """Create the teacher without requesting anything yet.

        Args:
            source: Source of the rows.
            preprocessing: Preprocessing of its input.
            k: Number of largest classes to keep besides the label.
            classes: Number of classes.
            concurrency: Number of concurrent requests.
            own: Whether each row includes its own token.
        """
        self.name, self.preprocessing = source.name, preprocessing
        self.ahead = 2 * concurrency
        self._source, self._k, self._classes, self._own = source, k, classes, own
        self._pool, self._pending = _Pool(concurrency), dict[bytes, "Future[_Given]"]()

    def rows(self, rendered: Any, keep: Tensor | None = None) -> Iterator[TopKRows]:
        """Yield the rows of a batch in order.

        Args:
            rendered: Teacher's entry in `Rendition.inputs`.
            keep: Mask of the positions that are rows, [B, L]; position p is the row of token p + 1.

        Raises:
            LogitCacheError: If the rows cannot be obtained, or are not log-probabilities of these documents.
        """
        asked = [(self._begin(tokens), tokens, kept) for _, tokens, kept in _documents(rendered, keep)]
        if asked:
            yield TopKRows.cat([self._rows(future.result(), tokens, kept) for future, tokens, kept in asked])

    def ask_ahead(self, rendered: Any, keep: Tensor | None, numbers: Ids) -> None:
        """Start requests for a batch before `rows` is called with it.

        Args:
            rendered: Teacher's entry in `Rendition.inputs`.
            keep: Mask of the positions that are rows, [B, L].
            numbers: Index of each document in the data set, for messages, [B].
        """
        for place, tokens, _ in _documents(rendered, keep):
            if tokens.tobytes() not in self._pending:
                self._pending[tokens.tobytes()] = self._pool.submit(self._ask, tokens, int(numbers[place]))

    def close(self) -> None:
        """Stop all requests and release the source."""
        self._source.stop()
        self._pool.close()
        self._source.close()

    def _begin(self, tokens: NDArray[np.int64]) -> "Future[_Given]":
        found = self._pending.pop(tokens.tobytes(), None)
        return self._pool.submit(self._ask, tokens, None) if found is None else found

    def _ask(self, tokens: NDArray[np.int64], number: int | None) -> "_Given":
        """Request the rows of all tokens of a document except the first. Runs in a thread that does not use torch."""
        shown = ", ".join(map(str, tokens[:_SHOWN].tolist())) + (", ..." if len(tokens) > _SHOWN else "")
        subject = f"document{'' if number is None else f' {number:,}'} of {len(tokens):,} tokens, {shown}"
        ids, logprobs = self._source.ask(tokens.tolist(), self._k + 1, subject)
        if len(ids) != len(tokens) - 1:
            raise InputError(f"{self.name} returned {len(ids):,} rows for {subject}; expected {len(tokens) - 1:,}")
        return _Given(subject, ids, logprobs)

    def _rows(self, given: "_Given", tokens: NDArray[np.int64], kept: NDArray[np.int64]) -> TopKRows:
        try:
            return rows_of_logprobs(
                given.ids[kept], given.logprobs[kept], tokens[1:][kept], self._k, self._classes, own=self._own
            )
        except InputError as error:
            raise InputError(f"{self.name}, {given.subject}: {error}") from error


class _Given(NamedTuple):
    """Response of a source: description of the document for messages, ids and log-probabilities, [L - 1, M] each."""

    subject: str
    ids: NDArray[np.int64]
    logprobs: NDArray[Any]


class GivenRows:
    """Turns known rows of images into columns.

    Attributes:
        encoding: How they are stored.
    """

    def __init__(self, k: int, precision: str, classes: int, *, own: bool) -> None:
        """Choose what is kept.

        Args:
            k: Number of the largest to keep beside the label.
            precision: Precision of log-probabilities.
            classes: Number of classes.
            own: Whether each row names its label.
        """
        self.encoding = TopKEncoding(k, precision, mass_only=True)
        self._classes, self._own = classes, own

    def columns(self) -> Any:
        """Return the columns of the encoding."""
        return self.encoding.columns(self._classes)

    def widest_bytes(self) -> int:
        """Return the bytes of a row of the widest column."""
        return widest_bytes(self.columns())

    def encode(self, known: KnownRows, labels: NDArray[np.int64], subject: str) -> dict[str, NDArray[Any]]:
        """Return the columns of rows, [R, ...] each.

        Args:
            known: What is known of them.
            labels: True classes, [R].
            subject: The rows, for messages.

        Raises:
            InputError: They are no log-probabilities.
        """
        rows, true = self._rows(known, labels, subject), torch.from_numpy(labels)
        return {name: column.numpy() for name, column in encode_rows(self.encoding, rows, true).items()}

    def whole(self, known: KnownRows, labels: NDArray[np.int64], subject: str) -> NDArray[np.float32]:
        """Return log-probabilities of every class, [R, C]; the mass of the rest is divided evenly."""
        return self._rows(known, labels, subject).at(1.0).numpy()

    def _rows(self, known: KnownRows, labels: NDArray[np.int64], subject: str) -> TopKRows:
        k, classes = self.encoding.k, self._classes
        try:
            return rows_of_logprobs(known.ids, known.logprobs, labels, k, classes, own=self._own)
        except InputError as error:
            raise InputError(f"{subject}: {error}") from error


class AskingAhead:
    """Renderer that requests upcoming batches in advance while the current one is awaited."""

    def __init__(self, renderer: Renderer, teacher: GivenTeacher, first: int) -> None:
        """Wrap a renderer.

        Args:
            renderer: Renderer whose batches hold the teacher's input.
            teacher: Teacher to request rows from.
            first: Index of the first document in the whole data set.
        """
        self._renderer, self._teacher, self._first = renderer, teacher, first

    def batches(self, view: Any, batches: Iterable[Ids]) -> Iterator[Rendition]:
        """Yield rendered batches of a view in order."""
        waiting, documents = deque[Rendition](), 0
        for batch in self._renderer.batches(view, batches):
            self._teacher.ask_ahead(
                batch.inputs[0], None if batch.keep is None else batch.keep[0], batch.samples + self._first
            )
            waiting.append(batch)
            documents += len(batch.samples)
            while documents > self._teacher.ahead:
                documents -= len(waiting[0].samples)
                yield waiting.popleft()
        yield from waiting


class _Pool:
    """Pool of daemon threads, which do not block the exit of the program while they wait for a server."""

    def __init__(self, size: int) -> None:
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]] | None] = (
            queue.SimpleQueue()
        )
        self._size, self._threads = size, list[threading.Thread]()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        """Submit a function call to the pool."""
        future: Future[Any] = Future()
        self._work.put((future, function, arguments))
        if len(self._threads) < self._size:
            one = threading.Thread(target=self._run, name=f"logitcache-teacher-{len(self._threads)}", daemon=True)
            self._threads.append(one)
            one.start()
        return future

    def close(self) -> None:
        """Cancel pending calls and stop the threads, without waiting for those that are blocked."""
        with contextlib.suppress(queue.Empty):
            while True:
                one = self._work.get_nowait()
                if one is not None:
                    one[0].cancel()
        for _ in self._threads:
            self._work.put(None)
        until = time.monotonic() + _ENDING
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0))

    def _run(self) -> None:
        while (one := self._work.get()) is not None:
            future, function, arguments = one
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function(*arguments))
            except BaseException as error:  # noqa: BLE001  (raised when the result is retrieved)
                future.set_exception(error)


def _documents(rendered: Any, keep: Tensor | None) -> Iterator[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """Yield the documents of a batch that have rows: index in the batch, tokens, [L], and the positions that are rows."""
    lengths = (rendered["documents"] >= 0).sum(1).tolist()
    for place, (tokens, length) in enumerate(zip(rendered["input_ids"], lengths, strict=True)):
        kept = np.arange(length - 1) if keep is None else np.flatnonzero(keep[place, :length].numpy())
        if len(kept):
            yield place, tokens[:length].numpy(), kept
