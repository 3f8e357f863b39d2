"""Devices: which one to use, how many threads and workers, and what to say when memory runs out."""

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
    """Return the device of this name; `auto` is a GPU, or else the CPU. Under torchrun each process gets its own GPU.

    Raises:
        InputError: There is no such device, or it cannot compute what is needed.
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
            "device 'mps' cannot be used: metrics are summed in float64, which it does not have. Use --device cpu."
        )
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {name!r} cannot be used here: {first_line(error)}") from error
    return device


def decoding_workers() -> int:
    """Return how many worker processes decode images by default: one a CPU that this process may use, at most 8.

    Processes that torchrun started on one machine share its CPUs. torch's number of threads says nothing: torchrun sets it to 1.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(min(usable // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), _MOST_WORKERS), 1)


def float32_settings(device: torch.device) -> dict[str, Any]:
    """Return what decides whether float32 products are rounded to TF32 or bfloat16 on a GPU; nothing elsewhere."""
    if device.type != "cuda":
        return {}
    return {
        "matmul_precision": torch.get_float32_matmul_precision(),
        "cudnn_tf32": bool(torch.backends.cudnn.allow_tf32),
    }


@contextmanager
def float32_precision(matmul: str | None, cudnn_tf32: bool | None) -> Iterator[None]:
    """Compute with these settings, as `float32_settings` returned them; None leaves the process's own."""
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
    """Compute with this many threads of the CPU."""
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
    """Copy a tensor to a device; a GPU copies from page-locked memory while the host goes on."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def compile_function(function: Callable[..., Any], label: str) -> Callable[..., Any]:
    """Wrap with `torch.compile`. Compilation happens on the first call, which raises InputError if it fails.

    Args:
        function: A network or a function.
        label: Subject of the error message, e.g. "the student".
    """
    for message in ("The .grad attribute of a Tensor that is not a leaf", "TensorFloat32 tensor cores"):  # torch's own
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
    """Raise InputError with a remedy when memory runs out.

    Args:
        batch_size: Samples of a batch.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise
        raise InputError(
            f"memory ran out with batches of {batch_size:,}: lower --batch-size ({first_line(error).partition(' GPU ')[0]})"
        ) from error
