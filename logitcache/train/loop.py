"""Training loop of one run. Batches, their order and every random number are functions of (seed, epoch).

    dataset ─(sample, view)→ augmentation ─→ student ─┐
    store ─→ reader ─→ decode ─→ refine ──────────────┴→ loss

An epoch uses one view, or the views of a pair, over which the objective is summed. If the rows of a view do not fit into memory, an epoch
is divided into **windows**: a few blocks at a time are drawn at random and shuffled together.
"""

import functools
import io
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcache.data import Ids, Inputs, Rendition, Samples, View, kept_of, modality_of, offsets_of
from logitcache.data.contract import check_inputs
from logitcache.data.optional import arranged, counted_offsets_of, divided
from logitcache.data.protocol import Renderer
from logitcache.errors import InputError, StoppedError, first_line
from logitcache.methods import SecondLabels
from logitcache.runs.directory import RunDirectory
from logitcache.runs.metrics import find_metric
from logitcache.runtime.device import explain_oom, to_device
from logitcache.runtime.progress import Callbacks, Progress
from logitcache.store import Cache, count_rows, rows_of, samples_of, with_rows
from logitcache.train.evaluate import Subject, evaluate
from logitcache.train.job import Job
from logitcache.train.keep import best_results, keep_best
from logitcache.train.optimize import learning_rate, progress_after
from logitcache.train.order import (
    Windows,
    mixed_seed,
    only,
    sampled,
    shuffled,
)
from logitcache.train.pull import record_pull
from logitcache.train.replay import StaticSteps
from logitcache.train.replicas import Replicas
from logitcache.train.settings import TrainSettings
from logitcache.train.step import SUMS, MicroBatch, Stepper
from logitcache.train.step_plan import StepPlan
from logitcache.train.targets import CachedTargets, SomeRows, Stretch, Targets, predicted_classes

__all__ = ["Loop"]

_AGREEMENT_SAMPLES = 2048
_AGREED_STEPS, _AGREED_SECONDS = 16, 2.0  # maximum interval at which several processes agree on whether to stop
_SEED_STRIDE = 0x9E3779B97F4A7C15  # difference between the dropout seeds of consecutive ranks

_RESULTS = (  # metrics of the last epoch that are recorded in the results of a run
    *("loss", "train_accuracy", "refined_rows", "test_accuracy", "test_top5_accuracy", "test_loss", "test_ece"),
    *("perplexity", "bits_per_byte", "kl_to_teacher", "test_teacher_agreement", "topk_overlap", "rouge_l"),
    *("ema_test_accuracy", "ema_test_top5_accuracy", "ema_test_loss", "ema_rouge_l"),
)

Blocks = tuple[int, ...] | None  # None for all


class Loop:
    """Training loop of one run."""

    def __init__(
        self,
        job: Job,
        settings: TrainSettings,
        stepper: Stepper,
        targets: Targets,
        plan: StepPlan,
        run: RunDirectory,
        replicas: Replicas,
        callbacks: Callbacks,
    ) -> None:
        self.job, self.settings, self.stepper, self.targets = job, settings, stepper, targets
        self.schedule = replace(settings, epochs=run.schedule_epochs or settings.epochs)
        self.samples, self.inputs, self.device, self.model = job.samples, job.inputs, job.device, stepper.model
        self.modality, self.offsets = modality_of(job.samples), offsets_of(job.samples)
        self.counted = counted_offsets_of(job.samples)
        self.directory, self.replicas, self.callbacks = run, replicas, callbacks
        self.kept, self.bounded = kept_of(job.samples), None
        if job.window is not None:
            rows, least = len(job.samples.labels), settings.batch_size if settings.drop_last else 1
            self.bounded = Windows(rows, *job.window, settings.seed, self.offsets, self._some, least)
        self.test: Subject | None = None
        self._beside: SomeRows | None = None  # teacher's rows of the held-out samples
        self._sums = torch.zeros(len(SUMS), dtype=torch.float64, device=self.device)  # metrics of the current epoch
        self._static: StaticSteps | None = None
        if plan.static:
            self._static = StaticSteps(job, settings, stepper, targets, replicas, plan, self._sums)
        self._save_whole: Callable[[], None] = lambda: None  # saves the state at the end of the steps of an epoch
        if job.test is not None:
            seen, view = self.modality.for_evaluation(job.inputs, job.test)
            self.test = Subject(job.test, view, seen, self._renderer(job.test, [seen]), job.names, job.completer)
            if job.cache is not None and job.held_out is not None:
                self.test = replace(self.test, view=job.epoch_views[0][0])
                held = rows_of(offsets_of(job.test), job.held_out)
                self._beside = SomeRows(job.cache, self.test.view, held, self.device)

    def run(self) -> dict[str, Any]:
        """Train the remaining epochs, and return the results of the run."""
        cache, epoch_views = self.job.cache, self.job.epoch_views
        if not any(part.training for part in self.model.modules()):
            self.model.train()  # otherwise each module keeps its mode, so that batch normalization may be frozen
        history, begun = self._load_checkpoint()
        networks = [self.inputs, *self.targets.preprocessing]
        renderers = [self._renderer(self.samples, networks) for _ in epoch_views[0]]
        for epoch in range(len(history), self.settings.epochs):
            views, upcoming = (epoch_views[one % len(epoch_views)] for one in (epoch, epoch + 1))
            if cache:
                for view in views:
                    check_inputs(cache, self.samples, view, sampled(self.settings.seed, epoch, len(self.samples)))
            shown = {"view": views[0].index} | ({"views": [view.index for view in views]} if len(views) > 1 else {})
            metrics = {"epoch": epoch + 1, **shown, **self._epoch(epoch, views, upcoming, renderers, history, begun)}
            metrics |= self._tested(epoch)
            if self.settings.keep_best is not False and self.replicas.leads:
                keep_best(self.job, self.stepper, self.directory.path, history, metrics)
            history.append(metrics)
            begun, over = {}, epoch + 1 == self.settings.epochs
            state = functools.partial(self._packed, history)
            saved = over or (epoch + 1) % self.settings.checkpoint_every == 0
            self.directory.epoch_done(metrics, state if saved else None)
            if self.replicas.leads:
                self.callbacks.on_epoch(metrics)
            if not over and self.replicas.largest(self.callbacks.should_stop())[0]:
                if not saved:
                    self.directory.save(state)
                self.replicas.wait()
                raise self._stopped(f"epoch {epoch + 1} of {self.settings.epochs}")
        self.replicas.align(self.model)
        return self._results(history)

    def _renderer(self, samples: Samples, inputs: Sequence[Inputs]) -> Renderer:
        return self.modality.renderer(samples, inputs, workers=self.settings.workers, device=self.device)

    def _results(self, history: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the results of the run, including the student's final agreement with its teacher."""
        last = history[-1]
        results: dict[str, Any] = {name: last[name] for name in _RESULTS if name in last} | best_results(
            self.job, history
        )
        results["headline"] = find_metric(self.modality.headline).to_json()
        results["seconds_per_epoch"] = sum(metrics["seconds"] for metrics in history) / len(history)
        return results | (self._beside_teacher(self.job.cache) if self.job.cache else {})

    def _packed(self, history: list[dict[str, Any]], **begun: Any) -> bytes:
        buffer = io.BytesIO()
        torch.save(self.stepper.state() | {"history": history, "begun": begun}, buffer)
        return buffer.getvalue()

    def _load_checkpoint(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Load the last checkpoint, if there is one, and return the metrics so far and the state of an unfinished epoch."""
        packed, history, begun = self.replicas.from_leader(self.directory.checkpoint), [], {}
        if packed is not None:
            try:
                state = torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)
                history, begun = state["history"], state["begun"]
                self.stepper.load(state)
            except Exception as error:  # torch may raise anything on a damaged pickle
                raise InputError(
                    f"the checkpoint of {self.directory.path} is damaged or from another version ({first_line(error)}). "
                    "Remove the folder and start the run again."
                ) from error
        self.directory.keep_metrics(history)
        return history, begun

    def _epoch(
        self,
        epoch: int,
        views: Sequence[View],
        upcoming: Sequence[View],
        renderers: Sequence[Renderer],
        history: list[dict[str, Any]],
        begun: dict[str, Any],
    ) -> dict[str, Any]:
        """Train one epoch, or the rest of an unfinished one (`begun`). Metrics are summed on the device and read once."""
        settings, windows = self.settings, self._windows(epoch)
        every = [batch for _, batches in windows for batch in batches]
        samples, steps = sum(map(len, every)), len(every)  # samples that have rows
        step, done, over = 0, 0, begun.get("step", 0)
        sums = self._sums.zero_()
        if begun and self.replicas.leads:
            sums += begun["sums"].to(self.device)
        before, taken, self._next_agreement = begun.get("seconds", 0.0), 0, 0
        started = time.perf_counter()
        with self._seeded(epoch, begun), explain_oom(settings.batch_size):
            for (stretch, later), (_, batches) in zip(
                self._stretches(epoch, views, upcoming, windows), windows, strict=True
            ):
                past = min(max(over - step, 0), len(batches))
                left, step, done = batches[past:], step + past, done + sum(map(len, batches[:past]))
                if not left:
                    continue
                self.targets.begin(stretch, later)
                rates = [learning_rate(self.schedule, epoch, one, steps) for one in range(step, step + len(left))]
                for batch in self._steps(epoch, views, left, rates, renderers):
                    step, done, taken = step + 1, done + len(batch), taken + 1
                    if step == 1 and epoch == 0 and self.replicas.leads:
                        record_pull(self.stepper.norms or {}, self.directory)
                    self.callbacks.on_step(
                        Progress(f"epoch {epoch + 1}/{settings.epochs}", done, samples, self.modality.unit)
                    )
                    if step < steps and self._should_stop(step, time.perf_counter() - started, taken):
                        self._save_within(history, step, sums, before + time.perf_counter() - started)
                        raise self._stopped(f"step {step} of {steps} of epoch {epoch + 1}")
        seconds = before + time.perf_counter() - started
        self._save_whole = functools.partial(self._save_within, history, steps, sums, seconds)
        metrics = self._means(epoch, sums, seconds, every)
        left_out = {"left_out": self._countable - samples} if settings.drop_last else {}
        rate = learning_rate(self.schedule, epoch, steps - 1, steps)
        return {"lr": rate, **metrics, **({"windows": len(windows)} if len(windows) > 1 else {}), **left_out}

    def _steps(
        self,
        epoch: int,
        views: Sequence[View],
        batches: Sequence[Ids],
        rates: Sequence[float],
        renderers: Sequence[Renderer],
    ) -> Iterator[Ids]:
        """Take a step on each batch, add its metrics to the sums of the epoch, and yield the batch."""
        progress = progress_after(epoch, self.schedule)
        if self._static is not None:
            yield from self._static.steps(views, batches, rates, progress, renderers)
            return
        for parts, batch, rate in zip(self._micro_batches(views, batches, renderers), batches, rates, strict=True):
            self._sums += self.stepper.step(parts, count_rows(self.counted, batch), rate, progress)
            yield batch

    def _stretches(
        self, epoch: int, views: Sequence[View], upcoming: Sequence[View], windows: Sequence[tuple[Blocks, Any]]
    ) -> Iterator[tuple[Stretch, Stretch]]:
        """Yield the stretch of each window and the next one; the last stretch of the last epoch is followed by itself."""
        following = None if self.bounded is None else self.bounded.first(epoch + 1)
        found = [Stretch(views, blocks) for blocks, _ in windows]
        last = Stretch(upcoming, following) if epoch + 1 < self.settings.epochs else found[-1]
        yield from pairwise([*found, last])

    @contextmanager
    def _seeded(self, epoch: int, begun: Mapping[str, Any]) -> Iterator[None]:
        """Seed dropout for an epoch, differently in each process, or restore the state of an unfinished epoch (`begun`)."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed((mixed_seed(self.settings.seed, epoch) + self.replicas.rank * _SEED_STRIDE) % 2**63)
            if begun and len(begun["numbers"]) == self.replicas.world:
                _set_random_states(begun["numbers"][self.replicas.rank], self.device)
            yield

    def _save_within(self, history: list[dict[str, Any]], step: int, sums: Tensor, seconds: float) -> None:
        """Save the state in the middle of an epoch. Every process must call this."""
        numbers, sums = self.replicas.gathered(_random_states(self.device)), self.replicas.summed(sums)
        begun = {"step": step, "sums": sums.cpu(), "numbers": numbers, "seconds": seconds}
        self.directory.save(functools.partial(self._packed, history, **begun))
        self.replicas.wait()

    def _means(self, epoch: int, sums: Tensor, seconds: float, batches: Sequence[Ids]) -> dict[str, float]:
        """Return the metrics of an epoch from their sums over rows. Metrics that do not apply to the method are NaN and are dropped."""
        rows, samples = count_rows(self.counted, self.kept), len(self.kept)
        if self.settings.drop_last:
            rows, samples = sum(count_rows(self.counted, batch) for batch in batches), sum(map(len, batches))
        means = dict(zip(SUMS, (self.replicas.summed(sums) / rows).tolist(), strict=True))
        if not np.isfinite(means["loss"]):
            raise InputError(
                f"the loss is {means['loss']} in epoch {epoch + 1}, so training has diverged. Lower --lr, or add --warmup-epochs."
            )
        found = {name: value for name, value in means.items() if not np.isnan(value)}
        return found | {"seconds": seconds, f"{self.modality.unit}_per_second": samples / seconds}

    def _should_stop(self, step: int, seconds: float, steps: int) -> bool:
        """Return whether to stop after this step. Several processes agree on this every few steps.

        Args:
            step: Number of completed steps in this epoch.
            seconds: Time since this process started or resumed the epoch.
            steps: Number of steps since then.
        """
        if self.replicas.world == 1:
            return self.callbacks.should_stop()
        if step < self._next_agreement:
            return False
        stop, pace = self.replicas.largest(self.callbacks.should_stop(), seconds / steps)
        self._next_agreement = step + max(1, min(_AGREED_STEPS, int(_AGREED_SECONDS / pace)))
        return stop > 0

    def _stopped(self, where: str) -> StoppedError:
        """Return the error that explains how to resume. The state must have been saved."""
        command = shlex.join(["logitcache", "train", "--resume", "--out", str(self.directory.path)])
        return StoppedError(f"stopped on request after {where}. Resume with:\n  {command}")

    def _micro_batches(
        self, views: Sequence[View], batches: Sequence[Ids], renderers: Sequence[Renderer]
    ) -> Iterator[list[list[MicroBatch]]]:
        """Render batches, and yield this process's shares of each batch's micro-batches, in every view."""
        size = -(-self.settings.batch_size // self.settings.grad_accum_steps)
        parts = [divided(self.modality, self.samples, self.inputs, batch, size) for batch in batches]
        shared = [[self.replicas.share(micro) for micro in micros] for micros in parts]
        flat = [ids for shares in shared for ids, _ in shares]
        streams = [renderer.batches(view, flat) for renderer, view in zip(renderers, views, strict=True)]
        rendered = zip(*streams, strict=True)
        for shares in shared:
            yield [
                [
                    self._micro_batch(position, views[position], batch, joins_only=not counted)
                    for position, batch in enumerate(next(rendered))
                ]
                for _, counted in shares
            ]

    def _micro_batch(self, position: int, view: View, batch: Rendition, *, joins_only: bool) -> MicroBatch:
        rows = self.modality.row_labels(self.samples, view, batch.samples)
        labels = to_device(rows.labels, self.device)
        second = rows.second and SecondLabels(*(to_device(one, self.device) for one in rows.second))
        mask = batch.kept(rows, 0)
        keep = None if mask is None else to_device(mask, self.device)
        inputs, logits = self.inputs.on(batch.inputs[0], self.device), self.targets.logits(position, batch, rows)
        offsets, sequences = offsets_of(self.samples), None
        if offsets is not None and self.stepper.couples_sequences:
            sequences = to_device(torch.from_numpy(samples_of(offsets, rows.ids)), self.device)
        return MicroBatch(inputs, keep, labels, second, logits, 0 if joins_only else len(rows.ids), sequences)

    @property
    def _countable(self) -> int:
        """Number of samples that have rows."""
        return len(with_rows(self.offsets, self.kept))

    def _windows(self, epoch: int) -> Sequence[tuple[Blocks, list[Ids]]]:
        """Return the windows of an epoch: a permutation of all samples or, if memory is bounded, of a few blocks at a time.

        Returns:
            For each window, its blocks of the cache (None for all) and the sample ids of its batches, without a smaller last batch if
            `drop_last` is set.
        """
        seed, size, found = self.settings.seed, self.settings.batch_size, list[tuple[Blocks, Ids]]()
        drop_last = self.settings.drop_last
        if self.bounded is None:
            order = with_rows(self.offsets, shuffled(len(self.samples), seed, epoch))
            found.append((None, order if self._some is None else only(order, self._some)))
        else:
            found += self.bounded.epoch(epoch)
        return [
            (blocks, arranged(self.modality, self.samples, self.inputs, ids, size, drop_last=drop_last))
            for blocks, ids in found
        ]

    @property
    def _some(self) -> Ids | None:
        """Samples to train on; None for all."""
        return self.kept if len(self.kept) < len(self.samples) else None

    def _tested(self, epoch: int) -> dict[str, float]:
        """Evaluate the student, and the moving average of its weights, on the test data.

        Raises:
            StoppedError: If a callback asked to stop; the state before the evaluation has been saved.
        """
        if self.test is None:
            return {}
        measure = functools.partial(
            evaluate,
            subject=self.test,
            predict=self.stepper.rows,
            device=self.device,
            replicas=self.replicas,
            ids=self.job.held_out,
            teacher=None if self._beside is None else self._beside.of,
            should_stop=self.callbacks.should_stop,
        )
        try:
            found = measure(self.model).metrics()
            averaged = {} if self.stepper.average is None else measure(self.stepper.average.module).metrics()
        except StoppedError as error:
            self._save_whole()
            raise self._stopped(f"the last step of epoch {epoch + 1}, before its evaluation") from error
        if averaged:
            kept = {"test_accuracy", "test_top5_accuracy", "rouge_l", self.modality.headline}
            found |= {f"ema_{name}": value for name, value in averaged.items() if name in kept}
        return found

    def _beside_teacher(self, cache: Cache) -> dict[str, float]:
        """Compare the student, in evaluation mode, with the teacher's stored logits on some samples of the first view."""
        count = min(_AGREEMENT_SAMPLES, len(self.kept))
        ids, view = self.kept[np.arange(count) * len(self.kept) // count], self.job.epoch_views[0][0]
        subject = Subject(self.samples, view, self.inputs, self._renderer(self.samples, [self.inputs]))
        student = evaluate(self.model, subject, self.stepper.rows, self.device, self.replicas, ids=ids)
        teacher = self.replicas.from_leader(lambda: self._predicted(cache, view, student.rows))
        return {"teacher_agreement": float((student.predictions == teacher).mean()), "agreement_rows": len(teacher)}

    def _predicted(self, cache: Cache, view: View, rows: Ids) -> NDArray[np.int64]:
        """Return the teacher's predictions, from memory if the view is loaded, else from the cache."""
        if isinstance(self.targets, CachedTargets):
            return self.targets.predicted(view, rows)
        return predicted_classes(cache, view, rows)


def _random_states(device: torch.device) -> list[Tensor]:
    """Return the states of the generators that dropout uses."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_random_states(numbers: Sequence[Tensor], device: torch.device) -> None:
    torch.set_rng_state(numbers[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(numbers[1], device)
