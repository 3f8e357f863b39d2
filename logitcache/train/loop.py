"""The epochs of one run: batches, their order and every random number are functions of (seed, epoch).

    dataset ─(sample, view)→ augmentation ─→ student ─┐
    store ─→ reader ─→ decode ─→ refine ──────────────┴→ loss

A **turn** is what an epoch shows: one view, or the views of a pair, over which the objective is summed. A **window** is a part of it:
where the rows of a view do not fit into memory, blocks are drawn in random order, a few at a time, and shuffled together.
"""

import io
import shlex
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcache.data import ImageSet, Rendered, Renderer, whole_of
from logitcache.data.contract import check_pixels
from logitcache.data.images.views import View
from logitcache.data.images.views.preprocessing import Preprocessing
from logitcache.errors import InputError, StoppedError, first_line
from logitcache.methods import SecondLabels
from logitcache.runs.directory import RunDirectory
from logitcache.runtime.device import saying_when_out_of_memory, to_device
from logitcache.runtime.progress import Callbacks, Progress
from logitcache.store import Cache
from logitcache.train.evaluate import evaluate, for_evaluation
from logitcache.train.optimize import learning_rate
from logitcache.train.order import first_window, mixed_seed, sampled, shuffled, windowed
from logitcache.train.replicas import Replicas
from logitcache.train.settings import TrainSettings
from logitcache.train.step import SUMS, Part, Stepper
from logitcache.train.targets import Answers, Shown, teacher_classes

__all__ = ["Loop"]

_AGREEMENT_ROWS = 2048
_AGREED_STEPS, _AGREED_SECONDS = 16, 2.0  # at most, between two questions of several processes whether to stop
_APART = 0x9E3779B97F4A7C15  # between the seeds of two processes' dropout

Turn = Sequence[View]
Blocks = tuple[int, ...] | None  # None: all


class Loop:
    """The epochs of one run."""

    def __init__(
        self,
        stepper: Stepper,
        answers: Answers,
        images: ImageSet,
        eyes: Preprocessing,
        test: ImageSet | None,
        device: torch.device,
        settings: TrainSettings,
        run: RunDirectory,
        replicas: Replicas,
        workers: int | None,
        window: tuple[int, int] | None,
        callbacks: Callbacks,
    ) -> None:
        self.stepper, self.answers, self.images, self.eyes = stepper, answers, images, eyes
        self.model, self.should_stop = stepper.model, callbacks.should_stop
        self.device, self.settings, self.directory, self.replicas = device, settings, run, replicas
        self.on_progress, self.on_epoch = callbacks.on_step, callbacks.on_epoch
        self.epochs, self.batch_size, self.seed = settings.epochs, settings.batch_size, settings.seed
        self.parts = settings.grad_accum_steps
        self.workers, self.window = workers, window
        self.test = test
        if test is not None:
            self.test_eyes = for_evaluation(eyes, test)
            self.test_renderer = Renderer(test, [self.test_eyes], workers=workers, device=device)

    def run(self, turns: Sequence[Turn], cache: Cache | None) -> dict[str, Any]:
        """Train all epochs that are left, and measure the student."""
        history, begun = self._taken_up()
        looks = [self.eyes, *self.answers.eyes]
        renderers = [Renderer(self.images, looks, workers=self.workers, device=self.device) for _ in turns[0]]
        for epoch in range(len(history), self.epochs):
            turn, upcoming = turns[epoch % len(turns)], turns[(epoch + 1) % len(turns)]
            if cache:
                for view in turn:
                    check_pixels(cache, self.images, view, sampled(self.seed, epoch, len(self.images)))
            shown = {"view": turn[0].index} | ({"views": [view.index for view in turn]} if len(turn) > 1 else {})
            metrics = {"epoch": epoch + 1, **shown, **self._epoch(epoch, turn, upcoming, renderers, history, begun)}
            metrics |= self._tested()
            history.append(metrics)
            begun = {}
            self.directory.epoch_done(metrics, self._packed(history))
            if self.replicas.leads:
                self.on_epoch(metrics)
            if epoch + 1 < self.epochs and self.replicas.largest(self.should_stop())[0]:
                self.replicas.wait()
                raise self._stopped(f"epoch {epoch + 1} of {self.epochs}")
        self.replicas.align(self.model)
        return self.replicas.from_leader(lambda: self._results(history, turns[0][0], cache))

    def _results(self, history: list[dict[str, Any]], view: View, cache: Cache | None) -> dict[str, Any]:
        """Sum up the epochs, and look at the student once more, beside its teacher."""
        last = history[-1]
        kept = ("loss", "train_accuracy", "refined_rows", "test_accuracy", "test_loss", "test_ece", "ema_test_accuracy")
        results: dict[str, Any] = {name: last[name] for name in kept if name in last}
        if "test_accuracy" in last:
            results["best_test_accuracy"] = max(metrics["test_accuracy"] for metrics in history)
        results["seconds_per_epoch"] = sum(metrics["seconds"] for metrics in history) / len(history)
        return results | (self._beside_teacher(cache, view) if cache else {})

    def _packed(self, history: list[dict[str, Any]], **begun: Any) -> bytes:
        buffer = io.BytesIO()
        torch.save(self.stepper.state() | {"history": history, "begun": begun}, buffer)
        return buffer.getvalue()

    def _taken_up(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Load the state that was saved last, where there is one: the metrics so far, and how far an epoch was."""
        packed, history, begun = self.replicas.from_leader(self.directory.checkpoint), [], {}
        if packed is not None:
            try:
                state = torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)
                history, begun = state["history"], state["begun"]
                self.stepper.load(state)
            except Exception as error:  # whatever a broken pickle makes torch stumble over
                raise InputError(
                    f"the checkpoint of {self.directory.path} is damaged or of another version ({first_line(error)}). "
                    "Remove the folder and begin the run again."
                ) from error
        self.directory.keep_metrics(history)
        return history, begun

    def _epoch(
        self,
        epoch: int,
        turn: Turn,
        upcoming: Turn,
        renderers: Sequence[Renderer],
        history: list[dict[str, Any]],
        begun: dict[str, Any],
    ) -> dict[str, Any]:
        """Train one pass, or what is left of one that was `begun`; metrics are summed on the device and read once."""
        windows = self._windows(epoch)
        following = self.window and first_window(len(self.images), *self.window, self.seed, epoch + 1)
        steps, step = sum(-(-len(order) // self.batch_size) for _, order in windows), 0
        done, over, sums = 0, begun.get("step", 0), torch.zeros(len(SUMS), dtype=torch.float64, device=self.device)
        if begun and self.replicas.leads:
            sums += begun["sums"].to(self.device)
        before, taken, self._next_agreement = begun.get("seconds", 0.0), 0, 0
        self.model.train()
        started = time.perf_counter()
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), saying_when_out_of_memory(self.batch_size):
            torch.manual_seed((mixed_seed(self.seed, epoch) + self.replicas.rank * _APART) % 2**63)  # dropout
            if begun and len(begun["numbers"]) == self.replicas.world:
                _set_numbers(begun["numbers"][self.replicas.rank], self.device)
            for number, (blocks, order) in enumerate(windows):
                last = number + 1 == len(windows)
                later = Shown(upcoming, following) if last else Shown(turn, windows[number + 1][0])
                batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
                past = min(max(over - step, 0), len(batches))
                left, step, done = batches[past:], step + past, done + sum(map(len, batches[:past]))
                if not left:
                    continue
                self.answers.begin(Shown(turn, blocks), later)
                for parts, batch in zip(self._parts(turn, left, renderers), left, strict=True):
                    rate = learning_rate(self.settings, epoch, step, steps)
                    sums += self.stepper.step(parts, len(batch), rate, (epoch + 1) / self.epochs)
                    step, done = step + 1, done + len(batch)
                    self.on_progress(Progress(f"epoch {epoch + 1}/{self.epochs}", done, len(self.images), "images"))
                    taken += 1
                    if step < steps and self._asked(step, time.perf_counter() - started, taken):
                        seconds = before + time.perf_counter() - started
                        numbers, sums = self.replicas.gathered(_numbers(self.device)), self.replicas.summed(sums)
                        state = self._packed(history, step=step, sums=sums.cpu(), numbers=numbers, seconds=seconds)
                        self.directory.save(state)
                        self.replicas.wait()
                        raise self._stopped(f"step {step} of {steps} of epoch {epoch + 1}")
        means = dict(zip(SUMS, (self.replicas.summed(sums) / len(self.images)).tolist(), strict=True))
        seconds = before + time.perf_counter() - started
        if not np.isfinite(means["loss"]):
            raise InputError(
                f"the loss is {means['loss']} in epoch {epoch + 1}: training has diverged. Lower --lr, or add --warmup-epochs."
            )
        # What the method has nothing to say of is NaN.
        means = {name: value for name, value in means.items() if not np.isnan(value)}
        speed = {"seconds": seconds, "images_per_second": len(self.images) / seconds}
        return {"lr": rate, **means, **speed, **({"windows": len(windows)} if len(windows) > 1 else {})}

    def _asked(self, step: int, seconds: float, steps: int) -> bool:
        """Say whether to stop after this step; several processes agree on it now and then.

        Args:
            step: Of this epoch, how many are over.
            seconds: Since this process took up the epoch.
            steps: It has taken since then.
        """
        if self.replicas.world == 1:
            return self.should_stop()
        if step < self._next_agreement:
            return False
        stop, pace = self.replicas.largest(self.should_stop(), seconds / steps)
        self._next_agreement = step + max(1, min(_AGREED_STEPS, int(_AGREED_SECONDS / pace)))
        return stop > 0

    def _stopped(self, where: str) -> StoppedError:
        """Say how to go on; the state was saved."""
        command = shlex.join(["logitcache", "train", "--resume", "--out", str(self.directory.path)])
        return StoppedError(f"stopped as asked after {where}. Go on with:\n  {command}")

    def _parts(
        self, turn: Turn, batches: Sequence[NDArray[np.int64]], renderers: Sequence[Renderer]
    ) -> Iterator[list[list[Part]]]:
        """Render batches: of each this process's shares of the micro-batches, in every view of the turn."""
        size = -(-self.batch_size // self.parts)
        divided = [
            [self.replicas.share(micro) for micro in np.array_split(batch, -(-len(batch) // size))] for batch in batches
        ]
        flat = [samples for shares in divided for samples, _ in shares]
        streams = [renderer.batches(view, flat) for renderer, view in zip(renderers, turn, strict=True)]
        rendered = zip(*streams, strict=True)
        for shares in divided:
            yield [
                [self._part(position, turn[position], batch, counted) for position, batch in enumerate(next(rendered))]
                for _, counted in shares
            ]

    def _part(self, position: int, view: View, batch: Rendered, counted: int) -> Part:
        labels = to_device(torch.from_numpy(self.images.labels[batch.samples]), self.device)
        inputs = self.eyes.normalize(batch.pixels[0].to(self.device, non_blocking=True))
        second, said = self._second(view, batch.samples), self.answers.logits(position, batch)
        return Part(inputs, labels, second, said, counted)

    def _windows(self, epoch: int) -> Sequence[tuple[Blocks, NDArray[np.int64]]]:
        """Order the samples of an epoch: a permutation of all, or of a few blocks after the other where memory is bounded.

        Returns:
            For each window the blocks of the cache that hold it (None: all), and sample ids.
        """
        if self.window is None:
            return [(None, shuffled(len(self.images), self.seed, epoch))]
        return windowed(len(self.images), *self.window, self.seed, epoch)

    def _second(self, view: View, samples: NDArray[np.int64]) -> SecondLabels | None:
        """Return the other labels of rows that a view mixes, or None where it mixes none."""
        whole, first = whole_of(self.images)
        mixed = view.mixed(samples + first, len(whole))
        if mixed is None:
            return None
        labels, weights = torch.from_numpy(whole.labels[mixed.partners]), torch.from_numpy(mixed.weights) / 256
        return SecondLabels(to_device(labels, self.device), to_device(weights.float(), self.device))

    def _tested(self) -> dict[str, float]:
        if self.test is None or not self.replicas.leads:
            return {}
        measured = evaluate(self.model, self.test_renderer, self.test_eyes, self.test.labels, self.device)
        found = {"test_accuracy": measured.accuracy, "test_loss": measured.loss, "test_ece": measured.ece}
        if self.stepper.average is not None:
            average = self.stepper.average.module
            measured = evaluate(average, self.test_renderer, self.test_eyes, self.test.labels, self.device)
            found["ema_test_accuracy"] = measured.accuracy
        return found

    def _beside_teacher(self, cache: Cache, view: View) -> dict[str, float]:
        """Compare the student, in evaluation mode, with what the teacher said about some rows of the first view."""
        count = min(_AGREEMENT_ROWS, len(self.images))
        samples = np.arange(count) * len(self.images) // count
        renderer = Renderer(self.images, [self.eyes], workers=self.workers)
        student = evaluate(self.model, renderer, self.eyes, self.images.labels, self.device, view=view, samples=samples)
        return {
            "teacher_agreement": float((student.predictions == teacher_classes(cache, view, samples)).mean()),
            "agreement_rows": count,
        }


def _numbers(device: torch.device) -> list[Tensor]:
    """Return where the random numbers of dropout are."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def _set_numbers(numbers: Sequence[Tensor], device: torch.device) -> None:
    torch.set_rng_state(numbers[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(numbers[1], device)
