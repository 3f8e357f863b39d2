"""`logitcache compare`."""

from pathlib import Path
from typing import Annotated

import typer

from .options import JsonOption
from .render import print_json, print_table

__all__ = ["compare"]


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs, or folders that hold runs.")],
    json: JsonOption = False,
) -> None:
    """Show runs side by side: accuracy, agreement with the teacher, time, bytes.

    Accuracy is that of the last epoch; the best of all epochs stands apart, because it was chosen on the test images.

    Example: logitcache compare runs/ce runs/kd runs/rld
    """
    from logitcache.compare import compare_runs

    found = compare_runs(runs)
    if json:
        print_json([run.to_json() for run in found])
        return
    print_table(
        "runs",
        [
            "run",
            "method",
            "student",
            "epochs",
            "test accuracy",
            "(best epoch)",
            "agrees with teacher",
            "s / epoch",
            "bytes / sample",
        ],
        [
            [
                run.run,
                run.method
                + (f" {run.changes}" if run.changes else "")
                + (" (live teacher)" if run.logits == "live" else ""),
                run.student,
                str(run.epochs) + ("" if run.finished else ", unfinished"),
                _share(run.test_accuracy),
                _share(run.best_test_accuracy),
                _share(run.teacher_agreement),
                "-" if run.seconds_per_epoch is None else f"{run.seconds_per_epoch:.1f}",
                str(run.bytes_per_sample or "-"),
            ]
            for run in found
        ],
        left=3,
    )


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"
