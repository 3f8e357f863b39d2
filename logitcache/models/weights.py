"""Read weights from safetensors or torch files (without unrestricted unpickling), and save them as safetensors with metadata."""

import argparse
import json
import logging
import pickle
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from importlib import resources
from pathlib import Path, PosixPath
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from logitcache.errors import InputError, first_line
from logitcache.runtime.files import write_bytes

__all__ = ["DEMO_TEACHER", "hash_weights", "read_notes", "read_weights", "save_weights"]

DEMO_TEACHER = "demo"  # name of the teacher that ships with logitcache, wherever that is installed
_NOTES = "logitcache"  # key of our metadata in a safetensors file
_USUAL_KEYS = ("state_dict", "model", "model_state_dict", "net")
_WRAPPERS = ("module.", "_orig_mod.")  # DataParallel, torch.compile
_COUNTERS = "num_batches_tracked"  # missing in old checkpoints
_SCALAR = np.float64(0).__reduce__()[0]  # function that unpickles numpy's scalars, under these names
_HARMLESS: list[Any] = [  # types that training scripts save with weights and that run no code when loaded
    *(argparse.Namespace, PosixPath, np.dtype, type(np.dtype("f8")), type(np.dtype("f4")), type(np.dtype("i8"))),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
_LOG = logging.getLogger(__name__)


def _path_and_key(file: str) -> tuple[Path, str]:
    """Split `FILE:KEY`, unless a file with the whole name exists."""
    if file == DEMO_TEACHER:
        return Path(str(resources.files("logitcache.demo_data") / "teacher.safetensors")), ""
    name, _, key = file.rpartition(":")
    whole = Path(file).expanduser()
    return (whole, "") if whole.is_file() or not name else (Path(name).expanduser(), key)


def read_weights(file: str, expected: Mapping[str, Any] | None = None) -> dict[str, Tensor]:
    """Read a state dict from a weights file.

    A checkpoint may hold the state dict under any key (`state_dict`, `model`, `net`, `model_ema`, ...), and its names may share any
    prefix (`module.`, `_orig_mod.`, `model.`, `student.`, or several). The choice is logged.

    Args:
        file: A `.safetensors` file, or a checkpoint written by torch.save. `FILE:KEY` selects one of several matching state dicts, e.g.
            `checkpoint.pth:state_dict_ema`, or `checkpoint.ckpt:state_dict.student` for a prefix.
        expected: State dict of the network to match. If None, only the prefixes written by torch itself are dropped.

    Raises:
        InputError: If the file is missing, holds no state dict, or several that match.
    """
    path, key = _path_and_key(file)
    if not path.is_file():
        raise InputError(f"there is no weights file {path}")
    found = list(_state_dicts(_content(path), ""))
    if not found:
        raise InputError(f"{path} holds no state dict: there are no named tensors at its top level or under any key")
    if expected is None:
        choices = [(where, "", _without_wrappers(weights)) for where, weights in found if not key or where == key]
        choices = choices[:1]
    else:
        choices = [
            (where, prefix, weights)
            for where, stored in found
            for prefix, weights in _fitting(stored, expected)
            if not key or key in (where, ".".join(filter(None, (where, prefix.rstrip(".")))))
        ]
        choices = [choice for choice in choices if _same_shapes(choice[2], expected)] or choices
    return _chosen(path, key, found, choices)


def _content(path: Path) -> Any:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is not a safetensors file: {error}") from error
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken or hostile pickle can make torch raise anything
        raise InputError(f"{path} {_why_unread(path, error)}") from error


def _state_dicts(content: Any, where: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the keys and state dicts in a checkpoint: weights first, then their moving averages."""
    if not isinstance(content, Mapping):
        return
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if any(value.ndim for value in tensors.values()):
        yield where, tensors
    names = [
        name
        for name in content
        if isinstance(name, str) and name not in ("optimizer", "optimizer_state_dict", "scaler")
    ]
    for name in sorted(names, key=lambda name: (name not in _USUAL_KEYS, "ema" in name)):
        yield from _state_dicts(content[name], f"{where}.{name}" if where else name)


def _without_wrappers(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the prefixes added by DataParallel and torch.compile."""
    found = dict(weights)
    while any(all(name.startswith(prefix) for name in found) for prefix in _WRAPPERS):
        found = {name.partition(".")[2]: value for name, value in found.items()}
    return found


def _fitting(stored: Mapping[str, Tensor], expected: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield each prefix under which a state dict has all expected names, with everything stored under it.

    Additional names are included, because a deeper network has all names of a shallower one.
    """
    needed = {name for name in expected if not name.endswith(_COUNTERS)}
    if needed <= stored.keys():
        yield "", dict(stored)
        return
    first = min(needed, default="")
    for prefix in (name.removesuffix(first) for name in stored if name.endswith(f".{first}")):
        below = {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
        if needed <= below.keys():
            yield prefix, below


def _same_shapes(weights: Mapping[str, Tensor], expected: Mapping[str, Any]) -> bool:
    """Return whether weights have only expected names, with the expected shapes."""
    return all(name in expected and value.shape == expected[name].shape for name, value in weights.items())


def _chosen(
    path: Path,
    key: str,
    found: Sequence[tuple[str, dict[str, Tensor]]],
    choices: Sequence[tuple[str, str, dict[str, Tensor]]],
) -> dict[str, Tensor]:
    keys = ", ".join(where or "the top" for where, _ in found)
    if key and not choices and key not in [where for where, _ in found]:
        raise InputError(f"{path} has no state dict {key!r}; expected one of {keys}")
    if not choices:  # weights of another network: the caller reports the differences
        return _without_wrappers(next((weights for where, weights in found if where == key), found[0][1]))
    where, prefix, weights = choices[0]
    if rivals := [other for place, other, _ in choices[1:] if place == where]:
        spelled = " or ".join(f"{path}:{'.'.join(filter(None, (where, one.rstrip('.'))))}" for one in (prefix, *rivals))
        raise InputError(f"{path} holds several sets of weights for this network; choose {spelled}")
    others = [f"{path}:{'.'.join(filter(None, (place, one.rstrip('.'))))}" for place, one, _ in choices[1:]]
    if where or prefix or others:
        below = f" below {where!r}" if where else ""
        without = f", names without {prefix!r}" if prefix else ""
        also = f" ({', '.join(others)} would match too)" if others else ""
        _LOG.info("%s: loaded weights%s%s%s", path, below, without, also)
    return weights


def _why_unread(path: Path, error: Exception) -> str:
    with path.open("rb") as file:
        head = file.read(2)
    if not head:
        return "is empty. Copy it again."
    if isinstance(error, pickle.UnpicklingError) and head in (b"PK", b"\x80\x02"):  # a torch file, new or old
        return (
            "holds Python objects besides tensors, which could run code and are therefore not loaded. If you trust it, load it yourself "
            "and save its state dict as safetensors."
        )
    return f"is not a weights file that torch can read ({first_line(error) or type(error).__name__}). Copy it again."


def read_notes(file: str) -> dict[str, Any]:
    """Return the metadata written by `save_weights`; empty for other files."""
    path, _ = _path_and_key(file)
    if path.suffix != ".safetensors" or not path.is_file():
        return {}
    try:
        with safe_open(path, "pt") as opened:
            notes = json.loads((opened.metadata() or {}).get(_NOTES, "{}"))
    except (SafetensorError, ValueError):
        return {}
    return notes if isinstance(notes, dict) else {}


def save_weights(weights: Mapping[str, Tensor], path: Path, notes: Mapping[str, Any]) -> None:
    """Write a state dict atomically as safetensors, with metadata: network, classes, preprocessing."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    write_bytes(path, save(tensors, {_NOTES: json.dumps(notes, sort_keys=True)}))


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, dtypes, shapes and bytes of all tensors, which does not depend on the file format."""
    hasher = sha256()
    for name, value in sorted(weights.items()):
        tensor = value.detach().cpu().contiguous()
        hasher.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hasher.hexdigest()
