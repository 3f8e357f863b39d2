"""Coordination of the processes of a job started by torchrun: leadership, exchange of values, and barriers."""

import json
import os
import time
from collections.abc import Callable
from itertools import count
from types import TracebackType
from typing import Any, Protocol, Self

from logitcache.errors import CacheIncompleteError

__all__ = [
    "Ranks",
    "join_ranks",
    "join_store",
    "lasting_store",
    "place_in_group",
    "started_by_torchrun",
    "this_one_leads",
    "under_torchrun",
]


class _Store(Protocol):
    """The part of torch.distributed's key-value store that is used here."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def add(self, key: str, amount: int) -> int: ...
    def check(self, keys: list[str]) -> bool: ...


class Ranks:
    """The processes of a job.

    Nothing times out, because one process may be hours ahead of another. The launcher ends all processes when one dies.

    Attributes:
        rank: Rank of this process, from 0.
        world: Number of processes.
    """

    def __init__(
        self,
        rank: int = 0,
        world: int = 1,
        store: _Store | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.rank, self.world, self._store, self._met, self._should_stop = rank, world, store, 0, should_stop
        self._totals: dict[str, int] = {}  # used if there is only one process

    @property
    def leads(self) -> bool:
        """Whether this is the leader, which does everything that is done only once."""
        return self.rank == 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._store is not None:  # the others may be waiting for this process
            self._store.set("failed", json.dumps([self.rank, str(error)]))

    def share(self, name: str, value: Any = None) -> Any:
        """Return the leader's value for this name; it must be JSON-serializable."""
        if self._store is None:
            return value
        if self.leads:
            self._store.set(name, json.dumps(value))
            return value
        while not self._store.check([name]):
            self._pause()
        return json.loads(self._store.get(name))

    def gather(self, name: str, value: Any) -> list[Any]:
        """Return the values of all processes for this name, in order of rank; they must be JSON-serializable."""
        if self._store is None:
            return [value]
        self._store.set(f"{name}-{self.rank}", json.dumps(value))
        found = []
        for rank in range(self.world):
            while not self._store.check([f"{name}-{rank}"]):
                self._pause()
            found.append(json.loads(self._store.get(f"{name}-{rank}")))
        return found

    def add(self, name: str, amount: int) -> int:
        """Add to a counter shared by all processes and return its new value."""
        if self._store is not None:
            return self._store.add(name, amount)
        self._totals[name] = self._totals.get(name, 0) + amount
        return self._totals[name]

    def wait(self) -> None:
        """Wait until every process has called this."""
        if self._store is None:
            return
        self._met += 1
        name = f"met-{self._met}"
        self._store.add(name, 1)
        while self._store.add(name, 0) < self.world:
            self._pause()

    def _pause(self) -> None:
        if self._store is not None and self._store.check(["failed"]):
            rank, message = json.loads(self._store.get("failed"))
            raise CacheIncompleteError(f"process {self.rank} stops because process {rank} has failed: {message}")
        if self._should_stop():
            raise CacheIncompleteError(
                f"process {self.rank} stopped on request while it waited for the others. Committed blocks are safe; run the same "
                "command again to resume."
            )
        time.sleep(0.05)


def under_torchrun() -> bool:
    """Return whether torchrun started this process, possibly as the only one."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def started_by_torchrun() -> bool:
    """Return whether torchrun started this process together with others.

    RANK and WORLD_SIZE alone are no evidence: other launchers set them for processes that do not all call this package.
    """
    return under_torchrun() and int(os.environ["WORLD_SIZE"]) > 1


def this_one_leads() -> bool:
    """Return whether this is rank 0, or a process not started by torchrun."""
    return not started_by_torchrun() or os.environ["RANK"] == "0"


def place_in_group() -> tuple[int, int]:
    """Return the rank of this process and the number of processes, from torch.distributed if it is initialized, else from torchrun."""
    import torch.distributed as group  # noqa: PLC0415

    if group.is_available() and group.is_initialized():
        return group.get_rank(), group.get_world_size()
    return (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if started_by_torchrun() else (0, 1)


_joined: tuple[Any, int, "count[int]"] | None = None


def join_store() -> tuple[Any, int]:
    """Return torchrun's key-value store and this process's rank. All processes must call this equally often.

    The store keeps its content when torchrun restarts, so each start, and each job within it, uses separate keys.
    """
    from torch.distributed.distributed_c10d import PrefixStore  # noqa: PLC0415
    from torch.distributed.rendezvous import rendezvous  # noqa: PLC0415

    global _joined  # noqa: PLW0603  (there is one rendezvous per process)
    if _joined is None:
        store, rank, _ = next(rendezvous("env://"))
        _joined = (store, rank, count())
    store, rank, jobs = _joined
    start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"logitcache-{start}-{next(jobs)}", store), rank


def lasting_store() -> Any:
    """Return the underlying store, which keeps its content across restarts, or None before `join_store`."""
    return None if _joined is None else _joined[0]


def join_ranks(should_stop: Callable[[], bool]) -> Ranks:
    """Return the processes started together by torchrun, or this one alone. All of them must call this."""
    if not started_by_torchrun():
        return Ranks(should_stop=should_stop)
    store, rank = join_store()
    return Ranks(rank, int(os.environ["WORLD_SIZE"]), store, should_stop)
