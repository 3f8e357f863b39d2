"""How text is read: the options that decide which contexts and targets a data set has."""

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
)  # of data sets by name, before the colon; the last two also of images
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
    """How documents become contexts.

    Attributes:
        sequence_length: Most tokens of a context; None: documents stay as long as they are.
        too_long: What is done with a longer document: `split` it into contexts, `cut` it after its first tokens, or `drop` it.
        pack: `none`: each document is a context; `stream`: all documents in a row are cut into windows of `sequence_length`.
        rows: Which tokens are targets. `assistant`: completions of prompts, what the assistant says in a chat, and all tokens of plain
            text; `completion`: of a chat only the last that it says; `all`: all tokens. The first token of a context never is.
        documents_by: Where a document of a text file ends: at the end of the `file`, or at a `blank-line`.
        tokenizer: Makes tokens of text; not needed for `tokens:FILE.npz`.
        vocabulary: Number of ids that exist; None: those of the tokenizer.
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
            UnknownNameError: No such choice.
            InputError: A number out of range, or a stream without a length.
        """
        for name, known in _CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise unknown_name(f"--{name.replace('_', '-')}", str(value), known)
        if self.sequence_length is not None and self.sequence_length < 2:
            raise InputError(f"--sequence-length must be 2 or more, not {self.sequence_length}")
        if self.pack == "stream" and self.sequence_length is None:
            raise InputError("--pack stream cuts text into windows: say how long they are with --sequence-length")

    def to_json(self) -> dict[str, Any]:
        """Return what a manifest records."""
        return {"sequence_length": self.sequence_length} | {name: getattr(self, name) for name in _CHOICES}

    @classmethod
    def from_json(
        cls, entry: Mapping[str, Any], *, tokenizer: Tokenizer | None = None, vocabulary: int | None = None
    ) -> "TextReading":
        """Read what `to_json` wrote, for text that is read again."""
        return cls(**entry, tokenizer=tokenizer, vocabulary=vocabulary)


def choose_text_reading(data: Any, teacher: Any, tokenizer: str | None, given: Mapping[str, Any]) -> TextReading | None:
    """Choose how a data set is read, if it is text.

    Args:
        data: The data set, as `as_samples` takes it.
        teacher: The teacher; one by name, `hf:PATH`, brings its tokenizer.
        tokenizer: Name of another tokenizer, `hf:PATH`.
        given: Fields of `TextReading`; those that are None are left at their defaults.

    Returns:
        How it is read; None where neither teacher nor data nor options speak of text.

    Raises:
        UnknownNameError: No such choice.
        InputError: A number out of range, or a tokenizer that cannot be loaded.
    """
    chosen = {name: value for name, value in given.items() if value is not None}
    first = teacher[0] if isinstance(teacher, list | tuple) and teacher else teacher
    source = tokenizer or (first if isinstance(first, str) and first.startswith("hf:") else None)
    kind = data.partition(":")[0] if isinstance(data, str) else ""
    if not chosen and source is None and kind not in TEXT_KINDS:
        return None
    if kind in TEXT_KINDS and kind != "text" and "documents_by" in chosen:
        raise InputError(
            f"--documents-by is for text:PATH; {kind}:PATH says itself where its documents end: leave it out"
        )
    if "too_long" in chosen and "sequence_length" not in chosen:
        raise InputError("--too-long is for documents of more tokens than --sequence-length: give that too")
    found = None
    if source is not None:
        try:
            found = Tokenizer(load_tokenizer(source), f"the tokenizer of {source}", source=tokenizer)
        except InputError:
            if tokenizer is not None or kind != "tokens":  # which may say itself how many ids there are
                raise
    return TextReading(**chosen, tokenizer=found)


def tokenizer_named(source: str) -> Any:
    """Load a tokenizer by the name of its model (see `load_tokenizer`).

    Raises:
        InputError: There is none.
    """
    return load_tokenizer(source)


def refuse_text_options(samples: Any, given: Mapping[str, Any]) -> None:
    """Refuse options for text beside data of another kind.

    Args:
        samples: The data set.
        given: Options by name; those that are None were not given.

    Raises:
        InputError: One was given, and the data is no text.
    """
    named = [name for name, value in given.items() if value is not None]
    if named and not isinstance(samples, Documents):
        raise InputError(f"--{named[0].replace('_', '-')} is for text, and this data set is none: leave it out")


def for_images(name: str) -> InputError:
    """Return the error for an option of images, by its name, beside text."""
    return InputError(f"--{name.replace('_', '-')} is for images, and the data is text: leave it out")


def refuse_image_options(samples: Any, given: Mapping[str, Any]) -> None:
    """Refuse options for images beside text.

    Args:
        samples: The data set.
        given: Options by name; those that are None or false were not given.

    Raises:
        InputError: One was given, and the data is text.
    """
    named = [name for name, value in given.items() if value]
    if named and isinstance(getattr(samples, "whole", samples), Documents):
        raise for_images(named[0])


def text_reading_of(manifest: Manifest, data: Any) -> TextReading | None:
    """Return how to read the text of a cache again.

    Args:
        manifest: Says how it was read.
        data: Name of the text, which may need the tokenizer that its ids were made with.

    Returns:
        None where it is no text, or nobody knows how it was read.

    Raises:
        CacheMismatchError: The tokenizer is another one by now.
        InputError: It cannot be loaded.
    """
    entry = manifest.data.get("reading")
    if entry is None:
        return None
    first = manifest.teachers[0]
    teacher = (first["members"] or [first])[0]["name"]
    return _read_again(entry, manifest.data.get("tokenizer", {}), len(manifest.classes), data, teacher)


def text_reading_like(samples: Any, data: Any, teacher: str | None) -> TextReading | None:
    """Return how to read other text as some was read: into contexts of the same length, with the same tokenizer.

    Args:
        samples: The data set that was read.
        data: Name of the other, which may need a tokenizer.
        teacher: Name of the teacher, whose tokenizer it is unless another is recorded.

    Returns:
        None where the data set is no text.

    Raises:
        CacheMismatchError: The tokenizer is another one by now.
        InputError: It cannot be loaded.
    """
    whole = getattr(samples, "whole", samples)
    if not isinstance(whole, Documents):
        return None
    entry = whole.facts.get("reading", {"sequence_length": whole.sequence_length})
    return _read_again(entry, whole.facts.get("tokenizer", {}), whole.vocabulary, data, teacher)


def warn_of_other_tokenizer(samples: Any, student: Any) -> None:
    """Log a warning where a student that comes with weights has another tokenizer than the one that made the tokens.

    Args:
        samples: The data set.
        student: The student; one by name, `hf:PATH`, has a tokenizer.
    """
    whole = getattr(samples, "whole", samples)
    recorded = whole.facts.get("tokenizer", {}).get("digest") if isinstance(whole, Documents) else None
    if recorded is None or not isinstance(student, str) or not student.startswith("hf:"):
        return
    try:
        found = Tokenizer(load_tokenizer(student)).facts.digest
    except InputError:  # a folder without one
        return
    if found != recorded:
        _LOG.warning(
            "%s has another tokenizer than the one that made the tokens (digest %s, not %s): where ids mean other tokens, its weights are "
            "of no use",
            student,
            found[:12],
            recorded[:12],
        )


def find_tokenizer(samples: Any, names: Sequence[str]) -> Any | None:
    """Return the tokenizer that made the tokens of a data set, as transformers has it; None where it is not at hand.

    Args:
        samples: The data set.
        names: Names of networks that may bring it, `hf:PATH`, in the order in which they are tried.
    """
    whole = getattr(samples, "whole", samples)
    recorded = whole.facts.get("tokenizer", {})
    return _tokenizer(recorded.get("digest"), recorded.get("source"), whole.vocabulary, names)


def bytes_of(samples: Documents, ids: Ids, names: Sequence[str]) -> int | None:
    """Return how many bytes of text the tokens of some contexts stand for; None where the tokenizer is not at hand.

    A space that the tokenizer puts before each text is not counted. A context of `sequence_length` tokens may go on in the next one,
    which then begins with a space of its own.

    Args:
        samples: The contexts.
        ids: Context ids, ascending.
        names: As `find_tokenizer` takes them.
    """
    whole = getattr(samples, "whole", samples)
    recorded = whole.facts.get("tokenizer", {})
    spelling = _spelling(recorded.get("digest"), recorded.get("source"), whole.vocabulary, tuple(names))
    if spelling is None:
        return None
    sizes = np.zeros(max(whole.vocabulary, len(spelling.bytes)), np.int64)
    sizes[: len(spelling.bytes)] = spelling.bytes
    at = rows_of(samples.documents, ids)  # places of their tokens
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
    """Return the first tokenizer that has the recorded digest; where none is recorded, that has as many ids."""
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
    """Return a recorded reading, with the recorded tokenizer where `data` names text that has no ids yet.

    Raises:
        CacheMismatchError: The tokenizer is another one by now.
        InputError: It cannot be loaded.
    """
    kind, source = data.partition(":")[0] if isinstance(data, str) else "", recorded.get("source", teacher)
    if kind not in TEXT_KINDS or kind == "tokens" or source is None or not source.startswith("hf:"):
        return TextReading.from_json(entry, vocabulary=vocabulary)
    found = Tokenizer(load_tokenizer(source), f"the tokenizer of {source}")
    if recorded.get("digest") not in (None, found.facts.digest):
        raise CacheMismatchError(
            f"the tokenizer of {source} is another one than the cache was made with (digest {found.facts.digest[:12]}, then "
            f"{recorded['digest'][:12]}): its ids would mean other tokens. Restore it, or give tokens:FILE.npz."
        )
    return TextReading.from_json(entry, tokenizer=found, vocabulary=vocabulary)
