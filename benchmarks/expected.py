"""What to expect of each method: turn the runs of two sweeps into logitcache/methods/expected.json, which the pages of methods show.

    python benchmarks/expected.py demo=runs/expected-demo cifar100=runs/expected-cifar100

recipes/expected/ holds the settings and, on top of each file, the commands that make the runs; several folders of one task have commas
between them. A task that is not named keeps its numbers.
"""

import json
import sys
from pathlib import Path
from typing import Any

from common import where

from logitcache.runs.compare import GroupSummary, compare_runs, group_runs

ROOT = Path(__file__).parents[1]
OUT = ROOT / "logitcache" / "methods" / "expected.json"
TASKS = {  # in the order of the table
    "demo": {
        "title": "ResNet-20 to ResNet-8 on 10,000 training images of Fashion-MNIST, 10 classes",
        "about": "Four views, 6 epochs, 2,000 test images; the demo's own settings, in bfloat16. Commands: `recipes/expected/demo.toml`.",
    },
    "cifar100": {
        "title": "ResNet-56 to ResNet-8 on 10,000 training images of CIFAR-100, 100 classes",
        "about": "Eight views, 8 epochs (the papers have 240), 2,000 test images. Commands: `recipes/expected/cifar100.toml`.",
    },
}


def main(words: list[str]) -> None:
    """Read the sweeps and write the file."""
    found: dict[str, Any] = json.loads(OUT.read_text()) if OUT.exists() else {}
    for word in words:
        name, _, folder = word.partition("=")
        groups = group_runs(compare_runs([Path(one) for one in folder.split(",")]))
        found[name] = {
            **TASKS[name],
            "where": where(),
            "runs": [_entry(one) for one in sorted(groups, key=lambda one: (one.method, one.changes))],
        }
    OUT.write_text(json.dumps({name: found[name] for name in TASKS if name in found}, indent=1) + "\n")


def _entry(group: GroupSummary) -> dict[str, Any]:
    """Return seeds, accuracy and gaps of a method, in percent and percentage points."""
    over = {
        base: [round(100 * points, 3), None if error is None else round(100 * error, 3)]
        for base, (points, error) in group.over.items()
    }
    deviation = None if group.deviation is None else round(100 * group.deviation, 3)
    named = {"method": group.method, "changes": group.changes, "seeds": group.seeds}
    return named | {"accuracy": round(100 * group.mean, 3), "deviation": deviation, "over": over}


if __name__ == "__main__":
    main(sys.argv[1:])
