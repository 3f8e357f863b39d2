"""How long operations report: a frozen record, handed to a callback, rendered by whoever called."""

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["OnProgress", "Progress", "silent"]


@dataclass(frozen=True, slots=True)
class Progress:
    """A moment of a long operation.

    Attributes:
        task: What is being done, in a few words; a new task starts a new line.
        done: Units done so far, of `total`.
        total: Units in all.
        unit: What is counted: "rows", "images", "files".
        note: What else is worth knowing now, already formatted ("accuracy 91.2 %").
    """

    task: str
    done: int
    total: int
    unit: str
    note: str = ""


OnProgress = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Report nothing: the default."""
