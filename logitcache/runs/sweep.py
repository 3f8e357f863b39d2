"""`logitcache sweep`: every method with every setting and seed over one cache, a process each; what is finished is not run again."""

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
        out: Its directory; `OUT.json` beside it says what it was begun with, `OUT.log` what it said.
        words: What stands after `logitcache train`, but for the directory.
        cache: Fingerprint of the cache; None without one.
    """

    out: Path
    words: tuple[str, ...]
    cache: str | None

    @property
    def begun(self) -> bool:
        """Whether its directory is there."""
        return (self.out / "run.json").exists()

    @property
    def finished(self) -> bool:
        """Whether it is over, with as many epochs as it is to have."""
        if not self.begun:
            return False
        run, asked = read_run(self.out), _epochs_in(self.words)
        return "results" in run and (asked is None or run["settings"].get("epochs", 0) >= asked)

    def begin(self) -> None:
        """Remember what it is begun with, or with how many epochs it is trained on.

        Raises:
            InputError: It was begun with something else, or has more epochs than it is to have.
        """
        file = self.out.with_name(f"{self.out.name}.json")
        now: dict[str, Any] = {"words": list(self.words), "cache": self.cache}
        if self.begun:
            then = json.loads(file.read_text()) if file.exists() else None
            lines = [f"{shlex.join(one['words'])} (cache {one['cache']})" if one else "by hand" for one in (then, now)]
            asked = _epochs_in(self.words)
            if asked is not None and then and asked < (has := read_run(self.out)["settings"].get("epochs", 0)):
                raise InputError(
                    f"{self.out} was trained on to {counted(has, 'epoch')}, and the sweep asks for {asked:,}. Ask for as many, or give the "
                    "sweep another --out."
                )
            if then and then != now and _goes_on(then, now):
                write_bytes(file, (json.dumps(now) + "\n").encode())
            elif then != now:
                raise InputError(
                    f"{self.out} was trained otherwise than it would be now:\n  then {lines[0]}\n  now  {lines[1]}\nGive the sweep another "
                    "--out, or remove that run."
                )
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(file, (json.dumps(now) + "\n").encode())


@dataclass(frozen=True, slots=True)
class SweepResult:
    """What came of a sweep.

    Attributes:
        runs: Directories of runs that are over, in the order planned.
        failed: The reason of each run that failed, in one line; its `.log` holds the whole output.
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
    """List the runs: every method with every combination of settings and every seed.

    Args:
        cache: Path of the cache; None leaves it to `options`, for labels alone.
        out: Directory that holds the runs.
        methods: Names.
        seeds: Of students and orders.
        vary: Options of `train` to their values: `{"lr": ["0.05", "0.1"]}`; a parameter of a method as `set.beta`.
        options: Other words for every `train`; the student is among them, in `vary` or in a `--config` file.

    Raises:
        InputError: Nothing to run, no student, the same run twice, or an option given twice.
    """
    vary, folder = dict(vary or {}), local_path(out)
    if not methods or not seeds or not all(vary.values()):
        raise InputError("a sweep needs a method and a seed at least, and values for what it varies")
    ours = {"--method", "--seed", "--out", "--resume", *(_flag(name) for name in vary if not name.startswith("set."))}
    if twice := [word for word in options if word.partition("=")[0] in ours]:
        raise InputError(f"`{twice[0].partition('=')[0]}` is the sweep's own: leave it out of the options of train")
    named = {word.partition("=")[0] for word in options} | {_flag(name) for name in vary}
    if not named & {"--student", "--config"}:
        raise InputError("which network? Name it after `--`, as in `logitcache sweep CACHE -- --student resnet8`")
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
        raise InputError("a sweep names the same run twice: methods, seeds and values must differ")
    return planned


def run_sweep(
    planned: Sequence[Planned],
    *,
    jobs: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
    on_change: Callable[[str], None] = lambda _: None,
) -> SweepResult:
    """Run what is not finished, some at a time; one that fails stops no other.

    Args:
        planned: The runs.
        jobs: How many at a time.
        should_stop: Asked all the time; where it says yes, the runs in hand are asked to save and stop.
        on_change: Called with a sentence when a run begins or ends.

    Raises:
        InputError: A run is there that was trained otherwise.
        StoppedError: It was asked to stop; the same call goes on.
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
                    on_change(f"{run.out.name}: another process trains it; waiting for it")
            elsewhere.update(held)
            for run in [run for run in waiting if run not in held][: jobs - len(running)]:
                waiting.remove(run)
                running[run] = _start(run)
                on_change(f"{run.out.name}: begun")
            for run, (process, place) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[run]
                if process.returncode != 0:
                    failed[run.out] = _reason(run, place, process.returncode)
                on_change(f"{run.out.name}: {'failed: ' + failed[run.out] if process.returncode else 'finished'}")
            if should_stop():
                raise StoppedError("stopped as asked; the runs in hand were saved. The same command goes on.")
            time.sleep(_PAUSE)
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.wait()
    return SweepResult([run.out for run in planned if run.out not in failed], failed)


def _start(run: Planned) -> "tuple[subprocess.Popen[bytes], int]":
    """Start a run; return its process, and where what it says begins in its log."""
    log = _log(run)
    log.parent.mkdir(parents=True, exist_ok=True)
    asked = run.words if run.begun else _without(run.words, ["--extend"])
    words = [sys.executable, "-m", "logitcache", "train", *asked, "--out", str(run.out)]
    words += ["--resume"] if run.begun else []
    with log.open("ab") as file:
        file.write(f"$ logitcache train {shlex.join(run.words)}\n".encode())
        file.flush()
        plain = {word: value for word, value in os.environ.items() if word != "FORCE_COLOR"} | {"NO_COLOR": "1"}
        # A group of its own: Ctrl-C reaches it once, from here.
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
    """Return the number of epochs that words of `train` ask for; None if they leave it to a file or a default."""
    found = [word.partition("=")[2] for word in words if word.startswith("--epochs=")]
    found += [value for word, value in itertools.pairwise(words) if word == "--epochs"]
    return int(found[-1]) if found and found[-1].isdecimal() else None


def _goes_on(then: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Return whether a run is now asked for as it was, but perhaps with another number of epochs, which it does not have yet."""
    before, after = (_epochs_in(one["words"]) or 0 for one in (then, now))
    more = _LENGTH if 0 < before != after > 0 else ("--extend", *["--epochs"] * (after == before > 0))
    same = _without(then["words"], more) == _without(now["words"], more)
    return same and then["cache"] == now["cache"]


def _without(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return words of `train` without some options and their values."""
    kept, skipped = list[str](), False
    for word in words:
        name, equals, _ = word.partition("=")
        dropped = skipped or name in names
        skipped = not skipped and name in names and not equals
        if not dropped:
            kept.append(word)
    return kept


def _end_with_us() -> None:
    """Have Linux ask this child to save and stop when the sweep is killed; elsewhere it trains on, and the sweep waits for it."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _log(run: Planned) -> Path:
    return run.out.with_name(f"{run.out.name}.log")


def _reason(run: Planned, place: int, status: int) -> str:
    """Return why a run failed, in one line: the signal that killed it, or what its output says."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return read_reason(_log(run).read_bytes()[place:].decode(errors="replace"))


def read_reason(output: str) -> str:
    """Find the reason in the output of a command that failed.

    Args:
        output: What the command wrote to stdout and stderr. Our own errors are a line `error: ...`; errors of usage are a panel
            of rich, or a line `Error: ...` where Typer does without it; a bug is a traceback, whose last line says what happened.
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
