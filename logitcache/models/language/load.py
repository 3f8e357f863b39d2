"""Language models by name: a folder of transformers, a GGUF file, a Llama from scratch, or a user's factory."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from logitcache.errors import InputError, explain_foreign_errors, first_line, unknown_name
from logitcache.models import Network, fill_network, load_network
from logitcache.models.hub import without_waiting
from logitcache.models.language.causal import CausalNetwork
from logitcache.models.language.gguf import load_gguf
from logitcache.models.language.packages import import_language_package, no_progress_bars
from logitcache.runtime.wording import counted

__all__ = ["DEMO_LANGUAGE_MODEL", "load_language_network", "location_of"]

DEMO_LANGUAGE_MODEL = "stories-mini"  # name of the model that ships with logitcache, wherever that is installed
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_SIZES = {  # options of `llama:` -> name in LlamaConfig, and function that parses a value
    "hidden": ("hidden_size", int),
    "layers": ("num_hidden_layers", int),
    "heads": ("num_attention_heads", int),
    "kv_heads": ("num_key_value_heads", int),
    "head_dim": ("head_dim", int),
    "intermediate": ("intermediate_size", int),
    "tied": ("tie_word_embeddings", lambda word: {"true": True, "false": False}[word]),
    "rope_theta": ("rope_theta", float),
    "eps": ("rms_norm_eps", float),
    "context": ("max_position_embeddings", int),
}
_NEEDED = ("hidden", "layers", "heads")
_LOG = logging.getLogger(__name__)


def load_language_network(spec: str | nn.Module, vocabulary: int, weights: str | None = None) -> Network:
    """Build a causal language model and load its weights.

    Args:
        spec: `hf:PATH`, a folder of transformers (or a name on its hub), with float32 weights; `hf:PATH?dtype=bfloat16` for another
            dtype; `hf:PATH?layers=0,5,10` for some of its layers; `hf:stories-mini`, the model that ships with this package;
            `hf:FILE.gguf`, with dequantized weights; `llama:hidden=48,layers=3,heads=4,...`, a Llama from scratch, which also takes
            kv_heads, head_dim, intermediate, tied, rope_theta, eps and context; `package.module:factory`, called with the vocabulary
            size; or a module.
        vocabulary: Vocabulary size.
        weights: Weights file (see `read_weights`) to load instead of the model's own weights.

    Returns:
        The network. Its module is a `CausalNetwork` if it is a model of transformers, and its `preprocessing` has `positions`, the
        maximum number of tokens, if that is known.

    Raises:
        UnknownNameError: If there is no such network.
        InputError: If the network cannot be built, or has fewer logits than the vocabulary has ids.
    """
    if isinstance(spec, nn.Module):
        module, name = spec, type(spec).__name__
    else:
        kind, _, rest = spec.partition(":")
        name = spec
        if not rest:
            known = ["hf:PATH", "hf:FILE.gguf", "llama:hidden=...,layers=...,heads=...", "package.module:factory"]
            raise unknown_name("language model", spec, known)
        if kind == "hf":
            module = _hugging_face(spec)
        elif kind == "llama":
            module = _llama(spec, rest, vocabulary)
        else:
            module = load_network(spec, vocabulary).module
    if not isinstance(module, CausalNetwork) and _is_of_transformers(module):
        module = CausalNetwork(module)
    if isinstance(module, CausalNetwork) and module.columns < vocabulary:
        raise InputError(
            f"{name} has logits for {counted(module.columns, 'id')}, but the data's vocabulary has {vocabulary}. Use a network "
            "that matches the data's tokenizer."
        )
    found = fill_network(module, name, vocabulary, weights)
    if weights and isinstance(module, CausalNetwork):
        module.pretrained = True
    positions = module.positions if isinstance(module, CausalNetwork) else None
    return replace(found, preprocessing={} if positions is None else {"positions": positions})


def location_of(spec: str) -> tuple[str, dict[str, str]]:
    """Split `hf:PATH?name=value&...` into path (or name on the hub) and options.

    Raises:
        InputError: If the path is empty or an option is unknown.
    """
    location, _, query = spec.removeprefix("hf:").partition("?")
    if not location:
        raise InputError(f"{spec} does not name a model; expected hf:PATH, a folder of transformers, or hf:FILE.gguf")
    if location == DEMO_LANGUAGE_MODEL:
        location = str(resources.files("logitcache.demo_text") / "teacher")
    options = dict(one.partition("=")[::2] for one in query.split("&")) if query else {}
    if unknown := [name for name in options if name not in ("dtype", "layers")]:
        raise InputError(
            f"unknown option {unknown[0]!r} of {spec}; expected layers or dtype, as in hf:PATH?layers=0,5&dtype=bfloat16"
        )
    return location, options


def _is_of_transformers(module: nn.Module) -> bool:
    return hasattr(module, "get_output_embeddings") and hasattr(module, "base_model") and hasattr(module, "config")


def _hugging_face(spec: str) -> CausalNetwork:
    location, options = location_of(spec)
    dtype = options.get("dtype", "float32")
    if dtype not in _DTYPES:
        raise unknown_name("dtype", dtype, _DTYPES)
    if location.endswith(".gguf"):
        model = load_gguf(Path(location).expanduser()).to(_DTYPES[dtype])
    else:
        model = _from_transformers(spec, location, _DTYPES[dtype])
    if "layers" in options:
        _keep_layers(model, spec, options["layers"])
    return CausalNetwork(model, pretrained=True)


def _from_transformers(spec: str, location: str, dtype: torch.dtype) -> Any:
    transformers = import_language_package("transformers", spec)
    folder = Path(location).expanduser()
    if folder.is_file() or (not folder.exists() and (location.startswith((".", "/", "~")) or location.count("/") > 1)):
        raise InputError(
            f"there is no folder {folder} with a language model of transformers (config.json, model.safetensors); check the path"
        )
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise InputError(f"{folder} is not a language model of transformers: it has no config.json")
    source = str(folder) if folder.is_dir() else location
    try:
        with without_waiting(), no_progress_bars():
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, trust_remote_code=False, output_loading_info=True, local_files_only=folder.is_dir()
            )
    except Exception as error:  # third-party files can make transformers raise anything
        remedy = "" if folder.is_dir() else " Download it on another machine and pass the folder."
        raise InputError(f"{spec} cannot be loaded: {first_line(error).rstrip('.')}.{remedy}") from error
    if missing := sorted(report["missing_keys"]):
        raise InputError(
            f"{spec} lacks {', '.join(missing[:3])}{' ...' * (len(missing) > 3)} of {type(model).__name__}. Copy its files again."
        )
    if extra := sorted(report["unexpected_keys"]):
        _LOG.warning("%s: %s ignores %s", spec, type(model).__name__, ", ".join(extra[:3]))
    return model.eval()


def _keep_layers(model: Any, spec: str, said: str) -> None:
    """Keep only the given layers of a model, in the given order, and renumber them."""
    base, config = model.base_model, model.config
    count = config.num_hidden_layers
    name = next((n for n, one in base.named_children() if isinstance(one, nn.ModuleList) and len(one) == count), None)
    if name is None:
        raise InputError(
            f"{spec}: the layers of {type(model).__name__} are not in a single list, so layers= is not supported"
        )
    try:
        chosen = [int(one) for one in said.split(",")]
    except ValueError:
        chosen = []
    if not chosen or len({*chosen}) < len(chosen) or not all(0 <= one < count for one in chosen):
        raise InputError(
            f"{spec}: layers must be distinct numbers from 0 to {count - 1}, separated by commas, not {said!r}"
        )
    layers = getattr(base, name)
    setattr(base, name, nn.ModuleList(layers[one] for one in chosen))
    for place, layer in enumerate(getattr(base, name)):
        for part in layer.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = place
    for key, value in list(vars(config).items()):
        if isinstance(value, list) and len(value) == count:  # one entry per layer, e.g. layer_types
            setattr(config, key, [value[one] for one in chosen])
    config.num_hidden_layers = len(chosen)


def _llama(spec: str, said: str, vocabulary: int) -> CausalNetwork:
    sizes = _read_sizes(spec, said)
    hidden, heads = sizes["hidden_size"], sizes["num_attention_heads"]
    sizes = {
        "num_key_value_heads": heads,
        "intermediate_size": _usual_width(hidden),
        "tie_word_embeddings": True,
    } | sizes
    if "head_dim" not in sizes and hidden % heads:
        raise InputError(f"{spec}: hidden must be a multiple of heads, not {hidden} with {heads}")
    if heads % sizes["num_key_value_heads"]:
        raise InputError(
            f"{spec}: heads must be a multiple of kv_heads, not {heads} with {sizes['num_key_value_heads']}"
        )
    if sizes.get("head_dim", hidden // heads) % 2:
        raise InputError(
            f"{spec}: the head dimension must be even for rotary positions, not {sizes.get('head_dim', hidden // heads)}"
        )
    transformers = import_language_package("transformers", spec)
    tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    with explain_foreign_errors(f"{spec} cannot be built"):
        config = transformers.LlamaConfig(vocab_size=vocabulary, **sizes, **tokens)
        return CausalNetwork(transformers.AutoModelForCausalLM.from_config(config).float())


def _usual_width(hidden: int) -> int:
    """Return Llama's usual width of feed-forward layers: 8/3 of the hidden size, rounded up to a multiple of 8."""
    return -(-8 * hidden // 24) * 8


def _read_sizes(spec: str, said: str) -> dict[str, Any]:
    given: dict[str, str] = dict(_pairs(said))
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name not in _SIZES:
            raise unknown_name(f"size of {spec.partition(':')[0]}:", name, _SIZES)
        setting, read = _SIZES[name]
        try:
            found[setting] = read(value)  # type: ignore[operator]
        except (ValueError, KeyError):
            raise InputError(f"{spec}: {name} cannot be {value!r}") from None
        if not isinstance(found[setting], bool) and found[setting] <= 0:
            raise InputError(f"{spec}: {name} must be positive, not {value}")
    if missing := _missing(given, _NEEDED):
        raise InputError(f"{spec} lacks {' and '.join(missing)}; expected e.g. llama:hidden=48,layers=3,heads=4")
    return found


def _pairs(said: str) -> Iterator[tuple[str, str]]:
    for one in said.split(","):
        name, _, value = one.partition("=")
        yield name.strip(), value.strip()


def _missing(given: Mapping[str, Any], needed: Sequence[str]) -> list[str]:
    return [name for name in needed if name not in given]
