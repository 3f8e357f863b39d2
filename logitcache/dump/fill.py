"""The loop of a dump: render, run the teacher, encode, hand over to the writer; block by block."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from logitcache.data import Ids, Rendition, RowLabels, Samples, View, offsets_of, whole_of
from logitcache.dump.job import Job
from logitcache.errors import CacheIncompleteError, InputError
from logitcache.runtime.processes import Ranks
from logitcache.runtime.progress import OnProgress, Progress
from logitcache.store import CacheWriter, samples_of
from logitcache.teachers.forward import Teachers

__all__ = ["Filler", "ask", "refuse_unusable", "split"]

_PATIENCE = 5.0  # seconds for which a dump that is asked to stop goes on, to finish a block
_ENOUGH = 1000  # rows, to tell a teacher's accuracy from chance
_LOG = logging.getLogger(__name__)


class Filler:
    """Fills the blocks that are not committed yet; a batch never straddles a block.

    A sample whose rows lie in two blocks is rendered for both.
    """

    def __init__(
        self,
        writer: CacheWriter,
        job: Job,
        ranks: Ranks,
        should_stop: Callable[[], bool],
        on_progress: OnProgress,
    ) -> None:
        self._writer, self._job, self._ranks = writer, job, ranks
        self._teachers, self._views, self._offsets = job.teachers, job.views, offsets_of(job.samples)
        self._should_stop, self._on_progress = should_stop, on_progress
        self._right = dict.fromkeys(job.teachers, 0)
        self._seen, self._bytes, self._began = 0, 0, time.perf_counter()

    def fill(self, missing: Sequence[tuple[int, int]]) -> None:
        """Write this process's share of the blocks.

        Args:
            missing: (view, block) of all that are to be written, the same for every process.

        Raises:
            InputError: Logits that cannot be stored.
            CacheIncompleteError: It was asked to stop; what was committed is whole.
        """
        rank, world, manifest = self._ranks.rank, self._ranks.world, self._writer.manifest
        mine = missing[rank * len(missing) // world : (rank + 1) * len(missing) // world]
        self._total = len(self._views) * manifest.view_rows
        self._before = self._total - sum(last - first for first, last in (manifest.span(block) for _, block in missing))
        for view in self._views:
            blocks = [block for v, block in mine if v == view.index]
            batches = [ids for block in blocks for ids in split(self._samples(block), manifest.batch_size)]
            stream = self._job.renderer.batches(view, batches)
            for block in blocks:
                self._bytes += self._writer.write(view.index, block, self._block(view, block, stream))
                if self._should_stop() and (view.index, block) != mine[-1]:
                    raise self._stopped()
        self._writer.drain()
        self._ranks.wait()
        self._report(self._views[-1], 0)
        self._warn_of_chance()

    def _warn_of_chance(self) -> None:
        """Warn if a teacher is right no more often than chance: its weights, preprocessing or classes do not fit the data."""
        chance = 1 / len(self._writer.manifest.classes)
        for slug, right in self._right.items():
            sure = 3 * (chance * (1 - chance) / max(self._seen, 1)) ** 0.5
            if self._seen >= _ENOUGH and right / self._seen < chance + sure:
                _LOG.warning(
                    "teacher %s is right for %.2f%% of %s rows, which is chance (%.2f%%). Suspect, in this order: mean and deviation, "
                    "image size, the order of its classes (--class-map), its weights. Its preprocessing here: %s",
                    *(self._teachers[slug].name, 100 * right / self._seen, f"{self._seen:,}", 100 * chance),
                    next(one for one in self._writer.manifest.teachers if one["slug"] == slug)["preprocessing"],
                )

    def _samples(self, block: int) -> Ids:
        """Return the samples that have rows in a block."""
        first, last = self._writer.manifest.span(block)
        begin, end = samples_of(self._offsets, np.array([first, last - 1]))
        return np.arange(begin, end + 1)

    def _block(self, view: View, block: int, stream: Iterator[Any]) -> dict[str, NDArray[np.generic]]:
        """Compute the rows of a block; the host waits for the device at its end."""
        manifest, samples = self._writer.manifest, self._samples(block)
        first, last = manifest.span(block)
        before = 0 if self._offsets is None else first - int(self._offsets[samples[0]])  # rows of the block before
        inside = slice(before, before + last - first)
        digests: list[NDArray[np.uint64]] = []
        parts: dict[str, list[Mapping[str, torch.Tensor]]] = {slug: [] for slug in self._teachers}
        right: dict[str, list[torch.Tensor]] = {slug: [] for slug in self._teachers}
        count, began = -(-len(samples) // manifest.batch_size), time.monotonic()
        for number in range(count):
            if number and self._should_stop() and (time.monotonic() - began) / number * (count - number) > _PATIENCE:
                raise self._stopped()
            batch = next(stream)
            assert batch.digests is not None
            targets = self._job.modality.row_labels(self._job.samples, view, batch.samples)
            for slug, here, logits in ask(self._teachers, batch, targets):
                labels = targets.labels[here].to(logits.device, non_blocking=True)
                with torch.inference_mode():
                    parts[slug].append(self._job.encoding.encode(logits, labels))
                    right[slug].append(logits.argmax(1) == labels)
            digests.append(batch.digests)
            self._report(view, int(((targets.ids >= first) & (targets.ids < last)).sum()))
        rows: dict[str, NDArray[np.generic]] = {"digests": np.concatenate(digests)[inside]}
        for slug, teachers in self._teachers.items():
            for name in parts[slug][0]:
                column = torch.cat([part[name] for part in parts[slug]])[inside].cpu().numpy()
                refuse_unusable(column, np.arange(first, last), view, self._job.samples, teachers.name, name)
                rows[f"teachers/{slug}/{name}"] = column
            self._right[slug] += int(torch.cat(right[slug])[inside].sum())
        self._seen += last - first
        return rows

    def _report(self, view: View, rows: int) -> None:
        done = self._ranks.add("rows", rows)
        speed = done / max(time.perf_counter() - self._began, 1e-9)
        notes = [f"view {view.index + 1}/{len(self._views)}", f"{speed:,.0f} rows/s"]
        if self._ranks.world > 1:  # of the others only the rows are known here
            notes[0] = f"{self._ranks.world} processes"
        elif self._seen:
            shares = ", ".join(f"{right / self._seen:.1%}" for right in self._right.values())
            notes += [f"{self._bytes / 1e6:,.0f} MB", f"teacher{'s' * (len(self._right) > 1)} {shares} right"]
        self._on_progress(Progress("dumping", self._before + done, self._total, "rows", ", ".join(notes)))

    def _stopped(self) -> CacheIncompleteError:
        """Commit the blocks that are computed, and return the error that tells how to resume."""
        self._bytes += self._writer.drain()
        manifest = self._writer.manifest
        done, total = self._writer.count_committed(), len(manifest.views) * manifest.blocks
        command = self._writer.command
        how = f"Go on with:\n  {command}" if command else "Run the same command again to go on."
        return CacheIncompleteError(
            f"stopped as asked: {done} of {total} blocks of {self._writer.place} are committed. {how}"
        )


def ask(
    teachers: Mapping[str, Teachers], batch: Rendition, targets: RowLabels
) -> Iterator[tuple[str, slice, torch.Tensor]]:
    """Run every teacher on a batch that holds the inputs of all of them, in order.

    Yields:
        A chunk at a time: the slug, the place of the chunk's rows among the batch's, and their logits, [r, C].
    """
    begin = 0
    for slug, one in teachers.items():
        end, done = begin + len(one.preprocessing), 0
        for logits in one.rows(batch.inputs[begin:end], targets.keep):
            yield slug, slice(done, done + len(logits)), logits
            done += len(logits)
        begin = end


def split(samples: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Cut sample ids into batches."""
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def refuse_unusable(
    logits: NDArray[np.generic],
    rows: Ids,
    view: View,
    samples: Samples,
    teacher: str,
    column_name: str = "logits",
) -> None:
    """Raise where a logit is no number, or is one that the precision cannot hold: a cache never stores such a row."""
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
            f"teacher {teacher} gives logits beyond 65,504, which float16 cannot hold; {where}. Use --precision f32."
        )
    raise InputError(
        f"teacher {teacher} gives logits that are no numbers; {where}; {int((~finite.all(1)).sum()):,} rows of this block are like it. "
        "Nothing of the block was stored. Check the weights and --mean/--std."
    )
