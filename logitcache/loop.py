"""The epochs of one run: batches, their order and every random number are functions of (seed, epoch).

    dataset ─(sample, view)→ augmentation ─→ student ─┐
    store ─→ reader ─→ decode ─→ refine ──────────────┴→ loss

A **turn** is what an epoch shows: one view, or the views of a pair, over which the objective is summed. A **window** is a part of it:
where the rows of a view do not fit into memory, blocks are drawn in random order, a few at a time, and shuffled together.
"""

import functools
import io
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from logitcache.answers import Answers, Shown, teacher_classes
from logitcache.contract import check_pixels
from logitcache.data import ImageSet, Rendered, Renderer, whole_of
from logitcache.device import saying_when_out_of_memory
from logitcache.errors import InputError, first_line
from logitcache.evaluate import evaluate, for_evaluation
from logitcache.methods import Objective, SecondLabels
from logitcache.optimize import learning_rate
from logitcache.progress import OnProgress, Progress
from logitcache.rundir import RunDirectory
from logitcache.store import Cache
from logitcache.views import View
from logitcache.views.geometry import Preprocessing

__all__ = ["Loop"]

_CHECKED_ROWS = 64  # rendered again and compared with their digests before each epoch
_AGREEMENT_ROWS = 2048
_SUMS = ("loss", "ce", "kd", "train_accuracy", "refined_rows", "unranked_rows")

Turn = Sequence[View]
Blocks = tuple[int, ...] | None  # None: all


class Loop:
    """The epochs of one run."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        objective: Objective,
        answers: Answers,
        images: ImageSet,
        eyes: Preprocessing,
        test: ImageSet | None,
        device: torch.device,
        settings: dict[str, Any],
        run: RunDirectory,
        workers: int | None,
        window: tuple[int, int] | None,
        on_progress: OnProgress,
        on_epoch: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.model, self.objective, self.answers, self.images, self.eyes = model, objective, answers, images, eyes
        self.device, self.settings, self.directory = device, settings, run
        self.on_progress, self.on_epoch = on_progress, on_epoch
        self.epochs, self.batch_size, self.seed = settings["epochs"], settings["batch_size"], settings["seed"]
        self.optimizer = optimizer
        self.workers, self.window = workers, window
        self.test = test
        if test is not None:
            self.test_eyes = for_evaluation(eyes, test)
            self.test_renderer = Renderer(test, [self.test_eyes], workers=workers)

    def run(self, turns: Sequence[Turn], cache: Cache | None) -> dict[str, Any]:
        """Train all epochs that are left, and measure the student."""
        history = self._taken_up()
        pinned = self.device.type == "cuda"
        looks = [self.eyes, *self.answers.eyes]
        renderers = [Renderer(self.images, looks, workers=self.workers, pinned=pinned) for _ in turns[0]]
        for epoch in range(len(history), self.epochs):
            turn, upcoming = turns[epoch % len(turns)], turns[(epoch + 1) % len(turns)]
            if cache:
                for view in turn:
                    check_pixels(cache, self.images, view, self._sample(epoch))
            shown = {"view": turn[0].index} | ({"views": [view.index for view in turn]} if len(turn) > 1 else {})
            metrics = {"epoch": epoch + 1, **shown, **self._epoch(epoch, turn, upcoming, renderers), **self._tested()}
            history.append(metrics)
            self.directory.epoch_done(metrics, self._packed(history))
            if self.on_epoch:
                self.on_epoch(metrics)
        last = history[-1]
        kept = ("loss", "train_accuracy", "refined_rows", "test_accuracy", "test_loss")
        results: dict[str, Any] = {name: last[name] for name in kept if name in last}
        if "test_accuracy" in last:
            results["best_test_accuracy"] = max(metrics["test_accuracy"] for metrics in history)
        results["seconds_per_epoch"] = sum(metrics["seconds"] for metrics in history) / len(history)
        return results | (self._beside_teacher(cache, turns[0][0]) if cache else {})

    def _packed(self, history: list[dict[str, Any]]) -> bytes:
        buffer = io.BytesIO()
        torch.save(
            {"student": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "history": history}, buffer
        )
        return buffer.getvalue()

    def _taken_up(self) -> list[dict[str, Any]]:
        """Load the state of the last whole epoch, where there is one, and return the metrics so far."""
        packed, history = self.directory.checkpoint(), []
        if packed is not None:
            try:
                state = torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)
            except Exception as error:  # whatever a broken pickle makes torch stumble over
                raise InputError(
                    f"the checkpoint of {self.directory.path} is damaged ({first_line(error)}). "
                    "Remove the folder and begin the run again."
                ) from error
            self.model.load_state_dict(state["student"])
            self.optimizer.load_state_dict(state["optimizer"])
            history = state["history"]
        self.directory.keep_metrics(history)
        return history

    def _epoch(self, epoch: int, turn: Turn, upcoming: Turn, renderers: Sequence[Renderer]) -> dict[str, Any]:
        """Train one pass; metrics are summed on the device and read once."""
        windows = self._windows(epoch)
        following = self._drawn(torch.Generator().manual_seed(_mixed(self.seed, epoch + 1)))[0]
        steps, step, done = sum(-(-len(order) // self.batch_size) for _, order in windows), 0, 0
        sums = torch.zeros(len(_SUMS), dtype=torch.float64, device=self.device)  # weighted by rows
        self.model.train()
        started = time.perf_counter()
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), saying_when_out_of_memory(self.batch_size):
            torch.manual_seed(_mixed(self.seed, epoch))  # dropout
            for number, (blocks, order) in enumerate(windows):
                last = number + 1 == len(windows)
                later = Shown(upcoming, following) if last else Shown(turn, windows[number + 1][0])
                self.answers.begin(Shown(turn, blocks), later)
                batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
                streams = [renderer.batches(view, batches) for renderer, view in zip(renderers, turn, strict=True)]
                for shown in zip(*streams, strict=True):
                    rate = learning_rate(self.settings, epoch, step, steps)
                    sums += self._step(turn, shown, rate, (epoch + 1) / self.epochs)
                    step, done = step + 1, done + len(shown[0].samples)
                    self.on_progress(Progress(f"epoch {epoch + 1}/{self.epochs}", done, len(self.images), "images"))
        means = dict(zip(_SUMS, (sums / len(self.images)).tolist(), strict=True))
        seconds = time.perf_counter() - started
        if not np.isfinite(means["loss"]):
            raise InputError(
                f"the loss is {means['loss']} in epoch {epoch + 1}: training has diverged. Lower --lr, or add --warmup-epochs."
            )
        # What the method has nothing to say of is NaN.
        means = {name: value for name, value in means.items() if not np.isnan(value)}
        speed = {"seconds": seconds, "images_per_second": len(self.images) / seconds}
        return {"lr": rate, **means, **speed, **({"windows": len(windows)} if len(windows) > 1 else {})}

    def _windows(self, epoch: int) -> list[tuple[Blocks, NDArray[np.int64]]]:
        """Order the samples of an epoch: a permutation of all, or of a few blocks after the other where memory is bounded.

        Returns:
            For each window the blocks of the cache that hold it (None: all), and sample ids.
        """
        random = torch.Generator().manual_seed(_mixed(self.seed, epoch))
        windows = []
        for blocks in self._drawn(random):
            held = self._held(blocks)
            windows.append((blocks, held[torch.randperm(len(held), generator=random).numpy()]))
        return windows

    def _drawn(self, random: torch.Generator) -> list[Blocks]:
        """Draw the blocks of every window of an epoch."""
        if self.window is None:
            return [None]
        size, count = self.window
        blocks = torch.randperm(-(-len(self.images) // size), generator=random).tolist()
        return [tuple(blocks[start : start + count]) for start in range(0, len(blocks), count)]

    def _held(self, blocks: Blocks) -> NDArray[np.int64]:
        """Return the samples of some blocks, or of all."""
        if blocks is None or self.window is None:
            return np.arange(len(self.images))
        size = self.window[0]
        return np.concatenate([np.arange(block * size, min((block + 1) * size, len(self.images))) for block in blocks])

    def _step(self, turn: Turn, shown: Sequence[Rendered], rate: float, progress: float) -> Tensor:
        """Take a step on a batch, in one view or summed over those of a pair; return what `_SUMS` names, times rows."""
        labels = torch.from_numpy(self.images.labels[shown[0].samples]).to(self.device)
        found = [
            self._forward(position, batch, labels, self._second(view, batch.samples), progress)
            for position, (view, batch) in enumerate(zip(turn, shown, strict=True))
        ]
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(functools.reduce(torch.add, [total for total, _ in found]))
        self.optimizer.step()
        summed, averaged = (torch.stack([part[i] for _, part in found]) for i in (0, 1))
        return torch.cat([summed.sum(0), averaged.mean(0)]).double() * len(labels)

    def _forward(
        self, position: int, batch: Rendered, labels: Tensor, second: SecondLabels | None, progress: float
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Evaluate the objective in one view: its value, then its terms to be summed and shares to be averaged over views."""
        inputs = self.eyes.normalize(batch.pixels[0].to(self.device, non_blocking=True))
        teacher = self.answers.logits(position, batch)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings["amp"]):
            logits = self.model(inputs)
        logits = logits.float()
        terms = self.objective(logits, teacher, labels, progress, second)
        right = (logits.detach().argmax(1) == labels).float().mean()
        return terms.total, (
            torch.stack([terms.total.detach(), terms.ce, terms.kd]),
            torch.stack([right, terms.refined, terms.unranked]),
        )

    def _second(self, view: View, samples: NDArray[np.int64]) -> SecondLabels | None:
        """Return the other labels of rows that a view mixes, or None where it mixes none."""
        whole, first = whole_of(self.images)
        mixed = view.mixed(samples + first, len(whole))
        if mixed is None:
            return None
        labels, weights = torch.from_numpy(whole.labels[mixed.partners]), torch.from_numpy(mixed.weights) / 256
        return SecondLabels(labels.to(self.device), weights.float().to(self.device))

    def _tested(self) -> dict[str, float]:
        if self.test is None:
            return {}
        measured = evaluate(self.model, self.test_renderer, self.test_eyes, self.test.labels, self.device)
        return {"test_accuracy": measured.accuracy, "test_loss": measured.loss}

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

    def _sample(self, epoch: int) -> NDArray[np.int64]:
        generator = np.random.Generator(np.random.Philox(key=_mixed(self.seed, epoch)))
        return np.unique(generator.integers(0, len(self.images), _CHECKED_ROWS))


def _mixed(seed: int, epoch: int) -> int:
    """Derive the seed of an epoch: neighbouring seeds and epochs never meet."""
    return (seed * 1_000_003 + epoch) % 2**63
