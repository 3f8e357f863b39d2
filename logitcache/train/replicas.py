"""The processes of one training, as torchrun starts them: each has a replica of the student and takes its share of every batch."""

import copy
import functools
import os
from collections.abc import Callable, Iterator, Mapping
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

__all__ = ["Replicas", "answer_of", "join_replicas"]

T = TypeVar("T")
_PATIENCE = timedelta(days=1)  # one evaluates while others wait; torchrun ends all when one dies


@dataclass(frozen=True, slots=True)
class _Seen:
    """An object that a student returned, and its tensors, which `DistributedDataParallel` finds here and not in the object."""

    output: Any
    tensors: tuple[Tensor, ...]

    @classmethod
    def of(cls, output: Any) -> "_Seen":
        """Take an object with attributes; a head among them, a module, is used after the forward pass and gets views of its weights."""
        found, head = copy.copy(output), getattr(output, "head", None)
        views: dict[str, Tensor] = {}
        if isinstance(head, nn.Module):
            views = {name: one.view_as(one) for name, one in head.named_parameters()}
            found.head = functools.partial(torch.func.functional_call, head, views)
        tensors = [one for one in vars(output).values() if isinstance(one, Tensor)]
        return cls(found, (*tensors, *views.values()))


def answer_of(output: Any) -> Any:
    """Return what a student returned, from what its replicated form returns."""
    return output.output if isinstance(output, _Seen) else output


class _WithHead(nn.Module):
    """A student whose forward pass shows all that it computes and uses: also the head of a language model, which is applied after it."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = student

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return what the student does, with its tensors where they are found (`answer_of`)."""
        output = self.student(*inputs, **named)
        if isinstance(output, HiddenStates):
            return output.with_head_in_graph()
        found_anyway = isinstance(output, Tensor | Mapping | tuple | list) or is_dataclass(output)
        return output if found_anyway or not hasattr(output, "__dict__") else _Seen.of(output)


class Replicas:
    """The processes of one training; alone, there is one.

    Attributes:
        rank: Number of this process, from 0.
        world: How many there are.
    """

    def __init__(self, rank: int = 0, world: int = 1, memory: Any = None) -> None:
        self.rank, self.world, self._memory = rank, world, memory

    @property
    def leads(self) -> bool:
        """Whether this process writes the run."""
        return self.rank == 0

    def begin(self, run: Path) -> None:
        """Remember that this job has a run of its own in a directory, also after torchrun has started it again."""
        if self._memory is not None:
            self._memory.set(f"logitcache-run-{run.absolute()}", "begun")

    def began(self, run: Path) -> bool:
        """Say whether this very job has begun the run there before torchrun started it again."""
        return self._memory is not None and bool(self._memory.check([f"logitcache-run-{run.absolute()}"]))

    def share(self, samples: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
        """Return this process's part of a batch, and how many of its rows count.

        No part is a single row, which batch normalisation may refuse, unless the batch is. A small batch leaves some processes without:
        these take its first rows, which do not count, because all must take part in every step.
        """
        parts = np.array_split(samples, min(self.world, max(len(samples) // 2, 1)))
        return (parts[self.rank], len(parts[self.rank])) if self.rank < len(parts) else (samples[:2], 0)

    def replicate(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Return the student with gradients that are averaged over all processes."""
        if self.world == 1:
            return model
        # Looking for unused parameters keeps the order in which gradients are added the same from the first step on, so that a run
        # that was resumed adds as one that was not; and students may have such parameters.
        gpu = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(_WithHead(model), device_ids=gpu, find_unused_parameters=True)

    def summed(self, sums: Tensor) -> Tensor:
        """Add up what all processes have."""
        if self.world > 1:
            sums = sums.clone()
            distributed.all_reduce(sums)
        return sums

    def align(self, model: nn.Module) -> None:
        """Give every process the leader's buffers: each normalises its own share of a batch, and keeps running means of that."""
        for buffer in model.buffers() if self.world > 1 else ():
            distributed.broadcast(buffer, src=0)

    def wait(self) -> None:
        """Wait until every process is here: torchrun ends the others when one does."""
        if self.world > 1:
            distributed.barrier()

    def largest(self, *values: float) -> list[float]:
        """Return the largest of each of these values over all processes; all must ask."""
        found = torch.tensor(values, dtype=torch.float64)
        if self.world > 1:
            distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return found.tolist()

    def gathered(self, value: T) -> list[T]:
        """Return what each process has, in order of rank."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        distributed.all_gather_object(found, value)
        return found

    def from_leader(self, value: Callable[[], T]) -> T:
        """Return what the leader computes.

        Raises:
            LogitCacheError: As the leader's.
            StoppedError: In the others, where the leader fails.
        """
        if self.world == 1:
            return value()
        box: list[Any] = [None, True]  # what it is, and whether there is nothing
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
            raise StoppedError(f"process {self.rank} ends with process 0, which says why")
        found: T = box[0]
        return found

    def refuse_unlike(self, facts: dict[str, Any]) -> None:
        """Refuse processes that would train something else than the leader; all of them, so that none begins.

        Raises:
            CacheMismatchError: They differ.
        """
        first, *others = self.gathered(facts)
        for rank, other in enumerate(others, 1):
            if different := sorted(name for name in first if first[name] != other.get(name)):
                lines = "".join(f"\n  {name}: there {first[name]!r}, here {other.get(name)!r}" for name in different)
                raise CacheMismatchError(
                    f"process {rank} would train something else than process 0; they differ in:{lines}\nGive every process the same "
                    "options, cache, data and versions."
                )

    @contextmanager
    def explain_lost_process(self) -> Iterator[None]:
        """Turn the end of another process, which a collective operation meets, into a sentence.

        Raises:
            StoppedError: Another process is gone.
        """
        try:
            yield
        except RuntimeError as error:
            lost = isinstance(error, distributed.DistError) or "gloo" in str(error) or "NCCL" in str(error)
            if self.world == 1 or not lost:
                raise
            raise StoppedError(
                f"process {self.rank} lost the others, one of which has ended ({first_line(error)}). What was saved is whole: where the "
                "run has begun, start all again with --resume."
            ) from error


def join_replicas(device: torch.device) -> Replicas:
    """Return the processes that torchrun started this one with, or this one alone; every one of them must call this.

    Args:
        device: Where this one trains.
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
