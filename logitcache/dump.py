"""`logitcache dump`: run the teacher once over every view of every sample, and keep its logits.

dataset ─(sample, view)→ augmentation ─→ teacher ─→ encode ─→ writer ─→ store
"""

import inspect
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from logitcache.data import ImageSet, Renderer, load_data, part_of, preprocessing_for, whole_of
from logitcache.device import pick_device
from logitcache.encoding import Encoding, FullEncoding, TopKEncoding
from logitcache.errors import InputError, unknown_name
from logitcache.models import Network, hash_weights, load_network
from logitcache.progress import OnProgress, Progress, silent
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

__all__ = ["dump_logits"]

_PROBE_ROWS = 256
_MANY_CLASSES = 1000  # up to here a full row of float16 is 2 kB
_TOP_K = 64


def dump_logits(
    *,
    teacher: str | nn.Module,
    data: str | ImageSet,
    out: str | Path,
    teacher_weights: str | None = None,
    augment: str = "none",
    views: int = 1,
    encoding: str | None = None,
    top_k: int | None = None,
    precision: str = "f16",
    batch_size: int = 256,
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
    on_progress: OnProgress = silent,
) -> Cache:
    """Run a teacher over a data set and store its logits.

    Killed anywhere and called again with the same arguments, it goes on where it stopped and leaves the same bytes.
    More `views` than a finished cache has extend it.

    Args:
        teacher: Name of a network (`models.load_network`), or a module with its weights.
        data: Name of a data set (`data.load_data`), or one that is open.
        out: Path of the cache.
        teacher_weights: File or name of the teacher's weights.
        augment: Recipe of the views, a key of `views.RECIPES`; or several with commas between them: one view of each makes
            a group, for methods that pair views.
        views: Renditions of the whole data set, of each recipe; epoch e trains on view e mod views.
        encoding: `full` (every class) or `topk`; None: full up to 1,000 classes, unless `top_k` is given.
        top_k: How many of the largest logits are kept; None: 64.
        precision: `f32` (lossless), `f16` or `u8` (an even grid for each row).
        batch_size: Rows of a forward pass.
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
        on_progress: Called after every batch.

    Returns:
        The finished cache.

    Raises:
        InputError: Arguments, data, weights or logits that cannot be used.
        UnknownNameError: A name that is not known.
        CacheMismatchError: `out` is another cache.
        CacheIncompleteError: The disk is full.
    """
    command = _command({name: value for name, value in locals().items() if name != "on_progress"})
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
    network = _with_weights(teacher, classes, teacher_weights)
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
    row_bytes = max(column.nbytes for column in stored.values())
    manifest = Manifest(
        samples=len(images),
        classes=images.classes,
        block_rows=block_rows or block_rows_for(len(images), row_bytes),
        batch_size=batch_size,
        threads=threads or (begun.threads if begun else torch.get_num_threads()),
        device=where.type,
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
                "class_map": None,
            },
        ),
        encoding=chosen.to_json(),
        software={name: version(name) for name in ("logitcache", "numpy", "pillow", "torch", "torchvision", "zarr")},
    )
    if begun and allow_mixed:
        manifest = replace(manifest, software=begun.software, device=begun.device)
    runner = Teacher(
        network, preprocessing, classes=classes, batch_size=batch_size, threads=manifest.threads, device=where
    )
    columns, labels = {slug: stored}, images.labels.astype(np.int32)
    with closing(runner), CacheWriter(out, manifest, columns, labels, command=command) as writer:
        if not writer.complete:
            renderer = Renderer(images, [preprocessing], with_digests=True, workers=workers)
            probed = _probe_samples(seed, len(images), classes)
            probe = torch.cat(
                [runner.logits(batch.pixels[0]) for batch in renderer.batches(recipes[0], _split(probed, batch_size))]
            )
            exact = probe.cpu().numpy()
            _refuse_unusable(exact, probed, recipes[0], images, runner.name)
            writer.begin(probed, {slug: exact}, allow_mixed=allow_mixed)
            _fill(writer, runner, renderer, recipes, chosen, slug, images, on_progress)
            writer.finish()
    return open_cache(out)


def _fill(
    writer: CacheWriter,
    teacher: Teacher,
    renderer: Renderer,
    views: Sequence[View],
    encoding: Encoding,
    slug: str,
    images: ImageSet,
    on_progress: OnProgress,
) -> None:
    """Answer for every row that is not committed yet, block by block; batches never straddle a block."""
    manifest, missing, labels = writer.manifest, writer.missing(), torch.from_numpy(images.labels).long()
    total = len(views) * manifest.samples
    ranges = {key: manifest.rows(key[1]) for key in missing}
    done = total - sum(last - first for first, last in ranges.values())
    started, right = done, 0
    for view in views:
        blocks = [block for v, block in missing if v == view.index]
        batches = [
            ids for block in blocks for ids in _split(np.arange(*ranges[view.index, block]), manifest.batch_size)
        ]
        stream = renderer.batches(view, batches)
        for block in blocks:
            first, last = ranges[view.index, block]
            digests = np.empty(last - first, np.uint64)
            parts: list[Mapping[str, torch.Tensor]] = []
            for batch in _take(stream, -(-(last - first) // manifest.batch_size)):
                assert batch.digests is not None
                logits = teacher.logits(batch.pixels[0])
                parts.append(encoding.encode(logits, labels[batch.samples].to(logits.device)))
                digests[batch.samples - first] = batch.digests
                right += int((logits.argmax(1).cpu().numpy() == images.labels[batch.samples]).sum())
                done += len(batch.samples)
                accuracy = right / (done - started)
                on_progress(
                    Progress(
                        "dumping",
                        done,
                        total,
                        "rows",
                        f"view {view.index + 1}/{len(views)}, teacher {accuracy:.1%} right",
                    )
                )
            rows: dict[str, NDArray[np.generic]] = {"digests": digests}
            for name in parts[0]:
                column = torch.cat([part[name] for part in parts]).cpu().numpy()
                _refuse_unusable(column, np.arange(first, last), view, images, teacher.name, name)
                rows[f"teachers/{slug}/{name}"] = column
            writer.write(view.index, block, rows)
    writer.drain()


def _take(stream: Iterator[Any], count: int) -> Iterator[Any]:
    for _ in range(count):
        yield next(stream)


def _split(samples: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def _encoding(kind: str | None, top_k: int | None, precision: str, classes: int) -> Encoding:
    """Choose how rows are stored: every class where there are few, the largest where there are many."""
    if kind not in (None, "full", "topk"):
        raise unknown_name("encoding", kind, ["full", "topk"])
    if kind == "full" and top_k is not None:
        raise InputError("--encoding full keeps every class: leave out --top-k")
    if kind is None:
        kind = "topk" if top_k is not None or classes > _MANY_CLASSES else "full"
    return FullEncoding(precision) if kind == "full" else TopKEncoding(top_k or _TOP_K, precision)


def _probe_samples(seed: int, samples: int, classes: int) -> NDArray[np.int64]:
    """Choose the probe: one sample at random out of each of 256 equal stretches of the data set, or all of a smaller one.

    Fewer where rows are long: at most 64 MB.
    """
    count = min(_PROBE_ROWS, samples, max(PROBE_BYTES // (4 * classes), 1))
    edges = np.arange(count + 1) * samples // count
    random = words(seed, 0xFFFFFFFF, np.arange(count), 0)[:, 0]  # a view that no data set has
    return edges[:-1] + integers(random, np.diff(edges))


def _refuse_unusable(
    logits: NDArray[np.generic],
    samples: NDArray[np.int64],
    view: View,
    images: ImageSet,
    teacher: str,
    column_name: str = "logits",
) -> None:
    """Raise where a logit is no number, or is one that the precision cannot hold: a cache never stores such a row."""
    if logits.dtype.kind != "f" or np.isfinite(logits).all():
        return
    finite = np.isfinite(logits.reshape(len(logits), -1))
    row, column = (int(x) for x in np.argwhere(~finite)[0])
    value, sample = logits.reshape(len(logits), -1)[row, column], int(samples[row])
    named = images.classes[images.labels[sample]]
    where = f"sample {whole_of(images)[1] + sample} (class {named!r}), view {view.index}: "
    where += f"logit {column} is {value}" if column_name == "logits" else f"among the stored {column_name} is {value}"
    if np.isinf(value) and logits.dtype == np.float16:
        raise InputError(
            f"teacher {teacher} gives logits beyond 65,504, which float16 cannot hold; {where}. Use --precision f32."
        )
    raise InputError(
        f"teacher {teacher} gives logits that are no numbers; {where}; {int((~finite.all(1)).sum()):,} rows of this block are like it. "
        "Nothing of the block was stored. Check the weights and --mean/--std."
    )


def _with_weights(teacher: str | nn.Module, classes: int, weights: str | None) -> Network:
    """Load the teacher, and refuse one that knows nothing."""
    network = load_network(teacher, classes, weights)
    untrained = isinstance(teacher, str) and not weights and (":" not in teacher or teacher.startswith("torchvision:"))
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
        if name == "block_rows" or (name in ("teacher", "data") and not isinstance(value, str)):
            return ""
        flag = f"--{name.replace('_', '-')}"
        separator = ":" if name == "samples" else ","
        text = separator.join(str(x) for x in value) if isinstance(value, list | tuple) else str(value)
        line += [flag] if value is True else [flag, text]
    return shlex.join(line)
