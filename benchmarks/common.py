"""What benchmarks share: a cache of made-up rows, alternating timing, peak memory, and a record of where it was measured."""

import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from logitcache.encoding import Encoding, widest_bytes
from logitcache.store import Manifest, block_rows_for

__all__ = [
    "alternating_seconds",
    "alternating_times",
    "in_own_process",
    "manifest_of",
    "peak_bytes",
    "where",
    "write_result",
]


def manifest_of(rows: int, classes: int, encoding: Encoding, views: int = 1) -> Manifest:
    """Describe a cache of made-up rows."""
    return Manifest(
        samples=rows,
        classes=tuple(map(str, range(classes))),
        block_rows=block_rows_for(rows, widest_bytes(encoding.columns(classes))),
        batch_size=256,
        threads=1,
        device="cpu",
        views=tuple(
            {"recipe": "none", "recipe_version": 1, "seed": 0, "key": v, "index": v, "group": v} for v in range(views)
        ),
        data={"spec": "", "length": rows, "digest": "", "first": 0},
        teachers=(
            {
                "slug": "t",
                "name": "t",
                "weights": "",
                "weights_sha256": "",
                "class_map": None,
                "preprocessing": {},
                "members": [],
            },
        ),
        encoding=encoding.to_json(),
        software={},
    )


def alternating_seconds(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Time each in turn, `rounds` times after one round of warming up; the median of each, in seconds."""
    return {name: statistics.median(found) for name, found in alternating_times(runs, rounds).items()}


def alternating_times(
    runs: Mapping[str, Callable[[], object]],
    rounds: int,
    before: Callable[[], object] = int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time each in turn, `rounds` times after one round of warming up; all times of each, in seconds, without what comes before each."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            before()
            started = clock()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                times[name].append(clock() - started)
    return times


def in_own_process(script: str, *words: str) -> str:
    """Run a script again with other arguments, and return the last line that it prints."""
    done = subprocess.run([sys.executable, script, *words], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.splitlines()[-1]


def peak_bytes(run: Callable[[], object]) -> int:
    """Return the largest sum of bytes that are allocated at once on the CPU while something runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    now = peak = 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def where() -> dict[str, Any]:
    """Say when, on what and with what this is measured."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def write_result(path: Path | None, rows: list[dict[str, Any]], **more: Any) -> None:
    """Keep rows with where they were measured."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**where(), **more, "rows": rows}, indent=1) + "\n")
