"""Test accuracy of each method on two small tasks, from `expected.json`, which benchmarks/expected.py writes.

The gap between two methods is the mean difference over seeds, and its error is the standard error of that mean. A gap below twice its
error is within the noise: other seeds may reverse it.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

__all__ = ["Expected", "Gap", "Task", "expected_of", "expected_tasks", "variants_of"]

_NOISE = 2  # standard errors below which a gap is noise
_BASES = ("ce", "kd")


@dataclass(frozen=True, slots=True)
class Task:
    """A task on which methods are measured.

    Attributes:
        name: Short name.
        title: Teacher, student and data in one line.
        about: Conditions, and commands to reproduce it.
    """

    name: str
    title: str
    about: str


@dataclass(frozen=True, slots=True)
class Gap:
    """Accuracy gap between two methods.

    Attributes:
        points: Difference of mean accuracies in percentage points.
        error: Standard error of the difference in percentage points; None if unknown.
    """

    points: float
    error: float | None

    @property
    def is_noise(self) -> bool:
        """Whether the gap is within the noise, so that other seeds may reverse it."""
        return self.error is None or abs(self.points) < _NOISE * self.error

    def __str__(self) -> str:
        error = "" if self.error is None else f" ± {self.error:.1f}"
        return f"{self.points:+.1f}{error}"


@dataclass(frozen=True, slots=True)
class Expected:
    """Measured accuracy of a method on a task.

    Attributes:
        task: The task.
        changes: Settings that differ from the method's defaults, e.g. `nu=0`; empty for the defaults.
        seeds: Number of seeds.
        accuracy: Mean test accuracy after the last epoch, in percent.
        deviation: Sample standard deviation over seeds, in percentage points; None for a single seed.
        over: Gaps to `ce` and to `kd`, without the method itself.
    """

    task: Task
    changes: str
    seeds: int
    accuracy: float
    deviation: float | None
    over: Mapping[str, Gap]

    @property
    def is_below_ce(self) -> bool:
        """Whether the method is less accurate than labels alone by more than the noise."""
        return "ce" in self.over and self.over["ce"].points < 0 and not self.over["ce"].is_noise

    def __str__(self) -> str:
        spread = "" if self.deviation is None else f" ± {self.deviation:.1f}"
        gaps = [f"{gap} over {base}{' (within noise)' * gap.is_noise}" for base, gap in self.over.items()]
        return ", ".join([f"{self.accuracy:.1f}{spread} %", *gaps])


@functools.cache
def _content() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files(__package__).joinpath("expected.json").read_text())
    return found


def expected_tasks() -> list[Task]:
    """Return the tasks on which methods are measured."""
    return [Task(name, task["title"], task["about"]) for name, task in _content().items()]


def expected_of(method: str) -> list[Expected]:
    """Return the results of a method with its default settings, one per task."""
    return [one for one in _measured(method) if not one.changes]


def variants_of(method: str) -> list[Expected]:
    """Return the results of a method with other settings, task by task."""
    return [one for one in _measured(method) if one.changes]


def _measured(method: str) -> list[Expected]:
    return [
        Expected(
            task,
            found["changes"],
            found["seeds"],
            found["accuracy"],
            found["deviation"],
            {base: Gap(*found["over"][base]) for base in _BASES if base in found["over"]},
        )
        for task in expected_tasks()
        for found in _content()[task.name]["runs"]
        if found["method"] == method
    ]
