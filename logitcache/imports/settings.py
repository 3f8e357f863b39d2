"""Settings of an import. Does not import torch, so that `logitcache import --help` stays fast."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitcache.runtime.progress import OnProgress, silent
from logitcache.runtime.settings import Settings, option

__all__ = ["ALIGNMENTS", "IMAGE_KINDS", "KINDS", "TEXT_KINDS", "ImportRequest", "ImportSettings"]

TEXT_KINDS = ("vllm", "sglang", "distillkit", "axolotl", "llama.cpp")
IMAGE_KINDS = ("tinyvit", "fkd")
KINDS = (*TEXT_KINDS, *IMAGE_KINDS)
ALIGNMENTS = ("next", "token")


@dataclass(frozen=True, kw_only=True, repr=False)
class ImportSettings(Settings):
    """Settings that complete what the source records, and the encoding."""

    tokenizer: str | None = option(
        None,
        metavar="hf:PATH",
        help="Tokenizer of the source, which is recorded in the cache. It sets the size of the vocabulary and tokenizes axolotl's chats.",
    )
    vocabulary: int | None = option(
        None,
        metavar="N",
        minimum=2,
        shown="that of the tokenizer",
        help="Size of the vocabulary, if no tokenizer is given.",
    )
    rows_temperature: float | None = option(
        None,
        metavar="1",
        shown="asked for",
        help="Temperature of the log-probabilities, which distillkit, axolotl and fkd do not record; only 1 can be imported.",
    )
    alignment: str | None = option(
        None,
        metavar="next|token",
        shown="asked for",
        help="For axolotl, whether the list at a token is the distribution of the next token or of this one.",
    )
    field_messages: str | None = option(
        None, metavar="NAME", shown="messages", help="For axolotl, column of the chats, as in its configuration."
    )
    logprobs_field: str | None = option(
        None,
        metavar="NAME",
        shown="logprobs",
        help="For axolotl, column of the log-probabilities, as in its configuration.",
    )
    bos: int | None = option(
        None,
        metavar="ID",
        shown="asked for",
        help="For llama.cpp, id of the BOS token that replaces the first token of each chunk; -1 if llama.cpp adds none.",
    )
    codec: str | Path | None = option(
        None,
        metavar="FILE",
        shown="compression_config.yaml next to the data",
        help="For distillkit, compression configuration, YAML or JSON.",
    )
    data: Any = option(
        None,
        metavar="SPEC",
        shown="asked for",
        help="For tinyvit and fkd, images that the teacher saw, as for `dump`; usually imagefolder:PATH.",
    )
    views: int | None = option(
        None,
        metavar="V",
        minimum=1,
        shown="all",
        help="Number of epochs (tinyvit) or of crops per image (fkd) to import. Each is a view.",
    )
    teacher_name: str | None = option(
        None,
        metavar="NAME",
        shown="the name of the source",
        help="Name of the teacher to record in the cache.",
    )
    top_k: int | None = option(
        None,
        metavar="K",
        minimum=1,
        shown="as many as every row has, at most 64",
        help="Number of the largest log-probabilities to store, in addition to that of the label or token.",
    )
    precision: str = option("f16", metavar="f32|f16|u8", help="Precision of stored log-probabilities.")
    block_rows: int | None = option(None, form="python", minimum=1, help="Rows per block of the cache.")

    def __post_init__(self) -> None:
        """Check names."""
        super().__post_init__()
        self.check_name("alignment", "alignment", ALIGNMENTS)


@dataclass(frozen=True, kw_only=True, repr=False)
class ImportRequest(Settings):
    """Arguments of a single import, in addition to the settings."""

    kind: str = option(form="argument", help="Format of the source.")
    source: str | Path = option(form="argument", help="A file, or a folder of files.")
    out: str | Path = option(metavar="PATH", help="Path of the new cache. An interrupted import is resumed.")
    on_progress: OnProgress = option(silent, form="python", conduct=True, help="Function called after every batch.")
