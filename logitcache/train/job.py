"""Preparation of a training: open cache and data, build student and objective, before anything is written."""

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from logitcache.data import (
    Ids,
    Inputs,
    Samples,
    View,
    as_samples,
    excluded_of,
    held_out_split,
    kept_of,
    leave_out,
    modality_of,
    whole_of,
)
from logitcache.data.contract import cache_views, recorded_data, refuse_unreplayable
from logitcache.data.exclusion import (
    Reading,
    kept_unreadable,
    log_left_out,
    read_exclusions,
    reading_beside,
    refuse_unreadable,
)
from logitcache.data.open import refuse_orientation
from logitcache.data.optional import counting, for_training, held_out
from logitcache.data.text.reading import refuse_image_options, text_reading_like
from logitcache.errors import CacheMismatchError, InputError
from logitcache.methods import METHODS, Objective, make_objective, method_name, needs_of, serves_draws
from logitcache.models import Network
from logitcache.runtime.device import pick_device
from logitcache.runtime.wording import bytes_text
from logitcache.store import Cache
from logitcache.teachers.recorded import live_teacher_of
from logitcache.train.completing import Completer, completer_for
from logitcache.train.counting import with_loss_on
from logitcache.train.order import epoch_views, most_spills
from logitcache.train.settings import TrainSettings
from logitcache.train.targets import CachedTargets, LabelsOnly, LiveTargets, Targets
from logitcache.train.weighting import weights_of_classes

__all__ = ["Job", "prepare", "targets_of"]

_LOG = logging.getLogger(__name__)
_MANY_CLASSES = 4096  # number of classes up to which messages recommend --encoding full
_FOR_IMAGES = ("augment", "exif_orientation", "channels_last")  # settings that do not apply to text


@dataclass(frozen=True, slots=True)
class Job:
    """A prepared training.

    Attributes:
        cache: Cache with one teacher chosen, or None when training on labels alone.
        method: Name of the method, as recorded.
        objective: Training objective.
        samples: Training data.
        test: Data to evaluate on after each epoch, or None.
        excluded: Samples that the cache or the user excludes, as ids in the whole data set.
        held_out: Held-out samples, ascending, if `test` is the training data including them; else None.
        epoch_views: Views of each epoch; epoch e uses entry e mod their number.
        network: Student with its initial weights, not yet on the device.
        inputs: Preprocessing of the student.
        device: Device to train on.
        spec: Name of the training data, or None if it is an object.
        window: Rows per block and blocks per window if memory is bounded; None if whole views are loaded.
        completer: Completer of test prompts after each epoch, or None.
    """

    cache: Cache | None
    method: str
    objective: Objective
    samples: Samples
    test: Samples | None
    excluded: Ids
    held_out: Ids | None
    epoch_views: Sequence[Sequence[View]]
    network: Network
    inputs: Inputs
    device: torch.device
    spec: str | None
    window: tuple[int, int] | None
    completer: Completer | None = None

    @property
    def names(self) -> list[str]:
        """Names of the teacher (or of the members of an averaged teacher) and of the student."""
        teacher = None if self.cache is None else self.cache.manifest.teachers[0]
        return [
            *([] if teacher is None else [one["name"] for one in teacher["members"] or [teacher]]),
            self.network.name,
        ]


def prepare(cache: Cache | None, student: str | nn.Module, settings: TrainSettings) -> Job:
    """Open everything that a training needs, and check that it fits together. Nothing is written.

    Raises the same errors as `train_student`.
    """
    name, objective = method_name(settings.method), _objective(settings)
    opened = None if cache is None else cache.of(settings.teacher)
    _refuse_nonsense(opened, name, settings, distills=objective.loss is not None)
    device = pick_device(settings.device)
    if opened:
        refuse_unreplayable(opened)
    if opened and not settings.live_teacher:
        _refuse_too_little(opened, objective)
    samples: Any
    if opened:
        samples, views = recorded_data(opened, settings.data, settings.exclude), cache_views(opened)
        refuse_image_options(samples, {name: getattr(settings, name) for name in _FOR_IMAGES})
        _refuse_other_views(opened, settings)
        recorded = opened.manifest.teachers[0]["preprocessing"]
    else:
        samples, recorded = _labelled(settings), {}
        views = list(modality_of(samples).make_views(settings.augment or "none", settings.epochs, settings.seed))
    log_left_out(samples)
    modality, excluded = modality_of(samples), excluded_of(samples)
    samples = whole = with_loss_on(samples, settings.loss_on)
    held = _held_out(opened, samples, settings.holdout)
    if held is not None:
        samples = leave_out(samples, [*excluded_of(samples), *(held + whole_of(samples)[1])])
    _refuse_mixed(views, objective, name, str(opened.place) if opened else "this training")
    shown = _epoch_views(opened, views, objective, settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = modality.network(student, len(samples.classes), settings.student_weights)
    given = {name: getattr(settings, name) for name in ("mean", "std", "image_size", "crop_pct")}
    inputs = modality.choose_inputs(samples, views[0], given, network.preprocessing, recorded)
    inputs = for_training(modality, inputs, samples, settings.sequence_length)
    spec = opened.manifest.data["spec"] if opened and settings.data is None else settings.data
    named = str(spec) if isinstance(spec, str | Path) and str(spec) else None
    test = whole if held is not None else _test_samples(settings.test_data, spec, samples, opened, settings.loss_on)
    window = _window(opened, settings.memory_budget, len(shown[0])) if opened else None
    objective = _weighted(objective, name, settings, samples, device)
    job = Job(opened, name, objective, samples, test, excluded, held, shown, network, inputs, device, named, window)
    return replace(job, completer=completer_for(test, held, network.module, settings, job.names))


def targets_of(job: Job, settings: TrainSettings, *, in_place: bool = False) -> Targets:
    """Return the source of the teacher's logits: the cache, the live teacher, or none.

    Args:
        job: Prepared training.
        settings: Settings of the training.
        in_place: Whether to load rows into the same memory, as in `CachedTargets`.
    """
    if job.cache is None or job.objective.loss is None:
        return LabelsOnly()
    if settings.live_teacher is False:
        return CachedTargets(job.cache, job.device, in_place=in_place)
    module = settings.live_teacher if isinstance(settings.live_teacher, nn.Module) else None
    return LiveTargets(live_teacher_of(job.cache, module, settings.teacher_weights, job.device))


def _objective(settings: TrainSettings) -> Objective:
    pieces = {name: getattr(settings, name) for name in ("refine", "standardize", "temperature", "tail")}
    if twice := [word for word in settings.parameters or {} if pieces.get(word) is not None]:
        raise InputError(f"{twice[0]} is set twice, by its own option and as a parameter")
    return make_objective(
        settings.method,
        {word: value for word, value in pieces.items() if value is not None} | dict(settings.parameters or {}),
        preset=settings.preset,
        ce_weight=settings.ce_weight,
        kd_weight=settings.kd_weight,
        warmup=settings.kd_warmup,
        label_smoothing=settings.label_smoothing,
    )


def _weighted(
    objective: Objective, method: str, settings: TrainSettings, samples: Samples, device: torch.device
) -> Objective:
    """Return the objective with class weights, if they are set."""
    if settings.class_weights is None:
        return objective
    if objective.ce_weight == 0:
        raise InputError(
            f"--class-weights applies to cross-entropy, whose weight is 0 with method {method}; set --ce-weight"
        )
    weights = weights_of_classes(settings.class_weights, samples)
    return replace(objective, class_weights=torch.tensor(weights, dtype=torch.float32, device=device))


def _epoch_views(
    cache: Cache | None, views: Sequence[View], objective: Objective, settings: TrainSettings
) -> list[tuple[View, ...]]:
    paired = objective.pairs_views if settings.pair_views is None else settings.pair_views
    shown = epoch_views(views, paired=paired)
    if settings.pair_views and len(shown) == len(views):
        remedy = (
            "Dump them with --augment RECIPE,RECIPE, which makes one view of each"
            if cache
            else "Pass two recipes with --augment RECIPE,RECIPE"
        )
        raise CacheMismatchError(f"{cache.place if cache else 'this training'} has no pairs of views. {remedy}.")
    return shown


def _refuse_nonsense(cache: Cache | None, method: str, settings: TrainSettings, *, distills: bool) -> None:
    if cache is None and distills:
        raise InputError(
            f"method {method} needs a teacher's logits; pass a cache. Without a cache, only --method ce with --data is possible."
        )
    if cache is None and settings.live_teacher:
        raise InputError("a live teacher needs a cache, which records the teacher, the data and the views. Pass one.")
    if cache is None and settings.data is None:
        raise InputError("nothing to train on; pass a cache, or with --method ce a data set (--data)")


def _refuse_other_views(cache: Cache, settings: TrainSettings) -> None:
    """Raise an error if settings for rendering images contradict the cache."""
    if settings.augment is not None:
        raise InputError(
            f"{cache.place} has its own views ({cache.manifest.views[0]['recipe']}); leave out --augment, or dump again with it."
        )
    if settings.exif_orientation and not cache.manifest.data.get("exif_orientation", False):
        raise InputError(
            f"{cache.place} was dumped without --exif-orientation, and a student must see what the teacher saw; leave it out, or dump "
            "again with it to another path."
        )


def _window(cache: Cache, budget: int | None, views: int) -> tuple[int, int] | None:
    """Return the rows per block and the blocks per window that fit into a memory budget, or None if all blocks fit.

    Raises:
        InputError: If the budget is smaller than two blocks.
    """
    if budget is None:
        return None
    manifest = cache.manifest
    block = 2 * views * manifest.block_rows * cache.fields(cache.teacher).itemsize
    block *= 1 + most_spills(
        manifest.view_rows, manifest.block_rows, cache.offsets()
    )  # further blocks that a sample continues in
    if budget < block:
        raise InputError(
            f"--memory-budget {budget:,} bytes is too small: one block of {cache.place} and the next one take {block:,} bytes"
        )
    count = budget // block
    return None if count >= manifest.blocks else (manifest.block_rows, count)


def _refuse_too_little(cache: Cache, objective: Objective) -> None:
    """Raise an error if the method needs more of a row than the cache stores, and suggest a dump that would be sufficient."""
    encoding, loss = cache.manifest.encoding, objective.loss
    if loss is not None and encoding["kind"] == "sampled":
        if loss.bucket:
            raise InputError(f"{cache.place} stores sampled rows, which have no tail for --tail bucket. Leave it out.")
        if loss.not_drawn:
            fine = ", ".join(["ce", *(name for name, one in METHODS.items() if serves_draws(name, one))])
            raise CacheMismatchError(
                f"{cache.place} stores classes drawn from the teacher's distribution, and {loss.not_drawn}. Methods that support sampled "
                f"rows, at temperature 1: {fine}. Choose one of them, or dump again with --encoding full or topk."
            )
        return
    if loss is None or encoding["kind"] == "full":
        if loss is not None and loss.bucket:
            raise InputError(f"{cache.place} stores every class, so there is no tail for --tail bucket. Leave it out.")
        return
    if loss.every_class:
        raise CacheMismatchError(_more_is_needed(cache, loss.every_class))
    if loss.needs_label and "label" in cache.manifest.teachers[0].get("gives", {}):
        raise CacheMismatchError(
            f"{cache.place} was imported from rows without the probability of a token outside the {encoding['k']} largest, but the method "
            "needs that of the label. Choose one that does not: "
            f"{', '.join(name for name, one in METHODS.items() if one.divergence and one.ignores_labels and one.refine is None)}."
        )
    if encoding["kind"] == "topk-mass" and (temperature := loss.other_temperature) is not None:
        raise CacheMismatchError(
            f"{cache.place} stores log-probabilities at temperature 1 and only the total mass of the classes outside the {encoding['k']} "
            f"largest, which is unknown at temperature {temperature:g}. Use --temperature 1 (and 1 for other temperatures of the method, "
            "such as calibration_temperature), or dump a teacher whose logits are available."
        )


def _more_is_needed(cache: Cache, reason: str) -> str:
    """Return the error message for a method that needs every class of a top-k cache."""
    encoding, classes, rows = cache.manifest.encoding, len(cache.manifest.classes), cache.manifest.view_rows
    why = f"{cache.place} stores the {encoding['k']} largest of {classes:,} logits, and {reason}."
    if encoding["kind"] == "topk-mass":
        return f"{why} Its teacher provided only these; choose another method."
    if classes <= _MANY_CLASSES:
        return f"{why} Dump again with --encoding full{_fuller(cache)} or choose another method."
    serving = ", ".join(name for name, method in METHODS.items() if needs_of(name, method) != "every class")
    return (
        f"{why} Choose a method that supports such rows ({serving}). With --encoding full --precision f16, a row would take "
        f"{bytes_text(2 * classes)}, and the cache {bytes_text(2 * classes * rows * len(cache.manifest.views))}."
    )


def _refuse_mixed(views: Sequence[View], objective: Objective, method: str, where: str) -> None:
    """Raise an error if the method uses the label of a row but views mix samples, so that rows have two labels."""
    mixed = next((view for view in views if view.mixes), None)
    if mixed is None or objective.loss is None or not objective.loss.needs_label:
        return
    if objective.loss.assumed:
        raise CacheMismatchError(
            f"method {method} is a plain function, which is assumed to use the label of a row, but the views of {where} mix two samples "
            f"into one ({mixed.recipe}). Wrap it in a logitcache.methods.Method with ignores_labels=True if it does not, or dump views "
            "without mixing."
        )
    fine = ", ".join(["ce", *(name for name, one in METHODS.items() if one.ignores_labels and one.refine is None)])
    raise CacheMismatchError(
        f"method {method} uses the label of a row, but the views of {where} mix two samples into one ({mixed.recipe}). Choose a "
        f"method that does not ({fine}), or dump views without mixing."
    )


def _fuller(cache: Cache) -> str:
    """Return the command of a dump that stores every class, as text to insert, if the cache records its own command."""
    words, kept = shlex.split(cache.command or ""), list[str]()
    if "dump" not in words or "--out" not in words:
        return ","
    for position, word in enumerate(words):
        if word not in ("--top-k", "--encoding") and words[position - 1] not in ("--top-k", "--encoding"):
            kept.append(word)
    kept[kept.index("--out") + 1] = cache.place.beside("-full")
    return f":\n  {shlex.join(kept)} --encoding full\n"


def _held_out(cache: Cache | None, samples: Samples, share: float | None) -> Ids | None:
    """Return the samples to hold out for evaluation, or None if no share is given.

    Raises:
        InputError: If there is no cache, or the modality does not support this.
    """
    if share is None:
        return None
    if cache is None:
        raise InputError(
            "--holdout compares a student with the cached rows of documents; pass a cache, or use --test-data instead"
        )
    return held_out(modality_of(samples), samples, kept_of(samples), share)


def _labelled(settings: TrainSettings) -> Any:
    """Open the data of a training without a cache, without excluded samples."""
    reading = reading_beside(None, settings.exclude, exif_orientation=settings.exif_orientation)
    opened = as_samples(settings.data, reading=reading)
    refuse_image_options(opened, {name: getattr(settings, name) for name in _FOR_IMAGES})
    if settings.exif_orientation:
        refuse_orientation(opened)
    samples = leave_out(opened, read_exclusions(settings.exclude, opened))
    refuse_unreadable(samples, kept_unreadable(samples))
    return samples


def _test_samples(test_data: Any, data: Any, samples: Samples, cache: Cache | None, loss_on: str | None) -> Any:
    if test_data is None and isinstance(data, str):
        test_data = held_out_split(data)
        if data.startswith("hf:"):  # whose splits are known only once it is open
            _LOG.info(
                "test data: %s",
                test_data or f"none, because {data} has no split for it; pass --test-data to evaluate the student",
            )
    if test_data is None:
        return None
    turned = getattr(whole_of(samples)[0], "exif_orientation", False)
    teacher = None if cache is None else cache.manifest.teachers[0]["name"]
    reading = Reading(exif_orientation=turned, text=text_reading_like(samples, test_data, teacher))
    test, known = as_samples(test_data, samples.classes, reading=reading), samples.classes
    if (ours := modality_of(samples).name) != (theirs := modality_of(test).name):
        raise CacheMismatchError(
            f"the training data is {ours}, but the test data is {theirs}; pass data of the same kind."
        )
    if len(test.classes) > len(known) or tuple(test.classes) != tuple(known[: len(test.classes)]):
        raise CacheMismatchError(
            f"the test data has different classes ({', '.join(test.classes[:5])}, ...; {len(test.classes)}) from the training data "
            f"({', '.join(known[:5])}, ...; {len(known)}). Pass data with the same classes with --test-data."
        )
    return counting(modality_of(test), test, loss_on)
