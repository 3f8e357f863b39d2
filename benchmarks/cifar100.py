r"""Train the papers' CIFAR-100 students from one cache (ResNet-56 to ResNet-20, 240 epochs, batch 64), in sessions of any length.

    python benchmarks/cifar100.py --data arrays:cifar100-train.npz --test-data arrays:cifar100-test.npz \
        --teacher-weights resnet56.safetensors --folder runs/cifar100 --minutes 8 --out benchmarks/results/cifar100.json \
        -- --cuda-graph on --amp --channels-last
    python benchmarks/cifar100.py --rehearse --folder runs/rehearsal --minutes 2

A rehearsal trains the demo's students on its images for two epochs, on any machine.

A session dumps the teacher, with as many views as fit on the disk and at most one per epoch, and then trains the remaining runs with
`sweep`: ce, kd, dkd and rld with every seed, then all other methods. When time is up, or on an interrupt, the current run saves its state;
if it is killed, it loses the current epoch. The same command resumes. Options after `--` are passed to every `train` and must not change
between sessions.

The settings and the published accuracies are in recipes/cifar100/resnet56-resnet20.toml. The published accuracies are those of the best
epoch; results here include the best and the last. Each run is recorded with the commit and hardware of every session that trained it.
"""

import argparse
import json
import shutil
import statistics
import sys
import time
import tomllib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common import where

from logitcache import dump_logits
from logitcache.errors import CacheIncompleteError, StoppedError
from logitcache.methods import METHODS
from logitcache.runs.directory import read_metrics, read_run
from logitcache.runs.sweep import Planned, plan_sweep, run_sweep

RECIPE = Path(__file__).parents[1] / "recipes/cifar100/resnet56-resnet20.toml"
FIRST = ("ce", "kd", "dkd", "rld")
PRESETS = {"dkd": "resnet56-resnet20"}
ROWS, ROW_BYTES = 50_000, 2 * 100  # per view, in float16


def main() -> None:
    """Dump and train for the given number of minutes, and write the results."""
    arguments = parsed()
    folder, deadline = arguments.folder, time.monotonic() + 60 * arguments.minutes
    folder.mkdir(parents=True, exist_ok=True)
    planned = list[Planned]()
    try:
        cache = dumped(arguments, lambda: time.monotonic() > deadline)
        planned = plan(arguments, cache)
        begin_stretch(folder, planned)
        result = run_sweep(
            planned, should_stop=lambda: time.monotonic() > deadline, on_change=lambda line: print(line, flush=True)
        )
        for run, reason in result.failed.items():
            print(f"{run} failed: {reason}")
    except (CacheIncompleteError, StoppedError, KeyboardInterrupt) as error:
        print(f"{error or 'interrupted'}\nThe same command goes on.")
    rows = collected(folder, planned)
    published = {} if arguments.rehearse else tomllib.loads(RECIPE.read_text())["published"]
    print(table(rows, published))
    if arguments.out is not None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        words = {"epochs": arguments.epochs, "options": arguments.options, "rehearsal": arguments.rehearse}
        arguments.out.write_text(json.dumps({**where(), **words, "rows": rows}, indent=1) + "\n")


def parsed() -> argparse.Namespace:
    """Parse the command line; a rehearsal uses the demo's data and weights by default."""
    words, options = sys.argv[1:], list[str]()
    if "--" in words:
        words, options = words[: words.index("--")], words[words.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="training images, in the words of `logitcache dump --data`")
    parser.add_argument("--test-data")
    parser.add_argument("--teacher-weights")
    parser.add_argument("--folder", type=Path, default=Path("runs/cifar100"), help="for the cache and the runs")
    parser.add_argument("--minutes", type=float, default=8.0, help="length of this stretch")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", help="names with commas between them, in this order, instead of all")
    parser.add_argument("--views", type=int, help="of the cache, instead of as many as fit")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on the demo's images")
    parser.add_argument("--out", type=Path, help="file for the results")
    arguments = parser.parse_args(words)
    arguments.options, arguments.epochs = options, 2 if arguments.rehearse else 240
    if arguments.rehearse:
        arguments.data, arguments.test_data = arguments.data or "fashion-mnist-mini", None
        arguments.teacher_weights = arguments.teacher_weights or "demo"
    elif not (arguments.data and arguments.test_data and arguments.teacher_weights):
        parser.error("give --data, --test-data and --teacher-weights, or --rehearse")
    return arguments


def dumped(arguments: argparse.Namespace, should_stop: Callable[[], bool]) -> Path:
    """Dump the teacher or resume its dump, deterministically, so that a lost cache can be reproduced for runs that have started."""
    place, views = arguments.folder / "teacher.zarr", arguments.views
    chosen = arguments.folder / "views.json"
    if chosen.exists():
        views = json.loads(chosen.read_text())
    elif views is None:
        views = min(arguments.epochs, shutil.disk_usage(arguments.folder).free // (2 * ROWS * ROW_BYTES)) or 1
    chosen.write_text(json.dumps(views))
    teacher = "resnet20" if arguments.rehearse else "resnet56"
    dump_logits(
        teacher, arguments.data, place, teacher_weights=arguments.teacher_weights, augment="cifar", views=views, precision="f16",
        batch_size=1024, device=arguments.device, deterministic=True, should_stop=should_stop,
    )  # fmt: skip
    return place


def plan(arguments: argparse.Namespace, cache: Path) -> list[Planned]:
    """Return the runs in the order of training."""
    named = tuple(arguments.methods.split(",")) if arguments.methods else FIRST
    groups = [named] if arguments.methods else [named, tuple(name for name in METHODS if name not in FIRST)]
    words = ["--config", str(RECIPE), "--data", arguments.data, "--device", arguments.device]
    words += [] if arguments.test_data is None else ["--test-data", arguments.test_data]
    words += [
        "--epochs",
        str(arguments.epochs),
        *(["--student", "resnet8"] if arguments.rehearse else []),
        *arguments.options,
    ]
    planned = list[Planned]()
    for methods in groups:
        for seed in map(int, arguments.seeds.split(",")):
            for method in methods:
                preset = ["--preset", PRESETS[method]] if method in PRESETS else []
                planned += plan_sweep(
                    str(cache), arguments.folder / "runs", methods=[method], seeds=[seed], options=[*words, *preset]
                )
    return planned


def begin_stretch(folder: Path, planned: Sequence[Planned]) -> None:
    """Record the time, machine and progress of each run at the start of a session, to attribute later epochs to it."""
    file = folder / "stretches.jsonl"
    epochs = {run.out.name: len(read_metrics(run.out)) for run in planned if run.begun}
    with file.open("a") as lines:
        lines.write(json.dumps({"where": where(), "epochs": epochs}) + "\n")


def collected(folder: Path, planned: Sequence[Planned]) -> list[dict[str, Any]]:
    """Return the accuracies and the hardware of each run with at least one epoch."""
    file, rows = folder / "stretches.jsonl", list[dict[str, Any]]()
    stretches = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for run in planned:
        metrics = read_metrics(run.out) if run.begun else []
        if not metrics:
            continue
        record, accuracies = read_run(run.out), [one["test_accuracy"] for one in metrics]
        before = [one["epochs"].get(run.out.name, 0) for one in stretches] + [len(metrics)]
        places = [one["where"] for number, one in enumerate(stretches) if before[number + 1] > before[number]]
        rows.append({
            "method": record["settings"]["method"], "seed": record["settings"]["seed"], "epochs": len(metrics), "finished": run.finished,
            "last": accuracies[-1], "best": max(accuracies), "best_epoch": 1 + accuracies.index(max(accuracies)),
            "seconds_per_epoch": statistics.median(one["seconds"] for one in metrics), "trained": places,
        })  # fmt: skip
    return rows


def table(rows: Sequence[dict[str, Any]], published: Mapping[str, Any]) -> str:
    """Return results by method: number of seeds, mean and deviation of the last and best epoch, and the published accuracy."""
    by_method = defaultdict[str, list[dict[str, Any]]](list)
    for row in rows:
        if row["finished"]:
            by_method[row["method"]].append(row)
    lines = [f"{'method':>16} {'seeds':>5} {'last':>14} {'best':>14} {'published (best)':>17}"]
    for method, some in by_method.items():
        cells = [spread([100 * row[name] for row in some]) for name in ("last", "best")]
        lines.append(f"{method:>16} {len(some):>5} {cells[0]:>14} {cells[1]:>14} {published.get(method, ''):>17}")
    going = [f"{row['method']} seed {row['seed']}: {row['epochs']} epochs" for row in rows if not row["finished"]]
    return "\n".join([*lines, *([f"in hand: {', '.join(going)}"] if going else [])])


def spread(values: Sequence[float]) -> str:
    """Format a mean, with the standard deviation if there are several values."""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


if __name__ == "__main__":
    main()
