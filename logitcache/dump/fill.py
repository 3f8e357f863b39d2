"""Main loop of a dump: render, run the teacher, encode and write, block by block."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from logitcache.data import Ids, Rendition, RowLabels, Samples, View, excluded_of, offsets_of, whole_of
from logitcache.data.exclusion import refuse_most, shown_beside
from logitcache.data.protocol import joined_digests
from logitcache.dump.job import Job
from logitcache.encoding import TopKRows, encode_rows
from logitcache.errors import CacheIncompleteError, InputError, name_settings
from logitcache.runtime.processes import Ranks
from logitcache.runtime.progress import OnProgress, Progress
from logitcache.runtime.tensors import map_tensors
from logitcache.runtime.wording import bytes_text, chance_words, is_chance
from logitcache.store import CacheWriter, Manifest, is_among, samples_of
from logitcache.teachers.forward import Teachers

__all__ = ["Filler", "ask", "left_out_of", "refuse_unusable", "samples_in", "split", "without"]

_TEXT = "text"
_PATIENCE = 5.0  # seconds to continue after a request to stop, in order to finish a block
_LOG = logging.getLogger(__name__)


class Filler:
    """Fills the blocks that are not committed yet.

    Batches do not cross block boundaries. A sample with rows in two blocks is rendered for both.
    """

    def __init__(
        self,
        writer: CacheWriter,
        job: Job,
        ranks: Ranks,
        should_stop: Callable[[], bool],
        on_progress: OnProgress,
        number: int = 0,
    ) -> None:
        """Prepare to fill blocks.

        Args:
            writer: Writer of the cache.
            job: Prepared dump.
            ranks: Processes that share the blocks.
            should_stop: Function that returns whether to stop, called after every batch.
            on_progress: Function called after every batch.
            number: Number of earlier passes over the blocks of this dump; each pass counts its rows from 0.
        """
        self._writer, self._job, self._ranks = writer, job, ranks
        self._teachers, self._views, self._offsets = job.teachers, job.views, offsets_of(job.samples)
        self._excluded, self._reasons = excluded_of(job.samples), dict[int, str]()
        self._should_stop, self._on_progress = should_stop, on_progress
        self._right = dict.fromkeys(job.teachers, 0)
        self._counter = f"rows-{number}"
        self._seen, self._bytes, self._began = 0, 0, time.perf_counter()

    def fill(self, missing: Sequence[tuple[int, int]]) -> None:
        """Write this process's share of the blocks.

        Args:
            missing: All blocks to write as (view, block), the same in every process.

        Raises:
            InputError: If logits cannot be stored.
            CacheIncompleteError: If a callback asked to stop; committed blocks are intact.
        """
        rank, world, manifest = self._ranks.rank, self._ranks.world, self._writer.manifest
        mine = missing[rank * len(missing) // world : (rank + 1) * len(missing) // world]
        self._total = len(self._views) * manifest.view_rows
        self._before = self._total - sum(last - first for first, last in (manifest.span(block) for _, block in missing))
        for view in self._views:
            blocks = [block for v, block in mine if v == view.index]
            gone = np.union1d(self._excluded, np.array(list(self._reasons), np.int64))
            batches = {block: split(self._samples(block), manifest.batch_size) for block in blocks}
            kept = (without(self._job, ids, gone) for of_block in batches.values() for ids in of_block)
            stream = self._job.renderer.batches(view, [ids for ids in kept if len(ids)])
            for block in blocks:
                rows, left_out = self._block(view, block, stream, batches[block], gone)
                missing_here = left_out_of(self._job, view, self._samples(block), gone, self._excluded)
                left_out |= set(missing_here.tolist())
                self._bytes += self._writer.write(view.index, block, rows, sorted(left_out))
                if self._should_stop() and (view.index, block) != mine[-1]:
                    raise self._stopped()
        self._writer.drain()
        self._ranks.wait()
        self._report(self._views[-1], 0)

    @property
    def reasons(self) -> Mapping[int, str]:
        """Unreadable samples that this process left out: id in the whole data set to the reason."""
        return self._reasons

    def warn_of_chance(self) -> None:
        """Warn if a teacher's accuracy is at chance level, so that its weights, preprocessing or classes do not fit the data."""
        seen, classes = self._seen, len(self._writer.manifest.classes)
        for slug, right in self._right.items():
            if is_chance(right, seen, classes):
                words = chance_words(
                    self._teachers[slug].name, right / seen, seen, classes, text=self._job.modality.name == _TEXT
                )
                _LOG.warning("%s", name_settings(words))

    def _samples(self, block: int) -> Ids:
        """Return the samples that have rows in a block."""
        return samples_in(self._writer.manifest, self._offsets, block)

    def _block(
        self, view: View, block: int, stream: Iterator[Any], batches: Sequence[Ids], gone: Ids
    ) -> tuple[dict[str, NDArray[np.generic]], set[int]]:
        """Compute the rows of a block. The host synchronizes with the device once, at the end.

        Returns:
            Rows of every array, and the ids in the whole data set of unreadable samples.
        """
        computed = self._computed(view, block, stream, batches, gone)
        refuse_most(self._job.samples, computed.failed, len(self._samples(block)), "samples of a block")
        rows = self._rows(view, block, computed)
        self._reasons |= computed.failed
        return rows, set(computed.failed)

    def _computed(
        self, view: View, block: int, stream: Iterator[Any], batches: Sequence[Ids], gone: Ids
    ) -> "_Computed":
        """Run the teachers on the batches of a block."""
        first, last = self._writer.manifest.span(block)
        computed = _Computed(self._teachers)
        began = time.monotonic()
        for number, asked in enumerate(batches):
            left = (time.monotonic() - began) / max(number, 1) * (len(batches) - number)
            if number and self._should_stop() and left > _PATIENCE:
                raise self._stopped()
            if not len(without(self._job, asked, gone)):
                continue
            batch = next(stream)
            assert batch.digests is not None
            computed.failed |= batch.unreadable
            if not len(batch.samples):
                continue
            targets = self._job.modality.row_labels(self._job.samples, view, batch.samples)
            for slug, here, logits in ask(self._teachers, batch, targets, asked):
                labels = targets.labels[here].to(logits.device, non_blocking=True)
                with torch.inference_mode():
                    random = self._job.uniforms(view, targets.ids[here])
                    columns = encode_rows(self._job.encoding, logits, labels, random)
                    computed.columns[slug].append(columns)
                    computed.right[slug].append(self._job.encoding.top_classes(columns) == labels)
            computed.digests.append(batch.digests)
            computed.ids.append(targets.ids)
            self._report(view, int(((targets.ids >= first) & (targets.ids < last)).sum()))
        return computed

    def _rows(self, view: View, block: int, computed: "_Computed") -> dict[str, NDArray[np.generic]]:
        """Arrange the results of a block in the order of its rows, with fillers for samples that are left out."""
        first, last = self._writer.manifest.span(block)
        found = np.concatenate(computed.ids)
        inside = np.flatnonzero((found >= first) & (found < last))  # the other rows of a sample belong to another block
        at = found[inside] - first
        blank = np.setdiff1d(np.arange(last - first), at) if len(at) < last - first else np.empty(0, np.int64)
        digests = joined_digests(computed.digests)[inside]
        rows: dict[str, NDArray[np.generic]] = {"digests": _placed(digests, at, np.zeros(len(blank), np.uint64), blank)}
        where = torch.from_numpy(inside)
        fillers = self._fillers(view, first + blank) if len(blank) else {}
        for slug, teachers in self._teachers.items():
            parts = computed.columns[slug]
            for name in fillers or parts[0]:
                column = _chosen([one[name] for one in parts], where) if len(at) else fillers[name][:0]
                column = _placed(column, at, fillers.get(name, column[:0]), blank)
                refuse_unusable(column, np.arange(first, last), view, self._job.samples, teachers.name, name)
                rows[f"teachers/{slug}/{name}"] = column
            self._right[slug] += int(_chosen(computed.right[slug], where).sum()) if len(at) else 0
        self._seen += len(at)
        self._report(view, len(blank))
        return rows

    def _fillers(self, view: View, rows: Ids) -> dict[str, NDArray[np.generic]]:
        """Return the columns stored for rows of samples that are left out: the encoding of logits that are all 0."""
        classes, step = len(self._writer.manifest.classes), self._writer.manifest.batch_size
        labels, parts = torch.from_numpy(self._job.samples.labels[rows]), []
        for start in range(0, len(rows), step):
            some = labels[start : start + step]
            random = self._job.uniforms(view, rows[start : start + step])
            parts.append(encode_rows(self._job.encoding, torch.zeros(len(some), classes), some, random))
        return {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}

    def _report(self, view: View, rows: int) -> None:
        done = self._ranks.add(self._counter, rows)
        speed = done / max(time.perf_counter() - self._began, 1e-9)
        notes = [f"view {view.index + 1}/{len(self._views)}", f"{speed:,.0f} rows/s"]
        if self._ranks.world > 1:  # only the number of rows is known of the other processes
            notes[0] = f"{self._ranks.world} processes"
        elif self._seen:
            shares = ", ".join(f"{right / self._seen:.1%}" for right in self._right.values())
            notes += [f"{bytes_text(self._bytes)} written"] if self._bytes else []
            notes += [f"teacher accuracy {shares}"]
        self._on_progress(Progress("dumping", self._before + done, self._total, "rows", ", ".join(notes)))

    def _stopped(self) -> CacheIncompleteError:
        """Commit the computed blocks, and return the error that explains how to resume."""
        self._bytes += self._writer.drain()
        manifest = self._writer.manifest
        done, total = self._writer.count_committed(), len(manifest.views) * manifest.blocks
        command = self._writer.command
        how = f"Resume with:\n  {command}" if command else "Run the same command again to resume."
        return CacheIncompleteError(
            f"stopped on request: {done} of {total} blocks of {self._writer.place} are committed. {how}"
        )


class _Computed:
    """Results of a block, as lists with one entry per chunk.

    Attributes:
        ids: Row ids.
        digests: Digest of each row.
        columns: Encoded columns, by the teacher's slug.
        right: Whether the teacher's prediction is correct for each row, by the teacher's slug.
        failed: Unreadable samples: id in the whole data set to the reason.
    """

    def __init__(self, slugs: Iterable[str]) -> None:
        self.ids, self.digests = (
            [np.empty(0, np.int64)],
            list[NDArray[np.uint64] | torch.Tensor]([np.empty(0, np.uint64)]),
        )
        self.columns: dict[str, list[Mapping[str, torch.Tensor]]] = {slug: [] for slug in slugs}
        self.right: dict[str, list[torch.Tensor]] = {slug: [] for slug in self.columns}
        self.failed: dict[int, str] = {}


def ask(
    teachers: Mapping[str, Teachers], batch: Rendition, targets: RowLabels, asked: Ids
) -> Iterator[tuple[str, slice, torch.Tensor | TopKRows]]:
    """Run every teacher on a batch, which holds the inputs of all teachers in order.

    The last bits of a logit may depend on its position in the batch, so a sample keeps its position if others are left out.

    Args:
        teachers: Teachers by slug.
        batch: Batch.
        targets: Rows of the batch.
        asked: Sample ids of the whole batch in order, including those that are left out.

    Yields:
        For each chunk of rows, the slug, the slice of the batch's rows, and their logits, [r, C].
    """
    begin, inputs, real = 0, batch.inputs, None
    keeps = [batch.kept(targets, network) for network in range(len(inputs))]
    if len(batch.samples) < len(asked):
        real = torch.from_numpy(np.isin(asked, batch.samples))
        at = (real.cumsum(0) - 1).clamp(min=0)  # a neighbor takes the place of a sample that is left out
        inputs = tuple(map_tensors(lambda rows: rows[at.to(rows.device)], one) for one in inputs)
        keeps = [None if keep is None else keep[at] & real.view(-1, *[1] * (keep.ndim - 1)) for keep in keeps]
    for slug, one in teachers.items():
        end, done, passed = begin + len(one.preprocessing), 0, 0
        for found in one.rows(inputs[begin:end], keeps[begin:end]):
            logits = found
            if real is not None and keeps[begin] is None:  # each sample is one row
                logits = found[real[passed : passed + len(found)].to(found.device)]
                passed += len(found)
            yield slug, slice(done, done + len(logits)), logits
            done += len(logits)
        begin = end


def left_out_of(job: Job, view: View, samples: Ids, gone: Ids, unmixed: Ids) -> Ids:
    """Return the excluded samples that affect a stretch of a view, ascending.

    Args:
        job: Prepared dump.
        view: View.
        samples: Samples of the stretch, as ids in the dumped data set.
        gone: Ids in the whole data set of samples without rows, ascending.
        unmixed: Ids in the whole data set of samples that are not mixed into others, ascending.

    Returns:
        Ids in the whole data set.
    """
    if not len(gone) and not len(unmixed):
        return gone
    _, first = whole_of(job.samples)
    kept = without(job, samples, gone)
    shown = shown_beside(job.samples, view, kept)
    return np.union1d(np.setdiff1d(samples, kept) + first, shown[is_among(shown, unmixed)])


def _chosen(parts: Sequence[torch.Tensor], where: torch.Tensor) -> NDArray[np.generic]:
    """Concatenate the parts of a column, and select rows."""
    whole = torch.cat(list(parts))
    return (whole if len(where) == len(whole) else whole[where.to(whole.device)]).cpu().numpy()


def _placed(found: NDArray[np.generic], at: Ids, filler: NDArray[np.generic], blank: Ids) -> NDArray[np.generic]:
    """Return an array with rows at positions `at` and fillers at positions `blank`."""
    if not len(blank):
        return found
    rows = np.empty((len(at) + len(blank), *filler.shape[1:]), filler.dtype)
    rows[at], rows[blank] = found, filler
    return rows


def without(job: Job, samples: Ids, gone: Ids) -> Ids:
    """Return samples without those in `gone`, which are ids in the whole data set, ascending."""
    _, first = whole_of(job.samples)
    return samples[~is_among(samples + first, gone)] if len(gone) else samples


def samples_in(manifest: Manifest, offsets: Ids | None, block: int) -> Ids:
    """Return the samples that have rows in a block, including those that are left out."""
    first, last = manifest.span(block)
    begin, end = samples_of(offsets, np.array([first, last - 1]))
    return np.arange(begin, end + 1)


def split(samples: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Divide sample ids into batches."""
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def refuse_unusable(
    logits: NDArray[np.generic],
    rows: Ids,
    view: View,
    samples: Samples,
    teacher: str,
    column_name: str = "logits",
) -> None:
    """Raise InputError if a logit is not finite, or exceeds the range of the precision. A cache never stores such a row."""
    if logits.dtype.kind != "f" or np.isfinite(logits).all():
        return
    finite = np.isfinite(logits.reshape(len(logits), -1))
    row, column = (int(x) for x in np.argwhere(~finite)[0])
    value, number = logits.reshape(len(logits), -1)[row, column], int(rows[row])
    named = samples.classes[samples.labels[number]]
    shown = f"sample {whole_of(samples)[1] + number}" if offsets_of(samples) is None else f"row {number}"
    where = f"{shown} (class {named!r}), view {view.index}: "
    where += f"logit {column} is {value}" if column_name == "logits" else f"among the stored {column_name} is {value}"
    if np.isinf(value) and logits.dtype == np.float16:
        raise InputError(
            f"teacher {teacher} returns logits beyond 65,504, the range of float16; {where}. Use --precision f32."
        )
    raise InputError(
        f"teacher {teacher} returns logits that are not finite; {where}; {int((~finite.all(1)).sum()):,} rows of this block are affected. "
        "The block was not stored. Check the weights and --mean/--std."
    )
