"""Schedule of the additional epochs when a run is extended beyond its last epoch.

`continue` keeps the original schedule: step stays at its last rate, or decays at milestones beyond the old end; the warm-up of the
distillation term and the switches of a method keep their final values. Cosine and onecycle have decayed to zero, so they cannot be
continued. `stretch` follows, from the next epoch on, the schedule of a run with the new number of epochs: milestones given as shares of the
epochs, cosine, onecycle and the method's progress move; `warmup_epochs` and milestones given in epochs do not. Completed epochs keep their
rates.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from logitcache.errors import CacheMismatchError, InputError, name_settings
from logitcache.methods import Objective
from logitcache.runtime.wording import counted
from logitcache.train.optimize import learning_rate, progress_after
from logitcache.train.settings import TrainSettings

__all__ = ["lengthened", "warn_of_milestones"]

_LOG = logging.getLogger(__name__)


def warn_of_milestones(settings: TrainSettings) -> None:
    """Warn about milestones that are never reached."""
    milestones = settings.decay_milestones or ()
    if settings.sched != "step":
        if milestones:
            words = f"--decay-milestones has no effect with --sched {settings.sched}; only step uses milestones"
            _LOG.warning("%s", name_settings(words))
        return
    if late := [milestone for milestone in milestones if milestone >= settings.epochs]:
        never = f"{','.join(map(str, late))} {'is' if len(late) == 1 else 'are'} never reached"
        words = f"--decay-milestones {never}: the run ends after {counted(settings.epochs, 'epoch')}"
        _LOG.warning("%s", name_settings(words))


def lengthened(
    path: Path,
    settings: TrainSettings,
    objective: Objective,
    extend: str | None,
    then: Mapping[str, Any],
    length: int,
    done: int,
) -> tuple[str | None, int]:
    """Choose the schedule of a run that is extended.

    Args:
        path: Folder of the run.
        settings: New settings, with more epochs than the run had.
        objective: Training objective.
        extend: Value of `--extend`: `continue`, `stretch`, or None if not given.
        then: Recorded settings of the run.
        length: Number of epochs of its schedule.
        done: Number of completed epochs.

    Returns:
        `extend`, or None if both choices are equivalent, and the number of epochs of the schedule from now on.

    Raises:
        InputError: If `extend` is needed but not given, or the schedule cannot be continued.
        CacheMismatchError: If milestones of completed epochs were changed.
    """
    before = replace(settings, epochs=length, decay_milestones=then.get("decay_milestones"))
    continued = replace(settings, epochs=length)
    had, asked = counted(then["epochs"], "epoch"), f"{settings.epochs:,}"
    if any(learning_rate(before, epoch, 0, 1) != learning_rate(continued, epoch, 0, 1) for epoch in range(done)):
        raise CacheMismatchError(
            f"{path} was trained with --decay-milestones {_listed(then.get('decay_milestones'))}, but "
            f"{_listed(settings.decay_milestones)} "
            f"would change the rate of completed epochs; use milestones that give the same rates in the first {counted(done, 'epoch')}."
        )
    over = settings.sched != "step"
    if not over and _pace(continued, objective, done, settings.epochs) == _pace(
        settings, objective, done, settings.epochs
    ):
        return None, length
    if extend == "stretch":
        return extend, settings.epochs
    if over:
        weights = path / "student.safetensors"
        raise InputError(
            f"{path} was trained for {had}, at the end of which {settings.sched} has decayed to zero, so --extend continue would not train "
            f"anything. Use --extend stretch to follow the schedule of {asked} epochs from here on, or start a new run with a new schedule "
            f"and --student-weights {weights}."
        )
    if extend is None:
        raise InputError(
            f"{path} was trained for {had}, but --epochs is {asked}. Use --extend continue to keep the schedule where it ended, or "
            f"--extend stretch to follow the schedule of {asked} epochs from here on."
        )
    return extend, length


def _pace(schedule: TrainSettings, objective: Objective, first: int, last: int) -> list[tuple[Any, ...]]:
    """Return everything that a schedule determines in some epochs: learning rate, warm-up of the distillation term, switches."""
    found: list[tuple[Any, ...]] = []
    for epoch in range(first, last):
        progress = progress_after(epoch, schedule)
        ramp = min(progress / objective.warmup, 1.0) if objective.loss and objective.warmup else 1.0
        switches = [progress > share for share in objective.begins.values()] if objective.loss else []
        found.append((learning_rate(schedule, epoch, 0, 1), ramp, switches))
    return found


def _listed(milestones: Any) -> str:
    return "62.5, 75 and 87.5 % of the epochs" if milestones is None else ",".join(map(str, milestones))
