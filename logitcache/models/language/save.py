"""Language models in the form that transformers loads: config.json, model.safetensors, the files of a tokenizer."""

from pathlib import Path
from typing import Any

from logitcache.models.language.causal import CausalNetwork
from logitcache.models.language.packages import no_progress_bars
from logitcache.runtime.files import fill_folder

__all__ = ["save_language_network"]

_ONE_FILE = "1000TB"  # never divided: several files could not be replaced at once


def save_language_network(network: CausalNetwork, folder: Path, tokenizer: Any = None) -> None:
    """Write a causal language model as a folder that `AutoModelForCausalLM.from_pretrained` and `hf:FOLDER` load.

    Each file is whole or absent, and config.json comes last: a folder that has one can be loaded.

    Args:
        network: The model.
        folder: Made if it does not exist; files of the same names are replaced.
        tokenizer: A tokenizer of transformers, saved beside it; None writes none.
    """
    with no_progress_bars(), fill_folder(folder, last="config.json") as made:
        network.model.save_pretrained(made, max_shard_size=_ONE_FILE)
        if tokenizer is not None:
            tokenizer.save_pretrained(made)
