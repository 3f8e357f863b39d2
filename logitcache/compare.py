"""`logitcache compare`: runs side by side. Without torch."""

import contextlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from logitcache.errors import InputError
from logitcache.rundir import read_run

__all__ = ["RunSummary", "compare_runs"]


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run.

    Attributes:
        run: Its directory.
        method, student, epochs, seed: What was asked for.
        changes: What was changed about the method: `preset same-t, beta=4`.
        logits: Where the teacher's logits came from: `cached`, `live`, or `unused`.
        finished: Whether the run is over.
        test_accuracy: After the last epoch; None where there were no test images.
        best_test_accuracy: The best of all epochs: an optimistic number, chosen on the test images.
        teacher_agreement: Share of cached training rows on which the final student, in evaluation mode, says the same
            class as the teacher.
        seconds_per_epoch: Training alone, without evaluation.
        bytes_per_sample: Of the teacher's logits, over all views; 0 where they are not read.
    """

    run: str
    method: str
    changes: str
    student: str
    epochs: int
    seed: int
    logits: str
    finished: bool
    test_accuracy: float | None
    best_test_accuracy: float | None
    teacher_agreement: float | None
    seconds_per_epoch: float | None
    bytes_per_sample: int

    def to_json(self) -> dict[str, Any]:
        """Return the same as a plain object."""
        return asdict(self)


def compare_runs(paths: Iterable[str | Path]) -> list[RunSummary]:
    """Summarise runs, in the order given.

    Args:
        paths: Directories of runs, or directories that hold runs.

    Raises:
        InputError: A path is neither.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        below = [path] if (path / "run.json").exists() else sorted(file.parent for file in path.glob("*/run.json"))
        if not below:
            raise InputError(f"{path} is no run and holds none; a run is a folder that `logitcache train` wrote")
        found += below
    return [_summary(path) for path in found]


def _summary(path: Path) -> RunSummary:
    run = read_run(path)
    settings, results, cache = run["settings"], run.get("results") or _unfinished(path), run.get("cache") or {}
    logits = cache.get("logits", "unused")
    return RunSummary(
        run=str(path),
        method=settings["method"],
        changes=_changes(settings),
        student=settings["student"],
        epochs=settings["epochs"],
        seed=settings["seed"],
        logits=logits,
        finished="results" in run,
        test_accuracy=results.get("test_accuracy"),
        best_test_accuracy=results.get("best_test_accuracy"),
        teacher_agreement=results.get("teacher_agreement"),
        seconds_per_epoch=results.get("seconds_per_epoch"),
        bytes_per_sample=cache["bytes_per_row"] * cache["views"] if logits == "cached" else 0,
    )


def _changes(settings: dict[str, Any]) -> str:
    """Say what was changed about a method, in the words of `get_loss`."""
    words = {word: settings.get(word) for word in ("preset", "refine", "standardize", "temperature")}
    found = {word: value for word, value in words.items() if value is not None} | (settings["parameters"] or {})
    return ", ".join(f"{word}={_spelled(value)}" for word, value in found.items())


def _spelled(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_spelled, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _unfinished(path: Path) -> dict[str, Any]:
    """Return the metrics of the last epoch of a run that is not over."""
    metrics = path / "metrics.jsonl"
    last: dict[str, Any] = {}
    for line in metrics.read_text().splitlines() if metrics.exists() else []:
        with contextlib.suppress(ValueError):  # a line whose writer was killed
            last = json.loads(line)
    return {"test_accuracy": last.get("test_accuracy"), "seconds_per_epoch": last.get("seconds")}
