"""Options for reading text, which determine the contexts and targets of a data set."""

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from logitcache.data.text.documents import Documents
from logitcache.data.text.tokenizer import Tokenizer
from logitcache.errors import CacheMismatchError, InputError, unknown_name
from logitcache.models.language.tokenizer import Spelling, load_tokenizer, spelling_of
from logitcache.store import Ids, Manifest, rows_of

__all__ = [
    "TEXT_KINDS",
    "TEXT_OPTIONS",
    "TextReading",
    "bytes_of",
    "choose_text_reading",
    "find_tokenizer",
    "for_images",
    "refuse_image_options",
    "refuse_text_options",
    "text_reading_like",
    "text_reading_of",
    "tokenizer_named",
    "warn_of_other_tokenizer",
]

TEXT_KINDS = (
    "tokens",
    "text",
    "jsonl",
    "parquet",
    "hf",
)  # prefix of a data set's name, before the colon; the last two may also hold images
TEXT_OPTIONS = ("sequence_length", "too_long", "pack", "rows", "documents_by")

_LOG = logging.getLogger(__name__)
_CHOICES = {
    "too_long": ("split", "cut", "drop"),
    "pack": ("none", "stream"),
    "rows": ("assistant", "completion", "all"),
    "documents_by": ("file", "blank-line"),
}


@dataclass(frozen=True, slots=True)
class TextReading:
    """Options that turn documents into contexts.

    Attributes:
        sequence_length: Maximum length of a context, in tokens. None keeps documents at their full length.
        too_long: Treatment of longer documents: `split` into several contexts, `cut` after the first tokens, or `drop`.
        pack: Packing: `none` makes each document a context; `stream` concatenates all documents and cuts windows of `sequence_length`.
        rows: Target tokens: `assistant`, completions of prompts, the assistant's turns in a chat, and all tokens of plain text;
            `completion`, which in a chat is the assistant's last turn only; or `all`. The first token of a context is never a target.
        documents_by: End of a document in a text file: the end of the `file`, or a `blank-line`.
        tokenizer: Tokenizer; not needed for `tokens:FILE.npz`.
        vocabulary: Size of the vocabulary. Defaults to that of the tokenizer.
    """

    sequence_length: int | None = None
    too_long: str = "split"
    pack: str = "none"
    rows: str = "assistant"
    documents_by: str = "file"
    tokenizer: Tokenizer | None = None
    vocabulary: int | None = None

    def __post_init__(self) -> None:
        """Check names and ranges.

        Raises:
            UnknownNameError: If a choice is unknown.
            InputError: If a number is out of range, or `pack` is `stream` without a length.
        """
        for name, known in _CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise unknown_name(f"--{name.replace('_', '-')}", str(value), known)
        if self.sequence_length is not None and self.sequence_length < 2:
            raise InputError(f"--sequence-length must be 2 or more, not {self.sequence_length}")
        if self.pack == "stream" and self.sequence_length is None:
            raise InputError("--pack stream cuts text into windows; set their length with --sequence-length")

    def to_json(self) -> dict[str, Any]:
        """Return the manifest entry."""
        return {"sequence_length": self.sequence_length} | {name: getattr(self, name) for name in _CHOICES}

    @classmethod
    def from_json(
        cls, entry: Mapping[str, Any], *, tokenizer: Tokenizer | None = None, vocabulary: int | None = None
    ) -> "TextReading":
        """Read a manifest entry, to read the text again."""
        return cls(**entry, tokenizer=tokenizer, vocabulary=vocabulary)


def choose_text_reading(data: Any, teacher: Any, tokenizer: str | None, given: Mapping[str, Any]) -> TextReading | None:
    """Choose the reading options of a data set, if it is text.

    Args:
        data: Data set, as in `as_samples`.
        teacher: Teacher; one given as `hf:PATH` comes with its tokenizer.
        tokenizer: Name of a different tokenizer, `hf:PATH`.
        given: Fields of `TextReading`; None leaves the default.

    Returns:
        Reading options, or None if neither teacher nor data nor options are for text.

    Raises:
        UnknownNameError: If a choice is unknown.
        InputError: If a number is out of range, or a tokenizer cannot be loaded.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    first = teacher[0] if isinstance(teacher, list | tuple) and teacher else teacher
    source = tokenizer or (first if isinstance(first, str) and first.startswith("hf:") else None)
    kind = data.partition(":")[0] if isinstance(data, str) else ""
    if not chosen and source is None and kind not in TEXT_KINDS:
        return None
    if kind in TEXT_KINDS and kind != "text" and "documents_by" in chosen:
        raise InputError(
            f"--documents-by is for text:PATH; in {kind}:PATH the documents are already separate. Leave it out."
        )
    if "too_long" in chosen and "sequence_length" not in chosen:
        raise InputError("--too-long applies to documents longer than --sequence-length; set that too")
    found = None
    if source is not None:
        try:
            found = Tokenizer(load_tokenizer(source), f"the tokenizer of {source}", source=tokenizer)
        except InputError:
            if tokenizer is not None or kind != "tokens":  # a tokens file may hold the size of its vocabulary
                raise
    return TextReading(**chosen, tokenizer=found)


def tokenizer_named(source: str) -> Any:
    """Load a tokenizer by the name of its model (see `load_tokenizer`).

    Raises:
        InputError: If there is no such tokenizer.
    """
    return load_tokenizer(source)


def refuse_text_options(samples: Any, given: Mapping[str, Any]) -> None:
    """Raise an error if options for text are given for other data.

    Args:
        samples: Data set.
        given: Options by name; None if not given.

    Raises:
        InputError: If one is given and the data is not text.
    """
    named = [name for name, value in given.items() if value is not None]
    if named and not isinstance(samples, Documents):
        raise InputError(f"--{named[0].replace('_', '-')} is for text, but this data set is not text; leave it out")


def for_images(name: str) -> InputError:
    """Return the error for an option for images that is given for text."""
    return InputError(f"--{name.replace('_', '-')} is for images, but the data is text; leave it out")


def refuse_image_options(samples: Any, given: Mapping[str, Any]) -> None:
    """Raise an error if options for images are given for text.

    Args:
        samples: Data set.
        given: Options by name; None or False if not given.

    Raises:
        InputError: If one is given and the data is text.
    """
    named = [name for name, value in given.items() if value]
    if named and isinstance(getattr(samples, "whole", samples), Documents):
        raise for_images(named[0])


def text_reading_of(manifest: Manifest, data: Any) -> TextReading | None:
    """Return the options to read the text of a cache again.

    Args:
        manifest: Manifest of the cache, which records the options.
        data: Name of the text; its kind decides whether the tokenizer is needed.

    Returns:
        Reading options, or None if the data is not text or the options are not recorded.

    Raises:
        CacheMismatchError: If the tokenizer has changed.
        InputError: If the tokenizer cannot be loaded.
    """
    entry = manifest.data.get("reading")
    if entry is None:
        return None
    first = manifest.teachers[0]
    teacher = (first["members"] or [first])[0]["name"]
    return _read_again(entry, manifest.data.get("tokenizer", {}), len(manifest.classes), data, teacher)


def text_reading_like(samples: Any, data: Any, teacher: str | None) -> TextReading | None:
    """Return the options to read other text like an open data set: contexts of the same length, and the same tokenizer.

    Args:
        samples: Open data set.
        data: Name of the other text; its kind decides whether the tokenizer is needed.
        teacher: Name of the teacher, whose tokenizer is used unless another one is recorded.

    Returns:
        Reading options, or None if the data set is not text.

    Raises:
        CacheMismatchError: If the tokenizer has changed.
        InputError: If the tokenizer cannot be loaded.
    """
    whole = getattr(samples, "whole", samples)
    if not isinstance(whole, Documents):
        return None
    entry = whole.facts.get("reading", {"sequence_length": whole.sequence_length})
    return _read_again(entry, whole.facts.get("tokenizer", {}), whole.vocabulary, data, teacher)


def warn_of_other_tokenizer(samples: Any, student: Any) -> None:
    """Log a warning if a pretrained student has a different tokenizer from the one that made the tokens.

    Args:
        samples: Data set.
        student: Student; one given as `hf:PATH` has a tokenizer.
    """
    whole = getattr(samples, "whole", samples)
    recorded = whole.facts.get("tokenizer", {}).get("digest") if isinstance(whole, Documents) else None
    if recorded is None or not isinstance(student, str) or not student.startswith("hf:"):
        return
    try:
        found = Tokenizer(load_tokenizer(student)).facts.digest
    except InputError:  # a folder without a tokenizer
        return
    if found != recorded:
        _LOG.warning(
            "%s has a different tokenizer from the one that made the tokens (digest %s, not %s); its weights are useless for ids that "
            "stand for other tokens",
            student,
            found[:12],
            recorded[:12],
        )


def find_tokenizer(samples: Any, names: Sequence[str]) -> Any | None:
    """Return the transformers tokenizer that made the tokens of a data set, or None if it is not available.

    Args:
        samples: Data set.
        names: Names of networks that may come with it, `hf:PATH`, tried in this order.
    """
    whole = getattr(samples, "whole", samples)
    recorded = whole.facts.get("tokenizer", {})
    return _tokenizer(recorded.get("digest"), recorded.get("source"), whole.vocabulary, names)


def bytes_of(samples: Documents, ids: Ids, names: Sequence[str]) -> int | None:
    """Return the number of bytes of text that the tokens of some contexts stand for, or None if the tokenizer is not available.

    The space that some tokenizers put before each text is not counted. A context of `sequence_length` tokens may continue in the next
    one, whose leading space belongs to the text.

    Args:
        samples: Contexts.
        ids: Context ids, ascending.
        names: Names of networks, as in `find_tokenizer`.
    """
    whole = getattr(samples, "whole", samples)
    recorded = whole.facts.get("tokenizer", {})
    spelling = _spelling(recorded.get("digest"), recorded.get("source"), whole.vocabulary, tuple(names))
    if spelling is None:
        return None
    sizes = np.zeros(max(whole.vocabulary, len(spelling.bytes)), np.int64)
    sizes[: len(spelling.bytes)] = spelling.bytes
    at = rows_of(samples.documents, ids)  # indices of their tokens
    found = int(sizes[samples.tokens[at]].sum())
    if spelling.leading_space is None:
        return found
    goes_on = np.append(False, samples.lengths[:-1] == (samples.sequence_length or -1))
    for context in ids[~goes_on[ids]]:
        tokens = samples.tokens[slice(*samples.documents[context : context + 2])]
        spelled = tokens[sizes[tokens] > 0][:1]
        found -= int(spelling.leading_space[spelled].sum())
    return found


@functools.lru_cache(maxsize=4)
def _spelling(digest: str | None, source: str | None, vocabulary: int, names: tuple[str, ...]) -> Spelling | None:
    found = _tokenizer(digest, source, vocabulary, names)
    return None if found is None else spelling_of(found)


def _tokenizer(digest: str | None, source: str | None, vocabulary: int, names: Sequence[str]) -> Any | None:
    """Return the first tokenizer with the recorded digest or, if none is recorded, with the size of the vocabulary."""
    for name in dict.fromkeys(one for one in (source, *names) if one is not None and one.startswith("hf:")):
        try:
            found = Tokenizer(load_tokenizer(name))
        except InputError:
            continue
        if found.facts.digest == digest or (digest is None and len(found) == vocabulary):
            return found.wrapped
    return None


def _read_again(
    entry: Mapping[str, Any], recorded: Mapping[str, Any], vocabulary: int, data: Any, teacher: str | None
) -> TextReading:
    """Return recorded reading options, with the recorded tokenizer if `data` names text that is not tokenized.

    Raises:
        CacheMismatchError: If the tokenizer has changed.
        InputError: If the tokenizer cannot be loaded.
    """
    kind, source = data.partition(":")[0] if isinstance(data, str) else "", recorded.get("source", teacher)
    if kind not in TEXT_KINDS or kind == "tokens" or source is None or not source.startswith("hf:"):
        return TextReading.from_json(entry, vocabulary=vocabulary)
    found = Tokenizer(load_tokenizer(source), f"the tokenizer of {source}")
    if recorded.get("digest") not in (None, found.facts.digest):
        raise CacheMismatchError(
            f"the tokenizer of {source} is not the one that the cache was made with (digest {found.facts.digest[:12]}, recorded "
            f"{recorded['digest'][:12]}), so ids would stand for other tokens. Restore it, or pass tokens:FILE.npz."
        )
    return TextReading.from_json(entry, tokenizer=found, vocabulary=vocabulary)
