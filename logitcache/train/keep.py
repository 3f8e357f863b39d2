"""Saved weights of a run: those of the last epoch and those of the best epoch.

Weights are saved as a safetensors file and, for language models, also as a folder that transformers can load.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from logitcache.data import modality_of
from logitcache.data.optional import save_network
from logitcache.models import save_weights
from logitcache.runs.metrics import Metric, find_metric
from logitcache.store import classes_to_json
from logitcache.train.job import Job
from logitcache.train.step import Stepper

__all__ = ["best_results", "keep_best", "save_last"]

_AVERAGE = "ema_"  # prefix of the metrics of the averaged weights


def save_last(job: Job, stepper: Stepper, folder: Path) -> None:
    """Save the weights of the last epoch and their moving average, with metadata."""
    for prefix, network in _networks(stepper).items():
        _save(job, network, folder / f"student{_suffix(prefix)}.safetensors", {})


def keep_best(
    job: Job, stepper: Stepper, folder: Path, history: Sequence[Mapping[str, Any]], metrics: Mapping[str, Any]
) -> None:
    """Save the weights of an epoch if its headline metric is better than in every earlier epoch.

    The moving average of the weights is judged by its own metric. This runs before the state of the epoch is saved, so a run that is
    killed in between repeats the epoch and writes the same file.

    Args:
        job: Prepared training.
        stepper: Student and optimizer.
        folder: Folder of the run.
        history: Metrics of the earlier epochs.
        metrics: Metrics of this epoch, including its number.
    """
    headline = _headline(job)
    for prefix, network in _networks(stepper).items():
        name = prefix + headline.name
        before = [one[name] for one in history if name in one]
        if name in metrics and all(headline.gain(metrics[name], value) > 0 for value in before):
            notes = {"epoch": metrics["epoch"], name: metrics[name]}
            _save(job, network, folder / f"student{_suffix(prefix)}-best.safetensors", notes)


def best_results(job: Job, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the best headline metric of all epochs and the first epoch that reached it, also for the averaged weights."""
    headline, found = _headline(job), dict[str, Any]()
    for prefix in ("", _AVERAGE):
        values = {one["epoch"]: one[prefix + headline.name] for one in history if prefix + headline.name in one}
        if values:
            best = headline.best(values.values())
            found[f"best_{prefix}{headline.name}"] = best
            found[f"best_{prefix}epoch"] = next(epoch for epoch, value in values.items() if value == best)
    return found


def _headline(job: Job) -> Metric:
    return find_metric(modality_of(job.samples).headline)


def _networks(stepper: Stepper) -> dict[str, nn.Module]:
    return {"": stepper.model} | ({} if stepper.average is None else {_AVERAGE: stepper.average.module})


def _suffix(prefix: str) -> str:
    return f"-{prefix.removesuffix('_')}" if prefix else ""


def _save(job: Job, network: nn.Module, path: Path, more: Mapping[str, Any]) -> None:
    notes: dict[str, Any] = {
        "network": job.network.name,
        "classes": classes_to_json(job.samples.classes),
        "method": job.method,
        "preprocessing": {name: value for name, value in job.inputs.to_json().items() if name != "resize"},
    }
    save_weights(network.state_dict(), path, notes | dict(more))
    save_network(modality_of(job.samples), job.samples, network, path.with_name(f"{path.stem}-hf"), job.names)
