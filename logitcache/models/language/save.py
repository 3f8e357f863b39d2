"""Save language models in the format of transformers: config.json, model.safetensors and the files of a tokenizer."""

from pathlib import Path
from typing import Any

from logitcache.models.language.causal import CausalNetwork
from logitcache.models.language.packages import no_progress_bars
from logitcache.runtime.files import fill_folder

__all__ = ["save_language_network"]

_ONE_FILE = "1000TB"  # never sharded, because several files cannot be replaced atomically


def save_language_network(network: CausalNetwork, folder: Path, tokenizer: Any = None) -> None:
    """Save a causal language model as a folder for `AutoModelForCausalLM.from_pretrained` and `hf:FOLDER`.

    Each file is written atomically, config.json last, so a folder that has one can be loaded.

    Args:
        network: Network to save.
        folder: Target folder, created if it does not exist; files of the same names are replaced.
        tokenizer: Tokenizer of transformers to save in the same folder, or None.
    """
    with no_progress_bars(), fill_folder(folder, last="config.json") as made:
        network.model.save_pretrained(made, max_shard_size=_ONE_FILE)
        if tokenizer is not None:
            tokenizer.save_pretrained(made)
