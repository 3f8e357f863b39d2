"""`logitcache sweep`: train every method with every setting and seed on one cache, one process per run, skipping finished runs."""

import contextlib
import ctypes
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitcache.errors import InputError, StoppedError
from logitcache.runs.directory import is_held, read_run
from logitcache.runtime.files import local_path, write_bytes
from logitcache.runtime.wording import counted
from logitcache.store import open_cache

__all__ = ["Planned", "SweepResult", "plan_sweep", "read_reason", "run_sweep"]

_PAUSE = 0.1
_LENGTH = ("--epochs", "--extend", "--decay-milestones")
_PANEL = re.compile(r"[╭┌+][─-]+ Error ")


@dataclass(frozen=True, slots=True)
class Planned:
    """One run of a sweep.

    Attributes:
        out: Directory of the run, next to `OUT.json`, its arguments, and `OUT.log`, its output.
        words: Arguments of `logitcache train`, without the directory.
        cache: Fingerprint of the cache, or None without a cache.
    """

    out: Path
    words: tuple[str, ...]
    cache: str | None

    @property
    def begun(self) -> bool:
        """Whether the run has been started."""
        return (self.out / "run.json").exists()

    @property
    def finished(self) -> bool:
        """Whether the run has finished with the requested number of epochs."""
        if not self.begun:
            return False
        run, asked = read_run(self.out), _epochs_in(self.words)
        return "results" in run and (asked is None or run["settings"].get("epochs", 0) >= asked)

    def begin(self) -> None:
        """Record the arguments of the run, or its new number of epochs.

        Raises:
            InputError: If it was started with other arguments, or has more epochs than requested.
        """
        file = self.out.with_name(f"{self.out.name}.json")
        now: dict[str, Any] = {"words": list(self.words), "cache": self.cache}
        if self.begun:
            then = json.loads(file.read_text()) if file.exists() else None
            lines = [f"{shlex.join(one['words'])} (cache {one['cache']})" if one else "by hand" for one in (then, now)]
            asked = _epochs_in(self.words)
            if asked is not None and then and asked < (has := read_run(self.out)["settings"].get("epochs", 0)):
                raise InputError(
                    f"{self.out} was extended to {counted(has, 'epoch')}, but the sweep requests {asked:,}. Request as many, or choose "
                    "another --out."
                )
            if then and then != now and _goes_on(then, now):
                write_bytes(file, (json.dumps(now) + "\n").encode())
            elif then != now:
                raise InputError(
                    f"{self.out} was trained with other arguments:\n  then {lines[0]}\n  now  {lines[1]}\nChoose another --out, or remove "
                    "that run."
                )
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(file, (json.dumps(now) + "\n").encode())


@dataclass(frozen=True, slots=True)
class SweepResult:
    """Result of a sweep.

    Attributes:
        runs: Directories of finished runs, in the planned order.
        failed: Reason of each failed run, in one line; its `.log` has the full output.
    """

    runs: list[Path]
    failed: dict[Path, str]


def plan_sweep(
    cache: str | None,
    out: str | Path,
    *,
    methods: Sequence[str],
    seeds: Sequence[int],
    vary: Mapping[str, Sequence[str]] | None = None,
    options: Sequence[str] = (),
) -> list[Planned]:
    """Return the runs of a sweep: every method with every combination of settings and every seed.

    Args:
        cache: Path of the cache, or None to train on labels alone with the data given in `options`.
        out: Directory of the runs.
        methods: Names of the methods.
        seeds: Seeds of student initialization and sampling order.
        vary: Values to try for options of `train`, e.g. `{"lr": ["0.05", "0.1"]}`; a method's parameter is `set.beta`.
        options: Further arguments of every `train`. The student must be given here, in `vary` or in a `--config` file.

    Raises:
        InputError: If there is nothing to run or no student, or if a run or an option is given twice.
    """
    vary, folder = dict(vary or {}), local_path(out)
    if not methods or not seeds or not all(vary.values()):
        raise InputError("a sweep needs at least one method, one seed, and one value for each option that it varies")
    ours = {"--method", "--seed", "--out", "--resume", *(_flag(name) for name in vary if not name.startswith("set."))}
    if twice := [word for word in options if word.partition("=")[0] in ours]:
        raise InputError(f"`{twice[0].partition('=')[0]}` is set by the sweep; remove it from the options of train")
    named = {word.partition("=")[0] for word in options} | {_flag(name) for name in vary}
    if not named & {"--student", "--config"}:
        raise InputError(
            "a sweep needs a student; add it after `--`, as in `logitcache sweep CACHE -- --student resnet8`"
        )
    planned, fingerprint = [], None if cache is None else open_cache(cache).fingerprint
    for method, values in itertools.product(methods, itertools.product(*vary.values())):
        chosen = dict(zip(vary, values, strict=True))
        name = "-".join([method.replace(":", "."), *(f"{word}={value}" for word, value in chosen.items())]).replace(
            "/", "_"
        )
        words = [] if cache is None else [cache]
        words += ["--method", method, *options]
        for word, value in chosen.items():
            words += ["--set", f"{word[4:]}={value}"] if word.startswith("set.") else [_flag(word), value]
        for seed in seeds:
            where = folder / f"{name}-seed{seed}"
            planned.append(Planned(where, (*words, "--seed", str(seed)), fingerprint))
    if len({run.out for run in planned}) < len(planned):
        raise InputError("the sweep contains the same run twice; methods, seeds and values must be distinct")
    return planned


def run_sweep(
    planned: Sequence[Planned],
    *,
    jobs: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
    on_change: Callable[[str], None] = lambda _: None,
) -> SweepResult:
    """Run the unfinished runs of a sweep, several at a time. A failed run does not stop the others.

    Args:
        planned: Runs of the sweep.
        jobs: Number of runs at a time.
        should_stop: Function polled all the time; when it returns true, running runs are told to save and stop.
        on_change: Function called with a message when a run starts or ends.

    Raises:
        InputError: If a run exists that was trained with other arguments.
        StoppedError: If `should_stop` returned true; call again to resume.
    """
    if jobs < 1:
        raise InputError(f"--jobs must be 1 or more, not {jobs}")
    for run in planned:
        run.begin()
    waiting = [run for run in planned if not run.finished]
    if len(waiting) < len(planned):
        on_change(f"{len(planned) - len(waiting)} of {counted(len(planned), 'run')} finished already")
    running: dict[Planned, tuple[subprocess.Popen[bytes], int]] = {}
    elsewhere: set[Planned] = set()
    failed: dict[Path, str] = {}
    try:
        while waiting or running:
            held = [run for run in waiting if is_held(run.out)]
            for run in held:
                if run not in elsewhere:
                    on_change(f"{run.out.name}: waiting for another process that trains it")
            elsewhere.update(held)
            for run in [run for run in waiting if run not in held][: jobs - len(running)]:
                waiting.remove(run)
                running[run] = _start(run)
                on_change(f"{run.out.name}: started")
            for run, (process, place) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[run]
                if process.returncode != 0:
                    failed[run.out] = _reason(run, place, process.returncode)
                on_change(f"{run.out.name}: {'failed: ' + failed[run.out] if process.returncode else 'finished'}")
            if should_stop():
                raise StoppedError("stopped on request; running runs were saved. Run the same command again to resume.")
            time.sleep(_PAUSE)
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.wait()
    return SweepResult([run.out for run in planned if run.out not in failed], failed)


def _start(run: Planned) -> "tuple[subprocess.Popen[bytes], int]":
    """Start a run; return its process and the position in its log where its output begins."""
    log = _log(run)
    log.parent.mkdir(parents=True, exist_ok=True)
    asked = run.words if run.begun else _without(run.words, ["--extend"])
    words = [sys.executable, "-m", "logitcache", "train", *asked, "--out", str(run.out)]
    words += ["--resume"] if run.begun else []
    with log.open("ab") as file:
        file.write(f"$ logitcache train {shlex.join(run.words)}\n".encode())
        file.flush()
        plain = {word: value for word, value in os.environ.items() if word != "FORCE_COLOR"} | {"NO_COLOR": "1"}
        # A separate process group, so that Ctrl-C reaches it only once, from here.
        process = subprocess.Popen(  # noqa: S603
            words,
            stdout=file,
            stderr=file,
            env=plain,
            start_new_session=True,
            preexec_fn=_end_with_us,  # noqa: PLW1509
        )
        return process, file.tell()


def _epochs_in(words: Sequence[str]) -> int | None:
    """Return the number of epochs in the arguments of `train`, or None if it comes from a file or a default."""
    found = [word.partition("=")[2] for word in words if word.startswith("--epochs=")]
    found += [value for word, value in itertools.pairwise(words) if word == "--epochs"]
    return int(found[-1]) if found and found[-1].isdecimal() else None


def _goes_on(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Return whether a run's arguments are unchanged, except perhaps for a new number of epochs."""
    before, after = (_epochs_in(one["words"]) or 0 for one in (then, now))
    more = _LENGTH if 0 < before != after > 0 else ("--extend", *["--epochs"] * (after == before > 0))
    same = _without(then["words"], more) == _without(now["words"], more)
    return same and then["cache"] == now["cache"]


def _without(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return arguments of `train` without some options and their values."""
    kept, skipped = list[str](), False
    for word in words:
        name, equals, _ = word.partition("=")
        dropped = skipped or name in names
        skipped = not skipped and name in names and not equals
        if not dropped:
            kept.append(word)
    return kept


def _end_with_us() -> None:
    """On Linux, tell this child to save and stop when the sweep is killed. Elsewhere it trains on, and the next sweep waits for it."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _log(run: Planned) -> Path:
    return run.out.with_name(f"{run.out.name}.log")


def _reason(run: Planned, place: int, status: int) -> str:
    """Return why a run failed, in one line: the signal that killed it, or the error in its output."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return read_reason(_log(run).read_bytes()[place:].decode(errors="replace"))


def read_reason(output: str) -> str:
    """Return the error message in the output of a failed command.

    Args:
        output: Output of the command on stdout and stderr. Our own errors are a line `error: ...`; usage errors are a rich panel, or a
            line `Error: ...` without rich; a bug is a traceback, whose last line is the error.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for number in range(len(lines) - 1, -1, -1):
        if lines[number].lower().startswith("error:"):
            return lines[number][len("error:") :].strip()
        if _PANEL.match(lines[number]):
            inside = itertools.takewhile(lambda line: line[0] in "│|", lines[number + 1 :])
            return " ".join(line.strip("│| ") for line in inside)
    return lines[-1] if lines else "it printed nothing"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
