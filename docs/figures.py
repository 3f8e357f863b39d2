"""Draw docs/pictures/sampled-*.svg from the results of benchmarks/sampled.py: gradient and learning against bytes per token.

python docs/figures.py
"""

import json
from pathlib import Path
from statistics import fmean
from typing import Any

from logitcache.report.charts import STYLE, lines
from logitcache.runtime.wording import decimals

RESULTS, PICTURES = Path("benchmarks/results"), Path("docs/pictures")
NAMES = {
    "sampled": "draws",
    "topk": "largest logits, u8, rest as one class",
    "sampled once": "draws, made once",
    "sampled anew": "draws, made anew for each epoch",
}
PAPER = "svg{background:#fff}@media (prefers-color-scheme:dark){svg{background:#171b20}}"


def draw(name: str, title: str, series: dict[str, list[tuple[float, float]]], y_name: str, **more: Any) -> None:
    """Write one figure as a file of its own."""
    named = {NAMES[kind]: sorted((round(x), y) for x, y in points) for kind, points in series.items()}
    made = lines(title, title, named, "bytes per token, compressed", y_name, y_spelling=decimals, **more)
    head, rest = made.split(">", 1)
    PICTURES.joinpath(name).write_text(f"{head}><style>{STYLE}{PAPER}</style>{rest}\n")


def angles(name: str, result: str, title: str) -> None:
    """Draw the angle of the gradient."""
    content, series = json.loads(RESULTS.joinpath(result).read_text()), dict[str, list[tuple[float, float]]]()
    for one in content["rows"]:
        series.setdefault(one["encoding"]["kind"], []).append((one["bytes_per_row"], one["degrees"]))
    draw(name, title, series, "degrees", low=0.0)


def learning(name: str, result: str, title: str) -> None:
    """Draw the loss of students on the test text, the mean over seeds."""
    content, series = json.loads(RESULTS.joinpath(result).read_text()), dict[str, list[tuple[float, float]]]()
    for one in content["rows"]:
        kind = one["encoding"]
        if kind == "sampled":
            kind += " anew" if one["views"] > 1 else " once"
        series.setdefault(kind, []).append((one["bytes_per_row"], fmean(one["test_nats"])))
    draw(name, title, series, "nats per token")


if __name__ == "__main__":
    angles("sampled-stories.svg", "sampled-cpu.json", "Angle to the exact gradient, stories-mini, 512 ids")
    angles("sampled-smollm2.svg", "sampled-smollm2-cpu.json", "Angle to the exact gradient, SmolLM2-135M, 49,152 ids")
    learning(
        "sampled-learning.svg",
        "sampled-learning-cpu.json",
        "Test loss after 8 epochs, stories-mini, mean of three seeds",
    )
