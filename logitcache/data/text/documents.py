"""Contexts of tokens as a data set: one array of ids, where each context begins, and which tokens are targets."""

import copy
import functools
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import InputError
from logitcache.store import Ids, NumberedClasses, rows_of

__all__ = ["FACTS", "Documents", "Stretch", "token_dtype"]

FACTS = ("reading", "tokenizer", "bytes", "generated")  # keys of `Documents.facts`
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_HASHED = 1 << 24  # tokens at a time


def token_dtype(vocabulary: int) -> np.dtype[Any]:
    """Return the smallest of u2 and u4 that holds every id of a vocabulary."""
    return np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")


class Documents:
    """Contexts of tokens, D of them with T tokens and R targets in all. A sample is a context, a row a target.

    The row of a token is what a teacher says of it after the tokens before it in its context, so the first is never a target.

    Attributes:
        tokens: Ids of all contexts in a row, [T], u2 or u4.
        documents: Place in `tokens` at which each context begins, and T at the end, [D + 1] int64.
        targets: Which tokens are targets, [T] bool.
        answers: Mask of the tokens of completions and of assistants' turns, [T] bool; None if that is all targets, or unknown.
        completions: Mask of the tokens of each document's last answer, [T] bool; None if that is all answers, or unknown.
        counted: Mask of the rows that count in a loss, [R] bool; None if all do.
        counted_targets: Mask of the target tokens whose rows count, [T] bool.
        counted_offsets: Number of rows that count before each context, and of all at the end, [D + 1] int64.
        vocabulary: Number of ids that exist.
        classes: The ids as classes.
        offsets: Row at which each context begins, and R at the end, [D + 1] int64.
        facts: What a manifest records of it beside its digest: `reading`, how it was read; `tokenizer`, which made its ids; `bytes` of
            the text as UTF-8; `generated`, which model wrote the text. Each only where it is known.
        sequence_length: Most tokens of a context, as asked for; None: nothing was.
        notes: What was done with documents that were too long, for people.
    """

    modality = "text"

    def __init__(
        self,
        tokens: NDArray[Any],
        documents: NDArray[Any],
        vocabulary: int,
        targets: NDArray[np.bool_] | None = None,
        *,
        answers: NDArray[np.bool_] | None = None,
        completions: NDArray[np.bool_] | None = None,
        facts: Mapping[str, Any] | None = None,
        sequence_length: int | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        """Check and hold contexts; nothing is copied that has the right type.

        Args:
            tokens: Ids, [T].
            documents: Where each context begins, and T, [D + 1].
            vocabulary: Number of ids that exist.
            targets: Which tokens are targets, [T]; None: all. The first of a context is not one in any case.
            answers: Mask of the tokens of completions and of assistants' turns, [T].
            completions: Mask of the tokens of each document's last answer, [T].
            facts: What a manifest records besides.
            sequence_length: Most tokens of a context.
            notes: What was done when it was read.

        Raises:
            InputError: Arrays of other shapes or types, boundaries that do not ascend from 0 to T, or an id that does not exist.
        """
        begins = _boundaries(documents, tokens)
        if vocabulary < 2:
            raise InputError(f"a vocabulary has two ids or more, not {vocabulary}")
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
            at = int(np.flatnonzero((tokens < 0) | (tokens >= vocabulary))[0])
            context = int(np.searchsorted(begins, at, side="right")) - 1
            raise InputError(
                f"token {at:,} (of context {context:,}) is id {int(tokens[at])}, and the vocabulary has {vocabulary:,}, from 0. Use the "
                "tokenizer that made the tokens, or say how many ids there are."
            )
        for name, one in (("targets", targets), ("answers", answers), ("completions", completions)):
            if one is not None and (one.shape != tokens.shape or one.dtype != np.bool_):
                raise InputError(
                    f"{name} must be bool, one a token, [{len(tokens):,}], not {one.dtype} {list(one.shape)}"
                )
        self.tokens = tokens.astype(token_dtype(vocabulary), copy=False)
        self.documents, self.vocabulary, self.classes = begins, vocabulary, NumberedClasses(vocabulary)
        self.targets = np.ones(len(tokens), np.bool_) if targets is None else targets.copy()
        self.targets[begins[:-1][np.diff(begins) > 0]] = False
        self.offsets = np.concatenate([[0], np.cumsum(self.targets, dtype=np.int64)])[begins]
        self.answers, self.completions = answers, completions
        self.counted: NDArray[np.bool_] | None = None
        self.counted_targets, self.counted_offsets = self.targets, self.offsets
        self.facts, self.sequence_length, self.notes = dict(facts or {}), sequence_length, notes

    @functools.cached_property
    def labels(self) -> NDArray[np.int64]:
        """Token of each row, [R]."""
        return self.tokens[self.targets].astype(np.int64)

    def with_loss_on(self, tokens: NDArray[np.bool_] | None) -> "Documents":
        """Return the same contexts, of which only the rows of some tokens count in a loss.

        Args:
            tokens: Mask of the tokens whose rows count, [T]; None counts all.
        """
        if tokens is None:
            return self
        found = copy.copy(self)
        found.counted, found.counted_targets = tokens[self.targets], self.targets & tokens
        found.counted_offsets = np.concatenate([[0], np.cumsum(found.counted, dtype=np.int64)])[self.offsets]
        return found

    def counted_rows(self, ids: Ids) -> Ids:
        """Return the rows of contexts that count, in their order."""
        rows = rows_of(self.offsets, ids)
        return rows if self.counted is None else rows[self.counted[rows]]

    @functools.cached_property
    def lengths(self) -> Ids:
        """Tokens of each context, [D]."""
        return np.diff(self.documents)

    @property
    def longest(self) -> int:
        """Tokens of the longest context."""
        return int(self.lengths.max(initial=0))

    def __len__(self) -> int:
        """Return the number of contexts, D."""
        return len(self.documents) - 1

    def digest(self) -> str:
        """Identify tokens, contexts, targets and vocabulary; memory maps and arrays of other widths have the same."""
        digest = blake2b(str(self.vocabulary).encode(), digest_size=16)
        for start in range(0, len(self.tokens), _HASHED):
            digest.update(self.tokens[start : start + _HASHED].astype("<u4").tobytes())
        digest.update(self.documents.astype("<i8").tobytes())
        digest.update(np.packbits(self.targets).tobytes())
        for one in (self.answers, self.completions):
            if one is not None:
                digest.update(np.packbits(one).tobytes())
        return digest.hexdigest()

    def arrays(self) -> dict[str, tuple[str, NDArray[Any]]]:
        """Return what a cache carries so that it trains without the files: name of the array to its axis and values."""
        return {
            "tokens": ("token", self.tokens),
            "documents": ("boundary", self.documents),
            "targets": ("token", self.targets),
            **({} if self.answers is None else {"answers": ("token", self.answers)}),
            **({} if self.completions is None else {"completions": ("token", self.completions)}),
        }

    def part(self, first: int, last: int) -> "Stretch":
        """Return the contexts from the first to one before the last, as a data set of their own."""
        return Stretch(self, first, last)

    def row_digests(self, ids: Ids) -> NDArray[np.uint64]:
        """Return for each row of some contexts a digest of the tokens before it in its context, [R], in their order."""
        at = rows_of(self.documents, ids)  # places of their tokens
        lengths = self.lengths[ids]
        begins = np.cumsum(lengths) - lengths
        place = np.arange(len(at)) - np.repeat(begins, lengths)
        mixed = _mixed(self.tokens[at].astype(np.uint64) + (place.astype(np.uint64) << np.uint64(32)))
        before = np.cumsum(mixed, dtype=np.uint64) - mixed  # of all tokens before, also of other contexts
        inside = before - np.repeat(before[begins[lengths > 0]], lengths[lengths > 0])
        return _mixed(inside[self.targets[at]])


class Stretch(Documents):
    """A stretch of other contexts.

    Attributes:
        whole: The data set that it is of.
        first: Context of `whole` that is its first.
    """

    def __init__(self, whole: Documents, first: int, last: int) -> None:
        """Take the contexts from the first to one before the last; tokens are not copied."""
        begin, end = int(whole.documents[first]), int(whole.documents[last])
        super().__init__(
            whole.tokens[begin:end],
            whole.documents[first : last + 1] - begin,
            whole.vocabulary,
            whole.targets[begin:end],
            answers=None if whole.answers is None else whole.answers[begin:end],
            completions=None if whole.completions is None else whole.completions[begin:end],
            facts=whole.facts,
            sequence_length=whole.sequence_length,
            notes=whole.notes,
        )
        self.whole, self.first = whole, first

    def part(self, first: int, last: int) -> "Stretch":
        """Return a stretch of the stretch: one of the whole."""
        return Stretch(self.whole, self.first + first, self.first + last)


def _boundaries(documents: NDArray[Any], tokens: NDArray[Any]) -> Ids:
    """Return where contexts begin, as int64.

    Raises:
        InputError: They are no boundaries of these tokens.
    """
    for name, array in (("tokens", tokens), ("documents", documents)):
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise InputError(f"{name} must be whole numbers in one row, not {array.dtype} {list(array.shape)}")
    if len(documents) < 2 or documents[0] != 0 or documents[-1] != len(tokens):
        raise InputError(
            f"documents says where each begins, and the number of tokens at the end: from 0 to {len(tokens):,}, not "
            f"{', '.join(map(str, documents[:3].tolist()))} ... {', '.join(map(str, documents[-1:].tolist()))}"
        )
    begins = documents.astype(np.int64)
    if (np.diff(begins) < 0).any():
        raise InputError(f"documents must ascend; document {int(np.argmin(np.diff(begins))):,} ends before it begins")
    return begins


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix the bits of numbers (splitmix64, Steele et al., OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        z = values + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    found: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return found
