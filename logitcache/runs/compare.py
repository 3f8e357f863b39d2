"""`logitcache compare`: runs side by side, and over seeds. Without torch."""

import json
import math
import statistics
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from logitcache.errors import InputError
from logitcache.runs.directory import read_metrics, read_run

__all__ = ["GroupSummary", "RunSummary", "compare_runs", "curves", "group_runs", "read_published"]


_PIECES = (
    "preset",
    "refine",
    "standardize",
    "temperature",
    "tail",
    "ce_weight",
    "kd_weight",
    "kd_warmup",
    "pair_views",
)
# Settings that are the method's, or a run's alone; and paths, in whose place stands what they lead to.
_METHOD = {
    *(*_PIECES, "method", "parameters", "seed", "live_teacher"),
    *("cache", "data", "test_data", "augment"),
}


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One run.

    Attributes:
        run: Its directory.
        method, student, epochs, seed: What was asked for.
        changes: What was changed about the method: `preset same-t, beta=4`.
        settings: Everything else that decides the result, but the seed: runs that agree in it differ in method and seed alone. `cache` is
            the cache's fingerprint, also where only its views are used, `images` the digests of what was trained and tested on.
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
    settings: str
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
        return asdict(self) | {"settings": json.loads(self.settings)}


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """Runs that differ in their seed alone.

    Attributes:
        method, changes, student, epochs: What they have in common.
        differs: Other settings in which groups differ, as `lr=0.1`.
        seeds: How many runs are over.
        test_accuracy: Mean over seeds, after the last epoch.
        deviation: Sample standard deviation over seeds; None of one seed.
        over: For `ce` and `kd` of the same settings: difference of the means and its standard error; paired by seed where the
            seeds are the same, else of independent means; the error is None where there is one seed.
        seconds_per_epoch: Mean.
        repeats: Directories of runs that are left out, because another has their seed.
    """

    method: str
    changes: str
    differs: str
    student: str
    epochs: int
    seeds: int
    test_accuracy: float
    deviation: float | None
    over: dict[str, tuple[float, float | None]]
    seconds_per_epoch: float | None
    repeats: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return the same as a plain object."""
        return asdict(self)


def group_runs(runs: Sequence[RunSummary]) -> list[GroupSummary]:
    """Put runs together that differ in their seed alone, in the order of the first of each; those without a test are left out."""
    groups: dict[tuple[str, str, str, str], dict[int, RunSummary]] = {}
    repeats: dict[tuple[str, str, str, str], list[str]] = {}
    for run in runs:
        if run.finished and run.test_accuracy is not None:
            key = (run.settings, run.method, run.changes, run.logits)
            if groups.setdefault(key, {}).setdefault(run.seed, run) is not run:
                repeats.setdefault(key, []).append(run.run)
    common = [json.loads(settings) for settings in {key[0] for key in groups}]
    varying = sorted(word for word in set().union(*common) if len({json.dumps(one.get(word)) for one in common}) > 1)
    found = []
    for key, members in groups.items():
        settings, method, changes, logits = key
        over = {}
        for base in ("ce", "kd"):
            others = [of for (s, m, c, _), of in groups.items() if (s, m, c) == (settings, base, "") and m != method]
            if others:
                over[base] = _difference(members, others[0])
        first, values = next(iter(members.values())), _accuracies(members)
        seconds = [run.seconds_per_epoch for run in members.values() if run.seconds_per_epoch is not None]
        said = json.loads(settings)
        more = ["live teacher"] if logits == "live" else []
        found.append(
            GroupSummary(
                method,
                changes,
                ", ".join([*more, *(f"{word}={_spelled(said.get(word))}" for word in varying)]),
                first.student,
                first.epochs,
                len(members),
                statistics.fmean(values),
                statistics.stdev(values) if len(values) > 1 else None,
                over,
                statistics.fmean(seconds) if seconds else None,
                repeats.get(key, []),
            )
        )
    return found


def _accuracies(members: Mapping[int, RunSummary]) -> list[float]:
    return [run.test_accuracy for run in members.values() if run.test_accuracy is not None]


def _difference(ours: Mapping[int, RunSummary], theirs: Mapping[int, RunSummary]) -> tuple[float, float | None]:
    """Return the difference of two means and its standard error."""
    one, other = _accuracies(ours), _accuracies(theirs)
    gap = statistics.fmean(one) - statistics.fmean(other)
    if ours.keys() == theirs.keys() and len(ours) > 1:
        pairs = [(ours[seed].test_accuracy or 0) - (theirs[seed].test_accuracy or 0) for seed in ours]
        return gap, statistics.stdev(pairs) / math.sqrt(len(pairs))
    if len(one) > 1 and len(other) > 1:
        return gap, math.sqrt(statistics.variance(one) / len(one) + statistics.variance(other) / len(other))
    return gap, None


def curves(runs: Sequence[RunSummary]) -> dict[str, list[list[float]]]:
    """Return for each method (with its changes) the test accuracy after each epoch, one list a run."""
    found: dict[str, list[list[float]]] = {}
    for run in runs:
        values = [line["test_accuracy"] for line in read_metrics(Path(run.run)) if "test_accuracy" in line]
        if values:
            found.setdefault(f"{run.method} {run.changes}".strip(), []).append(values)
    return found


def read_published(recipe: str | Path) -> dict[str, float]:
    """Return the published test accuracies of a recipe, in percent, by method.

    Raises:
        InputError: The file is no recipe.
    """
    try:
        found = tomllib.loads(Path(recipe).read_text()).get("published", {})
        return {str(method): float(number) for method, number in found.items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{recipe} cannot be read as a recipe: {error}") from error


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
        settings=json.dumps(
            # None is not told apart from a setting that an older run does not have.
            {word: value for word, value in settings.items() if word not in _METHOD and value is not None}
            | _shown(run),
            sort_keys=True,
        ),
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


def _shown(run: Mapping[str, Any]) -> dict[str, Any]:
    """Say which images a run was shown, and how."""
    cache, images = run.get("cache"), run.get("data") or {}
    augment = {} if cache else {"augment": run["settings"].get("augment")}
    digests = "/".join(str(images[part])[:8] for part in ("train", "test") if images.get(part))
    return {"cache": cache["fingerprint"][:8] if cache else None, "images": digests, **augment}


def _changes(settings: dict[str, Any]) -> str:
    """Say what was changed about a method, in the words of `get_loss`."""
    words = {word: settings.get(word) for word in _PIECES}
    found = {word: value for word, value in words.items() if value is not None} | (settings["parameters"] or {})
    return ", ".join(f"{word}={_spelled(value)}" for word, value in found.items())


def _spelled(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_spelled, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _unfinished(path: Path) -> dict[str, Any]:
    """Return the metrics of the last epoch of a run that is not over."""
    last = ([{}, *read_metrics(path)])[-1]
    return {"test_accuracy": last.get("test_accuracy"), "seconds_per_epoch": last.get("seconds")}
