"""`logitcache train`: train a student from a cache, beside a live teacher, or from labels alone.

    dataset ─(sample, view)→ augmentation ─→ student ─┐
    store ─→ reader ─→ decode ─→ refine ──────────────┴→ loss

Batches, their order and every random number are functions of (seed, epoch), so the three differ in nothing but where
the teacher's logits come from.
"""

import contextlib
import platform
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from logitcache.data import Inputs, Samples, View, as_samples, held_out_split, modality_of
from logitcache.data.contract import cache_views, recorded_data
from logitcache.errors import CacheMismatchError, InputError
from logitcache.methods import METHODS, Objective, make_objective, method_name
from logitcache.models import Network, read_weights, save_weights
from logitcache.runs.directory import FollowedRun, RunDirectory, free_name, read_metrics
from logitcache.runs.metrics import find_metric
from logitcache.runtime.device import pick_device
from logitcache.runtime.files import local_path
from logitcache.runtime.progress import Callbacks, OnProgress, combine_callbacks
from logitcache.runtime.settings import show_options
from logitcache.store import Cache, classes_to_json, open_cache
from logitcache.teachers.recorded import live_teacher_of
from logitcache.train.loop import Loop
from logitcache.train.metrics import EpochMetrics
from logitcache.train.order import epoch_views
from logitcache.train.replicas import Replicas, join_replicas
from logitcache.train.settings import TrainRequest, TrainSettings
from logitcache.train.step import Stepper
from logitcache.train.targets import CachedTargets, LabelsOnly, LiveTargets, Targets

__all__ = ["RunResult", "train_student"]


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run left behind.

    Attributes:
        path: The folder of the run.
        student: The trained network, in evaluation mode.
        metrics: The metrics of every epoch, as in `metrics.jsonl`.
        results: The final results, as in `run.json`.
    """

    path: Path
    student: nn.Module
    metrics: list[EpochMetrics]
    results: dict[str, Any]

    @property
    def out(self) -> Path:
        """The same as `path`."""
        return self.path


@show_options(TrainRequest, TrainSettings)
def train_student(
    cache: str | Path | Cache | None = None,
    student: str | nn.Module | None = None,
    *,
    settings: TrainSettings | None = None,
    report_to: Sequence[str] | None = None,
    resume: bool = False,
    out: str | Path | None = None,
    callbacks: Callbacks | None = None,
    should_stop: Callable[[], bool] | None = None,
    on_progress: OnProgress | None = None,
    on_epoch: Callable[[EpochMetrics], None] | None = None,
    **options: Any,
) -> RunResult:
    """Train a student from a cache, beside a live teacher, or on labels alone.

    The defaults are the CIFAR-100 recipe of the papers (mdistiller's): 240 epochs of SGD in batches of 64.

    {arguments}

    Raises:
        UnknownNameError: There is no such setting, method, network or other name.
        InputError: A value is out of range, or `out` cannot be used.
        CacheMismatchError: Data, pixels or logits are not those of the cache, or the run to resume has other settings.
        StoppedError: The run was asked to stop; its state is saved.
        LogitCacheError: The base class of these and of all other errors.
    """
    chosen = TrainSettings.over(settings, options)
    if student is None:
        raise InputError("no student to train: name a network, or pass a module (--student)")
    told = combine_callbacks(callbacks, on_progress=on_progress, on_epoch=on_epoch, should_stop=should_stop)
    name, data, live_teacher = method_name(chosen.method), chosen.data, chosen.live_teacher
    pieces = {name: getattr(chosen, name) for name in ("refine", "standardize", "temperature", "tail")}
    if twice := [word for word in chosen.parameters or {} if pieces.get(word) is not None]:
        raise InputError(f"{twice[0]} is given twice, by its own option and as a parameter")
    objective = make_objective(
        chosen.method,
        {word: value for word, value in pieces.items() if value is not None} | dict(chosen.parameters or {}),
        preset=chosen.preset,
        ce_weight=chosen.ce_weight,
        kd_weight=chosen.kd_weight,
        warmup=chosen.kd_warmup,
        label_smoothing=chosen.label_smoothing,
    )
    opened = None if cache is None else open_cache(cache).of(chosen.teacher)
    _refuse_nonsense(opened, name, chosen, distills=objective.loss is not None)
    where = pick_device(chosen.device)
    if opened and not live_teacher:
        _refuse_too_little(opened, objective)
    if opened:
        samples, views = recorded_data(opened, data), cache_views(opened)
        recorded = opened.manifest.teachers[0]["preprocessing"]
    else:
        samples = as_samples(data)
        views, recorded = (
            list(modality_of(samples).make_views(chosen.augment or "none", chosen.epochs, chosen.seed)),
            {},
        )
    modality = modality_of(samples)
    _refuse_mixed(views, objective, name, str(opened.place) if opened else "this training")
    shown = epoch_views(views, paired=objective.pairs_views if chosen.pair_views is None else chosen.pair_views)
    if chosen.pair_views and len(shown) == len(views):
        remedy = (
            "Dump some: --augment RECIPE,RECIPE makes one view of each"
            if opened
            else "Name two: --augment RECIPE,RECIPE"
        )
        raise CacheMismatchError(f"{opened.place if opened else 'this training'} holds no pairs of views. {remedy}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(chosen.seed)
        network = modality.network(student, len(samples.classes), chosen.student_weights)
    given = {name: getattr(chosen, name) for name in ("mean", "std", "image_size", "crop_pct")}
    inputs = modality.choose_inputs(samples, views[0], given, network.preprocessing, recorded)
    if data is None and opened:
        data = opened.manifest.data["spec"]
    test = _test_samples(chosen.test_data, data, samples)
    model = network.module.to(where)
    replicas = join_replicas(where)
    stepper = Stepper(model, objective, chosen, where, replicas, samples)
    window = _window(opened, chosen.memory_budget, len(shown[0])) if opened else None
    targets = _targets(opened, objective, live_teacher, chosen.teacher_weights, where)
    named = local_path(out) if out else free_name(Path("runs"), f"{_folder(name)}-{network.name}".replace(":", "-"))
    facts = _facts(opened, targets.name, network, inputs, where) | {"data": _digests(samples, test)}
    facts["headline"] = find_metric(modality.headline).to_json()
    run = _begun(replicas, named, _record(cache, student, chosen), facts, report_to, resume=resume)
    loop = Loop(
        stepper,
        targets,
        samples,
        inputs,
        test,
        where,
        chosen,
        run,
        replicas,
        chosen.workers,
        window,
        told,
    )
    with contextlib.closing(run), replicas.saying_when_left():
        results = run.results
        if results is not None:
            weights = run.path / "student.safetensors"
            model.load_state_dict(replicas.from_leader(lambda: read_weights(str(weights))))
            return RunResult(run.path, model.eval(), _metrics(run, replicas), results)
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
        return RunResult(run.path, model.eval(), _metrics(run, replicas), results)


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


def _record(
    cache: str | Path | Cache | None, student: str | nn.Module | None, settings: TrainSettings
) -> dict[str, Any]:
    """Return what decides the result, as `run.json` has it."""
    path = str(cache.place) if isinstance(cache, Cache) else cache
    found = TrainRequest(cache=path, student=student).record() | settings.record()
    return dict(sorted(found.items())) | {"method": method_name(settings.method)}


def _metrics(run: RunDirectory, replicas: Replicas) -> list[EpochMetrics]:
    """Read the metrics of all epochs; on other ranks than 0, which may not see the folder, get them from there."""
    return cast("list[EpochMetrics]", replicas.from_leader(lambda: read_metrics(run.path)))


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


def _refuse_nonsense(cache: Cache | None, method: str, settings: TrainSettings, *, distills: bool) -> None:
    if cache is None and distills:
        raise InputError(
            f"method {method} needs a teacher's logits: name a cache. Without one, only --method ce trains, with --data."
        )
    if cache is None and settings.live_teacher:
        raise InputError("a live teacher needs a cache too: it says which teacher, data and views. Name one.")
    if cache is None and settings.data is None:
        raise InputError("name a cache, or with --method ce a data set (--data)")
    if cache is not None and settings.augment is not None:
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
