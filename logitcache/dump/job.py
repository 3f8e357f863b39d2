"""What a dump will do: data, views, teachers and encoding opened and decided, before anything is written."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from logitcache.data import ImageSet, Renderer, load_data, part_of, preprocessing_for, whole_of
from logitcache.data.images.views import View, make_views
from logitcache.data.images.views.preprocessing import Preprocessing
from logitcache.dump.settings import DumpSettings
from logitcache.encoding import Encoding, FullEncoding, TopKEncoding, widest_bytes
from logitcache.errors import InputError
from logitcache.models import Network, hash_weights, load_network, read_class_map
from logitcache.runtime.device import pick_device
from logitcache.store import Manifest, average_of, block_rows_for, open_place, read_manifest
from logitcache.teachers.forward import Teachers, largest_fitting
from logitcache.teachers.recorded import recorded_teacher

__all__ = ["Job", "prepare"]

_MANY_CLASSES = 1000  # up to here a full row of float16 is 2 kB
_TOP_K = 64


@dataclass(frozen=True, slots=True)
class Job:
    """A dump that is ready to begin.

    Attributes:
        manifest: Of the cache it would write.
        images: The samples.
        views: What is shown of them.
        encoding: How rows are stored.
        teachers: For each slug whose answer is stored under it.
        renderer: What makes its input.
    """

    manifest: Manifest
    images: ImageSet
    views: tuple[View, ...]
    encoding: Encoding
    teachers: dict[str, Teachers]
    renderer: Renderer

    def close(self) -> None:
        """Give the teachers' networks back as they were."""
        for one in self.teachers.values():
            one.close()


def prepare(
    teacher: str | nn.Module | Sequence[str | nn.Module], data: str | ImageSet, out: str | Path, settings: DumpSettings
) -> Job:
    """Open data and teacher, and decide what the cache will be; writes nothing. Raises what `dump_logits` raises."""
    recipes = make_views(settings.augment, settings.views, settings.seed)
    images = load_data(data) if isinstance(data, str) else data
    images = part_of(images, settings.samples) if settings.samples else images
    whole, first = whole_of(images)
    chosen = _encoding(settings.encoding, settings.top_k, settings.precision, len(images.classes))
    indices = None if settings.class_map is None else read_class_map(settings.class_map, images.classes)
    answered = settings.teacher_classes or (len(images.classes) if indices is None else 1000)
    _refuse_other_classes(indices, answered, len(images.classes))
    networks = _networks(teacher, settings.teacher_weights, answered)
    if settings.average and len(networks) < 2:
        raise InputError("--average stores the mean of several teachers: name each with a --teacher of its own")
    given = {
        "mean": settings.mean,
        "std": settings.std,
        "image_size": settings.image_size,
        "crop_pct": settings.crop_pct,
    }
    looks = [preprocessing_for(images, recipes[0].recipe, given, network.preprocessing) for network in networks]
    mapped = None if indices is None else {"classes": answered, "indices": list(indices)}
    entries = [_entry(*one, mapped) for one in zip(_slugs(networks), networks, looks, strict=True)]
    begun, where = read_manifest(open_place(out)), pick_device(settings.device)
    forward = {
        "autocast": "bfloat16" if settings.amp else None,
        "channels_last": settings.channels_last,
        "compiled": settings.compiled,
        "test_time_views": settings.test_time_views,
    }
    manifest = Manifest(
        samples=len(images),
        classes=images.classes,
        block_rows=settings.block_rows
        or block_rows_for(len(images), widest_bytes(chosen.columns(len(images.classes)))),
        batch_size=settings.batch_size
        if isinstance(settings.batch_size, int)
        else (begun.batch_size if begun else 256),
        threads=settings.threads or (begun.threads if begun else torch.get_num_threads()),
        device=where.type,
        forward=forward,
        views=tuple(view.to_json() for view in recipes),
        data={
            "spec": data if isinstance(data, str) else "",
            "length": len(whole),
            "digest": whole.digest(),
            "first": first,
        },
        teachers=(average_of(entries),) if settings.average else tuple(entries),
        encoding=chosen.to_json(),
        software={name: version(name) for name in ("logitcache", "numpy", "pillow", "torch", "torchvision", "zarr")},
    )
    if begun and settings.allow_mixed:
        manifest = replace(manifest, software=begun.software, device=begun.device)
    if settings.batch_size == "auto" and not begun and where.type != "cpu":

        def attempt(rows: int) -> None:
            """Ask about a batch of black images, so that memory runs out now and not at night."""
            for network, entry in zip(networks, entries, strict=True):
                one = recorded_teacher(network, entry, replace(manifest, batch_size=rows), where)
                size = one.preprocessing.image_size
                one.logits(torch.zeros(rows, 3, size, size, dtype=torch.uint8))

        largest = largest_fitting(attempt)
        manifest = replace(manifest, batch_size=largest)
    asked = [recorded_teacher(*one, manifest, where) for one in zip(networks, entries, strict=True)]
    slugs = [entry["slug"] for entry in manifest.teachers]
    groups = [asked] if settings.average else [[one] for one in asked]
    teachers = {slug: Teachers(group) for slug, group in zip(slugs, groups, strict=True)}
    renderer = Renderer(images, looks, with_digests=True, workers=settings.workers, device=where)
    return Job(manifest, images, recipes, chosen, teachers, renderer)


def _entry(slug: str, network: Network, look: Preprocessing, class_map: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what the manifest says of a teacher."""
    return {
        "slug": slug,
        "name": network.name,
        "weights": network.weights,
        "weights_sha256": hash_weights(network.module.state_dict()),
        "class_map": class_map,
        "preprocessing": look.to_json(),
        "members": [],
    }


def _refuse_other_classes(mapped: Sequence[int] | None, answered: int, classes: int) -> None:
    if mapped is None and answered != classes:
        raise InputError(
            f"--teacher-classes {answered} with data of {classes}: say with --class-map which of them the data's are"
        )
    if mapped and max(mapped) >= answered:
        raise InputError(
            f"--class-map names class {max(mapped)} of a teacher of {answered}: say how many it has with --teacher-classes"
        )


def _networks(
    teacher: str | nn.Module | Sequence[str | nn.Module], weights: str | Sequence[str] | None, classes: int
) -> list[Network]:
    """Load the teachers, each with its weights."""
    named = [teacher] if isinstance(teacher, str | nn.Module) else list(teacher)
    files: list[str | None] = [weights] if weights is None or isinstance(weights, str) else list(weights)
    if not named or len(files) > len(named) or len(named) > len(files) > 1:
        raise InputError(f"{len(named)} teachers and {len(files)} --teacher-weights: give one for each, in their order")
    if len(named) > 1 and len(files) == 1 and files[0] is not None and files[0] != "DEFAULT":
        raise InputError(
            f"{len(named)} teachers and one --teacher-weights {files[0]}: give one for each, in their order"
        )
    files = files * len(named) if len(files) == 1 else files
    return [_with_weights(one, classes, file) for one, file in zip(named, files, strict=True)]


def _slugs(networks: Sequence[Network]) -> list[str]:
    """Name teachers inside a cache; two of one name are told apart by a number."""
    found: list[str] = []
    for network in networks:
        slug = re.sub(r"[^a-z0-9]+", "-", network.name.lower()).strip("-")
        later = (f"{slug}-{number}" for number in itertools.count(2))
        found.append(slug if slug not in found else next(one for one in later if one not in found))
    return found


def _encoding(kind: str | None, top_k: int | None, precision: str, classes: int) -> Encoding:
    """Choose how rows are stored: every class where there are few, the largest where there are many."""
    if kind == "full" and top_k is not None:
        raise InputError("--encoding full keeps every class: leave out --top-k")
    if kind is None:
        kind = "topk" if top_k is not None or classes > _MANY_CLASSES else "full"
    return FullEncoding(precision) if kind == "full" else TopKEncoding(top_k or _TOP_K, precision)


def _with_weights(teacher: str | nn.Module, classes: int, weights: str | None) -> Network:
    """Load the teacher, and refuse one that knows nothing."""
    network = load_network(teacher, classes, weights)
    untrained = (
        isinstance(teacher, str)
        and not weights
        and (":" not in teacher or teacher.startswith(("torchvision:", "timm:")))
    )
    if untrained:
        raise InputError(
            f"teacher {teacher} has no weights, so its logits would be noise. Name them with --teacher-weights FILE."
        )
    return network
