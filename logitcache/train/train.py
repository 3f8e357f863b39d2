"""`logitcache train`: train a student from a cache, with a live teacher, or on labels alone.

    dataset ─(sample, view)→ augmentation ─→ student ─┐
    store ─→ reader ─→ decode ─→ refine ──────────────┴→ loss

Batches, their order and every random number are functions of (seed, epoch), so these differ only in the source of
the teacher's logits.
"""

import contextlib
import functools
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from logitcache.data import modality_of
from logitcache.data.text.origin import compare_with_origin, identities, origin_of
from logitcache.data.text.reading import warn_of_other_tokenizer
from logitcache.errors import InputError
from logitcache.methods import method_name
from logitcache.models import checkpointing_gradients, hash_weights, read_weights, restoring_modes
from logitcache.runs.directory import FollowedRun, Lengthen, RunDirectory, check_run_target, free_name, read_metrics
from logitcache.runs.metrics import find_metric
from logitcache.runtime.determinism import deterministic_algorithms
from logitcache.runtime.device import pick_device
from logitcache.runtime.files import local_path
from logitcache.runtime.progress import Callbacks, OnProgress, combine_callbacks
from logitcache.runtime.settings import show_options
from logitcache.runtime.versions import installed_version
from logitcache.runtime.workers import explain_lost_workers
from logitcache.store import Cache, open_cache
from logitcache.train.extend import lengthened, warn_of_milestones
from logitcache.train.job import Job, prepare, targets_of
from logitcache.train.keep import save_last
from logitcache.train.loop import Loop
from logitcache.train.metrics import EpochMetrics
from logitcache.train.probe import refuse_unfit_student
from logitcache.train.replicas import Replicas, join_replicas
from logitcache.train.settings import TrainRequest, TrainSettings
from logitcache.train.step import Stepper
from logitcache.train.step_plan import StepPlan, plan_steps, with_optimizer
from logitcache.train.usual import with_usual

__all__ = ["RunResult", "train_student"]

# Not recorded unless they are set, because runs of earlier versions do not record them.
_RECORDED_WHERE_GIVEN = (
    "exclude",
    "exif_orientation",
    "generate",
    "generate_temperature",
    "generate_tokens",
    "holdout",
    "loss_on",
    "sequence_length",
)


@dataclass(frozen=True, slots=True)
class RunResult:
    """Result of a run.

    Attributes:
        path: Folder of the run.
        student: Trained network, in evaluation mode.
        metrics: Metrics of every epoch, as in `metrics.jsonl`.
        results: Final results, as in `run.json`.
    """

    path: Path
    student: nn.Module
    metrics: list[EpochMetrics]
    results: dict[str, Any]

    @property
    def out(self) -> Path:
        """Alias of `path`."""
        return self.path

    @property
    def best(self) -> Path | None:
        """File with the weights of the epoch that was best on the test data, or None if they were not saved."""
        file = self.path / "student-best.safetensors"
        return file if file.exists() else None


@show_options(TrainRequest, TrainSettings)
def train_student(
    cache: str | Path | Cache | None = None,
    student: str | nn.Module | None = None,
    *,
    settings: TrainSettings | None = None,
    log_to: Sequence[str] | None = None,
    resume: bool = False,
    extend: str | None = None,
    out: str | Path | None = None,
    callbacks: Callbacks | None = None,
    should_stop: Callable[[], bool] | None = None,
    on_progress: OnProgress | None = None,
    on_epoch: Callable[[EpochMetrics], None] | None = None,
    **options: Any,
) -> RunResult:
    """Train a student from a cache, with a live teacher, or on labels alone.

    The defaults are the CIFAR-100 recipe of the papers (mdistiller's): 240 epochs of SGD in batches of 64.

    {arguments}

    Raises:
        UnknownNameError: If there is no such setting, method, network or other name.
        InputError: If a value is out of range, or `out` cannot be used.
        CacheMismatchError: If data, pixels or logits differ from those of the cache, or the run to resume has other settings.
        StoppedError: If a callback asked to stop; the state of the run is saved.
        LogitCacheError: Base class of these and all other errors.
    """
    chosen = TrainSettings.over(settings, options)
    student = _checked(cache, student, extend, resume=resume)
    told = combine_callbacks(callbacks, on_progress=on_progress, on_epoch=on_epoch, should_stop=should_stop)
    replicas = join_replicas(pick_device(chosen.device))
    with explain_lost_workers(), replicas.explain_lost_process(), contextlib.ExitStack() as stack:
        if out:
            _check_target(replicas, local_path(out), resume=resume)
        opened = None if cache is None else open_cache(cache)
        chosen, usual = with_usual(opened, student, chosen, options)
        job = prepare(opened, student, chosen)
        model = job.network.module.to(job.device)
        stack.enter_context(restoring_modes(model))
        stack.enter_context(deterministic_algorithms("the student", enabled=chosen.deterministic))
        if chosen.gradient_checkpointing:
            stack.enter_context(checkpointing_gradients(model, job.network.name))
        plan, stepper = _prepared_steps(job, student, chosen, replicas)
        targets = stack.enter_context(contextlib.closing(targets_of(job, chosen, in_place=plan.static)))
        stem = f"{_folder(job.method)}-{job.network.name}".replace(":", "-")
        path = local_path(out) if out else free_name(Path("runs"), stem)
        recorded, facts = _record(cache, student, chosen, job), _facts(job, targets.name)
        facts |= {"usual": usual} if usual else {}
        lengthen = functools.partial(lengthened, path, chosen, job.objective, extend)
        run = stack.enter_context(
            contextlib.closing(_begun(replicas, path, recorded, facts, log_to, resume=resume, lengthen=lengthen))
        )
        results = run.results
        if results is not None:
            weights = run.path / "student.safetensors"
            model.load_state_dict(replicas.from_leader(lambda: read_weights(str(weights), model.state_dict())))
            return RunResult(run.path, model.eval(), _metrics(run, replicas), results)
        results = Loop(job, chosen, stepper, targets, plan, run, replicas, told).run()
        if replicas.leads:
            save_last(job, stepper, run.path)
        run.finish(results)
        return RunResult(run.path, model.eval(), _metrics(run, replicas), results)


def _checked(cache: Any, student: Any, extend: str | None, *, resume: bool) -> str | nn.Module:
    """Return the student.

    Raises:
        InputError: If the arguments are of other types, or --extend is given without --resume.
    """
    if student is None:
        raise InputError("there is no student to train; pass the name of a network or a module (--student)")
    if not isinstance(student, str | nn.Module) or isinstance(cache, nn.Module):
        raise InputError(
            f"train_student(cache, student) takes a path or a Cache, and the name of a network or a module; found {type(cache).__name__} "
            f"and {type(student).__name__}. Call a factory with the number of classes first."
        )
    if TrainRequest(extend=extend).extend and not resume:
        raise InputError(
            "--extend is for a run that is extended; use it with --resume, --out RUN and more --epochs than the run had"
        )
    return student


def _prepared_steps(
    job: Job, student: str | nn.Module, chosen: TrainSettings, replicas: Replicas
) -> tuple[StepPlan, Stepper]:
    """Return how steps are executed, and the student with its optimizer; warn about settings that are probably wrong."""
    plan = plan_steps(job, chosen)
    stepper = Stepper(
        *(job.network.module, job.objective, chosen, job.device, replicas, job.samples),
        static=plan.static,
        capturable=plan.captures,
    )
    plan = with_optimizer(plan, chosen, stepper)
    refuse_unfit_student(job, chosen, stepper, replicas)
    if replicas.leads:
        warn_of_milestones(chosen)
        warn_of_other_tokenizer(job.samples, student)
        plan.log(job.device, chosen.cuda_graph)
    return plan, stepper


def _check_target(replicas: Replicas, path: Path, *, resume: bool) -> None:
    """Refuse a folder that cannot hold the run before data and student are opened, which may take minutes."""
    replicas.from_leader(lambda: check_run_target(path, resume=resume or replicas.began(path)))


def _begun(
    replicas: Replicas,
    path: Path,
    settings: dict[str, Any],
    facts: dict[str, Any],
    logs: Sequence[str] | None,
    *,
    resume: bool,
    lengthen: Lengthen,
) -> RunDirectory:
    """Start or resume the run in the leading process; the others follow it."""
    replicas.refuse_unlike(settings | {name: facts[name] for name in facts if name != "hardware"})
    facts["hardware"]["processes"] = replicas.world
    ours = list[RunDirectory]()

    def begin() -> tuple[Path, dict[str, Any] | None, int | None]:
        again = resume or replicas.began(path)
        ours.append(RunDirectory(path, settings, facts, resume=again, logs=logs, lengthen=lengthen))
        replicas.begin(path)
        return path, ours[0].results, ours[0].schedule_epochs

    found = replicas.from_leader(begin)
    return ours[0] if ours else FollowedRun(*found)


def _record(
    cache: str | Path | Cache | None, student: str | nn.Module | None, settings: TrainSettings, job: Job
) -> dict[str, Any]:
    """Return the settings that affect the result, as in `run.json`, with the ids of excluded samples instead of a file."""
    path = str(cache.place) if isinstance(cache, Cache) else cache
    found = TrainRequest(cache=path, student=student).record() | settings.record()
    found["exclude"] = None if settings.exclude is None else job.excluded.tolist()
    for name in _RECORDED_WHERE_GIVEN:
        if not found[name]:
            del found[name]
    if found["cuda_graph"] != "on":
        del found["cuda_graph"]
    return dict(sorted(found.items())) | {"method": method_name(settings.method)}


def _metrics(run: RunDirectory, replicas: Replicas) -> list[EpochMetrics]:
    """Return the metrics of all epochs, read by rank 0, because other ranks may not see the folder."""
    return cast("list[EpochMetrics]", replicas.from_leader(lambda: read_metrics(run.path)))


def _folder(method: str) -> str:
    """Return a method's name without characters that are unsuitable for the name of a folder."""
    return re.sub(r"[^\w.:=+-]+", "-", method).strip("-")


def _facts(job: Job, logits: str) -> dict[str, Any]:
    """Return further facts that a run records: its origin, software and hardware.

    Args:
        job: Prepared training.
        logits: Source of the teacher's logits: cached, live or unused.
    """
    cache, device, encoded = job.cache, job.device, None
    if cache:
        encoded = {
            "fingerprint": cache.fingerprint,
            "teacher": cache.teacher,
            "views": len(cache.manifest.views),
            "memory_bytes_per_row": cache.fields(cache.teacher).itemsize,
            "logits": logits,
        }
    weights = job.objective.class_weights
    return ({} if weights is None else {"class_weights": weights.tolist()}) | {
        "cache": encoded,
        "student": {
            "name": job.network.name,
            "parameters": sum(p.numel() for p in job.network.module.parameters()),
            "preprocessing": job.inputs.to_json(),
        },
        "software": {name: installed_version(name) for name in ("logitcache", "numpy", "torch", "torchvision")}
        | {"python": platform.python_version()},
        "hardware": {
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
        },
        # Paths may change, but the data must not change in the middle of a run.
        "data": {"train": job.samples.digest(), "test": None if job.test is None else job.test.digest()},
        **({} if cache is None else {"taught_by": identities(cache.manifest.teachers)}),
        **_on_policy(job),
        "trained_on": {"data": job.spec, "samples": len(job.samples), "classes": len(job.samples.classes)},
        "headline": find_metric(modality_of(job.samples).headline).to_json(),
    }


def _on_policy(job: Job) -> dict[str, Any]:
    """Return whether generated text comes from this student, and from its teacher; empty for other data."""
    if job.cache is None or origin_of(job.samples) is None:
        return {}
    weights = hash_weights(job.network.module.state_dict())
    return {"on_policy": compare_with_origin(job.samples, job.cache.manifest.teachers, weights)}
