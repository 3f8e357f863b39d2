"""Progress of long operations: a frozen record passed to a callback, which the caller renders."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from logitcache.errors import InputError

__all__ = ["Callbacks", "OnProgress", "Progress", "combine_callbacks", "silent"]


@dataclass(frozen=True, slots=True)
class Progress:
    """A moment of a long operation.

    Attributes:
        task: Name of the operation, in a few words; a new task starts a new line.
        done: Number of units done so far, out of `total`.
        total: Total number of units.
        unit: Unit of `done` and `total`: "rows", "images", "files".
        note: Further information, already formatted ("accuracy 91.2 %").
    """

    task: str
    done: int
    total: int
    unit: str
    note: str = ""


OnProgress = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Ignore progress; the default callback."""


class Callbacks:
    """Hooks into a training or a dump. Override the methods you need; the others do nothing."""

    def on_step(self, progress: Progress) -> None:
        """Run after every training step, or after every batch of a dump."""

    def on_epoch(self, metrics: Mapping[str, Any]) -> None:
        """Run after every epoch with its metrics, as written to `metrics.jsonl`; only on rank 0."""

    def should_stop(self) -> bool:
        """Return whether to save and stop now; asked after every training step, or after every block of a dump."""
        return False


class _Combined(Callbacks):
    """An object and functions as one: each is called, and any of them can stop."""

    def __init__(
        self,
        callbacks: Callbacks,
        on_step: OnProgress | None,
        on_epoch: Callable[[Any], None] | None,
        should_stop: Callable[[], bool] | None,
    ) -> None:
        self._steps = [callbacks.on_step, *([on_step] if on_step else [])]
        self._epochs = [callbacks.on_epoch, *([on_epoch] if on_epoch else [])]
        self._stops = [callbacks.should_stop, *([should_stop] if should_stop else [])]

    def on_step(self, progress: Progress) -> None:
        for one in self._steps:
            one(progress)

    def on_epoch(self, metrics: Mapping[str, Any]) -> None:
        for one in self._epochs:
            one(metrics)

    def should_stop(self) -> bool:
        answers = [one() for one in self._stops]  # call all of them, whatever the others return
        return any(answers)


def combine_callbacks(
    callbacks: Callbacks | None = None,
    *,
    on_progress: OnProgress | None = None,
    on_epoch: Callable[[Any], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Callbacks:
    """Combine callbacks given as an object and as functions into one object.

    Args:
        callbacks: Callbacks as an object, or None.
        on_progress: Function to call with `Callbacks.on_step`.
        on_epoch: Function to call with `Callbacks.on_epoch`.
        should_stop: Function to call with `Callbacks.should_stop`.
    """
    given = Callbacks() if callbacks is None else callbacks
    if not isinstance(given, Callbacks):
        raise InputError(f"callbacks must be a logitcache.Callbacks object, not {given!r}")
    for name, one in (("on_progress", on_progress), ("on_epoch", on_epoch), ("should_stop", should_stop)):
        if one is not None and not callable(one):
            raise InputError(f"{name} must be a function, not {one!r}")
    if on_progress is None and on_epoch is None and should_stop is None:
        return given
    return _Combined(given, on_progress, on_epoch, should_stop)
