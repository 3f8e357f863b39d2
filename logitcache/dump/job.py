"""Preparation of a dump: open data and teachers, choose views and encoding, and make the manifest, before anything is written."""

import inspect
import itertools
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from logitcache.data import Inputs, Modality, Samples, View, modality_of, offsets_of, whole_of
from logitcache.data.exclusion import excluded_of, leave_out
from logitcache.data.optional import continued, facts_of, usual_batch, views_are_equal
from logitcache.data.protocol import Ids, Renderer
from logitcache.data.text.origin import warn_of_other_teacher
from logitcache.dump.samples import choose_samples, recorded_exclusions
from logitcache.dump.settings import DumpSettings, EncodingSettings
from logitcache.encoding import Encoding, FullEncoding, SampledEncoding, TopKEncoding, widest_bytes
from logitcache.errors import InputError, unknown_name
from logitcache.models import Network, hash_weights, read_class_map
from logitcache.runtime.device import float32_settings, pick_device
from logitcache.runtime.versions import installed_version
from logitcache.runtime.wording import class_map_words, preprocessing_words
from logitcache.store import Manifest, average_of, block_rows_for, open_place, read_manifest, row_uniforms
from logitcache.teachers.forward import Teachers, largest_fitting
from logitcache.teachers.given import AskingAhead, GivenTeacher
from logitcache.teachers.recorded import recorded_teacher

__all__ = [
    "TOP_K",
    "Job",
    "choose_encoding",
    "make_manifest",
    "make_slugs",
    "prepare",
    "refuse_equal_views",
    "renderer_of",
]

_LARGEST_BATCH = 8192  # rows
_MANY_CLASSES = 1000  # number of classes up to which rows are stored in full by default; 2 kB in float16
TOP_K, _DRAWS = 64, 50
_PREPROCESSING = ("mean", "std", "image_size", "crop_pct")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """A prepared dump.

    Attributes:
        manifest: Manifest of the cache to write.
        modality: Modality of the data.
        samples: Data set, or the stretch of it to dump, without excluded samples.
        views: Views of the data set.
        encoding: Encoding of the stored rows.
        teachers: Teacher or ensemble, by slug.
        renderer: Renderer of the inputs of all teachers.
        reasons: Unreadable samples that are left out: id in the whole data set to the reason.
        origins: Origin of each teacher's preprocessing, by slug: name of a setting to "option", "weights", "timm", "data" or "default".
        given: Teacher whose log-probabilities are computed elsewhere; None if teachers run locally.
        tolerance: Maximum mean total variation between two answers of such a teacher.
    """

    manifest: Manifest
    modality: Modality
    samples: Samples
    views: tuple[Any, ...]
    encoding: Encoding
    teachers: dict[str, Teachers]
    renderer: Renderer
    reasons: Mapping[int, str]
    origins: Mapping[str, Mapping[str, str]]
    given: GivenTeacher | None = None
    tolerance: float = 0.0

    def uniforms(self, view: View, rows: Ids) -> NDArray[np.float64] | None:
        """Return the random numbers for drawing classes of rows of a view, [R, N]; None if the encoding is not sampled."""
        _, first = whole_of(self.samples)
        return row_uniforms(self.manifest.encoding, view.index, rows, offsets_of(self.samples), first)

    def without(self, excluded: Ids, reasons: Mapping[int, str], settings: DumpSettings) -> "Job":
        """Return a copy that excludes more samples.

        Args:
            excluded: Ids in the whole data set of further samples to exclude.
            reasons: Unreadable samples among them, id to the reason.
            settings: Settings of the dump.

        Raises:
            InputError: If no sample is left.
        """
        samples = leave_out(self.samples, [*excluded_of(self.samples), *excluded])
        inputs = [one for teachers in self.teachers.values() for one in teachers.preprocessing]
        renderer = renderer_of(self.modality, samples, inputs, settings, torch.device(self.manifest.device))
        if self.given is not None:
            renderer = AskingAhead(renderer, self.given, whole_of(samples)[1])
        manifest = replace(self.manifest, excluded=recorded_exclusions(samples, self.views))
        return replace(self, manifest=manifest, samples=samples, renderer=renderer, reasons={**self.reasons, **reasons})

    def close(self) -> None:
        """Restore the teachers' networks to their original state."""
        for one in self.teachers.values():
            one.close()


def prepare(
    teacher: str | nn.Module | Sequence[str | nn.Module], data: Any, out: str | Path, settings: DumpSettings
) -> Job:
    """Open the data and the teachers, and make the manifest. Nothing is written. Raises the same errors as `dump_logits`."""
    shown, reasons = choose_samples(data, teacher, out, settings)
    modality = modality_of(shown)
    if settings.test_time_views not in modality.test_time_views:
        raise unknown_name("test-time views", settings.test_time_views, modality.test_time_views)
    recipes = tuple(modality.make_views(settings.augment, settings.views, settings.seed))
    chosen = choose_encoding(settings, len(shown.classes))
    refuse_equal_views(modality, settings, chosen)
    indices = None if settings.class_map is None else read_class_map(settings.class_map, shown.classes)
    answered = settings.teacher_classes or (len(shown.classes) if indices is None else 1000)
    _refuse_other_classes(indices, answered, len(shown.classes))
    networks = _networks(modality, teacher, settings.teacher_weights, answered)
    if settings.average and len(networks) < 2:
        raise InputError("--average stores the mean of several teachers; pass each with its own --teacher")
    given = {name: getattr(settings, name) for name in _PREPROCESSING}
    inputs = [modality.choose_inputs(shown, recipes[0], given, network.preprocessing) for network in networks]
    mapped = None if indices is None else {"classes": answered, "indices": list(indices)}
    entries = [
        _entry(*one, mapped) for one in zip(make_slugs([one.name for one in networks]), networks, inputs, strict=True)
    ]
    begun, where = read_manifest(open_place(out)), pick_device(settings.device)
    recipes = recipes if begun is None else continued(modality, recipes, begun.views)
    manifest = make_manifest(settings, shown, data, recipes, entries, chosen, begun, where)
    if settings.batch_size == "auto" and not begun and where.type != "cpu":
        manifest = replace(manifest, batch_size=_largest_batch(networks, entries, manifest, where))
    asked = [recorded_teacher(*one, manifest, where) for one in zip(networks, entries, strict=True)]
    slugs = [entry["slug"] for entry in manifest.teachers]
    groups = [asked] if settings.average else [[one] for one in asked]
    teachers = {slug: Teachers(group) for slug, group in zip(slugs, groups, strict=True)}
    renderer = renderer_of(modality, shown, inputs, settings, where)
    origins = {entry["slug"]: _origins(given, network, shown) for entry, network in zip(entries, networks, strict=True)}
    for entry in entries:
        seen = preprocessing_words(entry["preprocessing"], origins[entry["slug"]])
        mapped_words = class_map_words(entry["class_map"], shown.classes)
        _LOG.info("teacher %s sees %s%s", entry["name"], seen, f"; classes: {mapped_words}" if mapped_words else "")
    return Job(manifest, modality, shown, recipes, chosen, teachers, renderer, reasons, origins)


def _origins(given: Mapping[str, Any], network: Network, samples: Samples) -> dict[str, str]:
    """Return the origin of each setting of a teacher's preprocessing, as in `Job.origins`."""
    # Images of different sizes determine none of them: they are resized to 224 pixels and normalized with ImageNet's mean and std.
    usual = "data" if getattr(samples, "native_size", True) else "default"
    known = {name for name, value in network.preprocessing.items() if value is not None}
    found = dict.fromkeys(_PREPROCESSING, usual)
    found |= {name: "timm" if name in network.from_timm else "weights" for name in found if name in known}
    return found | {name: "option" for name in found if given[name] is not None}


def renderer_of(
    modality: Modality, samples: Samples, inputs: Sequence[Inputs], settings: DumpSettings, device: torch.device
) -> Renderer:
    """Return a renderer of the inputs of a dump's teachers."""
    asked = {"skip_unreadable": settings.skip_unreadable, "on_device": settings.render_device == "teacher"}
    switches = {name: True for name, on in asked.items() if on}
    if "on_device" in switches and "on_device" not in inspect.signature(modality.renderer).parameters:
        raise InputError(f"--render-device is not supported by modality {modality.name}; leave it out")
    return modality.renderer(samples, inputs, with_digests=True, workers=settings.workers, device=device, **switches)


def make_manifest(
    settings: DumpSettings,
    samples: Samples,
    data: Any,
    views: Sequence[Any],
    entries: Sequence[dict[str, Any]],
    encoding: Encoding,
    begun: Manifest | None,
    device: torch.device,
    versions: Mapping[str, str] | None = None,
) -> Manifest:
    """Return the manifest of a cache. Settings that are not given are taken from the existing cache, or from this machine.

    Args:
        settings: Settings of the dump.
        samples: Data set, or the stretch of it to dump.
        data: Name or object that the data set was opened from.
        views: Views of the data set.
        entries: Manifest entries of the teachers.
        encoding: Encoding of the rows.
        begun: Manifest of the existing cache, or None.
        device: Device of the forward pass.
        versions: Versions of software on other machines.
    """
    warn_of_other_teacher(samples, entries)
    (whole, first), modality = whole_of(samples), modality_of(samples)
    forward = {
        "autocast": "bfloat16" if settings.amp else None,
        "channels_last": settings.channels_last,
        "compiled": settings.compiled,
        "test_time_views": settings.test_time_views,
        **({"deterministic": True} if settings.deterministic else {}),
    }
    # Caches that an earlier version started on a GPU do not record the precision of float32 matrix products.
    forward |= {name: x for name, x in float32_settings(device).items() if begun is None or name in begun.forward}
    rows, width = len(samples.labels), widest_bytes(encoding.columns(len(samples.classes)))
    usual = begun.batch_size if begun else usual_batch(modality)
    batch_size = settings.batch_size if isinstance(settings.batch_size, int) else usual
    found = Manifest(
        samples=len(samples),
        classes=samples.classes,
        block_rows=settings.block_rows or (begun.block_rows if begun else block_rows_for(rows, width)),
        batch_size=batch_size,
        threads=settings.threads or (begun.threads if begun else torch.get_num_threads()),
        device=device.type,
        forward=forward,
        views=tuple(view.to_json() for view in views),
        data={
            "spec": data if isinstance(data, str) else "",
            "length": len(whole),
            "digest": whole.digest(),
            "first": first,
            **({"exif_orientation": True} if settings.exif_orientation else {}),
            **facts_of(samples),
        },
        teachers=(average_of(entries),) if settings.average else tuple(entries),
        encoding=encoding.to_json(),
        software=_versions({"logitcache", "numpy", "torch", "zarr", *modality.software}, versions or {}),
        modality=modality.name,
        rows=None if offsets_of(samples) is None else rows,
        excluded=recorded_exclusions(samples, views),
    )
    allowed = begun if settings.allow_mixed else None
    return replace(found, software=allowed.software, device=allowed.device) if allowed else found


def _versions(packages: set[str], others: Mapping[str, str]) -> dict[str, str]:
    """Return versions by name, of installed packages (a user's own teacher may not need all of them) and of other software."""
    installed = {name: found for name in packages if (found := installed_version(name))}
    return dict(sorted((installed | dict(others)).items()))


def _largest_batch(
    networks: Sequence[Network], entries: Sequence[dict[str, Any]], manifest: Manifest, device: torch.device
) -> int:
    """Return the largest batch size that fits in memory, found by running blank batches; at most the size of a block."""

    def attempt(size: int) -> None:
        for network, entry in zip(networks, entries, strict=True):
            one = recorded_teacher(network, entry, replace(manifest, batch_size=size), device)
            for _ in one.rows(one.preprocessing.blank(size)):
                pass

    return largest_fitting(attempt, most=min(_LARGEST_BATCH, manifest.block_rows, manifest.view_rows))


def _entry(slug: str, network: Network, inputs: Inputs, class_map: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the manifest entry of a teacher."""
    return {
        "slug": slug,
        "name": network.name,
        "weights": network.weights,
        "weights_sha256": hash_weights(network.module.state_dict()),
        "class_map": class_map,
        "preprocessing": inputs.to_json(),
        "members": [],
    }


def _refuse_other_classes(mapped: Sequence[int] | None, answered: int, classes: int) -> None:
    if mapped is None and answered != classes:
        raise InputError(
            f"--teacher-classes {answered} does not match data with {classes} classes; map them with --class-map"
        )
    if mapped and max(mapped) >= answered:
        raise InputError(
            f"--class-map refers to class {max(mapped)}, but the teacher has {answered}; set the number with --teacher-classes"
        )


def _networks(
    modality: Modality,
    teacher: str | nn.Module | Sequence[str | nn.Module],
    weights: str | Sequence[str] | None,
    classes: int,
) -> list[Network]:
    """Load the teachers with their weights."""
    named: list[Any] = list(teacher) if isinstance(teacher, list | tuple) else [teacher]
    if strangers := [one for one in named if not isinstance(one, str | nn.Module)]:
        raise InputError(
            f"a teacher must be the name of a network or a module, not {type(strangers[0]).__name__}. Call a factory with the number of "
            "classes first."
        )
    files: list[str | None] = [weights] if weights is None or isinstance(weights, str) else list(weights)
    if not named or len(files) > len(named) or len(named) > len(files) > 1:
        raise InputError(
            f"{len(named)} teachers but {len(files)} --teacher-weights; pass one for each teacher, in the same order"
        )
    if len(named) > 1 and len(files) == 1 and files[0] is not None and files[0] != "DEFAULT":
        raise InputError(
            f"{len(named)} teachers but one --teacher-weights {files[0]}; pass one for each teacher, in the same order"
        )
    files = files * len(named) if len(files) == 1 else files
    return [_with_weights(modality, one, classes, file) for one, file in zip(named, files, strict=True)]


def make_slugs(names: Sequence[str]) -> list[str]:
    """Return the slugs of teachers in a cache, with a number appended to repeated names."""
    found: list[str] = []
    for name in names:
        last = name.rstrip("/").rpartition("/")[2]  # last part of a path
        slug = re.sub(r"[^a-z0-9]+", "-", last.lower()).strip("-")
        later = (f"{slug}-{number}" for number in itertools.count(2))
        found.append(slug if slug not in found else next(one for one in later if one not in found))
    return found


def choose_encoding(settings: DumpSettings, classes: int) -> Encoding:
    """Choose the encoding: by default all classes if there are few, and the largest logits if there are many.

    Raises:
        InputError: If settings contradict each other.
    """
    kind, top_k, precision = settings.encoding, settings.top_k, settings.precision
    if kind == "sampled":
        return _sampled(settings)
    for name in ("draws", "proposal_temperature"):
        if getattr(settings, name) is not None:
            raise InputError(f"{settings.flag(name)} requires --encoding sampled; set both, or leave it out")
    if kind == "full" and top_k is not None:
        raise InputError("--encoding full stores every class; leave out --top-k")
    if kind is None:
        kind = "topk" if top_k is not None or classes > _MANY_CLASSES else "full"
    return FullEncoding(precision) if kind == "full" else TopKEncoding(top_k or TOP_K, precision)


def _sampled(settings: DumpSettings) -> SampledEncoding:
    """Return the sampled encoding.

    Raises:
        InputError: If a setting does not apply to it.
    """
    if settings.top_k is not None:
        raise InputError(
            "--encoding sampled draws classes instead of storing the largest; leave out --top-k, or set --draws"
        )
    if settings.precision != EncodingSettings().precision:
        raise InputError("--encoding sampled stores classes, not logits, so it has no precision; leave out --precision")
    tempered = 1.0 if settings.proposal_temperature is None else float(settings.proposal_temperature)
    return SampledEncoding(settings.draws or _DRAWS, settings.seed, tempered)


def refuse_equal_views(modality: Modality, settings: DumpSettings, encoding: Encoding) -> None:
    """Raise an error if several views are requested that would be identical.

    Raises:
        InputError: If they would be identical.
    """
    if settings.views > 1 and views_are_equal(modality) and not isinstance(encoding, SampledEncoding):
        raise InputError(
            f"{modality.name} is not augmented, so {settings.views} views would be identical; leave out --views, or use --encoding "
            "sampled, which draws new classes for each view"
        )


def _with_weights(modality: Modality, teacher: str | nn.Module, classes: int, weights: str | None) -> Network:
    """Load a teacher, and raise an error if it has no weights."""
    network = modality.network(teacher, classes, weights)
    untrained = (
        isinstance(teacher, str)
        and not weights
        and (":" not in teacher or teacher.startswith(("torchvision:", "timm:")))
    )
    if untrained:
        raise InputError(
            f"teacher {teacher} has no weights, so its logits would be noise. Pass them with --teacher-weights FILE."
        )
    built_anew = isinstance(teacher, str) and not weights and not getattr(network.module, "pretrained", False)
    if built_anew and not _is_same(network, modality.network(teacher, classes, None)):
        raise InputError(
            f"teacher {teacher} is initialized with different weights each time, so at least some of them are random. Load its weights in "
            "the factory, or pass them with --teacher-weights FILE."
        )
    return network


def _is_same(one: Network, other: Network) -> bool:
    """Return whether two networks have bit-identical weights; NaN equals itself."""
    ours, theirs = (
        {name: value.contiguous().reshape(-1).view(torch.uint8) for name, value in network.module.state_dict().items()}
        for network in (one, other)
    )
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
