"""Weights: read from safetensors or torch files (never unpickled freely), written as safetensors with a note on what they belong to."""

import json
import pickle
from collections.abc import Mapping
from hashlib import sha256
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from logitcache.errors import InputError, first_line
from logitcache.runtime.files import write_bytes

__all__ = ["DEMO_TEACHER", "hash_weights", "read_notes", "read_weights", "save_weights"]

DEMO_TEACHER = "demo"  # the teacher that ships with logitcache, by a name that works wherever it is installed
_NOTES = "logitcache"  # key of our note in a safetensors file's metadata


def _path(file: str) -> Path:
    return (
        Path(str(resources.files("logitcache.demo_data") / "teacher.safetensors"))
        if file == DEMO_TEACHER
        else Path(file)
    )


def read_weights(file: str) -> dict[str, Tensor]:
    """Read a state dict.

    Args:
        file: A `.safetensors` file, or a checkpoint written by torch.save: a state dict, or a dict that holds one as
            `model`, `state_dict` or `model_state_dict`; a leading `module.` (DataParallel) is dropped.

    Raises:
        InputError: The file is missing or is no such thing.
    """
    path = _path(file)
    if not path.is_file():
        raise InputError(f"there is no weights file {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is not a safetensors file: {error}") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever a broken or hostile pickle makes it stumble over
        raise InputError(f"{path} {_why_unread(path, error)}") from error
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(
            f"{path} holds no state dict (looked at the top level and under model, state_dict, model_state_dict)"
        )
    return {name.removeprefix("module."): value for name, value in content.items()}


def _why_unread(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        head = file.read(2)
    if not head:
        return "is empty. Copy it again."
    if isinstance(error, pickle.UnpicklingError) and head in (b"PK", b"\x80\x02"):  # a torch file, new or old
        return (
            "holds Python objects besides tensors, which could run code and are not loaded. If you trust it, load it yourself and "
            "save its state dict as safetensors."
        )
    return f"is no file of weights that torch can read ({first_line(error) or type(error).__name__}). Copy it again."


def read_notes(file: str) -> dict[str, Any]:
    """Return what `save_weights` noted beside the weights; empty for other people's files."""
    path = _path(file)
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    try:
        with safe_open(path, "pt") as opened:
            notes = json.loads((opened.metadata() or {}).get(_NOTES, "{}"))
    except (SafetensorError, ValueError):
        return {}
    return notes if isinstance(notes, dict) else {}


def save_weights(weights: Mapping[str, Tensor], path: Path, notes: Mapping[str, Any]) -> None:
    """Write a state dict as safetensors, whole or not at all, with notes: network, classes, preprocessing."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    write_bytes(path, save(tensors, {_NOTES: json.dumps(notes, sort_keys=True)}))


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """Identify weights by their content: SHA-256 over name, type, shape and bytes of every tensor, whatever file they came in."""
    hasher = sha256()
    for name, value in sorted(weights.items()):
        tensor = value.detach().cpu().contiguous()
        hasher.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()
