"""Data-parallel training under torchrun: each process has a replica of the student and trains on its share of every batch."""

import copy
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from logitcache.errors import CacheMismatchError, LogitCacheError, StoppedError, first_line
from logitcache.models.language.head import HiddenStates
from logitcache.runtime.processes import join_store, lasting_store, under_torchrun

__all__ = ["Averaging", "Replicas", "answer_of", "join_replicas"]

T = TypeVar("T")
_PATIENCE = timedelta(days=1)  # processes may wait while one evaluates; torchrun stops all when one dies


@dataclass(frozen=True, slots=True)
class _Seen:
    """A student's output object, and its tensors in a form in which `DistributedDataParallel` finds them."""

    output: Any
    tensors: tuple[Tensor, ...]

    @classmethod
    def of(cls, output: Any) -> "_Seen":
        """Wrap an object with attributes. If `head` is a module, which runs after the forward pass, it gets views of its weights."""
        found, head = copy.copy(output), getattr(output, "head", None)
        views: dict[str, Tensor] = {}
        if isinstance(head, nn.Module):
            views = {name: one.view_as(one) for name, one in head.named_parameters()}
            found.head = functools.partial(torch.func.functional_call, head, views)
        tensors = [one for one in vars(output).values() if isinstance(one, Tensor)]
        return cls(found, (*tensors, *views.values()))


def answer_of(output: Any) -> Any:
    """Return the student's own output, given that of its replicated module."""
    return output.output if isinstance(output, _Seen) else output


class _WithHead(nn.Module):
    """Wraps a student so that DDP sees everything it computes and uses, including a head that runs after the forward pass."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return the student's output, wrapped so that its tensors are found (see `answer_of`)."""
        output = self.student(*inputs, **named)
        if isinstance(output, HiddenStates):
            return output.with_head_in_graph()
        found_anyway = isinstance(output, Tensor | Mapping | tuple | list) or is_dataclass(output)
        return output if found_anyway or not hasattr(output, "__dict__") else _Seen.of(output)


class Replicas:
    """The processes of one training, possibly only one.

    Attributes:
        rank: Rank of this process.
        world: Number of processes.
    """

    def __init__(self, rank: int = 0, world: int = 1, memory: Any = None) -> None:
        self.rank, self.world, self._memory = rank, world, memory

    @property
    def leads(self) -> bool:
        """Whether this process writes the run (rank 0)."""
        return self.rank == 0

    def begin(self, run: Path) -> None:
        """Record that this job started a run in a directory; the record survives a restart by torchrun."""
        if self._memory is not None:
            self._memory.set(f"logitcache-run-{run.absolute()}", "begun")

    def began(self, run: Path) -> bool:
        """Return whether this job started the run in a directory before torchrun restarted it."""
        return self._memory is not None and bool(self._memory.check([f"logitcache-run-{run.absolute()}"]))

    def share(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
        """Return this process's share of a batch, and the number of its samples to include in the loss.

        A share has at least two samples, which batch normalization may require, unless the batch has only one. For a small batch, some
        processes have no share; they use its first samples with weight 0, because all processes must join every step.
        """
        parts = np.array_split(samples, min(self.world, max(len(samples) // 2, 1)))
        return (parts[self.rank], len(parts[self.rank])) if self.rank < len(parts) else (samples[:2], 0)

    def replicate(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return the student wrapped in DistributedDataParallel, if there are several processes."""
        if self.world == 1:
            return model
        # With find_unused_parameters, the order in which gradients are added is the same from the first step on, so that a resumed run
        # gives the same result; and students may have unused parameters.
        gpu = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(_WithHead(model), device_ids=gpu, find_unused_parameters=True)

    def averaging(self, model: nn.Module) -> "Averaging | None":
        """Return collectives that do the work of DistributedDataParallel in steps on static tensors; None if there is one process."""
        return Averaging(model, self.world) if self.world > 1 else None

    def summed(self, sums: Tensor) -> Tensor:
        """Return the sum of a tensor over all processes."""
        if self.world > 1:
            sums = sums.clone()
            distributed.all_reduce(sums)
        return sums

    def align(self, model: nn.Module) -> None:
        """Broadcast the leader's buffers. They differ because each process tracks batch statistics of its own shares."""
        for buffer in model.buffers() if self.world > 1 else ():
            distributed.broadcast(buffer, src=0)

    def wait(self) -> None:
        """Wait for all processes, because torchrun stops the others when one exits."""
        if self.world > 1:
            distributed.barrier()

    def largest(self, *values: float) -> list[float]:
        """Return the maximum of each value over all processes. Every process must call this."""
        found = torch.tensor(values, dtype=torch.float64)
        if self.world > 1:
            distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return found.tolist()

    def gathered(self, value: T) -> list[T]:
        """Return the value of each process, in order of rank."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        distributed.all_gather_object(found, value)
        return found

    def from_leader(self, value: Callable[[], T]) -> T:
        """Return a value that the leader computes.

        Raises:
            LogitCacheError: In the leader, if the computation fails.
            StoppedError: In the other processes, if the leader fails.
        """
        if self.world == 1:
            return value()
        box: list[Any] = [None, True]  # value, and whether the leader failed
        failed: LogitCacheError | None = None
        if self.leads:
            try:
                box = [value(), False]
            except LogitCacheError as error:
                failed = error
        distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        if failed:
            raise failed
        if box[1]:
            raise StoppedError(f"process {self.rank} stopped because process 0 failed; see its error")
        found: T = box[0]
        return found

    def refuse_unlike(self, facts: dict[str, Any]) -> None:
        """Raise an error in all processes if any would train something else than the leader.

        Raises:
            CacheMismatchError: If they differ.
        """
        first, *others = self.gathered(facts)
        for rank, other in enumerate(others, 1):
            if different := sorted(name for name in first if first[name] != other.get(name)):
                lines = "".join(f"\n  {name}: there {first[name]!r}, here {other.get(name)!r}" for name in different)
                raise CacheMismatchError(
                    f"process {rank} would train something else than process 0; they differ in:{lines}\nUse the same options, cache, data "
                    "and versions in every process."
                )

    @contextmanager
    def explain_lost_process(self) -> Iterator[None]:
        """Convert the error that a collective operation raises when another process has ended.

        Raises:
            StoppedError: If another process has ended.
        """
        try:
            yield
        except RuntimeError as error:
            lost = isinstance(error, distributed.DistError) or "gloo" in str(error) or "NCCL" in str(error)
            if self.world == 1 or not lost:
                raise
            raise StoppedError(
                f"process {self.rank} lost its connection to the others because one has ended ({first_line(error)}). Saved state is "
                "intact; if the run has started, restart all processes with --resume."
            ) from error


class Averaging:
    """Averages gradients over all processes, like DistributedDataParallel, but with explicit collectives that a CUDA graph can hold."""

    def __init__(self, model: nn.Module, world: int) -> None:
        """Broadcast the weights and buffers of the leader.

        Args:
            model: Student, on its device.
            world: Number of processes.
        """
        self._parameters, self._buffers, self._world = list(model.parameters()), list(model.buffers()), world
        _broadcast([*self._parameters, *self._buffers])

    def broadcast_buffers(self) -> None:
        """Copy the leader's buffers, such as the statistics of batch normalization, to the other processes."""
        _broadcast(self._buffers)

    @torch.no_grad()
    def average_gradients(self) -> None:
        """Replace each gradient by its mean over all processes; every process must have the same gradients."""
        for gradients in _by_dtype([one.grad for one in self._parameters if one.grad is not None]):
            together = torch.cat([one.flatten() for one in gradients]).mul_(1 / self._world)
            distributed.all_reduce(together)
            _unpack(together, gradients)


@torch.no_grad()
def _broadcast(tensors: Sequence[Tensor]) -> None:
    """Copy the leader's tensors to the other processes, with one broadcast per dtype."""
    for alike in _by_dtype(tensors):
        together = torch.cat([one.detach().flatten() for one in alike])
        distributed.broadcast(together, src=0)
        _unpack(together, alike)


def _by_dtype(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Group tensors by dtype, in order."""
    found: dict[torch.dtype, list[Tensor]] = {}
    for one in tensors:
        found.setdefault(one.dtype, []).append(one)
    return list(found.values())


def _unpack(together: Tensor, tensors: Sequence[Tensor]) -> None:
    """Copy the parts of a flat tensor back to the tensors that it was made from."""
    parts = torch.split(together, [one.numel() for one in tensors])
    torch._foreach_copy_(list(tensors), [part.view(one.shape) for part, one in zip(parts, tensors, strict=True)])


def join_replicas(device: torch.device) -> Replicas:
    """Join the processes started by torchrun, if any. Every process must call this.

    Args:
        device: Device of this process.
    """
    if not under_torchrun():
        return Replicas()
    store, rank = join_store()
    world = int(os.environ["WORLD_SIZE"])
    if world > 1 and not distributed.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=_PATIENCE)
    return Replicas(rank, world, lasting_store())
