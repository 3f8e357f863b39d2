"""How text is read: the options that decide which contexts and targets a data set has."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from logitcache.data.text.tokenizer import Tokenizer
from logitcache.errors import InputError, unknown_name
from logitcache.store import Manifest

__all__ = ["TextReading", "text_reading_of"]

_CHOICES = {
    "too_long": ("split", "cut", "drop"),
    "pack": ("none", "stream"),
    "rows": ("completion", "all"),
    "documents_by": ("file", "blank-line"),
}


@dataclass(frozen=True, slots=True)
class TextReading:
    """How documents become contexts.

    Attributes:
        sequence_length: Most tokens of a context; None: documents stay as long as they are.
        too_long: What is done with a longer document: `split` it into contexts, `cut` it after its first tokens, or `drop` it.
        pack: `none`: each document is a context; `stream`: all documents in a row are cut into windows of `sequence_length`.
        rows: Which tokens are targets. `completion`: the answers of prompts and of chats, and all tokens of plain text; `all`: all
            tokens. The first token of a context never is.
        documents_by: Where a document of a text file ends: at the end of the `file`, or at a `blank-line`.
        tokenizer: Makes tokens of text; not needed for `tokens:FILE.npz`.
        vocabulary: Number of ids that exist; None: those of the tokenizer.
    """

    sequence_length: int | None = None
    too_long: str = "split"
    pack: str = "none"
    rows: str = "completion"
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


def text_reading_of(manifest: Manifest) -> TextReading | None:
    """Return how the text of a cache was read, without its tokenizer; None where no such thing is recorded."""
    entry = manifest.data.get("reading")
    return None if entry is None else TextReading.from_json(entry, vocabulary=len(manifest.classes))
