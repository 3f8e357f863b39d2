"""Worker processes of a torch DataLoader, with a one-sentence error when one dies.

torch reports a dead worker wherever the main thread happens to be: in a forward pass, an optimizer step or while writing a file. Here the
report is delayed until the next item is requested, so that no other code is interrupted or blamed. Exceptions in a worker's code are sent
as values, because exception objects may not survive pickling.
"""

import contextlib
import os
import pickle
import signal
import sys
import threading
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any, Protocol, Self

import torch
from torch.utils.data import DataLoader, Dataset

from logitcache.errors import InputError, LogitCacheError, first_line, reason_of
from logitcache.runtime.plugins import working_directory_importable

_C: Any = torch._C  # noqa: SLF001  (torch has no public API to control when a death is reported, or to kill workers)

__all__ = [
    "Failure",
    "Workers",
    "explain_lost_workers",
    "in_shared_memory",
    "is_lost_worker",
    "make_loader",
    "pack",
    "unpack",
]


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception in a worker, in a form that can always be pickled.

    Attributes:
        kind: Class of the error to raise.
        message: Message of the error.
        trace: Traceback in the worker, shown only when debugging.
    """

    kind: type[LogitCacheError]
    message: str
    trace: str

    @classmethod
    def of(cls, error: BaseException, attempt: str) -> Self:
        """Return the failure for any exception.

        Args:
            error: Exception in the worker.
            attempt: Beginning of the message for exceptions that are not ours, e.g. "samples 0 to 31 cannot be rendered".
        """
        trace = "".join(traceback.format_exception(error))
        if isinstance(error, LogitCacheError):
            return cls(
                type(error), error.args[0], trace
            )  # the raw message, whose settings are named in the main process
        return cls(InputError, f"{attempt}: {reason_of(error)}", trace)

    def error(self) -> LogitCacheError:
        """Return the exception to raise in the main process."""
        found = self.kind(self.message)
        found.add_note(f"in a worker process:\n{self.trace}")
        return found


class Workers:
    """The workers of one loader. They persist between passes, and end with this object or when one of them fails."""

    def __init__(self, make: Callable[[], DataLoader[Any]]) -> None:
        """Store the function that creates the loader (see `make_loader`)."""
        self._make = make
        self._loader: DataLoader[Any] | None = None
        self._end: Callable[[], object] | None = None

    def items(self) -> Iterator[Any]:
        """Yield the items of the workers in order. The first call starts the workers.

        Raises:
            LogitCacheError: If a worker raised an exception (see `Failure`).
            InputError: If a worker died, or if the workers cannot be started.
        """
        stream = self._started()
        while True:
            try:
                with _deaths_are_raised():
                    item = next(stream, None)
            except Exception as error:  # a connection to a process can break in many ways
                self.close()
                raise _lost(error) from error
            if item is None:
                return
            if isinstance(item, Failure):
                self.close()
                raise item.error()
            yield item

    def close(self) -> None:
        """Kill the workers; another pass starts new ones."""
        end, self._loader, self._end = self._end, None, None
        if end is not None:
            end()

    def _started(self) -> Iterator[Any]:
        began = self._loader is None
        try:
            if self._loader is None:
                self._loader = self._make()
            with _deaths_are_raised(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Got pickle error")  # reported below in one sentence
                stream = iter(self._loader)
        except Exception as error:
            self.close()
            if is_lost_worker(error):
                raise _lost(error) from error
            if isinstance(error, OSError | RuntimeError | MemoryError):
                raise InputError(
                    f"worker processes cannot be started ({reason_of(error)}). Use fewer --workers; --workers 0 decodes in this process."
                ) from error
            raise InputError(
                f"the data set cannot be sent to worker processes ({first_line(error) or type(error).__name__}). Define its class and "
                "functions at the top of a module, without lambdas, or use --workers 0."
            ) from error
        if began:
            _streams.add(stream)
            self._end = weakref.finalize(self, _end_processes, stream, os.getpid())
        return stream


def make_loader(source: Dataset[Any], **settings: Any) -> DataLoader[Any]:
    """Return a DataLoader with persistent workers, without torch's warning if there are more workers than CPUs.

    Args:
        source: Data set that the workers read.
        settings: Further arguments of the DataLoader.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        return DataLoader(source, worker_init_fn=begin_worker, persistent_workers=True, **settings)


class Shareable(Protocol):
    """A batch that can be moved to shared memory."""

    def share_memory(self) -> Any:
        """Return the batch in shared memory."""
        ...


def in_shared_memory(batch: Shareable) -> Any:
    """Move a batch to shared memory in the worker, where a failure can be reported.

    Otherwise the sending thread would print a traceback and send nothing, and the main process would wait forever.

    Raises:
        InputError: If there is not enough shared memory.
    """
    try:
        return batch.share_memory()
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"a worker process that decodes images has no shared memory left ({first_line(error)}). Enlarge it (in Docker: `--shm-size 8g`"
            "), or use fewer --workers or a smaller --batch-size; --workers 0 decodes in this process and needs none."
        ) from error


def begin_worker(_worker: int) -> None:
    """Prepare a worker: move it to its own process group, so that signals to the group do not reach it and only the parent ends it.

    Its threads do not print tracebacks, which they would do if the parent ends during a transfer.
    """
    os.setpgid(0, 0)
    sys.excepthook = lambda *_: None


_PATIENCE = 1.0  # seconds
_streams: "weakref.WeakSet[Any]" = weakref.WeakSet()  # torch's iterators, which own processes


def _disown() -> None:
    """In a forked process, detach the copied iterators from the parent's workers.

    Otherwise torch would stop those workers when a copy is collected, wait 5 s for each, and print a traceback.
    """
    for stream in list(_streams):
        stream._shutdown = True  # noqa: SLF001


os.register_at_fork(after_in_child=_disown)


def _end_processes(stream: Any, owner: int) -> None:
    """Kill the workers of an iterator. torch itself would wait up to 5 s for each one that is stuck.

    Its own shutdown must not follow: it takes a lock that a killed worker may have held, and would wait for it forever.
    """
    if os.getpid() != owner:
        return
    if stream._worker_pids_set:  # noqa: SLF001  (else torch would report what follows as a failure)
        _C._remove_worker_pids(id(stream))  # noqa: SLF001
        stream._worker_pids_set = False  # noqa: SLF001
    queues = [*stream._index_queues]  # noqa: SLF001
    if _end_pinning(stream):
        queues.append(stream._worker_result_queue)  # noqa: SLF001
    stream._shutdown = True  # noqa: SLF001
    for process in stream._workers:  # noqa: SLF001
        with contextlib.suppress(ValueError, OSError):
            process.kill()
    for process in stream._workers:  # noqa: SLF001
        process.join(_PATIENCE)
    for one in queues:
        one.cancel_join_thread()
        one.close()


def _end_pinning(stream: Any) -> bool:
    """End the pinning thread before the workers whose batches it fetches.

    Otherwise it would print a traceback, and torch would wait for it for up to 5 s. Garbage collection may call this in that very thread.

    Returns:
        Whether the thread has ended or does not exist.
    """
    thread = getattr(stream, "_pin_memory_thread", None)
    if thread is None:
        return True
    stream._pin_memory_thread_done_event.set()  # noqa: SLF001
    stream._worker_result_queue.put((None, None))  # noqa: SLF001
    if thread is not threading.current_thread():
        thread.join(_PATIENCE)
    return not thread.is_alive()


_report_deaths: Any = None  # torch's handler of SIGCHLD, once it has set it


@contextmanager
def _deaths_are_raised() -> Iterator[None]:
    """Raise deaths of workers, including earlier ones, only within this block, so that other code is not interrupted."""
    global _report_deaths  # noqa: PLW0603  (torch sets one handler for the whole process)
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        if _report_deaths is not None:
            signal.signal(signal.SIGCHLD, _report_deaths)
        _C._error_if_any_worker_fails()  # noqa: SLF001
        yield
        if _report_deaths is None:
            _report_deaths = signal.getsignal(signal.SIGCHLD)
    finally:
        signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)


def is_lost_worker(error: BaseException) -> bool:
    """Return whether an exception is, or was caused by, torch's report of a dead worker."""
    seen = set[int]()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        if isinstance(one, RuntimeError) and "DataLoader worker" in first_line(one):
            return True
        seen.add(id(one))
        one = one.__cause__ or one.__context__
    return False


@contextmanager
def explain_lost_workers() -> Iterator[None]:
    """Raise InputError if a worker of any DataLoader dies in this block; torch may report it in any frame of the main process."""
    try:
        yield
    except Exception as error:
        if is_lost_worker(error) and not str(error).startswith(_ENDED):
            raise _lost(error) from error
        raise


_ENDED = "a worker process that decodes images has ended"


def _lost(error: BaseException) -> InputError:
    """Return the error for a worker that died or lost its connection."""
    if "open files" in str(error) or "ancdata" in str(error):
        return InputError(
            f"worker processes cannot send what they decoded ({first_line(error)}): too many files are open. Raise the limit (ulimit "
            "-n 65536), or use fewer --workers; --workers 0 decodes in this process."
        )
    return InputError(
        f"{_ENDED} ({first_line(error) or 'no answer'}). It ran out of memory, or of shared memory (in Docker: `--shm-size`), or was "
        "killed. Use fewer --workers; --workers 0 decodes in this process."
    )


def pack(content: Any) -> bytes:
    """Serialize an object for a spawned process, to be restored by `unpack`."""
    return bytes(ForkingPickler.dumps(content))


def unpack(packed: bytes, attempt: str) -> Any:
    """Restore an object, or return a `Failure`, because an exception while a process starts would print a traceback.

    Args:
        packed: Result of `pack`.
        attempt: Beginning of the error message.
    """
    try:
        with working_directory_importable():
            return pickle.loads(packed)  # noqa: S301  (from the parent process)
    except BaseException as error:  # noqa: BLE001  (imported code may raise anything)
        return Failure.of(error, attempt)
