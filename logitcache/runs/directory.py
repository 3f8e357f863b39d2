"""The directory of a run: settings, results, and everything needed to resume it.

    run.json              settings (also usable as a --config file), cache, versions and, at the end, results
    metrics.jsonl         one object per epoch, full precision
    checkpoint.pt         state after the last completed epoch or where the run was stopped, used to resume or extend it
    student.safetensors   final weights, with metadata; student-ema.safetensors, their exponential moving average
    student-best.safetensors    weights of the best epoch; student-ema-best.safetensors, of the moving average
    student-hf/           weights of student.safetensors in the format of transformers, for language models; also student-best-hf/ etc.
    metrics.csv, tensorboard/   optional logs

Every file is written atomically, by one process at a time.
"""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from logitcache.errors import CacheMismatchError, InputError
from logitcache.runs.logs import open_logs
from logitcache.runtime.files import FileLock, append_line, remove_leftovers, write_bytes
from logitcache.runtime.wording import counted

__all__ = [
    "FollowedRun",
    "Lengthen",
    "RunDirectory",
    "check_run_target",
    "free_name",
    "is_held",
    "read_metrics",
    "read_run",
    "upgrade_settings",
]

_LOCK = ".lock"
_WITHOUT_MOMENTUM = ("adam", "adamax", "adamw", "nadam", "radam")
_EXTENDED = ("epochs", "decay_milestones")  # settings that may change when a run is extended

# (settings of the run, epochs of its schedule, epochs done) -> (kind of extension, epochs of the new schedule)
Lengthen = Callable[[Mapping[str, Any], int, int], tuple[str | None, int]]


def read_run(path: Path) -> dict[str, Any]:
    """Return the content of a run's `run.json`.

    Raises:
        InputError: If the directory is not a run, or its `run.json` is damaged.
    """
    try:
        content = json.loads((path / "run.json").read_text())
        if not isinstance(content["settings"], dict):
            raise TypeError("its settings are not an object")
    except FileNotFoundError as error:
        raise InputError(f"{path} is not a run; pass a folder written by `logitcache train --out`") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path / 'run.json'} is damaged ({error}). Restore it from a copy, or train again."
        ) from error
    _rename(content, "report_to", "log_to")  # as 0.1.0 wrote them
    _rename(content.get("cache") or {}, "bytes_per_row", "memory_bytes_per_row")
    return dict(content) | {"settings": upgrade_settings(content["settings"])}


def _rename(content: dict[str, Any], old: str, new: str) -> None:
    if old in content:
        content[new] = content.pop(old)


def upgrade_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return recorded settings as they would be recorded now: without a momentum that the optimizer ignores."""
    ignored = settings.get("opt") in _WITHOUT_MOMENTUM and "momentum" in settings
    return dict(settings) | ({"momentum": None} if ignored else {})


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the metrics of every epoch of a run, ignoring a last line cut short by a kill."""
    file, found = path / "metrics.jsonl", []
    for line in file.read_text().splitlines() if file.exists() else []:
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def is_held(path: Path) -> bool:
    """Return whether another process is writing a run."""
    if not (path / _LOCK).exists():
        return False
    try:
        FileLock(path, _LOCK).close()
    except InputError:
        return True
    return False


def _segment(epochs: int, schedule_epochs: int) -> dict[str, Any]:
    """Return the record of a segment of an extended run: its last epoch, and the number of epochs of its schedule."""
    return {"epochs": epochs, "schedule_epochs": schedule_epochs}


def free_name(folder: Path, stem: str) -> Path:
    """Return the first of folder/stem, folder/stem-2, folder/stem-3 ... that does not exist."""
    number = 1
    while (path := folder / (stem if number == 1 else f"{stem}-{number}")).exists():
        number += 1
    return path


def check_run_target(path: Path, *, resume: bool) -> None:
    """Check that a run can be started in a directory, or resumed if `resume`. Settings and data are not compared.

    Raises:
        InputError: If the run exists and `resume` is false, if it does not exist and `resume` is true, or if something else is there.
    """
    if (path / "run.json").exists():
        if not resume:
            raise InputError(
                f"{path} already holds a run; nothing in it was touched. Resume it with --resume, or choose another --out."
            )
    elif resume:
        raise InputError(f"{path} holds no run to resume. Leave out --resume to start one.")
    elif path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file. Choose another --out.")
    elif path.exists() and any(path.iterdir()):
        raise InputError(f"{path} exists, is not empty and holds no run. Choose another --out.")


class RunDirectory:
    """Directory of a run in progress."""

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        facts: Mapping[str, Any],
        *,
        resume: bool,
        logs: Sequence[str] | None = None,
        lengthen: Lengthen | None = None,
    ) -> None:
        """Start a run, or resume one.

        Args:
            path: Directory of the run.
            settings: Settings that affect the result.
            facts: Further facts to record (cache, versions).
            resume: Whether to resume a run with the same settings.
            logs: Names of additional logs for its metrics (`logs.LOGS`). Defaults to those of the run before.
            lengthen: Function that determines the schedule of a run that is resumed with more epochs.

        Raises:
            InputError: If the run exists and `resume` is false, if it does not exist and `resume` is true, or if another process is
                writing it.
            CacheMismatchError: If the run has other settings or another cache.
        """
        self.path, self._record = path, {"settings": dict(settings), **facts, "log_to": list(logs or ())}
        self._extension: dict[str, Any] | None = None
        check_run_target(path, resume=resume)
        if resume:
            there = read_run(path)
            self._refuse_other(there)
            self._extension = None if lengthen is None else self._extended(there, settings, lengthen)
        self._logs, self._told = open_logs(self._record["log_to"] if logs is None else logs, path, settings), False
        self._lock = FileLock(path, _LOCK)
        remove_leftovers(path)
        if self._extension is not None:
            self._record = self._extension
        if self._extension is not None or not (path / "run.json").exists():
            self._write_record()

    def close(self) -> None:
        """Close the logs and release the lock."""
        for log in self._logs if self._told else ():
            log.close()
        self._lock.close()

    def _refuse_other(self, there: dict[str, Any]) -> None:
        ours, theirs = self._record["settings"], there["settings"]
        names = sorted(
            (ours.keys() | theirs.keys()) - {"cache", "data", "test_data"}
        )  # paths; their content is checked separately
        if ours.get("epochs", 0) < theirs.get("epochs", 0):
            raise InputError(
                f"{self.path} has {counted(theirs['epochs'], 'epoch')}, which cannot be reduced to {ours['epochs']:,}. "
                "Pass more --epochs to extend it, leave them out to resume it, or choose another --out."
            )
        if ours.get("epochs", 0) > theirs.get("epochs", 0):
            names = [name for name in names if name not in _EXTENDED]
        different = [
            name
            for name in names
            if ours.get(name) != theirs.get(name)
            and (name in theirs or ours[name] is not False)  # a switch that an older run does not have was off
        ]
        if different:
            lines = "".join(
                f"\n  {name}: there {theirs.get(name)!r}, requested {ours.get(name)!r}" for name in different
            )
            raise CacheMismatchError(
                f"{self.path} is a run with other settings:{lines}\nRepeat its settings to resume it, or choose another --out."
            )
        for fact, word in (
            ("cache", "another cache"),
            ("data", "other data"),
            ("class_weights", "other class weights"),
        ):
            if there.get(fact) != self._record.get(fact):
                raise CacheMismatchError(
                    f"{self.path} was started with {word} (then {there.get(fact)}, now {self._record.get(fact)}). "
                    "Use the same to resume it, or choose another --out."
                )
        self._record = {"log_to": [], **there}

    def _extended(
        self, there: dict[str, Any], settings: Mapping[str, Any], lengthen: Lengthen
    ) -> dict[str, Any] | None:
        """Return the record of the run extended to more epochs, or None if the number is unchanged."""
        then = there["settings"]
        if settings["epochs"] == then["epochs"]:
            return None
        if "results" in there and not (self.path / "checkpoint.pt").exists():
            raise InputError(
                f"{self.path} cannot be extended without its checkpoint.pt, which was removed by a user or an older version. Start a new "
                f"run from its weights instead: --student-weights {self.path / 'student.safetensors'}"
            )
        segments = [dict(one) for one in there.get("segments") or [_segment(then["epochs"], then["epochs"])]]
        done = then["epochs"] if "results" in there else len(read_metrics(self.path))
        extend, length = lengthen(then, segments[-1]["schedule_epochs"], done)
        if "results" in there:
            segments[-1]["results"] = there["results"]
        segments.append(_segment(settings["epochs"], length) | ({"extend": extend} if extend else {}))
        kept = {name: value for name, value in self._record.items() if name != "results"}
        return kept | {"settings": then | {name: settings[name] for name in _EXTENDED}, "segments": segments}

    @property
    def schedule_epochs(self) -> int | None:
        """Number of epochs of the schedule, if it differs from that of the run."""
        segments = self._record.get("segments")
        return int(segments[-1]["schedule_epochs"]) if segments else None

    @property
    def results(self) -> dict[str, Any] | None:
        """Results of the run, or None if it has not finished."""
        results = self._record.get("results")
        return dict(results) if results else None

    def checkpoint(self) -> bytes | None:
        """Return the last saved state, or None."""
        file = self.path / "checkpoint.pt"
        return file.read_bytes() if file.exists() else None

    def keep_metrics(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Truncate the metrics to the epochs whose state was saved."""
        lines = "".join(json.dumps(metrics) + "\n" for metrics in history)
        write_bytes(self.path / "metrics.jsonl", lines.encode())
        self._told = True
        for log in self._logs:
            log.begin(history)

    def epoch_done(self, metrics: Mapping[str, Any], state: Callable[[], bytes] | None) -> None:
        """Record an epoch: its metrics, then the state to resume from, if given.

        Args:
            metrics: Metrics of the epoch.
            state: Function that serializes the state, called only in the process that writes the run. None keeps the last saved state.
        """
        append_line(self.path / "metrics.jsonl", metrics)
        if state is not None:
            self.save(state)
        for log in self._logs:
            log.epoch(metrics)

    def save(self, state: Callable[[], bytes]) -> None:
        """Save the state to resume from."""
        write_bytes(self.path / "checkpoint.pt", state())

    def note(self, facts: Mapping[str, Any]) -> None:
        """Record facts that become known after the start."""
        self._record |= facts
        self._write_record()

    def finish(self, results: Mapping[str, Any]) -> None:
        """Record the results."""
        self._record["results"] = dict(results)
        self._write_record()

    def _write_record(self) -> None:
        write_bytes(self.path / "run.json", (json.dumps(self._record, indent=2) + "\n").encode())


class FollowedRun(RunDirectory):
    """Directory of a run for a process that does not lead; another process writes it."""

    def __init__(self, path: Path, results: dict[str, Any] | None, schedule_epochs: int | None) -> None:
        """Take up what the leader found.

        Args:
            path: Where the leader writes.
            results: What came out, where the run is over.
            schedule_epochs: As `RunDirectory.schedule_epochs`.
        """
        self.path = path
        self._record = {
            "results": results,
            "segments": schedule_epochs and [{"schedule_epochs": schedule_epochs}],
        }

    def close(self) -> None:
        """Do nothing."""

    def keep_metrics(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Do nothing."""

    def epoch_done(self, metrics: Mapping[str, Any], state: Callable[[], bytes] | None) -> None:
        """Do nothing: no state is serialised here."""

    def save(self, state: Callable[[], bytes]) -> None:
        """Do nothing."""

    def note(self, facts: Mapping[str, Any]) -> None:
        """Do nothing."""

    def finish(self, results: Mapping[str, Any]) -> None:
        """Do nothing."""
