"""Deterministic algorithms, so that the same inputs give the same bits in every run on a GPU too.

Otherwise cuDNN and some torch kernels sum in an order that changes from run to run.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from logitcache.errors import InputError

__all__ = ["deterministic_algorithms"]

_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_NO_IMPLEMENTATION = "does not have a deterministic implementation"  # as torch words it


@contextmanager
def deterministic_algorithms(label: str, *, enabled: bool = True) -> Iterator[None]:
    """Use torch's deterministic algorithms without cuDNN benchmarking in this block, and restore both settings afterwards.

    Sets the environment variable CUBLAS_WORKSPACE_CONFIG, which cuBLAS needs for this, to `:4096:8` if it is unset. torch reads it at the
    first matrix product on a GPU, so set it yourself if the process computes one earlier.

    Args:
        label: Subject of the error message, e.g. "the student".
        enabled: If False, do nothing.

    Raises:
        InputError: If an operation has no deterministic implementation, or if CUBLAS_WORKSPACE_CONFIG was set too late.
    """
    if not enabled:
        yield
        return
    os.environ.setdefault(_CUBLAS, ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except (RuntimeError, InputError) as error:
        text = str(error)
        if _NO_IMPLEMENTATION in text:
            operation = text.partition(_NO_IMPLEMENTATION)[0].split()[-1]
            raise InputError(
                f"{label} uses {operation}, which has no deterministic implementation on this device; leave out --deterministic"
            ) from error
        if _CUBLAS in text:
            raise InputError(
                f"{label} cannot be computed deterministically, because {_CUBLAS} is {os.environ[_CUBLAS]!r} or was set after the first "
                f"matrix product on the GPU; start Python with {_CUBLAS}=:4096:8"
            ) from error
        raise
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark
