"""`logitcache dump`: run the teacher once over every view of every sample, and keep its logits.

dataset ─(sample, view)→ augmentation ─→ teacher ─→ encode ─→ writer ─→ store
"""

import contextlib
import inspect
import itertools
import re
import shlex
from collections.abc import Callable, Sequence
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
from logitcache.fill import Filler, ask, refuse_unusable, split
from logitcache.models import Network, hash_weights, load_network, read_class_map
from logitcache.progress import OnProgress, silent
from logitcache.ranks import Ranks, join_ranks
from logitcache.store import (
    PROBE_BYTES,
    Cache,
    CacheWriter,
    Manifest,
    average_of,
    block_rows_for,
    open_cache,
    open_place,
    read_manifest,
)
from logitcache.teacher import TEST_TIME_VIEWS, Teacher, Teachers, largest_fitting
from logitcache.views import View, make_views
from logitcache.views.philox import integers, words

__all__ = ["Job", "dump_logits", "prepare", "probe_samples"]

_PROBE_ROWS = 256
_MANY_CLASSES = 1000  # up to here a full row of float16 is 2 kB
_TOP_K = 64


def dump_logits(
    *,
    teacher: str | nn.Module | Sequence[str | nn.Module],
    data: str | ImageSet,
    out: str | Path,
    teacher_weights: str | Sequence[str] | None = None,
    teacher_classes: int | None = None,
    class_map: str | Sequence[int] | None = None,
    average: bool = False,
    test_time_views: str = "none",
    augment: str = "none",
    views: int = 1,
    encoding: str | None = None,
    top_k: int | None = None,
    precision: str = "f16",
    batch_size: int | str = 256,
    amp: bool = False,
    channels_last: bool = False,
    compiled: bool = False,
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
        teacher: Name of a network (`models.load_network`), or a module with its weights; or several, asked in one pass.
        data: Name of a data set (`data.load_data`), or one that is open.
        out: Path of the cache.
        teacher_weights: File or name of the teacher's weights; of several teachers one for each, in their order.
        teacher_classes: How many classes the teacher answers for; None: those of the data, or with `class_map` 1,000.
        class_map: For each class of the data, which of the teacher's it is: in order, or a JSON file (`models.read_class_map`).
            Only these logits are stored.
        average: Whether the mean of several teachers' logits is stored, instead of each teacher's.
        test_time_views: `flip`: a teacher's answer is the mean of its logits for the rendition and for its mirror image.
        augment: Recipe of the views (`views.read_recipe`); or several with commas between them: one view of each makes a group,
            for methods that pair views.
        views: Renditions of the whole data set, of each recipe; epoch e trains on view e mod views.
        encoding: `full` (every class) or `topk`; None: full up to 1,000 classes, unless `top_k` is given.
        top_k: How many of the largest logits are kept; None: 64.
        precision: `f32` (lossless), `f16` or `u8` (an even grid for each row).
        batch_size: Rows of a forward pass; `auto`: as many as fit on a GPU, and 256 on a CPU.
        amp: Whether the teacher computes in bfloat16 where torch's autocast allows it; part of the cache's identity.
        channels_last: Whether pixels and weights are laid out so; part of the cache's identity.
        compiled: Whether torch.compile translates the teacher first; part of the cache's identity.
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
    teacher = teacher if isinstance(teacher, str | nn.Module) else list(teacher)
    teacher_weights = list(teacher_weights) if isinstance(teacher_weights, list | tuple) else teacher_weights
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
    manifest = job.manifest
    _refuse_unlike(manifest, ranks)
    ranks.wait()  # every process has read what was there before the leader writes
    columns = {slug: job.encoding.columns(len(manifest.classes)) for slug in job.teachers}
    labels = job.images.labels.astype(np.int32)
    writer = CacheWriter(out, manifest, columns, labels, command=command, leads=ranks.leads)
    with contextlib.ExitStack() as stack:
        for one in job.teachers.values():
            stack.callback(one.close)
        stack.enter_context(writer)
        if not ranks.share("complete", writer.complete if ranks.leads else None):
            probed, exact = _probe(job, seed)
            if ranks.leads:
                writer.begin(probed, exact, allow_mixed=allow_mixed)
            missing = [
                (view, block) for view, block in ranks.share("missing", writer.missing() if ranks.leads else None)
            ]
            if not ranks.leads:
                writer.follow(exact, allow_mixed=allow_mixed)
            filler = Filler(
                writer, job.teachers, job.renderer, job.views, job.encoding, job.images, ranks, should_stop, on_progress
            )
            filler.fill(missing)
            if ranks.leads:
                writer.finish()
        ranks.wait()
    return open_cache(out)


def _probe(job: "Job", seed: int) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float32]]]:
    """Ask every teacher about the rows that are kept exactly: their samples, [P], and logits, [P, C] each."""
    manifest = job.manifest
    probed = probe_samples(seed, manifest.samples, len(manifest.classes))
    parts: dict[str, list[torch.Tensor]] = {slug: [] for slug in job.teachers}
    for batch in job.renderer.batches(job.views[0], split(probed, manifest.batch_size)):
        for slug, answer in ask(job.teachers, batch):
            parts[slug].append(answer)
    exact = {slug: torch.cat(answers).cpu().numpy() for slug, answers in parts.items()}
    for slug, values in exact.items():
        refuse_unusable(values, probed, job.views[0], job.images, job.teachers[slug].name)
    return probed, exact


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


def prepare(
    *,
    teacher: str | nn.Module | Sequence[str | nn.Module],
    data: str | ImageSet,
    out: str | Path,
    teacher_weights: str | Sequence[str] | None,
    teacher_classes: int | None,
    class_map: str | Sequence[int] | None,
    average: bool,
    test_time_views: str,
    augment: str,
    views: int,
    encoding: str | None,
    top_k: int | None,
    precision: str,
    batch_size: int | str,
    amp: bool,
    channels_last: bool,
    compiled: bool,
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
    whole_number = isinstance(batch_size, int) and batch_size >= 1
    if views < 1 or not (whole_number or batch_size == "auto") or not 0 <= seed < 2**64:
        raise InputError(
            f"views and batch size must be 1 or more and 0 <= seed < 2**64, not {views}, {batch_size} and {seed}"
        )
    if test_time_views not in TEST_TIME_VIEWS:
        raise unknown_name("test-time views", test_time_views, TEST_TIME_VIEWS)
    recipes = make_views(augment, views, seed)
    images = load_data(data) if isinstance(data, str) else data
    images = part_of(images, samples) if samples else images
    whole, first = whole_of(images)
    classes = len(images.classes)
    chosen = _encoding(encoding, top_k, precision, classes)
    mapped = None if class_map is None else read_class_map(class_map, images.classes)
    answered = teacher_classes or (classes if mapped is None else 1000)
    _refuse_other_classes(mapped, answered, classes)
    networks = _networks(teacher, teacher_weights, answered)
    if average and len(networks) < 2:
        raise InputError("--average stores the mean of several teachers: name each with a --teacher of its own")
    given = {"mean": mean, "std": std, "image_size": image_size, "crop_pct": crop_pct}
    looks = []
    for network in networks:
        known = network.preprocessing | {word: value for word, value in given.items() if value}
        looks.append(preprocessing_for(images, recipes[0].recipe, **{word: known.get(word) for word in given}))
    entries: list[dict[str, Any]] = [
        {
            "slug": slug,
            "name": network.name,
            "weights": network.weights,
            "weights_sha256": hash_weights(network.module.state_dict()),
            "class_map": None if mapped is None else {"classes": answered, "indices": list(mapped)},
            "preprocessing": look.to_json(),
            "members": [],
        }
        for slug, network, look in zip(_slugs(networks), networks, looks, strict=True)
    ]
    begun, where = read_manifest(open_place(out)), pick_device(device)
    stored = chosen.columns(classes)
    manifest = Manifest(
        samples=len(images),
        classes=images.classes,
        block_rows=block_rows or block_rows_for(len(images), widest_bytes(stored)),
        batch_size=batch_size if isinstance(batch_size, int) else (begun.batch_size if begun else 256),
        threads=threads or (begun.threads if begun else torch.get_num_threads()),
        device=where.type,
        forward={
            "autocast": "bfloat16" if amp else None,
            "channels_last": channels_last,
            "compiled": compiled,
            "test_time_views": test_time_views,
        },
        views=tuple(view.to_json() for view in recipes),
        data={
            "spec": data if isinstance(data, str) else "",
            "length": len(whole),
            "digest": whole.digest(),
            "first": first,
        },
        teachers=(average_of(entries),) if average else tuple(entries),
        encoding=chosen.to_json(),
        software={name: version(name) for name in ("logitcache", "numpy", "pillow", "torch", "torchvision", "zarr")},
    )
    if begun and allow_mixed:
        manifest = replace(manifest, software=begun.software, device=begun.device)

    def runners(rows: int) -> list[Teacher]:
        more: dict[str, Any] = {
            "classes": answered,
            "batch_size": rows,
            "threads": manifest.threads,
            "device": where,
            "class_map": mapped,
        }
        return [Teacher(n, look, **more, **manifest.forward) for n, look in zip(networks, looks, strict=True)]

    if batch_size == "auto" and not begun and where.type != "cpu":
        manifest = replace(manifest, batch_size=largest_fitting(lambda rows: _try(runners(rows), rows)))
    asked = runners(manifest.batch_size)
    teachers = (
        {"mean": Teachers(asked)}
        if average
        else {e["slug"]: Teachers([one]) for e, one in zip(entries, asked, strict=True)}
    )
    renderer = Renderer(images, looks, with_digests=True, workers=workers, pinned=where.type == "cuda")
    return Job(manifest, images, recipes, chosen, teachers, renderer)


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


def _try(teachers: Sequence[Teacher], rows: int) -> None:
    """Ask teachers about a batch of black images, so that memory runs out now and not at night."""
    for teacher in teachers:
        size = teacher.preprocessing.image_size
        teacher.logits(torch.zeros(rows, 3, size, size, dtype=torch.uint8))


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
        if (
            name in ("teacher", "teacher_weights")
            and isinstance(value, list)
            and all(isinstance(x, str) for x in value)
        ):
            line += [word for one in value for word in (f"--{name.replace('_', '-')}", one)]
            continue
        if name == "block_rows" or (name in ("teacher", "data", "class_map") and not isinstance(value, str)):
            return ""
        flag = "--compile" if name == "compiled" else f"--{name.replace('_', '-')}"
        separator = ":" if name == "samples" else ","
        text = separator.join(str(x) for x in value) if isinstance(value, list | tuple) else str(value)
        line += [flag] if value is True else [flag, text]
    return shlex.join(line)
