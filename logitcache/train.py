"""`logitcache train`: train a student from a cache, beside a live teacher, or from labels alone.

    dataset ─(sample, view)→ augmentation ─→ student ─┐
    store ─→ reader ─→ decode ─→ refine ──────────────┴→ loss

Batches, their order and every random number are functions of (seed, epoch), so the three differ in nothing but where
the teacher's logits come from.
"""

import io
import json
import pickle
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from logitcache.answers import Answers, CachedAnswers, LabelsOnly, LiveAnswers, live_teacher_of, teacher_classes
from logitcache.contract import check_pixels, recorded_data
from logitcache.data import ImageSet, Rendered, Renderer, held_out_split, load_data, preprocessing_for
from logitcache.encoding import FullEncoding
from logitcache.errors import CacheMismatchError, InputError, first_line
from logitcache.evaluate import evaluate, for_evaluation
from logitcache.methods import METHODS, Objective, make_objective
from logitcache.models import Network, load_network, save_weights
from logitcache.optimize import learning_rate, make_optimizer
from logitcache.progress import OnProgress, Progress, silent
from logitcache.rundir import RunDirectory, free_name
from logitcache.store import Cache, open_cache
from logitcache.teacher import pick_device
from logitcache.views import View, make_views
from logitcache.views.geometry import Preprocessing

__all__ = ["RunResult", "train_student"]

_CHECKED_ROWS = 64  # rendered again and compared with their digests before each epoch
_AGREEMENT_ROWS = 2048


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run left behind.

    Attributes:
        out: Its directory.
        student: The trained network.
        results: What came out, as in run.json.
    """

    out: Path
    student: nn.Module
    results: dict[str, Any]


def train_student(
    *,
    student: str | nn.Module,
    cache: str | Path | Cache | None = None,
    method: str = "kd",
    parameters: Mapping[str, float] | None = None,
    standardize: bool = False,
    ce_weight: float | None = None,
    kd_weight: float | None = None,
    kd_warmup: float | None = None,
    student_weights: str | None = None,
    live_teacher: bool | nn.Module = False,
    teacher_weights: str | None = None,
    data: str | ImageSet | None = None,
    test_data: str | ImageSet | None = None,
    augment: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | None = None,
    crop_pct: float | None = None,
    epochs: int = 240,
    batch_size: int = 64,
    opt: str = "sgd",
    lr: float = 0.05,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    sched: str = "step",
    warmup_epochs: int = 0,
    decay_milestones: Sequence[int] | None = None,
    decay_rate: float = 0.1,
    amp: bool = False,
    seed: int = 0,
    device: str = "auto",
    workers: int | None = None,
    resume: bool = False,
    out: str | Path | None = None,
    on_progress: OnProgress = silent,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> RunResult:
    """Train a student. The defaults are the CIFAR-100 recipe of the papers (mdistiller's): 240 epochs, batches of 64, SGD.

    Args:
        student: Name of a network (`models.load_network`), or a module.
        cache: Where the teacher's logits are. None trains from labels alone (method `ce`, with `data`).
        method: A key of `methods.METHODS`.
        parameters: The method's own parameters; what is not named keeps the paper's default.
        standardize: Whether logits are z-scored before the method sees them.
        ce_weight: Weight of cross-entropy; None takes the method's.
        kd_weight: Weight of the distillation term; None takes the method's.
        kd_warmup: Share of the epochs over which that weight grows from 0; None takes the method's.
        student_weights: File of weights to begin with.
        live_teacher: Run the teacher in every step, instead of reading what it said; True builds the one the cache
            names.
        teacher_weights: Where the live teacher's weights are, if not where the dump found them.
        data: The cache's data set, if it is not where the dump found it.
        test_data: Images to evaluate on after each epoch; None takes the test split of a named data set.
        augment: Recipe of the views; only without a cache, which knows its own.
        mean: Of the student's input; None takes the weights', or the teacher's.
        std: Deviation, likewise.
        image_size: The student's input in pixels; None takes the weights', or the teacher's.
        crop_pct: Share of the shorter side kept of an image that is resized.
        epochs: Passes over the data set; epoch e shows view e mod views.
        batch_size: Samples of a step.
        opt: `sgd` (Nesterov off) or `adamw`.
        lr: Highest learning rate.
        momentum: Of SGD.
        weight_decay: Of every parameter.
        sched: `step` (times `decay_rate` after each milestone) or `cosine` (to 0, every step).
        warmup_epochs: Epochs over which the rate grows linearly.
        decay_milestones: Epochs after which the rate falls; None: 62.5, 75 and 87.5 % of them, which is 150, 180 and
        210 of 240.
        decay_rate: Factor of a fall.
        amp: Whether the student runs under bfloat16 autocast.
        seed: Of the student's weights and of the order of samples.
        device: `auto`, `cpu`, `cuda`, ...
        workers: Processes that decode images; None chooses by the data.
        resume: Whether to continue the run in `out`; what follows is what an unbroken run would have given.
        out: Directory of the run; None makes a new one below `runs/`.
        on_progress: Called after every step.
        on_epoch: Called with the metrics of every epoch.

    Raises:
        LogitCacheError: See its kinds; nothing is trained on data, pixels or logits that are not those of the cache.
    """
    settings = _settings({name: value for name, value in locals().items() if name in _SETTINGS})
    objective = make_objective(
        method, parameters or {}, standardize=standardize, ce_weight=ce_weight, kd_weight=kd_weight, warmup=kd_warmup
    )
    opened = open_cache(cache) if isinstance(cache, str | Path) else cache
    _refuse_nonsense(
        opened, method, data, augment, live_teacher=bool(live_teacher), epochs=epochs, batch_size=batch_size
    )
    where = pick_device(device)
    if opened:
        images, shown = recorded_data(opened, data), [View.from_json(entry) for entry in opened.manifest.views]
        recorded = opened.manifest.preprocessing
    else:
        assert data is not None  # refused above
        images = load_data(data) if isinstance(data, str) else data
        shown, recorded = list(make_views(augment or "none", epochs, seed)), {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = load_network(student, len(images.classes), student_weights)
    known = {
        **{name: recorded.get(name) for name in ("mean", "std", "image_size", "crop_pct")},
        **network.preprocessing,
    }
    eyes = preprocessing_for(
        images,
        shown[0].recipe,
        mean=mean or known["mean"],
        std=std or known["std"],
        image_size=image_size or known["image_size"],
        crop_pct=crop_pct or known["crop_pct"],
    )
    if data is None and opened:
        data = opened.manifest.data["spec"]
    test = _test_images(test_data, data, images)
    model = network.module.to(where)
    answers = _answers(opened, objective, live_teacher, teacher_weights, where)
    run = RunDirectory(
        Path(out) if out else free_name(Path("runs"), f"{method}-{network.name}".replace(":", "-")),
        settings,
        _facts(opened, answers.name, network, eyes, where),
        resume=resume,
    )
    loop = _Loop(model, objective, answers, images, eyes, test, where, settings, run, workers, on_progress, on_epoch)
    results = run.results
    if results is None:
        try:
            results = loop.run(shown, opened)
        finally:
            answers.close()
        notes = {
            "network": network.name,
            "classes": list(images.classes),
            "method": method,
            "preprocessing": _portable(eyes),
        }
        save_weights(model.state_dict(), run.path / "student.safetensors", notes)
        run.finish(results)
    else:
        model.load_state_dict(
            load_network(student, len(images.classes), str(run.path / "student.safetensors")).module.state_dict()
        )
    return RunResult(run.path, model.eval(), results)


_SETTINGS = frozenset(
    [
        "amp",
        "augment",
        "batch_size",
        "cache",
        "ce_weight",
        "crop_pct",
        "data",
        "decay_milestones",
        "decay_rate",
        "device",
        "epochs",
        "image_size",
        "kd_warmup",
        "kd_weight",
        "live_teacher",
        "lr",
        "mean",
        "method",
        "momentum",
        "opt",
        "parameters",
        "sched",
        "seed",
        "standardize",
        "std",
        "student",
        "student_weights",
        "teacher_weights",
        "test_data",
        "warmup_epochs",
        "weight_decay",
    ]
)


def _settings(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return what decides the result, as JSON: objects by the name of their type."""

    def plain(value: Any) -> Any:
        if isinstance(value, Cache):
            return str(value.path)
        if isinstance(value, Mapping):
            return dict(value)
        if value is None or isinstance(value, bool | int | float | str | list | tuple):
            return value
        return str(value) if isinstance(value, Path) else type(value).__name__

    found: dict[str, Any] = json.loads(json.dumps({name: plain(value) for name, value in sorted(arguments.items())}))
    return found


def _portable(eyes: Preprocessing) -> dict[str, Any]:
    return {name: value for name, value in eyes.to_json().items() if name != "resize"}


def _facts(
    cache: Cache | None, logits: str, network: Network, eyes: Preprocessing, device: torch.device
) -> dict[str, Any]:
    """Return what else a run records: where it came from and what it ran on. `logits` are cached, live or unused."""
    encoded = None
    if cache:
        slug = cache.teachers[0]
        columns = FullEncoding.from_json(cache.manifest.encoding).columns(len(cache.manifest.classes))
        row_bytes = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in columns.values())
        encoded = {
            "fingerprint": cache.fingerprint,
            "teacher": slug,
            "views": len(cache.manifest.views),
            "bytes_per_row": row_bytes,
            "logits": logits,
        }
    return {
        "cache": encoded,
        "student": {
            "name": network.name,
            "parameters": sum(p.numel() for p in network.module.parameters()),
            "preprocessing": eyes.to_json(),
        },
        "software": {name: version(name) for name in ("logitcache", "numpy", "torch", "torchvision")}
        | {"python": platform.python_version()},
        "hardware": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
        },
    }


def _refuse_nonsense(
    cache: Cache | None,
    method: str,
    data: Any,
    augment: str | None,
    *,
    live_teacher: bool,
    epochs: int,
    batch_size: int,
) -> None:
    if epochs < 1 or batch_size < 1:
        raise InputError(f"epochs and batch size must be 1 or more, not {epochs} and {batch_size}")
    if cache is None and METHODS[method].loss is not None:
        raise InputError(
            f"method {method} needs a teacher's logits: name a cache. Without one, only --method ce trains, with --data."
        )
    if cache is None and live_teacher:
        raise InputError("a live teacher needs a cache too: it says which teacher, data and views. Name one.")
    if cache is None and data is None:
        raise InputError("name a cache, or with --method ce a data set (--data)")
    if cache is not None and augment is not None:
        raise InputError(
            f"{cache.path} has its own views ({cache.manifest.views[0]['recipe']}): leave out --augment, or dump again with it."
        )


def _test_images(test_data: str | ImageSet | None, data: Any, images: ImageSet) -> ImageSet | None:
    if test_data is None and isinstance(data, str):
        test_data = held_out_split(data)
    if test_data is None:
        return None
    test = load_data(test_data) if isinstance(test_data, str) else test_data
    if len(test.classes) > len(images.classes) or tuple(test.classes) != tuple(images.classes[: len(test.classes)]):
        raise CacheMismatchError(
            f"the test data has other classes ({', '.join(test.classes[:5])}, ...; {len(test.classes)}) than the training data "
            f"({', '.join(images.classes[:5])}, ...; {len(images.classes)}). Give one of the same classes with --test-data."
        )
    return test


def _answers(
    cache: Cache | None,
    objective: Objective,
    live_teacher: bool | nn.Module,
    teacher_weights: str | None,
    device: torch.device,
) -> Answers:
    if cache is None or objective.loss is None:
        return LabelsOnly()
    if live_teacher is False:
        return CachedAnswers(cache, device)
    module = live_teacher if isinstance(live_teacher, nn.Module) else None
    return LiveAnswers(live_teacher_of(cache, module, teacher_weights, device))


class _Loop:
    """The epochs of one run."""

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        answers: Answers,
        images: ImageSet,
        eyes: Preprocessing,
        test: ImageSet | None,
        device: torch.device,
        settings: dict[str, Any],
        run: RunDirectory,
        workers: int | None,
        on_progress: OnProgress,
        on_epoch: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.model, self.objective, self.answers, self.images, self.eyes = model, objective, answers, images, eyes
        self.device, self.settings, self.directory = device, settings, run
        self.on_progress, self.on_epoch = on_progress, on_epoch
        self.epochs, self.batch_size, self.seed = settings["epochs"], settings["batch_size"], settings["seed"]
        self.optimizer = make_optimizer(model, settings)
        self.renderer = Renderer(images, [eyes, *answers.eyes], workers=workers)
        self.test = test
        self.workers = workers

    def run(self, views: Sequence[View], cache: Cache | None) -> dict[str, Any]:
        """Train all epochs that are left, and measure the student."""
        history = self._taken_up()
        for epoch in range(len(history), self.epochs):
            view, upcoming = views[epoch % len(views)], views[(epoch + 1) % len(views)]
            if cache:
                check_pixels(cache, self.images, view, self._sample(epoch))
            metrics = {"epoch": epoch + 1, "view": view.index, **self._epoch(epoch, view, upcoming), **self._tested()}
            history.append(metrics)
            self.directory.epoch_done(metrics, self._packed(history))
            if self.on_epoch:
                self.on_epoch(metrics)
        last = history[-1]
        kept = ("loss", "train_accuracy", "test_accuracy", "test_loss")
        results: dict[str, Any] = {name: last[name] for name in kept if name in last}
        if "test_accuracy" in last:
            results["best_test_accuracy"] = max(metrics["test_accuracy"] for metrics in history)
        results["seconds_per_epoch"] = sum(metrics["seconds"] for metrics in history) / len(history)
        return results | (self._beside_teacher(cache, views[0]) if cache else {})

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
            except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
                raise InputError(
                    f"the checkpoint of {self.directory.path} is damaged ({first_line(error)}). "
                    "Remove the folder and begin the run again."
                ) from error
            self.model.load_state_dict(state["student"])
            self.optimizer.load_state_dict(state["optimizer"])
            history = state["history"]
        self.directory.keep_metrics(len(history))
        return history

    def _epoch(self, epoch: int, view: View, upcoming: View) -> dict[str, Any]:
        """Train one pass; metrics are summed on the device and read once."""
        order = torch.randperm(
            len(self.images), generator=torch.Generator().manual_seed(_mixed(self.seed, epoch))
        ).numpy()
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        sums = torch.zeros(4, dtype=torch.float64, device=self.device)  # loss, ce, kd, right answers; weighted by rows
        self.model.train()
        started = time.perf_counter()
        self.answers.begin(view, upcoming)
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(_mixed(self.seed, epoch))  # dropout
            for step, batch in enumerate(self.renderer.batches(view, batches)):
                rate = learning_rate(self.settings, epoch, step, len(batches))
                sums += self._step(batch, rate, (epoch + 1) / self.epochs)
                done = step * self.batch_size + len(batch.samples)
                self.on_progress(Progress(f"epoch {epoch + 1}/{self.epochs}", done, len(order), "images"))
        loss, cross_entropy, distillation, right = (sums / len(order)).tolist()
        seconds = time.perf_counter() - started
        if not np.isfinite(loss):
            raise InputError(
                f"the loss is {loss} in epoch {epoch + 1}: training has diverged. Lower --lr, or add --warmup-epochs."
            )
        return {
            "lr": rate,
            "loss": loss,
            "ce": cross_entropy,
            "kd": distillation,
            "train_accuracy": right,
            "seconds": seconds,
            "images_per_second": len(order) / seconds,
        }

    def _step(self, batch: Rendered, rate: float, progress: float) -> Tensor:
        labels = torch.from_numpy(self.images.labels[batch.samples]).to(self.device)
        inputs = self.eyes.normalize(batch.pixels[0].to(self.device, non_blocking=True))
        teacher = self.answers.logits(batch)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings["amp"]):
            logits = self.model(inputs)
        logits = logits.float()
        loss, cross_entropy, distillation = self.objective(logits, teacher, labels, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()
        right = (logits.detach().argmax(1) == labels).float().mean()
        return torch.stack([loss.detach(), cross_entropy, distillation, right]).double() * len(labels)

    def _tested(self) -> dict[str, float]:
        if self.test is None:
            return {}
        eyes = for_evaluation(self.eyes, self.test)
        measured = evaluate(
            self.model, Renderer(self.test, [eyes], workers=self.workers), eyes, self.test.labels, self.device
        )
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
