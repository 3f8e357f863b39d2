"""`logitcache compare`: compare runs, individually and over seeds, without torch."""

import json
import math
import statistics
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from logitcache.errors import InputError
from logitcache.runs.directory import read_metrics, read_run
from logitcache.runs.metrics import ACCURACY, Metric, read_headline
from logitcache.runtime.wording import counted

__all__ = [
    "GroupSummary",
    "Published",
    "RunSummary",
    "compare_runs",
    "curves",
    "group_runs",
    "headlines",
    "read_published",
]


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
# Settings of the method or of a single run, and paths, which are replaced by a digest of their content.
_METHOD = {
    *(*_PIECES, "method", "parameters", "seed", "live_teacher"),
    *("cache", "data", "test_data", "augment"),
}


@dataclass(frozen=True, slots=True)
class RunSummary:
    """Summary of one run.

    Attributes:
        run: Directory of the run.
        method, student, epochs, seed: Settings of the run.
        extended: How the run was extended, e.g. "2 + 4, stretch"; empty if it was not.
        changes: Changes to the method's defaults, e.g. `preset=same-t, beta=4`.
        settings: All other settings that affect the result except the seed. Runs with equal `settings` differ only in method and seed.
            `cache` is the cache's fingerprint, even if only its views are used, and `images` the digests of training and test data.
        logits: Source of the teacher's logits: `cached`, `live`, or `unused`.
        finished: Whether the run has finished.
        test_accuracy: Test accuracy after the last epoch; None without test data.
        best_test_accuracy: Best test accuracy of all epochs, which is optimistic because it is selected on the test data.
        headline: Headline metric of the run.
        value: Headline metric after the last epoch, or None if nothing was tested.
        best: Best headline metric of all epochs, optimistic as above; None while the run is unfinished.
        test_top5_accuracy: Top-5 accuracy on the test data after the last epoch.
        epochs_done: Number of epochs done; the values of an unfinished run are those after this epoch.
        data: Name of the training data; None if it was an object, or if an older version did not record it.
        kl_to_teacher: Divergence from the teacher on held-out rows after the last epoch, in nats; None if none were held out.
        teacher_agreement: Fraction of cached training rows on which the final student, in evaluation mode, predicts the same class as
            the teacher.
        seconds_per_epoch: Training time per epoch, without evaluation.
        bytes_per_sample: Memory of a sample's decoded rows over all views (bytes of a row in memory times views); 0 if the run reads no
            logits.
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
    headline: Metric
    value: float | None
    best: float | None
    extended: str = ""
    test_top5_accuracy: float | None = None
    data: str | None = None
    kl_to_teacher: float | None = None
    epochs_done: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the summary as a plain object; `headline` holds the metric with its `value` and `best`."""
        found = asdict(self) | {"settings": json.loads(self.settings)}
        return found | {"headline": found["headline"] | {word: found.pop(word) for word in ("value", "best")}}


@dataclass(frozen=True, slots=True)
class GroupSummary:
    """Summary of runs that differ only in their seed.

    Attributes:
        method, changes, student, epochs: Settings that they share.
        differs: Other settings in which groups differ, e.g. `lr=0.1`.
        seeds: Number of finished runs.
        test_accuracy: Mean test accuracy over seeds after the last epoch; None if the headline is another metric.
        deviation: Sample standard deviation of the headline over seeds; None for a single seed.
        over: Gain in the mean headline over `ce` and `kd` with the same settings (positive is better, also for metrics where lower is
            better), and its standard error. Paired by seed if the seeds are the same, otherwise of independent means; the error is None
            for a single seed.
        seconds_per_epoch: Mean training time per epoch.
        repeats: Directories of runs that are ignored because another run has the same seed.
        headline: Headline metric of the runs.
        mean: Mean headline over seeds after the last epoch.
        test_top5_accuracy: Mean top-5 accuracy over seeds; None if a run has none.
    """

    method: str
    changes: str
    differs: str
    student: str
    epochs: int
    seeds: int
    test_accuracy: float | None
    deviation: float | None
    over: dict[str, tuple[float, float | None]]
    seconds_per_epoch: float | None
    repeats: list[str]
    headline: Metric
    mean: float
    test_top5_accuracy: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the summary as a plain object; `headline` holds the metric with its `mean`."""
        found = asdict(self)
        return found | {"headline": found["headline"] | {"mean": found.pop("mean")}}


def headlines(runs: Iterable[RunSummary | GroupSummary]) -> list[Metric]:
    """Return the distinct headline metrics of runs or groups, in order of first appearance."""
    return list(dict.fromkeys(run.headline for run in runs))


def group_runs(runs: Sequence[RunSummary]) -> list[GroupSummary]:
    """Group runs that differ only in their seed, in order of first appearance.

    Runs without test results are ignored. Runs with different headline metrics are never grouped or compared.
    """
    groups: dict[tuple[str, str, str, str, Metric], dict[int, RunSummary]] = {}
    repeats: dict[tuple[str, str, str, str, Metric], list[str]] = {}
    for run in runs:
        if run.finished and run.value is not None:
            key = (run.settings, run.method, run.changes, run.logits, run.headline)
            if groups.setdefault(key, {}).setdefault(run.seed, run) is not run:
                repeats.setdefault(key, []).append(run.run)
    common = [json.loads(settings) for settings in {key[0] for key in groups}]
    varying = sorted(word for word in set().union(*common) if len({json.dumps(one.get(word)) for one in common}) > 1)
    found = []
    for key, members in groups.items():
        settings, method, changes, logits, headline = key
        over = {}
        for base in ("ce", "kd"):
            asked = (settings, base, "", headline)
            others = [of for (s, m, c, _, h), of in groups.items() if (s, m, c, h) == asked and m != method]
            if others:
                over[base] = _gain(headline, members, others[0])
        first, values = next(iter(members.values())), _values(members)
        mean = statistics.fmean(values)
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
                mean if headline == ACCURACY else None,
                statistics.stdev(values) if len(values) > 1 else None,
                over,
                statistics.fmean(seconds) if seconds else None,
                repeats.get(key, []),
                headline,
                mean,
                _mean_top5(members),
            )
        )
    return found


def _mean_top5(members: Mapping[int, RunSummary]) -> float | None:
    found = [run.test_top5_accuracy for run in members.values()]
    return None if None in found else statistics.fmean(value for value in found if value is not None)


def _values(members: Mapping[int, RunSummary]) -> list[float]:
    return [run.value for run in members.values() if run.value is not None]


def _gain(
    headline: Metric, ours: Mapping[int, RunSummary], theirs: Mapping[int, RunSummary]
) -> tuple[float, float | None]:
    """Return the gain of one mean over the other, and its standard error."""
    one, other = _values(ours), _values(theirs)
    gap = headline.gain(statistics.fmean(one), statistics.fmean(other))
    if ours.keys() == theirs.keys() and len(ours) > 1:
        pairs = [(ours[seed].value or 0) - (theirs[seed].value or 0) for seed in ours]
        return gap, statistics.stdev(pairs) / math.sqrt(len(pairs))
    if len(one) > 1 and len(other) > 1:
        return gap, math.sqrt(statistics.variance(one) / len(one) + statistics.variance(other) / len(other))
    return gap, None


def curves(runs: Sequence[RunSummary]) -> dict[str, list[list[float]]]:
    """Return the headline after each epoch by method (with its changes), one list per run.

    Raises:
        InputError: If the runs have different headline metrics.
    """
    found: dict[str, list[list[float]]] = {}
    drawn: list[RunSummary] = []
    for run in runs:
        name = run.headline.name
        values = [line[name] for line in read_metrics(Path(run.run)) if name in line]
        if values:
            drawn.append(run)
            found.setdefault(f"{run.method} {run.changes}".strip(), []).append(values)
    if len(different := headlines(drawn)) > 1:
        raise InputError(
            f"the runs have different headline metrics ({', '.join(one.heading for one in different)}) and cannot share an axis; plot "
            "them one metric at a time"
        )
    return found


@dataclass(frozen=True, slots=True)
class Published:
    """Published numbers of a recipe.

    Attributes:
        accuracies: Best test accuracy of all epochs in percent, by method.
        epochs: Number of epochs; None if the recipe does not specify it.
        student: Name of the student; None if the recipe does not specify it.
        data: Name of the data; None if the recipe does not specify it.
    """

    accuracies: Mapping[str, float]
    epochs: int | None = None
    student: str | None = None
    data: str | None = None

    def differences(self, runs: Sequence[RunSummary]) -> list[str]:
        """Return the differences between the published conditions and those of these runs, e.g. "240 epochs, here 2"."""
        ours: dict[str, list[Any]] = {
            "epochs": [run.epochs for run in runs],
            "student": [run.student for run in runs],
            "data": [run.data.partition(":")[0] for run in runs if run.data],
        }
        found = []
        for word, values in ours.items():
            theirs, here = getattr(self, word), list(dict.fromkeys(values))
            if theirs is not None and any(value != theirs for value in here):
                said = counted(theirs, "epoch") if word == "epochs" else f"{word} {theirs}"
                found.append(f"{said}, here {' and '.join(map(str, here))}")
        return found


def read_published(recipe: str | Path) -> Published:
    """Return the published numbers of a recipe.

    Raises:
        InputError: If the file is not a recipe.
    """
    try:
        content = tomllib.loads(Path(recipe).expanduser().read_text())
        found = dict(content.get("published", {}))
        data, epochs, student = found.pop("data", None), content.get("epochs"), content.get("student")
        accuracies = {str(method): float(number) for method, number in found.items()}
        return Published(accuracies, None if epochs is None else int(epochs), student, data)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{recipe} cannot be read as a recipe: {error}") from error


def compare_runs(paths: str | Path | Iterable[str | Path]) -> list[RunSummary]:
    """Summarize runs, in the given order.

    Args:
        paths: Directory of a run, directory that contains runs, or several of these.

    Raises:
        InputError: If a path is neither.
    """
    found: list[Path] = []
    several = [paths] if isinstance(paths, str | Path) or not isinstance(paths, Iterable) else list(paths)
    for one in several:
        if not isinstance(one, str | Path):
            raise InputError(f"a run must be the path of its folder, not {one!r}")
        path = Path(one).expanduser()
        below = [path] if (path / "run.json").exists() else sorted(file.parent for file in path.glob("*/run.json"))
        if not below:
            raise InputError(f"{path} neither is nor contains a run; pass a folder written by `logitcache train`")
        found += below
    return [_summary(path) for path in found]


def _summary(path: Path) -> RunSummary:
    run = read_run(path)
    settings, cache, history = run["settings"], run.get("cache") or {}, read_metrics(path)
    last = history[-1] if history else {}
    headline = read_headline(run, last)
    results = run.get("results") or {
        name: last.get(key)
        for name, key in (
            (headline.name, headline.name),
            ("test_accuracy",) * 2,
            ("test_top5_accuracy",) * 2,
            ("seconds_per_epoch", "seconds"),
        )
    }
    best = results.get(f"best_{headline.name}")
    if best is None and "results" in run:
        values = [line[headline.name] for line in history if headline.name in line]
        best = headline.best(values) if values and headline != ACCURACY else None
    logits = cache.get("logits", "unused")
    return RunSummary(
        run=str(path),
        method=settings["method"],
        changes=_changes(settings, run.get("usual") or {}),
        settings=json.dumps(
            # None and False are treated like a setting that an older run does not have.
            {w: value for w, value in settings.items() if w not in _METHOD and value is not None and value is not False}
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
        bytes_per_sample=cache["memory_bytes_per_row"] * cache["views"] if logits == "cached" else 0,
        headline=headline,
        value=results.get(headline.name),
        best=best,
        extended=_extended(run),
        test_top5_accuracy=results.get("test_top5_accuracy"),
        data=(run.get("trained_on") or {}).get("data"),
        kl_to_teacher=results.get("kl_to_teacher"),
        epochs_done=len(history),
    )


def _extended(run: Mapping[str, Any]) -> str:
    """Describe how a run was extended: the epochs of each segment, and how its schedule continues."""
    segments = run.get("segments") or []
    lengths = [str(part["epochs"] - before) for part, before in zip(segments, _ends(segments), strict=True)]
    return ", ".join([" + ".join(lengths), *(part["extend"] for part in segments if "extend" in part)])


def _ends(segments: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the number of epochs before each segment of a run."""
    return [0, *(part["epochs"] for part in segments[:-1])] if segments else []


def _shown(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that identify a run's inputs: cache, data digests, augmentation, extension and class weights."""
    cache, images = run.get("cache"), run.get("data") or {}
    augment = {} if cache else {"augment": run["settings"].get("augment")}
    extended = {"extended": _extended(run)} if any("extend" in part for part in run.get("segments") or []) else {}
    digests = "/".join(str(images[part])[:8] for part in ("train", "test") if images.get(part))
    return {
        "cache": cache["fingerprint"][:8] if cache else None,
        "images": digests,
        **augment,
        **extended,
        **_weighted(run),
    }


def _weighted(run: Mapping[str, Any]) -> dict[str, Any]:
    """Identify the class weights of a run by name and digest, because their file may have changed between runs."""
    if not (weights := run.get("class_weights")):
        return {}
    named = run["settings"].get("class_weights")
    digest = blake2b(json.dumps(weights).encode(), digest_size=4).hexdigest()
    return {"class_weights": f"{named if isinstance(named, str) else 'given'} {digest}"}


def _changes(settings: dict[str, Any], usual: Mapping[str, Any]) -> str:
    """Describe the changes to a method's defaults for this data, as keyword arguments of `get_loss`."""
    words = {word: settings.get(word) for word in _PIECES if settings.get(word) != usual.get(word)}
    found = {word: value for word, value in words.items() if value is not None} | (settings["parameters"] or {})
    return ", ".join(f"{word}={_spelled(value)}" for word, value in found.items())


def _spelled(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_spelled, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
