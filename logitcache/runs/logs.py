"""Additional logs of a run's metrics: a CSV file, TensorBoard, Weights & Biases."""

import csv
import io
import shutil
import uuid
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from logitcache.errors import InputError, unknown_name
from logitcache.runtime.files import write_bytes

__all__ = ["LOGS", "Log", "open_logs"]

Metrics = Mapping[str, Any]


class Log(Protocol):
    """Receives the metrics of a run. `begin` is called first, also if the run is resumed."""

    def begin(self, history: Sequence[Metrics]) -> None:
        """Start the log with the saved epochs, and drop any others."""

    def epoch(self, metrics: Metrics) -> None:
        """Log an epoch."""

    def close(self) -> None:
        """Close the log."""


class CsvLog:
    """Log to `metrics.csv`, one line per epoch."""

    def __init__(self, run: Path, settings: Mapping[str, Any]) -> None:
        del settings
        self._file, self._history = run / "metrics.csv", list[Metrics]()

    def begin(self, history: Sequence[Metrics]) -> None:
        """Write the epochs so far."""
        self._history = list(history)
        self._write()

    def epoch(self, metrics: Metrics) -> None:
        """Rewrite the file with this epoch, because it may add columns to the header."""
        self._history.append(metrics)
        self._write()

    def _write(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(dict.fromkeys(name for metrics in self._history for name in metrics)))
        writer.writeheader()
        writer.writerows(self._history)
        write_bytes(self._file, text.getvalue().encode())

    def close(self) -> None:
        """Do nothing."""


class TensorBoardLog:
    """Log to event files in `tensorboard/`."""

    def __init__(self, run: Path, settings: Mapping[str, Any]) -> None:
        writer = _module("torch.utils.tensorboard", "tensorboard").SummaryWriter
        self._folder, self._open, self._settings = run / "tensorboard", writer, settings

    def begin(self, history: Sequence[Metrics]) -> None:
        """Rewrite all epochs, because events cannot be removed."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._writer = self._open(str(self._folder))
        self._writer.add_text("settings", "\n".join(f"    {name}: {value}" for name, value in self._settings.items()))
        for metrics in history:
            self.epoch(metrics)

    def epoch(self, metrics: Metrics) -> None:
        """Write every number."""
        for name, value in _numbers(metrics).items():
            self._writer.add_scalar(name, value, metrics["epoch"])
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class WandbLog:
    """Log to Weights & Biases, with the project and mode of its environment variables. `--resume` continues the same W&B run."""

    def __init__(self, run: Path, settings: Mapping[str, Any]) -> None:
        self._wandb, self._path, self._settings = _module("wandb", "wandb"), run, settings

    def begin(self, history: Sequence[Metrics]) -> None:
        """Start the W&B run, or continue it."""
        name = self._path / "wandb-id"
        if not name.exists():
            write_bytes(name, uuid.uuid4().hex.encode())
        self._run = self._wandb.init(
            name=self._path.name, id=name.read_text(), resume="allow", dir=str(self._path), config=dict(self._settings)
        )
        for metrics in history:  # W&B ignores steps that it already has
            self.epoch(metrics)

    def epoch(self, metrics: Metrics) -> None:
        """Send every number."""
        self._run.log(_numbers(metrics), step=metrics["epoch"])

    def close(self) -> None:
        """Finish the W&B run."""
        self._run.finish()


LOGS: dict[str, type[CsvLog | TensorBoardLog | WandbLog]] = {
    "csv": CsvLog,
    "tensorboard": TensorBoardLog,
    "wandb": WandbLog,
}


def open_logs(names: Sequence[str], run: Path, settings: Mapping[str, Any]) -> list[Log]:
    """Open logs by name.

    Args:
        names: Keys of `LOGS`.
        run: Directory of the run.
        settings: Settings of the run.

    Raises:
        UnknownNameError: If there is no such log.
        InputError: If its package is not installed.
    """
    if unknown := next((name for name in names if name not in LOGS), None):
        raise unknown_name("log", unknown, LOGS)
    return [LOGS[name](run, settings) for name in dict.fromkeys(names)]


def _module(name: str, extra: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise InputError(
            f"--log-to {extra} needs a package that is not installed; install it with: pip install 'logitcache[{extra}]'"
        ) from error


def _numbers(metrics: Metrics) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if isinstance(value, int | float) and name != "epoch"}
