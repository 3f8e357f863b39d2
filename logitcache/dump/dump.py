"""`logitcache dump`: run the teacher once over every view of every sample, and store its logits.

dataset ─(sample, view)→ augmentation ─→ teacher ─→ encode ─→ writer ─→ store
"""

import contextlib
import itertools
import logging
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from logitcache.data import Ids, excluded_of, kept_of, offsets_of, whole_of
from logitcache.data.exclusion import name_samples, refuse_most, refuse_unreadable
from logitcache.data.optional import carried_arrays
from logitcache.dump.fill import Filler, ask, left_out_of, refuse_unusable, samples_in, split, without
from logitcache.dump.given import prepare
from logitcache.dump.job import Job
from logitcache.dump.samples import check_data
from logitcache.dump.settings import DumpRequest, DumpSettings
from logitcache.encoding import dense
from logitcache.errors import CacheMismatchError, InputError
from logitcache.runtime.philox import integers, words
from logitcache.runtime.processes import Ranks, join_ranks
from logitcache.runtime.progress import Callbacks, OnProgress, combine_callbacks
from logitcache.runtime.settings import show_options, to_command_line
from logitcache.runtime.workers import explain_lost_workers
from logitcache.store import (
    PROBE_BYTES,
    Cache,
    CacheWriter,
    Manifest,
    open_cache,
    samples_of,
    total_variation,
    with_rows,
)

__all__ = ["dump_logits", "probe_rows", "run_job"]

_PROBE_ROWS = 256
_PROBE_SAMPLES = 16  # samples in the probe if they have several rows
_SHOWN_TWICE = 8
_SAME = 0.01  # permitted relative gap between two computations of a logit; bfloat16 has three digits
_LOG = logging.getLogger(__name__)


@show_options(DumpRequest, DumpSettings)
def dump_logits(
    teacher: str | nn.Module | Sequence[str | nn.Module],
    data: Any,
    out: str | Path,
    *,
    settings: DumpSettings | None = None,
    callbacks: Callbacks | None = None,
    should_stop: Callable[[], bool] | None = None,
    on_progress: OnProgress | None = None,
    **options: Any,
) -> Cache:
    """Run a teacher over a data set and store its logits.

    If it is killed at any point and called again with the same arguments, it resumes where it stopped and produces the same bytes. A
    larger number of views extends a finished cache. Under torchrun, the processes share the blocks.

    {arguments}

    Returns:
        The finished cache.

    Raises:
        InputError: If arguments, data, weights or logits are invalid.
        UnknownNameError: If a setting, network, data set or other name is unknown.
        CacheMismatchError: If `out` is a different cache.
        CacheIncompleteError: If the disk is full, or a callback asked to stop.
    """
    chosen = DumpSettings.over(settings, options)
    told = combine_callbacks(callbacks, on_progress=on_progress, should_stop=should_stop)
    command = to_command_line(DumpRequest(teacher=teacher, data=data, out=out), chosen)
    line = "" if command is None else shlex.join(["logitcache", "dump", *command])
    with explain_lost_workers(), join_ranks(told.should_stop) as ranks:
        return _dumped(prepare(teacher, data, out, chosen), ranks, out, line, chosen, told)


def run_job(job: Job, out: str | Path, command: str, settings: DumpSettings, callbacks: Callbacks) -> Cache:
    """Write the cache of a prepared job, or resume it.

    Args:
        job: Prepared job.
        out: Path of the cache.
        command: Command line that resumes it.
        settings: Settings of the writer.
        callbacks: Callbacks for progress and for stopping.

    Raises:
        LogitCacheError: As in `dump_logits`.
    """
    with join_ranks(callbacks.should_stop) as ranks:
        return _dumped(job, ranks, out, command, settings, callbacks)


def _dumped(
    job: Job,
    ranks: Ranks,
    out: str | Path,
    command: str,
    settings: DumpSettings,
    callbacks: Callbacks,
) -> Cache:
    """Write the missing blocks of a cache, and return it."""
    manifest = job.manifest
    _refuse_unlike(manifest, ranks)
    ranks.wait()  # every process reads the existing cache before the leader writes
    columns = {slug: job.encoding.columns(len(manifest.classes)) for slug in job.teachers}
    labels, offsets = job.samples.labels.astype(np.int32), offsets_of(job.samples)
    notes = {"preprocessing_from": job.origins}
    carried = carried_arrays(job.modality, job.samples)
    writer = CacheWriter(
        out, manifest, columns, labels, offsets, command=command, leads=ranks.leads, notes=notes, carried=carried
    )
    with contextlib.closing(job), writer:
        if not ranks.share("finished", writer.finished if ranks.leads else None):
            if settings.check_data:
                job = _checked(job, ranks, settings, callbacks)
            probed, exact, failed = _probe(job, settings.seed)
            job = job.without(np.array(list(failed), np.int64), failed, settings) if failed else job
            writer.leave_out(job.manifest.excluded)
            missing = _missing(writer, job, ranks, "missing")
            changed = _shows_excluded(job, probed)
            if ranks.leads:
                writer.begin(probed, exact, changed, allow_mixed=settings.allow_mixed, tolerance=job.tolerance)
            ranks.share("begun")
            if not ranks.leads:
                writer.follow(exact, changed, allow_mixed=settings.allow_mixed, tolerance=job.tolerance)
            job = _filled(writer, job, ranks, missing, settings, callbacks)
            if ranks.leads:
                writer.finish()
        ranks.wait()
    if ranks.leads:
        _log_left_out(job)
    return open_cache(out)


def _filled(
    writer: CacheWriter,
    job: Job,
    ranks: Ranks,
    missing: list[tuple[int, int]],
    settings: DumpSettings,
    callbacks: Callbacks,
) -> Job:
    """Write blocks until none is missing and all leave out the same samples; return the job without those samples.

    If a sample is unreadable in one view but was read in another, the block of the other view is written again.
    """
    for number in itertools.count():
        filler = Filler(writer, job, ranks, callbacks.should_stop, callbacks.on_step, number)
        filler.fill(missing)
        if ranks.leads:
            writer.read_committed()
            filler.warn_of_chance()
        every = {one for left_out in writer.committed.values() for one in left_out}
        found = set(ranks.share(f"excluded-{number}", sorted(every) if ranks.leads else None))
        reasons = _merged(ranks.gather(f"unreadable-{number}", filler.reasons))
        if found := found | reasons.keys():
            job = job.without(np.array(sorted(found), np.int64), reasons, settings)
        writer.leave_out(job.manifest.excluded)
        missing = _missing(writer, job, ranks, f"missing-{number}")
        if not missing:
            return job
    raise AssertionError


def _missing(writer: CacheWriter, job: Job, ranks: Ranks, name: str) -> list[tuple[int, int]]:
    """Return the blocks to write as (view, block): missing ones, and ones that leave out a different set of samples."""
    if ranks.leads:
        gone = excluded_of(job.samples)
        if len(gone) or any(writer.committed.values()):
            offsets = offsets_of(job.samples)
            stale = [
                (view, block)
                for (view, block), left_out in writer.committed.items()
                if tuple(
                    left_out_of(job, job.views[view], samples_in(job.manifest, offsets, block), gone, gone).tolist()
                )
                != left_out
            ]
            if stale:
                writer.take_back(stale)
    found = ranks.share(name, writer.missing() if ranks.leads else None)
    return [(view, block) for view, block in found]


def _checked(job: Job, ranks: Ranks, settings: DumpSettings, callbacks: Callbacks) -> Job:
    """Read every sample once, divided among the processes; return the job without unreadable samples, or raise an error."""
    found = check_data(job.samples, settings, callbacks.on_step, (ranks.rank, ranks.world))
    found = _merged(ranks.gather("unreadable", found))
    if not settings.skip_unreadable:
        refuse_unreadable(job.samples, found)
    refuse_most(job.samples, found, len(kept_of(job.samples)))
    return job.without(np.array(sorted(found), np.int64), found, settings) if found else job


def _merged(reasons: Sequence[Mapping[Any, str]]) -> dict[int, str]:
    """Merge the unreadable samples of several processes; their ids are strings after a round trip through JSON."""
    return {int(sample): why for part in reasons for sample, why in part.items()}


def _log_left_out(job: Job) -> None:
    """Log the samples that were left out because they could not be read."""
    if job.reasons:
        _LOG.warning(
            "left out, because they could not be read: %s of %s samples%s",
            f"{len(job.reasons):,}",
            f"{len(whole_of(job.samples)[0]):,}",
            name_samples(job.samples, job.reasons),
        )


def _probe(job: Job, seed: int) -> tuple[Ids, dict[str, NDArray[np.float32]], dict[int, str]]:
    """Run every teacher on the rows of the probe.

    Returns:
        Row ids, [P]; logits of each teacher, [P, C], which are 0 for samples that are left out; and unreadable samples with the reason.
    """
    manifest, view, offsets = job.manifest, job.views[0], offsets_of(job.samples)
    _refuse_unrepeatable(job)
    probed = probe_rows(seed, manifest.view_rows, len(manifest.classes), offsets)
    samples = np.unique(samples_of(offsets, probed))
    ids, found, failed = _ask_for(job, samples, probed)
    refuse_most(job.samples, failed, len(samples), "samples read first")
    exact = {slug: np.zeros((len(probed), len(manifest.classes)), np.float32) for slug in found}
    for slug, values in found.items():
        exact[slug][np.searchsorted(probed, ids)] = values
        refuse_unusable(values, ids, view, job.samples, job.teachers[slug].name)
        if job.given is None:
            _warn_of_probabilities(values, job.teachers[slug].name)
    again = without(job, samples, np.union1d(excluded_of(job.samples), np.array(list(failed), np.int64)))
    _refuse_random_teachers(job, again[: manifest.batch_size], probed, exact)
    return probed, exact, failed


def _shows_excluded(job: Job, rows: Ids) -> NDArray[np.bool_]:
    """Return the mask of rows of the first view whose sample is left out, or is mixed with one that is, [P]."""
    gone, samples = excluded_of(job.samples), samples_of(offsets_of(job.samples), rows)
    return np.array([len(left_out_of(job, job.views[0], samples[[n]], gone, gone)) > 0 for n in range(len(rows))])


def _ask_for(job: Job, samples: Ids, wanted: Ids) -> tuple[Ids, dict[str, NDArray[np.float32]], dict[int, str]]:
    """Run every teacher on samples of the first view.

    Returns:
        Ids of the samples' rows that are in `wanted`, the logits of these rows, and unreadable samples with the reason.
    """
    found, parts = [np.empty(0, np.int64)], {slug: list[torch.Tensor]() for slug in job.teachers}
    failed: dict[int, str] = {}
    gone = excluded_of(job.samples)
    asked = [one for one in split(samples, job.manifest.batch_size) if len(without(job, one, gone))]
    stream = job.renderer.batches(job.views[0], [without(job, one, gone) for one in asked])
    for every, batch in zip(asked, stream, strict=True):
        failed |= batch.unreadable
        if not len(batch.samples):
            continue
        targets = job.modality.row_labels(job.samples, job.views[0], batch.samples)
        chosen = np.isin(targets.ids, wanted)
        found.append(targets.ids[chosen])
        mask = torch.from_numpy(chosen)
        alone = batch.keep is not None  # then the head computes only these rows
        asked_of = replace(batch, keep=tuple(_only(keep, mask) for keep in batch.keep)) if batch.keep else batch
        for slug, here, logits in ask(job.teachers, asked_of, targets, every):
            parts[slug].append(dense(logits if alone else logits[mask[here].to(logits.device)], 1.0))
    empty = torch.empty(0, len(job.manifest.classes))
    exact = {slug: torch.cat(chunks or [empty]).cpu().numpy() for slug, chunks in parts.items()}
    return np.concatenate(found), exact, failed


def _only(keep: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Restrict a mask of outputs that are rows, [B, ...], to the chosen rows, [R] bool."""
    found = torch.zeros_like(keep)
    found[keep] = chosen
    return found


def _refuse_random_teachers(job: Job, samples: Ids, probed: Ids, exact: dict[str, NDArray[np.float32]]) -> None:
    """Run the teacher again on some samples in different batches, and raise an error if its logits do not depend on the sample alone."""
    ids, again, _ = _ask_for(job, samples[::-2], probed)
    for slug, values in again.items() if len(ids) else ():
        first = exact[slug][np.searchsorted(probed, ids)]
        if job.tolerance:
            _refuse_unsteady(job, slug, total_variation(first, values))
            continue
        gaps = np.abs(first - values).max(1)
        if (worst := gaps.max(initial=0)) > _SAME * max(float(np.abs(first).max(initial=0)), 1e-30):
            raise InputError(
                f"teacher {job.teachers[slug].name} is not a function of its input: on the same samples in different batches it "
                f"returns different logits (row {ids[gaps.argmax()]} differs by {worst:.2g}). Dropout or batch normalization that stays in "
                "training mode causes this; fix its eval()."
            )


def _refuse_unsteady(job: Job, slug: str, found: float) -> None:
    """Raise an error if two answers of a server differ by more than batching and caching explain."""
    if found > job.tolerance:
        raise InputError(
            f"teacher {job.teachers[slug].name} is not reproducible: its probabilities for the same documents differ by {found:.2g} "
            f"between two requests (mean total variation; batching and rounding explain at most {job.tolerance:g})"
        )


def _warn_of_probabilities(values: NDArray[np.float32], name: str) -> None:
    if not len(values):
        return  # no sample of the probe could be read
    if (values >= 0).all() and np.allclose(values.sum(1), 1, atol=1e-3):
        _LOG.warning(
            "teacher %s seems to return probabilities: every row is non-negative and sums to 1. Methods expect raw logits; remove the "
            "softmax.",
            name,
        )
    elif (values <= 0).all() and np.allclose(np.exp(values).sum(1), 1, atol=1e-3):
        _LOG.warning(
            "teacher %s returns log-probabilities, which differ from logits by a constant per row. Methods that use the magnitude of "
            "logits are affected; most others are not.",
            name,
        )


def _refuse_unrepeatable(job: Job) -> None:
    """Raise an error if a user's transform draws from its own random generator, so that its pixels cannot be rendered again."""
    some = kept_of(job.samples)[:_SHOWN_TWICE]
    for view in (view for view in job.views if view.runs_others_code):
        first, second = (job.modality.digests(job.samples, view, some) for _ in range(2))
        if (first != second).any():
            raise InputError(
                f"augmentation {view.recipe} is not reproducible: one of its transforms uses its own random generator. Use the global "
                "generators of torch, Python or numpy, which are seeded for every sample."
            )


def _refuse_unlike(manifest: Manifest, ranks: Ranks) -> None:
    """Raise an error if this process would write a different cache from the leader's."""
    theirs = Manifest.from_json(ranks.share("manifest", manifest.to_json()), "the first process")
    if differences := theirs.differences(manifest):
        lines = "".join(f"\n  {key}: there {there!r}, here {here!r}" for key, there, here in differences)
        raise CacheMismatchError(
            f"process {ranks.rank} would write a different cache from process 0; they differ in:{lines}\nUse the same options, data, "
            "weights and versions in every process."
        )


def probe_rows(seed: int, rows: int, classes: int, offsets: Ids | None = None) -> Ids:
    """Choose the rows of the probe: one at random from each of 256 equal stretches of a view, or all rows of a smaller view.

    The probe is limited to 64 MB. If samples have several rows, they are taken from 16 samples, one from each of 16 equal stretches,
    because the teacher runs on whole samples.

    Args:
        seed: Seed of the dump.
        rows: Number of rows in a view.
        classes: Number of classes.
        offsets: First row of each sample, and `rows`, [N + 1]; None if each sample is one row.

    Returns:
        Row ids, ascending.
    """
    count = min(_PROBE_ROWS, rows, max(PROBE_BYTES // (4 * classes), 1))
    if offsets is None:
        return _one_of_each(seed, 0, rows, count)
    used = with_rows(offsets, np.arange(len(offsets) - 1))
    chosen = used[_one_of_each(seed, 0, len(used), min(_PROBE_SAMPLES, len(used), count))]
    begins, lengths = offsets[chosen], offsets[chosen + 1] - offsets[chosen]
    each = [
        begin + _one_of_each(seed, 1 + number, length, min(length, -(-count // len(chosen))))
        for number, (begin, length) in enumerate(zip(begins.tolist(), lengths.tolist(), strict=True))
    ]
    return np.concatenate(each)[:count]


def _one_of_each(seed: int, draw: int, length: int, count: int) -> Ids:
    """Choose one integer at random from each of `count` equal stretches of 0 to `length` - 1, ascending."""
    edges = np.arange(count + 1) * length // count
    random = words(seed, 0xFFFFFFFF, np.arange(count), draw)[:, 0]  # the key of no view
    return edges[:-1] + integers(random, np.diff(edges))
