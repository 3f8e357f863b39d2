"""Settings of generation. Does not import torch, so that `logitcache generate --help` stays fast."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logitcache.runtime.progress import OnProgress, silent
from logitcache.runtime.settings import Settings, option

if TYPE_CHECKING:
    from torch import nn

__all__ = ["GenerateRequest", "GenerateSettings"]


@dataclass(frozen=True, kw_only=True, repr=False)
class GenerateSettings(Settings):
    """Settings of generation: sampling parameters, and selection of prompts."""

    panel = "Generation"

    max_new_tokens: int = option(256, metavar="N", minimum=1, help="Maximum number of tokens per completion.")
    temperature: float = option(
        0.0, metavar="T", help="Sampling temperature; 0 selects the most likely token (greedy decoding)."
    )
    top_p: float = option(
        1.0,
        metavar="P",
        help="Sample from the smallest set of most likely tokens with at least this total probability (nucleus sampling).",
    )
    seed: int = option(
        0, minimum=0, help="Sampling seed. Completions depend only on the seed and the prompt, not on the batches."
    )
    batch_size: int = option(8, metavar="SAMPLES", minimum=1, help="Prompts that are completed at a time.")
    samples: tuple[int, int] | None = option(
        None,
        form="span",
        metavar="A:B",
        shown="all",
        panel="Data",
        help="Range of prompts to complete, from A to B - 1.",
    )
    prompt_tokens: int | None = option(
        None,
        metavar="N",
        minimum=1,
        panel="Data",
        help="For plain text, number of tokens at the start of a document to use as the prompt; the rest is the reference.",
    )
    max_prompt_tokens: int | None = option(
        None, metavar="N", minimum=1, shown="any length", panel="Data", help="Skip prompts with more tokens."
    )
    tokenizer: Any = option(
        None,
        form="text",
        metavar="hf:PATH",
        shown="the model's own",
        panel="Data",
        help="Tokenizer for prompts and completions.",
    )
    rouge: bool = option(
        False,
        panel="Data",
        help="Compute ROUGE-L of the completions against the references in the data; requires the package rouge-score.",
    )
    device: str = option("auto", metavar="NAME", help="Device to generate on: auto, cpu, cuda, cuda:1, ...")

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        self.check("temperature", lambda t: 0 <= t < math.inf, "0 or more")
        self.check("top_p", lambda p: 0 < p <= 1, "greater than 0, and at most 1")
        self.check("seed", lambda seed: seed < 2**63, "below 2**63")
        self.check("samples", lambda span: 0 <= span[0] < span[1], "A:B with A below B")


@dataclass(frozen=True, kw_only=True, repr=False)
class GenerateRequest(Settings):
    """Arguments of a single generation, in addition to the settings."""

    model: "str | Path | nn.Module" = option(
        form="argument",
        help="Run folder (for its student), transformers model folder, hf:PATH or hf:FILE.gguf; in Python also a transformers model.",
    )
    data: Any = option(
        metavar="SPEC",
        panel="Data",
        form="text",
        help="Data set of prompts: jsonl:PATH, parquet:PATH or hf:PATH with `prompt`, `instruction` or `messages`, or other text with "
        "--prompt-tokens.",
    )
    out: str | Path | None = option(
        None,
        metavar="FILE",
        panel="Output",
        help="File for the completions: .jsonl with text, or .npz with tokens, which `dump --data tokens:FILE.npz` reads. In Python, None "
        "writes no file.",
    )
    on_progress: OnProgress = option(silent, form="python", conduct=True, help="Function called after every batch.")
