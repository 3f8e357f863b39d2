"""The settings of an import (no torch, so that `logitcache import --help` stays fast)."""

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
    """What the files of another tool do not say themselves, and how rows are stored."""

    tokenizer: str | None = option(
        None,
        metavar="hf:PATH",
        help="Tokenizer that made the ids; recorded, so that a training finds it. It says how many ids exist, and makes the tokens of "
        "axolotl's chats.",
    )
    vocabulary: int | None = option(
        None,
        metavar="N",
        minimum=2,
        shown="those of the tokenizer",
        help="Number of ids that exist, without a tokenizer.",
    )
    rows_temperature: float | None = option(
        None,
        metavar="1",
        shown="asked for",
        help="Temperature of the softmax that made the log-probabilities, which distillkit, axolotl and fkd do not record; only 1 can be "
        "imported.",
    )
    alignment: str | None = option(
        None,
        metavar="next|token",
        shown="asked for",
        help="Of axolotl's lists: whether the one at a token is the distribution of the next token, or of this one.",
    )
    field_messages: str | None = option(
        None, metavar="NAME", shown="messages", help="Of axolotl: column of the chats, as its configuration names it."
    )
    logprobs_field: str | None = option(
        None,
        metavar="NAME",
        shown="logprobs",
        help="Of axolotl: column of the log-probabilities, as its configuration names it.",
    )
    bos: int | None = option(
        None,
        metavar="ID",
        shown="asked for",
        help="Of llama.cpp: id that the model was shown in place of each chunk's first token, where it adds one to a text; -1 where it "
        "adds none.",
    )
    codec: str | Path | None = option(
        None,
        metavar="FILE",
        shown="compression_config.yaml beside the data",
        help="Of distillkit: the compression configuration, YAML or JSON.",
    )
    data: Any = option(
        None,
        metavar="SPEC",
        shown="asked for",
        help="Of tinyvit and fkd: the images that the teacher was shown, as `dump` takes them, usually imagefolder:PATH.",
    )
    views: int | None = option(
        None,
        metavar="V",
        minimum=1,
        shown="all",
        help="Of tinyvit: number of epochs to take; of fkd: number of crops to take of each image. Each is a view.",
    )
    teacher_name: str | None = option(
        None,
        metavar="NAME",
        shown="the name of the source",
        help="The model that gave the rows, as the cache will name it.",
    )
    top_k: int | None = option(
        None,
        metavar="K",
        minimum=1,
        shown="all that every row has, at most 64",
        help="Number of the largest log-probabilities to store beside the token's own.",
    )
    precision: str = option("f16", metavar="f32|f16|u8", help="Precision of stored log-probabilities.")
    block_rows: int | None = option(None, form="python", minimum=1, help="Rows per block of the cache.")

    def __post_init__(self) -> None:
        """Check names."""
        super().__post_init__()
        self.check_name("alignment", "alignment", ALIGNMENTS)


@dataclass(frozen=True, kw_only=True, repr=False)
class ImportRequest(Settings):
    """What a single call adds to the settings."""

    kind: str = option(form="argument", help="Format of the source.")
    source: str | Path = option(form="argument", help="A file, or a folder of them.")
    out: str | Path = option(
        metavar="PATH", help="Path of the new cache. An import that was stopped there is continued."
    )
    on_progress: OnProgress = option(silent, form="python", conduct=True, help="Function called after every batch.")
