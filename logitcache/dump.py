"""`logitcache dump`: run the teacher once over every view of every sample, and keep its logits.

dataset ─(sample, view)→ augmentation ─→ teacher ─→ encode ─→ writer ─→ store
"""

import inspect
import re
import shlex
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from logitcache.data import ImageSet, Renderer, load_data, part_of, preprocessing_for, whole_of
from logitcache.device import pick_device
from logitcache.encoding import Encoding, FullEncoding, TopKEncoding, widest_bytes
from logitcache.errors import CacheMismatchError, InputError, unknown_name
from logitcache.fill import Filler, refuse_unusable, split
from logitcache.models import Network, hash_weights, load_network, read_class_map
from logitcache.progress import OnProgress, silent
from logitcache.ranks import Ranks, join_ranks
from logitcache.store import (
    PROBE_BYTES,
    Cache,
    CacheWriter,
    Manifest,
    block_rows_for,
    open_cache,
    open_place,
    read_manifest,
)
from logitcache.teacher import Teacher
from logitcache.views import View, make_views
from logitcache.views.philox import integers, words

__all__ = ["Job", "dump_logits", "prepare", "probe_samples"]

_PROBE_ROWS = 256
_MANY_CLASSES = 1000  # up to here a full row of float16 is 2 kB
_TOP_K = 64


def dump_logits(
    *,
    teacher: str | nn.Module,
    data: str | ImageSet,
    out: str | Path,
    teacher_weights: str | None = None,
    teacher_classes: int | None = None,
    class_map: str | Sequence[int] | None = None,
    augment: str = "none",
    views: int = 1,
    encoding: str | None = None,
    top_k: int | None = None,
    precision: str = "f16",
    batch_size: int = 256,
    amp: bool = False,
    channels_last: bool = False,
    device: str = "auto",
    seed: int = 0,
    samples: tuple[int, int] | None = None,
    workers: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | None = None,
    crop_pct: float | None = None,
    threads: int | None = None,
    block_rows: int | None = None,
    allow_mixed: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: OnProgress = silent,
) -> Cache:
    """Run a teacher over a data set and store its logits.

    Killed anywhere and called again with the same arguments, it goes on where it stopped and leaves the same bytes.
    More `views` than a finished cache has extend it. Started by torchrun, the processes divide the blocks between them.

    Args:
        teacher: Name of a network (`models.load_network`), or a module with its weights.
        data: Name of a data set (`data.load_data`), or one that is open.
        out: Path of the cache.
        teacher_weights: File or name of the teacher's weights.
        teacher_classes: How many classes the teacher answers for; None: those of the data, or with `class_map` 1,000.
        class_map: For each class of the data, which of the teacher's it is: in order, or a JSON file (`models.read_class_map`).
            Only these logits are stored.
        augment: Recipe of the views (`views.read_recipe`); or several with commas between them: one view of each makes a group,
            for methods that pair views.
        views: Renditions of the whole data set, of each recipe; epoch e trains on view e mod views.
        encoding: `full` (every class) or `topk`; None: full up to 1,000 classes, unless `top_k` is given.
        top_k: How many of the largest logits are kept; None: 64.
        precision: `f32` (lossless), `f16` or `u8` (an even grid for each row).
        batch_size: Rows of a forward pass.
        amp: Whether the teacher computes in bfloat16 where torch's autocast allows it; part of the cache's identity.
        channels_last: Whether pixels and weights are laid out so; part of the cache's identity.
        device: `auto`, `cpu`, `cuda`, ...
        seed: Of augmentation and probe.
        samples: Only these, from the first to one before the last; `merge` puts such caches together. None: all.
        workers: Processes that decode images; None chooses by the data.
        mean: Of three channels in [0, 1]; None takes the weights' or the data set's.
        std: Deviation, likewise.
        image_size: The teacher's input, in pixels; None takes the weights' or the data set's.
        crop_pct: Share of the shorter side that the teacher sees of an image that is resized.
        threads: CPU threads of a forward pass; None takes torch's, or those the cache was begun with.
        block_rows: Rows of a block; None chooses by size.
        allow_mixed: Whether to continue a cache that was begun on another device or with other library versions.
        should_stop: Asked after every block; where it says yes, what is in hand is committed and CacheIncompleteError raised.
        on_progress: Called after every batch; of several processes, for all of them.

    Returns:
        The finished cache.

    Raises:
        InputError: Arguments, data, weights or logits that cannot be used.
        UnknownNameError: A name that is not known.
        CacheMismatchError: `out` is another cache.
        CacheIncompleteError: The disk is full, or it was asked to stop.
    """
    if class_map is not None and not isinstance(class_map, str):
        class_map = [int(number) for number in class_map]
    given = {name: value for name, value in locals().items() if name not in ("on_progress", "should_stop")}
    with join_ranks(should_stop) as ranks:
        return _dumped(prepare(**given), ranks, out, _command(given), seed, allow_mixed, should_stop, on_progress)


def _dumped(
    job: "Job",
    ranks: Ranks,
    out: str | Path,
    command: str,
    seed: int,
    allow_mixed: bool,
    should_stop: Callable[[], bool],
    on_progress: OnProgress,
) -> Cache:
    """Write what is missing of a cache."""
    manifest, slug = job.manifest, job.manifest.teachers[0]["slug"]
    _refuse_unlike(manifest, ranks)
    ranks.wait()  # every process has read what was there before the leader writes
    columns, labels = {slug: job.encoding.columns(len(manifest.classes))}, job.images.labels.astype(np.int32)
    writer = CacheWriter(out, manifest, columns, labels, command=command, leads=ranks.leads)
    with closing(job.runner), writer:
        if not ranks.share("complete", writer.complete if ranks.leads else None):
            probed = probe_samples(seed, manifest.samples, len(manifest.classes))
            probe = torch.cat(
                [
                    job.runner.logits(batch.pixels[0])
                    for batch in job.renderer.batches(job.views[0], split(probed, manifest.batch_size))
                ]
            )
            exact = probe.cpu().numpy()
            refuse_unusable(exact, probed, job.views[0], job.images, job.runner.name)
            if ranks.leads:
                writer.begin(probed, {slug: exact}, allow_mixed=allow_mixed)
            missing = [
                (view, block) for view, block in ranks.share("missing", writer.missing() if ranks.leads else None)
            ]
            if not ranks.leads:
                writer.follow(slug, exact, allow_mixed=allow_mixed)
            filler = Filler(
                writer, job.runner, job.renderer, job.views, job.encoding, job.images, ranks, should_stop, on_progress
            )
            filler.fill(missing)
            if ranks.leads:
                writer.finish()
        ranks.wait()
    return open_cache(out)


@dataclass(frozen=True, slots=True)
class Job:
    """A dump that is ready to begin.

    Attributes:
        manifest: Of the cache it would write.
        images: The samples.
        views: What is shown of them.
        encoding: How rows are stored.
        runner: The teacher.
        renderer: What makes its input.
    """

    manifest: Manifest
    images: ImageSet
    views: tuple[View, ...]
    encoding: Encoding
    runner: Teacher
    renderer: Renderer


def prepare(
    *,
    teacher: str | nn.Module,
    data: str | ImageSet,
    out: str | Path,
    teacher_weights: str | None,
    teacher_classes: int | None,
    class_map: str | Sequence[int] | None,
    augment: str,
    views: int,
    encoding: str | None,
    top_k: int | None,
    precision: str,
    batch_size: int,
    amp: bool,
    channels_last: bool,
    device: str,
    seed: int,
    samples: tuple[int, int] | None,
    workers: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    image_size: int | None,
    crop_pct: float | None,
    threads: int | None,
    block_rows: int | None,
    allow_mixed: bool,
) -> Job:
    """Open data and teacher, and decide what the cache will be; writes nothing. Arguments and errors are those of `dump_logits`."""
    if views < 1 or batch_size < 1 or not 0 <= seed < 2**64:
        raise InputError(
            f"views and batch size must be 1 or more and 0 <= seed < 2**64, not {views}, {batch_size} and {seed}"
        )
    recipes = make_views(augment, views, seed)
    images = load_data(data) if isinstance(data, str) else data
    images = part_of(images, samples) if samples else images
    whole, first = whole_of(images)
    classes = len(images.classes)
    chosen = _encoding(encoding, top_k, precision, classes)
    mapped = None if class_map is None else read_class_map(class_map, images.classes)
    answered = teacher_classes or (classes if mapped is None else 1000)
    if mapped is None and answered != classes:
        raise InputError(
            f"--teacher-classes {answered} with data of {classes}: say with --class-map which of them the data's are"
        )
    if mapped and max(mapped) >= answered:
        raise InputError(
            f"--class-map names class {max(mapped)} of a teacher of {answered}: say how many it has with --teacher-classes"
        )
    network = _with_weights(teacher, answered, teacher_weights)
    preprocessing = preprocessing_for(
        images,
        recipes[0].recipe,
        mean=mean or network.preprocessing.get("mean"),
        std=std or network.preprocessing.get("std"),
        image_size=image_size or network.preprocessing.get("image_size"),
        crop_pct=crop_pct or network.preprocessing.get("crop_pct"),
    )
    begun, where = read_manifest(open_place(out)), pick_device(device)
    slug = re.sub(r"[^a-z0-9]+", "-", network.name.lower()).strip("-")
    stored = chosen.columns(classes)
    manifest = Manifest(
        samples=len(images),
        classes=images.classes,
        block_rows=block_rows or block_rows_for(len(images), widest_bytes(stored)),
        batch_size=batch_size,
        threads=threads or (begun.threads if begun else torch.get_num_threads()),
        device=where.type,
        forward={"autocast": "bfloat16" if amp else None, "channels_last": channels_last},
        views=tuple(view.to_json() for view in recipes),
        data={
            "spec": data if isinstance(data, str) else "",
            "length": len(whole),
            "digest": whole.digest(),
            "first": first,
        },
        preprocessing=preprocessing.to_json(),
        teachers=(
            {
                "slug": slug,
                "name": network.name,
                "weights": network.weights,
                "weights_sha256": hash_weights(network.module.state_dict()),
                "class_map": None if mapped is None else {"classes": answered, "indices": list(mapped)},
            },
        ),
        encoding=chosen.to_json(),
        software={name: version(name) for name in ("logitcache", "numpy", "pillow", "torch", "torchvision", "zarr")},
    )
    if begun and allow_mixed:
        manifest = replace(manifest, software=begun.software, device=begun.device)
    runner = Teacher(
        network,
        preprocessing,
        classes=answered,
        batch_size=batch_size,
        threads=manifest.threads,
        device=where,
        class_map=mapped,
        **manifest.forward,
    )
    renderer = Renderer(images, [preprocessing], with_digests=True, workers=workers)
    return Job(manifest, images, recipes, chosen, runner, renderer)


def _refuse_unlike(manifest: Manifest, ranks: Ranks) -> None:
    """Refuse a process that would write another cache than the leader's."""
    theirs = Manifest.from_json(ranks.share("manifest", manifest.to_json()), "the first process")
    if differences := theirs.differences(manifest):
        lines = "".join(f"\n  {key}: there {there!r}, here {here!r}" for key, there, here in differences)
        raise CacheMismatchError(
            f"process {ranks.rank} would write another cache than process 0; they differ in:{lines}\nGive every process the same "
            "options, data, weights and versions."
        )


def _encoding(kind: str | None, top_k: int | None, precision: str, classes: int) -> Encoding:
    """Choose how rows are stored: every class where there are few, the largest where there are many."""
    if kind not in (None, "full", "topk"):
        raise unknown_name("encoding", kind, ["full", "topk"])
    if kind == "full" and top_k is not None:
        raise InputError("--encoding full keeps every class: leave out --top-k")
    if kind is None:
        kind = "topk" if top_k is not None or classes > _MANY_CLASSES else "full"
    return FullEncoding(precision) if kind == "full" else TopKEncoding(top_k or _TOP_K, precision)


def probe_samples(seed: int, samples: int, classes: int) -> NDArray[np.int64]:
    """Choose the probe: one sample at random out of each of 256 equal stretches of the data set, or all of a smaller one.

    Fewer where rows are long: at most 64 MB.
    """
    count = min(_PROBE_ROWS, samples, max(PROBE_BYTES // (4 * classes), 1))
    edges = np.arange(count + 1) * samples // count
    random = words(seed, 0xFFFFFFFF, np.arange(count), 0)[:, 0]  # a view that no data set has
    return edges[:-1] + integers(random, np.diff(edges))


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


def _command(arguments: dict[str, Any]) -> str:
    """Spell the command line of these arguments; empty where one of them has no spelling."""
    defaults = {name: parameter.default for name, parameter in inspect.signature(dump_logits).parameters.items()}
    line = ["logitcache", "dump"]
    for name, value in arguments.items():
        if value == defaults[name]:
            continue
        if name == "block_rows" or (name in ("teacher", "data", "class_map") and not isinstance(value, str)):
            return ""
        flag = f"--{name.replace('_', '-')}"
        separator = ":" if name == "samples" else ","
        text = separator.join(str(x) for x in value) if isinstance(value, list | tuple) else str(value)
        line += [flag] if value is True else [flag, text]
    return shlex.join(line)
