"""A text data set: one array of token ids, the boundaries of the contexts, and the mask of target tokens."""

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
_HASHED = 1 << 24  # tokens to hash at a time


def token_dtype(vocabulary: int) -> np.dtype[Any]:
    """Return the smallest of u2 and u4 that holds every id of a vocabulary."""
    return np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")


class Documents:
    """D contexts with T tokens and R target tokens in total. A sample is a context, and a row is a target token.

    The row of a token holds the teacher's prediction of it from the preceding tokens of its context, so the first token of a context is
    never a target.

    Attributes:
        tokens: Ids of all contexts, concatenated, [T] uint16 or uint32.
        documents: Index in `tokens` of the first token of each context, and T, [D + 1] int64.
        targets: Mask of target tokens, [T] bool.
        answers: Mask of the tokens of completions and of assistants' turns, [T] bool; None if that is all targets, or unknown.
        completions: Mask of the tokens of each document's last answer, [T] bool; None if that is all answers, or unknown.
        counted: Mask of the rows that count in the loss, [R] bool; None if all do.
        counted_targets: Mask of the target tokens whose rows count in the loss, [T] bool.
        counted_offsets: Number of rows before each context that count in the loss, and the total, [D + 1] int64.
        vocabulary: Size of the vocabulary.
        classes: Token ids as classes.
        offsets: First row of each context, and R, [D + 1] int64.
        facts: Facts for the manifest besides the digest, as far as known: `reading`, the options it was read with; `tokenizer`; `bytes`,
            the size of the text in UTF-8; `generated`, the model that generated the text.
        sequence_length: Requested maximum length of a context, in tokens; None if there was no limit.
        notes: Log messages about documents that were too long.
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
        """Validate and wrap contexts; arrays of the right dtype are not copied.

        Args:
            tokens: Token ids, [T].
            documents: Index of the first token of each context, and T, [D + 1].
            vocabulary: Size of the vocabulary.
            targets: Mask of target tokens, [T]. Defaults to all. The first token of a context is never a target.
            answers: Mask of the tokens of completions and of assistants' turns, [T].
            completions: Mask of the tokens of each document's last answer, [T].
            facts: Facts for the manifest.
            sequence_length: Maximum length of a context, in tokens.
            notes: Log messages about how it was read.

        Raises:
            InputError: If an array has a wrong shape or dtype, boundaries do not ascend from 0 to T, or an id is not in the vocabulary.
        """
        begins = _boundaries(documents, tokens)
        if vocabulary < 2:
            raise InputError(f"a vocabulary must have at least 2 ids, not {vocabulary}")
        if len(tokens) and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
            at = int(np.flatnonzero((tokens < 0) | (tokens >= vocabulary))[0])
            context = int(np.searchsorted(begins, at, side="right")) - 1
            raise InputError(
                f"token {at:,} (in context {context:,}) has id {int(tokens[at])}, but the vocabulary has ids 0 to {vocabulary - 1:,}. "
                "Use the tokenizer that made the tokens, or set `vocabulary` to the number of ids."
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
        """Target token of each row, [R] int64."""
        return self.tokens[self.targets].astype(np.int64)

    def with_loss_on(self, tokens: NDArray[np.bool_] | None) -> "Documents":
        """Return a copy in which only the rows of some tokens count in the loss.

        Args:
            tokens: Mask of the tokens whose rows count, [T]; None for all.
        """
        if tokens is None:
            return self
        found = copy.copy(self)
        found.counted, found.counted_targets = tokens[self.targets], self.targets & tokens
        found.counted_offsets = np.concatenate([[0], np.cumsum(found.counted, dtype=np.int64)])[self.offsets]
        return found

    def counted_rows(self, ids: Ids) -> Ids:
        """Return the rows of contexts that count in the loss, in order."""
        rows = rows_of(self.offsets, ids)
        return rows if self.counted is None else rows[self.counted[rows]]

    @functools.cached_property
    def lengths(self) -> Ids:
        """Number of tokens in each context, [D]."""
        return np.diff(self.documents)

    @property
    def longest(self) -> int:
        """Number of tokens in the longest context."""
        return int(self.lengths.max(initial=0))

    def __len__(self) -> int:
        """Return the number of contexts, D."""
        return len(self.documents) - 1

    def digest(self) -> str:
        """Return a hash of tokens, contexts, targets and vocabulary, independent of dtypes and memory mapping."""
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
        """Return the arrays that a cache carries so that it can be trained from without the files: name to axis and values."""
        return {
            "tokens": ("token", self.tokens),
            "documents": ("boundary", self.documents),
            "targets": ("token", self.targets),
            **({} if self.answers is None else {"answers": ("token", self.answers)}),
            **({} if self.completions is None else {"completions": ("token", self.completions)}),
        }

    def part(self, first: int, last: int) -> "Stretch":
        """Return contexts `first` to `last` - 1 as a data set."""
        return Stretch(self, first, last)

    def row_digests(self, ids: Ids) -> NDArray[np.uint64]:
        """Return a digest of the preceding tokens of the context for each row of some contexts, in order, [R] uint64."""
        at = rows_of(self.documents, ids)  # indices of their tokens
        lengths = self.lengths[ids]
        begins = np.cumsum(lengths) - lengths
        place = np.arange(len(at)) - np.repeat(begins, lengths)
        mixed = _mix_bits(self.tokens[at].astype(np.uint64) + (place.astype(np.uint64) << np.uint64(32)))
        before = np.cumsum(mixed, dtype=np.uint64) - mixed  # includes tokens of preceding contexts
        inside = before - np.repeat(before[begins[lengths > 0]], lengths[lengths > 0])
        return _mix_bits(inside[self.targets[at]])


class Stretch(Documents):
    """A stretch of consecutive contexts of another data set.

    Attributes:
        whole: Data set that the contexts belong to.
        first: Index in `whole` of the first context.
    """

    def __init__(self, whole: Documents, first: int, last: int) -> None:
        """Select contexts `first` to `last` - 1; tokens are not copied."""
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
        """Return contexts `first` to `last` - 1 of this stretch, as a stretch of `whole`."""
        return Stretch(self.whole, self.first + first, self.first + last)


def _boundaries(documents: NDArray[Any], tokens: NDArray[Any]) -> Ids:
    """Return the boundaries of contexts as int64.

    Raises:
        InputError: If they are not boundaries of these tokens.
    """
    for name, array in (("tokens", tokens), ("documents", documents)):
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise InputError(
                f"{name} must be a one-dimensional array of integers, not {array.dtype} {list(array.shape)}"
            )
    if len(documents) < 2 or documents[0] != 0 or documents[-1] != len(tokens):
        raise InputError(
            f"documents must hold the index of each document's first token, then the number of tokens: from 0 to {len(tokens):,}, not "
            f"{', '.join(map(str, documents[:3].tolist()))} ... {', '.join(map(str, documents[-1:].tolist()))}"
        )
    begins = documents.astype(np.int64)
    if (np.diff(begins) < 0).any():
        raise InputError(f"documents must ascend; document {int(np.argmin(np.diff(begins))):,} ends before it begins")
    return begins


def _mix_bits(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Mix the bits of integers (splitmix64, Steele et al., OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        z = values + _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    found: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return found
