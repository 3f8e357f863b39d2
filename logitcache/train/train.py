"""`logitcache train`: train a student from a cache, beside a live teacher, or from labels alone.

    dataset ─(sample, view)→ augmentation ─→ student ─┐
    store ─→ reader ─→ decode ─→ refine ──────────────┴→ loss

Batches, their order and every random number are functions of (seed, epoch), so the three differ in nothing but where
the teacher's logits come from.
"""

import contextlib
import json
import platform
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from logitcache.data import Inputs, Samples, View, as_samples, held_out_split, modality_of
from logitcache.data.contract import cache_views, recorded_data
from logitcache.errors import CacheMismatchError, InputError
from logitcache.methods import METHODS, MethodLike, Objective, TemperatureChoice, make_objective, method_name
from logitcache.models import Network, read_weights, save_weights
from logitcache.runs.directory import FollowedRun, RunDirectory, free_name
from logitcache.runs.metrics import find_metric
from logitcache.runtime.device import pick_device
from logitcache.runtime.files import local_path
from logitcache.runtime.progress import OnProgress, silent
from logitcache.store import Cache, classes_to_json, open_cache
from logitcache.teachers.recorded import live_teacher_of
from logitcache.train.loop import Loop
from logitcache.train.order import epoch_views
from logitcache.train.replicas import Replicas, join_replicas
from logitcache.train.step import Stepper
from logitcache.train.targets import CachedTargets, LabelsOnly, LiveTargets, Targets

__all__ = ["RunResult", "train_student"]


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
    teacher: str | None = None,
    method: MethodLike = "kd",
    preset: str | None = None,
    refine: str | None = None,
    standardize: bool | None = None,
    temperature: TemperatureChoice | None = None,
    tail: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    ce_weight: float | None = None,
    kd_weight: float | None = None,
    kd_warmup: float | None = None,
    pair_views: bool | None = None,
    student_weights: str | None = None,
    live_teacher: bool | nn.Module = False,
    teacher_weights: str | None = None,
    data: Any = None,
    test_data: Any = None,
    augment: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | None = None,
    crop_pct: float | None = None,
    epochs: int = 240,
    batch_size: int = 64,
    grad_accum_steps: int = 1,
    opt: str = "sgd",
    lr: float = 0.05,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 5e-4,
    norm_weight_decay: float | None = None,
    clip_grad: float | None = None,
    label_smoothing: float = 0.0,
    model_ema_decay: float | None = None,
    sched: str = "step",
    warmup_epochs: int = 0,
    decay_milestones: Sequence[int] | None = None,
    decay_rate: float = 0.1,
    amp: bool = False,
    amp_dtype: str = "bfloat16",
    channels_last: bool = False,
    compiled: bool = False,
    seed: int = 0,
    device: str = "auto",
    workers: int | None = None,
    memory_budget: int | None = None,
    report_to: Sequence[str] | None = None,
    resume: bool = False,
    out: str | Path | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: OnProgress = silent,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> RunResult:
    """Train a student. The defaults are the CIFAR-100 recipe of the papers (mdistiller's): 240 epochs, batches of 64, SGD.

    Args:
        student: Name of a network (`models.load_network`), or a module.
        cache: Where the teacher's logits are. None trains from labels alone (method `ce`, with `data`).
        teacher: Slug of one of the cache's teachers, where it holds several.
        method: A key of `methods.METHODS`, `package.module:name`, a `methods.Method`, what `get_loss` returns, or a function
            `(student [R, C], teacher [R, C], labels [R]) -> loss`, [R] or 0-dim. What `get_loss` returns, and a function, has
            weights 1 and 1 unless `ce_weight` and `kd_weight` are given; a function is assumed to need every class and the label.
        preset: Another setting of the method's paper.
        refine: Edit of the teacher's logits by the label: "loca", "swap" or "none"; None keeps the method's.
        standardize: Whether both networks' logits are z-scored first; None keeps the method's.
        temperature: A number, several, "adaptive" or "deviation"; None keeps the method's.
        tail: What a top-k cache did not keep: "uniform" or "bucket"; None: uniform.
        parameters: Those of the method and its pieces; what is not named keeps the paper's default.
        ce_weight: Weight of cross-entropy; None takes the method's.
        kd_weight: Weight of the distillation term; None takes the method's.
        kd_warmup: Share of the epochs over which that weight grows from 0; None takes the method's.
        pair_views: Whether a step sums the objective over all views of a group; None: where the method's paper does and
            the cache holds such views.
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
        epochs: Passes over the data set; epoch e shows view e mod views, or pair of views e mod pairs.
        batch_size: Samples of a step, over all processes.
        grad_accum_steps: Parts into which a batch is divided, where it does not fit at once; the step is the same but for
            dropout, batch normalisation and methods that couple the rows of a batch, which see the parts.
        opt: One of `optimize.OPTIMIZERS`, torch's of this name.
        lr: Highest learning rate.
        momentum: Of SGD and RMSprop.
        nesterov: Whether SGD looks ahead.
        weight_decay: Of every parameter, or of those with two dimensions or more.
        norm_weight_decay: Of the others: biases, normalisation, scales; None: the same.
        clip_grad: Largest norm of a gradient; None: any.
        label_smoothing: Share of a label that cross-entropy spreads over all classes.
        model_ema_decay: Decay of a running mean of the weights, which is evaluated and saved beside the last ones; None: no mean.
        sched: `step` (times `decay_rate` after each milestone), `cosine` (to 0, every step) or `onecycle` (torch's OneCycleLR).
        warmup_epochs: Epochs over which the rate grows linearly.
        decay_milestones: Epochs after which the rate falls; None: 62.5, 75 and 87.5 % of them, which is 150, 180 and
        210 of 240.
        decay_rate: Factor of a fall.
        amp: Whether the student runs under autocast.
        amp_dtype: `bfloat16`, or `float16` with a scaled loss.
        channels_last: Whether weights and pixels are laid out so, which convolutions on GPUs like.
        compiled: Whether torch.compile translates the student and the distillation term.
        seed: Of the student's weights and of the order of samples.
        device: `auto`, `cpu`, `cuda`, ...
        workers: Processes that decode images; None chooses by the data.
        memory_budget: Bytes that decoded rows may take, those in use and those being read ahead together; views that need
            more stream in windows of blocks, and samples are shuffled inside a window only. None: whole views.
        report_to: Where metrics go beside `metrics.jsonl`: `csv`, `tensorboard`, `wandb`; None: of a run that is resumed, where they went.
        resume: Whether to continue the run in `out`; what follows is what an unbroken run would have given.
        out: Directory of the run; None makes a new one below `runs/`.
        should_stop: Asked after every step; where it says yes, the state is saved and StoppedError raised.
        on_progress: Called after every step.
        on_epoch: Called with the metrics of every epoch.

    Raises:
        LogitCacheError: See its kinds; nothing is trained on data, pixels or logits that are not those of the cache.
    """
    settings = _settings({name: value for name, value in locals().items() if name not in _CONDUCT})
    name = method_name(method)
    pieces = {"refine": refine, "standardize": standardize, "temperature": temperature, "tail": tail}
    if twice := [word for word in parameters or {} if pieces.get(word) is not None]:
        raise InputError(f"{twice[0]} is given twice, by its own option and as a parameter")
    objective = make_objective(
        method,
        {word: value for word, value in pieces.items() if value is not None} | dict(parameters or {}),
        preset=preset,
        ce_weight=ce_weight,
        kd_weight=kd_weight,
        warmup=kd_warmup,
        label_smoothing=label_smoothing,
    )
    opened = None if cache is None else open_cache(cache).of(teacher)
    _refuse_nonsense(
        opened,
        name,
        data,
        augment,
        distills=objective.loss is not None,
        live_teacher=bool(live_teacher),
        epochs=epochs,
        batch_size=batch_size,
        parts=grad_accum_steps,
    )
    where = pick_device(device)
    if opened and not live_teacher:
        _refuse_too_little(opened, objective)
    if opened:
        samples, views = recorded_data(opened, data), cache_views(opened)
        recorded = opened.manifest.teachers[0]["preprocessing"]
    else:
        samples = as_samples(data)
        views, recorded = list(modality_of(samples).make_views(augment or "none", epochs, seed)), {}
    modality = modality_of(samples)
    _refuse_mixed(views, objective, name, str(opened.place) if opened else "this training")
    shown = epoch_views(views, paired=objective.pairs_views if pair_views is None else pair_views)
    if pair_views and len(shown) == len(views):
        remedy = (
            "Dump some: --augment RECIPE,RECIPE makes one view of each"
            if opened
            else "Name two: --augment RECIPE,RECIPE"
        )
        raise CacheMismatchError(f"{opened.place if opened else 'this training'} holds no pairs of views. {remedy}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = modality.network(student, len(samples.classes), student_weights)
    given = {"mean": mean, "std": std, "image_size": image_size, "crop_pct": crop_pct}
    inputs = modality.choose_inputs(samples, views[0], given, network.preprocessing, recorded)
    if data is None and opened:
        data = opened.manifest.data["spec"]
    test = _test_samples(test_data, data, samples)
    model = network.module.to(where)
    replicas = join_replicas(where)
    stepper = Stepper(model, objective, settings, where, replicas, samples)
    window = _window(opened, memory_budget, len(shown[0])) if opened else None
    targets = _targets(opened, objective, live_teacher, teacher_weights, where)
    named = local_path(out) if out else free_name(Path("runs"), f"{_folder(name)}-{network.name}".replace(":", "-"))
    facts = _facts(opened, targets.name, network, inputs, where) | {"data": _digests(samples, test)}
    facts["headline"] = find_metric(modality.headline).to_json()
    run = _begun(replicas, named, settings, facts, report_to, resume=resume)
    loop = Loop(
        stepper,
        targets,
        samples,
        inputs,
        test,
        where,
        settings,
        run,
        replicas,
        workers,
        window,
        should_stop,
        on_progress,
        on_epoch,
    )
    with contextlib.closing(run), replicas.saying_when_left():
        results = run.results
        if results is not None:
            weights = run.path / "student.safetensors"
            model.load_state_dict(replicas.from_leader(lambda: read_weights(str(weights))))
            return RunResult(run.path, model.eval(), results)
        with contextlib.closing(targets):
            results = loop.run(shown, opened)
        if replicas.leads:
            notes: dict[str, Any] = {
                "network": network.name,
                "classes": classes_to_json(samples.classes),
                "method": name,
            }
            notes["preprocessing"] = _portable(inputs)
            save_weights(model.state_dict(), run.path / "student.safetensors", notes)
            if stepper.average is not None:
                save_weights(stepper.average.module.state_dict(), run.path / "student-ema.safetensors", notes)
        run.finish(results)
    return RunResult(run.path, model.eval(), results)


def _begun(
    replicas: Replicas,
    path: Path,
    settings: dict[str, Any],
    facts: dict[str, Any],
    logs: Sequence[str] | None,
    *,
    resume: bool,
) -> RunDirectory:
    """Begin or take up the run, in the process that leads; the others follow it."""
    with replicas.saying_when_left():
        replicas.refuse_unlike(settings | {name: facts[name] for name in facts if name != "hardware"})
        facts["hardware"]["processes"] = replicas.world
        ours = list[RunDirectory]()

        def begin() -> tuple[Path, dict[str, Any] | None]:
            ours.append(RunDirectory(path, settings, facts, resume=resume or replicas.began(path), logs=logs))
            replicas.begin(path)
            return path, ours[0].results

        found = replicas.from_leader(begin)
        return ours[0] if ours else FollowedRun(*found)


_CONDUCT = (
    "workers",
    "report_to",
    "resume",
    "out",
    "should_stop",
    "on_progress",
    "on_epoch",
)  # arguments that decide no weight; the others are settings


def _settings(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return what decides the result, as JSON: objects by the name of their type."""

    def plain(value: Any) -> Any:
        if isinstance(value, Cache):
            return str(value.place)
        if isinstance(value, Mapping):
            return dict(value)
        if value is None or isinstance(value, bool | int | float | str | list | tuple):
            return value
        return str(value) if isinstance(value, Path) else type(value).__name__

    arguments = arguments | {"method": method_name(arguments["method"])}
    found: dict[str, Any] = json.loads(json.dumps({name: plain(value) for name, value in sorted(arguments.items())}))
    return found


def _folder(method: str) -> str:
    """Return a method's name without characters that are awkward in the name of a folder."""
    return re.sub(r"[^\w.:=+-]+", "-", method).strip("-")


def _digests(samples: Samples, test: Samples | None) -> dict[str, str | None]:
    """Identify what is trained and tested on: paths may move, this may not change in the middle of a run."""
    return {"train": samples.digest(), "test": None if test is None else test.digest()}


def _portable(inputs: Inputs) -> dict[str, Any]:
    return {name: value for name, value in inputs.to_json().items() if name != "resize"}


def _facts(cache: Cache | None, logits: str, network: Network, inputs: Inputs, device: torch.device) -> dict[str, Any]:
    """Return what else a run records: where it came from and what it ran on. `logits` are cached, live or unused."""
    encoded = None
    if cache:
        slug = cache.teacher
        encoded = {
            "fingerprint": cache.fingerprint,
            "teacher": slug,
            "views": len(cache.manifest.views),
            "bytes_per_row": cache.fields(cache.teacher).itemsize,
            "logits": logits,
        }
    return {
        "cache": encoded,
        "student": {
            "name": network.name,
            "parameters": sum(p.numel() for p in network.module.parameters()),
            "preprocessing": inputs.to_json(),
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
    distills: bool,
    live_teacher: bool,
    epochs: int,
    batch_size: int,
    parts: int,
) -> None:
    if epochs < 1 or batch_size < 1 or parts < 1:
        raise InputError(f"epochs, batch size and its parts must be 1 or more, not {epochs}, {batch_size} and {parts}")
    if cache is None and distills:
        raise InputError(
            f"method {method} needs a teacher's logits: name a cache. Without one, only --method ce trains, with --data."
        )
    if cache is None and live_teacher:
        raise InputError("a live teacher needs a cache too: it says which teacher, data and views. Name one.")
    if cache is None and data is None:
        raise InputError("name a cache, or with --method ce a data set (--data)")
    if cache is not None and augment is not None:
        raise InputError(
            f"{cache.place} has its own views ({cache.manifest.views[0]['recipe']}): leave out --augment, or dump again with it."
        )


def _window(cache: Cache, budget: int | None, views: int) -> tuple[int, int] | None:
    """Choose how many blocks of a cache are held at once: (rows of a block, blocks), or None for all.

    Raises:
        InputError: Not even one block fits, twice.
    """
    if budget is None:
        return None
    manifest = cache.manifest
    block = 2 * views * manifest.block_rows * cache.fields(cache.teacher).itemsize
    block *= 1 if manifest.rows is None else 2  # a sample that goes on in the next block brings that block along
    if budget < block:
        raise InputError(
            f"--memory-budget {budget:,} bytes does not hold one block of {cache.place} and the next beside it: that takes {block:,}"
        )
    count = budget // block
    return None if count >= manifest.blocks else (manifest.block_rows, count)


def _refuse_too_little(cache: Cache, objective: Objective) -> None:
    """Refuse a method that needs more of a row than the cache keeps, naming the dump that would serve."""
    encoding, loss = cache.manifest.encoding, objective.loss
    if loss is None or encoding["kind"] != "topk":
        if loss is not None and loss.bucket:
            raise InputError(f"{cache.place} keeps every class: nothing is left for --tail bucket. Leave it out.")
        return
    if loss.every_class:
        raise CacheMismatchError(
            f"{cache.place} keeps the {encoding['k']} largest of {len(cache.manifest.classes)} logits, and {loss.every_class}. "
            f"Dump again with --encoding full{_fuller(cache)} or choose another method."
        )


def _refuse_mixed(views: Sequence[View], objective: Objective, method: str, where: str) -> None:
    """Refuse a method that reads the label of a row where rows have two."""
    mixed = next((view for view in views if view.mixes), None)
    if mixed is None or objective.loss is None or not objective.loss.needs_label:
        return
    if objective.loss.assumed:
        raise CacheMismatchError(
            f"method {method} is a plain function, which is assumed to read the label of a row, and the views of {where} mix two samples "
            f"into one ({mixed.recipe}). Wrap it in a logitcache.methods.Method with ignores_labels=True if it does not, or dump views "
            "that are not mixed."
        )
    fine = ", ".join(["ce", *(name for name, one in METHODS.items() if one.ignores_labels and one.refine is None)])
    raise CacheMismatchError(
        f"method {method} reads the label of a row, and the views of {where} mix two samples into one ({mixed.recipe}). Choose a "
        f"method that does not ({fine}), or dump views that are not mixed."
    )


def _fuller(cache: Cache) -> str:
    """Spell the dump that keeps every class, where it is known how the cache was made."""
    words, kept = shlex.split(cache.command or ""), list[str]()
    if "dump" not in words or "--out" not in words:
        return ","
    for position, word in enumerate(words):
        if word not in ("--top-k", "--encoding") and words[position - 1] not in ("--top-k", "--encoding"):
            kept.append(word)
    kept[kept.index("--out") + 1] = cache.place.beside("-full")
    return f":\n  {shlex.join(kept)} --encoding full\n"


def _test_samples(test_data: Any, data: Any, samples: Samples) -> Any:
    if test_data is None and isinstance(data, str):
        test_data = held_out_split(data)
    if test_data is None:
        return None
    test, known = as_samples(test_data, samples.classes), samples.classes
    if (ours := modality_of(samples).name) != (theirs := modality_of(test).name):
        raise CacheMismatchError(f"the training data is {ours} and the test data {theirs}: give the same kind.")
    if len(test.classes) > len(known) or tuple(test.classes) != tuple(known[: len(test.classes)]):
        raise CacheMismatchError(
            f"the test data has other classes ({', '.join(test.classes[:5])}, ...; {len(test.classes)}) than the training data "
            f"({', '.join(known[:5])}, ...; {len(known)}). Give one of the same classes with --test-data."
        )
    return test


def _targets(
    cache: Cache | None,
    objective: Objective,
    live_teacher: bool | nn.Module,
    teacher_weights: str | None,
    device: torch.device,
) -> Targets:
    if cache is None or objective.loss is None:
        return LabelsOnly()
    if live_teacher is False:
        return CachedTargets(cache, device)
    module = live_teacher if isinstance(live_teacher, nn.Module) else None
    return LiveTargets(live_teacher_of(cache, module, teacher_weights, device))
