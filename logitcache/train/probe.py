"""Check that the student accepts its batches, on a copy, before the first step and before anything is written.

Batch normalization rejects a batch of one sample, a network may require a certain input size, and evaluation may fail even if training
does not. Without this check a run would fail only at the end of its first epoch.
"""

import copy
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from logitcache.data import Ids, Inputs, Samples, View, kept_of, modality_of, offsets_of
from logitcache.data.optional import arranged, batched_unit
from logitcache.errors import InputError, first_line
from logitcache.models import evaluating
from logitcache.runtime.device import explain_oom, to_device
from logitcache.runtime.tensors import padded
from logitcache.runtime.wording import counted
from logitcache.store import with_rows
from logitcache.train.job import Job
from logitcache.train.order import Windows, only, shuffled
from logitcache.train.replicas import Replicas
from logitcache.train.settings import TrainSettings
from logitcache.train.step import Stepper

__all__ = ["refuse_unfit_student"]

_SHOWN = 2  # samples to render for a trial; larger batches repeat them


def refuse_unfit_student(job: Job, settings: TrainSettings, stepper: Stepper, replicas: Replicas) -> None:
    """Run the student on the smallest micro-batch of the training, and in evaluation mode.

    A copy runs, and all random number states are restored, so the training that follows is not affected.

    Args:
        job: Prepared training.
        settings: Settings of the training.
        stepper: Student and optimizer.
        replicas: Processes that share every batch.

    Raises:
        InputError: If no batch is left, or the student fails.
    """
    sizes = _part_sizes(job, settings, replicas, drop_last=settings.drop_last)
    ids, view = with_rows(offsets_of(job.samples), kept_of(job.samples)), job.epoch_views[0][0]
    with _undisturbed(stepper.model, job.device) as student:

        def run(samples: Samples, inputs: Inputs, seen: View, count: int) -> None:
            chosen = np.arange(min(_SHOWN, len(samples), count)) if samples is not job.samples else ids[:count][:_SHOWN]
            _run(stepper, student, samples, inputs, seen, chosen, count, job.device)

        if not any(part.training for part in student.modules()):
            student.train()
        try:
            run(job.samples, job.inputs, view, min(sizes))
        except InputError as error:
            _refuse_size(job, settings, replicas, error, lambda count: run(job.samples, job.inputs, view, count))
            raise
        with evaluating(student), torch.no_grad():
            with _named("in evaluation mode, "):
                run(job.samples, job.inputs, view, 1)
            if job.test is not None:
                seen, whole = modality_of(job.test).for_evaluation(job.inputs, job.test)
                try:
                    run(job.test, seen, whole, 1)
                except InputError as error:
                    raise _unfit_test_data(job, error, job.test, seen, whole) from error


def _unfit_test_data(job: Job, error: InputError, test: Samples, seen: Inputs, whole: View) -> InputError:
    """Return the error for a student that fails on test data but not on training data."""
    ours, theirs = _shape(job.samples, job.inputs, job.epoch_views[0][0]), _shape(test, seen, whole)
    reason = error.__cause__
    if reason is None or ours == theirs:
        return InputError(f"on the test data, {error}")
    return InputError(
        f"the student accepts inputs of shape {ours}, as in the training data, but fails on those of the test data, {theirs} "
        f"({type(reason).__name__}: {first_line(reason)}); pass test data of the same shape (--test-data)"
    )


def _shape(samples: Samples, inputs: Inputs, view: View) -> list[int] | None:
    """Return the shape of a rendered sample, if it is one tensor."""
    (shown,) = modality_of(samples).renderer(samples, [inputs], workers=0).batches(view, [np.arange(1)])
    return list(shown.inputs[0].shape[1:]) if isinstance(shown.inputs[0], Tensor) else None


def _part_sizes(job: Job, settings: TrainSettings, replicas: Replicas, *, drop_last: bool) -> set[int]:
    """Return the sizes of micro-batches, in samples or packed sequences, over all epochs and processes.

    For packed sequences only the first epoch is counted; with windows, samples are counted.

    Raises:
        InputError: If an epoch has no batch.
    """
    size, lengths, offsets = settings.batch_size, set[int](), offsets_of(job.samples)
    modality, kept = modality_of(job.samples), kept_of(job.samples)
    windows = job.window and Windows(len(job.samples.labels), *job.window, settings.seed, offsets, kept)
    for epoch in range(settings.epochs if windows else 1):
        these, unit = {length for _, length in windows.lengths(epoch)} if windows else set(), modality.unit
        if not windows:
            order = only(with_rows(offsets, shuffled(len(job.samples), settings.seed, epoch)), kept)
            these, unit = {len(arranged(modality, job.samples, job.inputs, order, 1))}, batched_unit(modality)
        if drop_last and max(these) < size:
            where = " of a window of --memory-budget" if job.window else ""
            raise InputError(
                f"--drop-last leaves nothing to train on: {max(these):,} {unit}{where} are fewer than a batch of {size:,}. "
                f"Leave it out, or choose a smaller --batch-size."
            )
        lengths |= these
    batches = {size for length in lengths if length >= size}
    batches |= set() if drop_last else {length % size for length in lengths} - {0}
    most = -(-size // settings.grad_accum_steps)
    parts = [part for batch in batches for part in np.array_split(np.arange(batch), -(-batch // most))]
    ranks = [Replicas(rank, replicas.world) for rank in range(replicas.world)]
    return {len(rank.share(part)[0]) for part in parts for rank in ranks}


def _refuse_size(
    job: Job, settings: TrainSettings, replicas: Replicas, error: InputError, run: Callable[[int], None]
) -> None:
    """Raise InputError with a remedy if the student fails only on a small micro-batch."""
    sizes = _part_sizes(job, settings, replicas, drop_last=False)
    smallest = min(_part_sizes(job, settings, replicas, drop_last=settings.drop_last))
    larger = next((size for size in sorted(sizes) if size > smallest), 2 * smallest)
    try:
        run(larger)
    except InputError:
        return
    samples, unit = len(job.samples), modality_of(job.samples).unit
    how = f"{samples:,} {unit} in batches of {settings.batch_size:,}"
    how += f" {batched_unit(modality_of(job.samples))}" * (batched_unit(modality_of(job.samples)) != unit)
    how += f" of {settings.grad_accum_steps} micro-batches" * (settings.grad_accum_steps > 1)
    how += f" over {replicas.world} processes" * (replicas.world > 1)
    how += " in windows of --memory-budget" * (job.window is not None)
    reason = error.__cause__ or error
    remedy = "Choose a larger --batch-size" + " or fewer --grad-accum-steps" * (settings.grad_accum_steps > 1)
    left = not settings.drop_last and samples >= settings.batch_size
    if left and min(_part_sizes(job, settings, replicas, drop_last=True)) > smallest:
        remedy = "Leave out the smaller last batch with --drop-last, or choose another --batch-size"
    raise InputError(
        f"the student cannot be trained on {counted(smallest, 'sample')} at a time ({type(reason).__name__}: {first_line(reason)}), the "
        f"smallest micro-batch of {how}. {remedy}."
    ) from error


def _run(
    stepper: Stepper,
    student: nn.Module,
    samples: Samples,
    inputs: Inputs,
    view: View,
    ids: Ids,
    count: int,
    device: torch.device,
) -> None:
    """Run the student on `count` samples: those in `ids`, repeated if there are fewer."""
    modality = modality_of(samples)
    with explain_oom(count):
        (shown,) = modality.renderer(samples, [inputs], workers=0).batches(view, [ids])
        rows = modality.row_labels(samples, view, ids)
        mask = shown.kept(rows, 0)
        keep = None if mask is None else to_device(padded(mask, count), device)
        chunks = stepper.rows(student, inputs.on(padded(shown.inputs[0], count), device), keep)
        shapes = [chunk.shape for chunk in chunks]  # keeping the logits could take too much memory
    expected, found = count if keep is None else int(keep.sum()), sum(rows for rows, _ in shapes)
    if found != expected:
        classes = len(samples.classes)
        raise InputError(
            f"the student must return logits [B, {classes}] with {expected} rows, found a tensor {[found, classes]}"
        )


@contextmanager
def _undisturbed(model: nn.Module, device: torch.device) -> Iterator[nn.Module]:
    """Yield a copy of a network, and restore all random number states; if it cannot be copied, its buffers are restored instead."""
    python, numbers = random.getstate(), np.random.get_state()  # noqa: NPY002  (a data set or network may draw from it)
    kept: list[tuple[Tensor, Tensor]] = []
    modes = [(part, part.training) for part in model.modules()]
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            student: Any = copy.deepcopy(model)
        except Exception:  # noqa: BLE001  (copying a user's module may raise anything)
            student, kept = model, [(buffer, buffer.clone()) for buffer in model.buffers()]
        try:
            yield student
        finally:
            for buffer, before in kept:
                buffer.data.copy_(before)
            for part, training in modes:
                part.training = training
            random.setstate(python)
            np.random.set_state(numbers)  # noqa: NPY002


@contextmanager
def _named(where: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}{error}") from error
