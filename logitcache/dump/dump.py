"""`logitcache dump`: run the teacher once over every view of every sample, and keep its logits.

dataset ─(sample, view)→ augmentation ─→ teacher ─→ encode ─→ writer ─→ store
"""

import contextlib
import inspect
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from logitcache.data import Ids, offsets_of
from logitcache.dump.fill import Filler, ask, refuse_unusable, split
from logitcache.dump.job import Job, prepare
from logitcache.errors import CacheMismatchError, InputError
from logitcache.runtime.philox import integers, words
from logitcache.runtime.processes import Ranks, join_ranks
from logitcache.runtime.progress import OnProgress, silent
from logitcache.store import PROBE_BYTES, Cache, CacheWriter, Manifest, open_cache

__all__ = ["dump_logits", "probe_rows"]

_PROBE_ROWS = 256
_SHOWN_TWICE = 8


def dump_logits(
    *,
    teacher: str | nn.Module | Sequence[str | nn.Module],
    data: Any,
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
        data: Name of a data set (`data.load_data`), or any map-style torch or torchvision data set of (image, label) items.
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
    job: Job,
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
    labels, offsets = job.samples.labels.astype(np.int32), offsets_of(job.samples)
    writer = CacheWriter(out, manifest, columns, labels, offsets, command=command, leads=ranks.leads)
    with contextlib.closing(job), writer:
        if not ranks.share("complete", writer.complete if ranks.leads else None):
            probed, exact = _probe(job, seed)
            if ranks.leads:
                writer.begin(probed, exact, allow_mixed=allow_mixed)
            missing = [
                (view, block) for view, block in ranks.share("missing", writer.missing() if ranks.leads else None)
            ]
            if not ranks.leads:
                writer.follow(exact, allow_mixed=allow_mixed)
            Filler(writer, job, ranks, should_stop, on_progress).fill(missing)
            if ranks.leads:
                writer.finish()
        ranks.wait()
    return open_cache(out)


def _probe(job: Job, seed: int) -> tuple[Ids, dict[str, NDArray[np.float32]]]:
    """Run every teacher on the rows that are kept in full: their ids, [P], and logits, [P, C] each."""
    manifest, view, offsets = job.manifest, job.views[0], offsets_of(job.samples)
    _refuse_unrepeatable(job)
    probed = probe_rows(seed, manifest.view_rows, len(manifest.classes))
    samples = probed if offsets is None else np.unique(np.searchsorted(offsets, probed, side="right") - 1)
    parts: dict[str, list[torch.Tensor]] = {slug: [] for slug in job.teachers}
    for batch in job.renderer.batches(view, split(samples, manifest.batch_size)):
        targets = job.modality.row_labels(job.samples, view, batch.samples)
        wanted = torch.from_numpy(np.isin(targets.ids, probed))
        for slug, chunks in ask(job.teachers, batch, targets):
            done = 0
            for logits in chunks:
                parts[slug].append(logits[wanted[done : done + len(logits)].to(logits.device)])
                done += len(logits)
    exact = {slug: torch.cat(chunks).cpu().numpy() for slug, chunks in parts.items()}
    for slug, values in exact.items():
        refuse_unusable(values, probed, view, job.samples, job.teachers[slug].name)
    return probed, exact


def _refuse_unrepeatable(job: Job) -> None:
    """Refuse a user's transform that draws from its own random generator: no student could be shown its pixels again."""
    some = np.arange(min(len(job.samples), _SHOWN_TWICE))
    for view in (view for view in job.views if view.runs_others_code):
        first, second = (job.modality.digests(job.samples, view, some) for _ in range(2))
        if (first != second).any():
            raise InputError(
                f"augmentation {view.recipe} is not reproducible: one of its transforms uses its own random generator. Let it use the "
                "global generator of torch, Python or numpy, which are seeded for every sample."
            )


def _refuse_unlike(manifest: Manifest, ranks: Ranks) -> None:
    """Refuse a process that would write another cache than the leader's."""
    theirs = Manifest.from_json(ranks.share("manifest", manifest.to_json()), "the first process")
    if differences := theirs.differences(manifest):
        lines = "".join(f"\n  {key}: there {there!r}, here {here!r}" for key, there, here in differences)
        raise CacheMismatchError(
            f"process {ranks.rank} would write another cache than process 0; they differ in:{lines}\nGive every process the same "
            "options, data, weights and versions."
        )


def probe_rows(seed: int, rows: int, classes: int) -> Ids:
    """Choose the probe: one row at random out of each of 256 equal stretches of a view, or all rows of a smaller one.

    Fewer where rows are long: at most 64 MB.
    """
    count = min(_PROBE_ROWS, rows, max(PROBE_BYTES // (4 * classes), 1))
    edges = np.arange(count + 1) * rows // count
    random = words(seed, 0xFFFFFFFF, np.arange(count), 0)[:, 0]  # a view that no data set has
    return edges[:-1] + integers(random, np.diff(edges))


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
