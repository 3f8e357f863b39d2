"""Device selection, numbers of threads and workers, and error messages for out-of-memory conditions."""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from logitcache.errors import InputError, first_line

__all__ = [
    "compile_function",
    "cpu_threads",
    "decoding_workers",
    "explain_oom",
    "float32_precision",
    "float32_settings",
    "pick_device",
    "to_device",
]

_MOST_WORKERS = 8


def pick_device(name: str) -> torch.device:
    """Return a device by name; `auto` is a GPU if there is one, else the CPU. Under torchrun each process gets its own GPU.

    Raises:
        InputError: If there is no such device, or if it is not supported.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and torch.cuda.is_available():
        name = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"unknown device {name!r}; expected auto, cpu, cuda, cuda:1, ...") from error
    if device.type == "mps":
        raise InputError(
            "device 'mps' is not supported, because it has no float64, in which metrics are summed. Use --device cpu."
        )
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {name!r} cannot be used here: {first_line(error)}") from error
    return device


def decoding_workers() -> int:
    """Return the default number of worker processes for decoding: one per CPU available to this process, at most 8.

    Processes started by torchrun on one machine share its CPUs. torch's number of threads is no guide, because torchrun sets it to 1.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min(usable // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), _MOST_WORKERS), 1)


def float32_settings(device: torch.device) -> dict[str, Any]:
    """Return the settings that control rounding of float32 products to TF32 or bfloat16 on a GPU; empty on other devices."""
    if device.type != "cuda":
        return {}
    return {
        "matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_tf32": bool(torch.backends.cudnn.allow_tf32),
    }


@contextmanager
def float32_precision(matmul: str | None, cudnn_tf32: bool | None) -> Iterator[None]:
    """Use the given settings of `float32_settings` in this block; None keeps the current setting."""
    with ExitStack() as stack:
        if matmul is not None and matmul != (before := torch.get_float32_matmul_precision()):
            stack.callback(torch.set_float32_matmul_precision, before)
            torch.set_float32_matmul_precision(matmul)
        if cudnn_tf32 is not None and cudnn_tf32 != torch.backends.cudnn.allow_tf32:
            stack.callback(setattr, torch.backends.cudnn, "allow_tf32", not cudnn_tf32)
            torch.backends.cudnn.allow_tf32 = cudnn_tf32
        yield


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Use this number of CPU threads in this block."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device, asynchronously from page-locked memory if it is a GPU."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def compile_function(function: Callable[..., Any], label: str) -> Callable[..., Any]:
    """Wrap with `torch.compile`. Compilation happens on the first call, which raises InputError if it fails.

    Args:
        function: Network or function to compile.
        label: Subject of the error message, e.g. "the student".
    """
    for message in (
        "The .grad attribute of a Tensor that is not a leaf",
        "TensorFloat32 tensor cores",
    ):  # from torch itself
        warnings.filterwarnings("ignore", message=message)
    run = torch.compile(function)

    def called(*inputs: Any, **switches: Any) -> Any:
        try:
            return run(*inputs, **switches)
        except Exception as error:
            if not type(error).__module__.startswith("torch._"):
                raise
            raise InputError(f"{label} cannot be compiled here: {first_line(error)}. Leave out --compile.") from error

    return called


@contextmanager
def explain_oom(batch_size: int) -> Iterator[None]:
    """Raise InputError with a remedy if memory runs out in this block.

    Args:
        batch_size: Number of samples per batch, for the message.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise InputError(
            f"out of memory with batches of {batch_size:,}; lower --batch-size ({first_line(error).partition(' GPU ')[0]})"
        ) from error
