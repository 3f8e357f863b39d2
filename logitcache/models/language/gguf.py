"""Read language models from GGUF files: metadata, configuration, and weights dequantized to float32.

transformers needs accelerate to read GGUF, and ignores the file's pre-tokenizer. The result is bit-identical.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from logitcache.errors import InputError, explain_foreign_errors
from logitcache.models.language.packages import import_language_package

__all__ = ["load_gguf", "read_gguf"]

_HALVES = "llama"  # the architecture whose q and k are stored with the two halves of the rotary embedding interleaved
_CONFIGS = {"llama": "LlamaConfig", "qwen2": "Qwen2Config"}
_LAYER = {  # name in the file after `blk.N.`: name in the model after `model.layers.N.`
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OTHERWISE = "Convert it to a folder of transformers and use hf:FOLDER."
_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


def read_gguf(path: Path) -> tuple[dict[str, Any], Any]:
    """Open a GGUF file.

    Returns:
        The metadata by key, and the reader, whose `tensors` have `name`, `data` and `tensor_type`.

    Raises:
        InputError: If the file does not exist or is not GGUF.
    """
    if not path.is_file():
        raise InputError(f"there is no GGUF file {path}")
    gguf = import_language_package("gguf", f"{path}")
    with explain_foreign_errors(f"{path} cannot be read as GGUF", "Copy it again."):
        reader = gguf.GGUFReader(path)
        return {name: field.contents() for name, field in reader.fields.items()}, reader


def load_gguf(path: Path) -> Any:
    """Load a model from a GGUF file, with float32 weights and in evaluation mode.

    Returns:
        A causal language model of transformers.

    Raises:
        InputError: If the file cannot be read, or if its architecture is not supported.
    """
    transformers = import_language_package("transformers", f"{path}")
    metadata, reader = read_gguf(path)
    weights = {_renamed(path, one.name): _values(one, metadata) for one in reader.tensors}
    config = _config(path, metadata, transformers, tied="lm_head.weight" not in weights)
    with explain_foreign_errors(f"{path} does not match its own metadata"), torch.random.fork_rng(devices=[]):
        model = transformers.AutoModelForCausalLM.from_config(config).float()
    expected = model.state_dict().keys() - ({"lm_head.weight"} if config.tie_word_embeddings else set())
    if weights.keys() != expected:
        missing, unknown = sorted(expected - weights.keys()), sorted(weights.keys() - expected)
        parts = [f"lacks {', '.join(missing[:3])}"] * bool(missing)
        parts += [f"has {', '.join(unknown[:3])}, which {type(model).__name__} does not"] * bool(unknown)
        raise InputError(f"{path} {' and '.join(parts)}. {_OTHERWISE}")
    with explain_foreign_errors(f"{path} does not match its own metadata"):
        model.load_state_dict(weights, strict=False)  # a tied head is filled with the embedding
    return model.eval()


def _config(path: Path, metadata: Mapping[str, Any], transformers: Any, *, tied: bool) -> Any:
    architecture = metadata.get("general.architecture")
    if architecture not in _CONFIGS:
        raise InputError(
            f"{path} has the unsupported architecture {architecture}; expected {' or '.join(_CONFIGS)}. {_OTHERWISE}"
        )

    def entry(name: str, default: Any = None) -> Any:
        found = metadata.get(f"{architecture}.{name}", default)
        if found is None:
            raise InputError(f"{path} has no {architecture}.{name} in its metadata. Convert the model again.")
        return found

    scaled = metadata.get(f"{architecture}.rope.scaling.type", "none") != "none"
    if scaled or metadata.get(f"{architecture}.expert_count", 0):
        what = "scaled rotary positions" if scaled else "experts"
        raise InputError(f"{path} has {what}, which are not supported in GGUF files. {_OTHERWISE}")
    heads, hidden = int(entry("attention.head_count")), int(entry("embedding_length"))
    sizes = {
        "vocab_size": len(entry_of(metadata, "tokenizer.ggml.tokens", path)),
        "hidden_size": hidden,
        "intermediate_size": int(entry("feed_forward_length")),
        "num_hidden_layers": int(entry("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(entry("attention.head_count_kv", heads)),
        "max_position_embeddings": int(entry("context_length")),
        "rms_norm_eps": float(entry("attention.layer_norm_rms_epsilon")),
        "rope_theta": float(entry("rope.freq_base", 10000.0)),
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": None,
        "tie_word_embeddings": tied,
    }
    if architecture == _HALVES:
        sizes["head_dim"] = int(entry("rope.dimension_count", hidden // heads))
    return getattr(transformers, _CONFIGS[architecture])(**sizes)


def entry_of(metadata: Mapping[str, Any], name: str, path: Path) -> Any:
    """Return an entry of the metadata.

    Raises:
        InputError: If the entry does not exist.
    """
    if name not in metadata:
        raise InputError(f"{path} has no {name} in its metadata. Convert the model again.")
    return metadata[name]


def _renamed(path: Path, name: str) -> str:
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    block, _, rest = name.removeprefix("blk.").partition(".")
    layer, _, kind = rest.partition(".")
    if not name.startswith("blk.") or layer not in _LAYER:
        raise InputError(
            f"{path} has an unsupported tensor {name}, which is unusual for its architecture. {_OTHERWISE}"
        )
    return f"model.layers.{block}.{_LAYER[layer]}.{kind}"


def _values(tensor: Any, metadata: Mapping[str, Any]) -> Tensor:
    """Return a tensor as float32, with its elements in the order that transformers uses."""
    dequantize: Callable[..., Any] = import_language_package("gguf.quants", "GGUF").dequantize
    found = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy()).float()
    if metadata["general.architecture"] != _HALVES or (".attn_q." not in tensor.name and ".attn_k." not in tensor.name):
        return found
    heads = int(metadata["llama.attention.head_count"])
    if ".attn_k." in tensor.name:
        heads = int(metadata.get("llama.attention.head_count_kv", heads))
    halves = found.reshape(heads, len(found) // heads // 2, 2, *found.shape[1:])
    return halves.transpose(1, 2).reshape(found.shape)
