"""The loop of a dump: render, ask the teacher, encode, hand over; block by block."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from logitcache.data import ImageSet, Rendered, Renderer, whole_of
from logitcache.data.images.views import View
from logitcache.encoding import Encoding
from logitcache.errors import CacheIncompleteError, InputError
from logitcache.runtime.processes import Ranks
from logitcache.runtime.progress import OnProgress, Progress
from logitcache.store import CacheWriter
from logitcache.teachers.forward import Teachers

__all__ = ["Filler", "ask", "refuse_unusable", "split"]


class Filler:
    """Answers for every row that is not committed yet; batches never straddle a block."""

    def __init__(
        self,
        writer: CacheWriter,
        teachers: Mapping[str, Teachers],
        renderer: Renderer,
        views: Sequence[View],
        encoding: Encoding,
        images: ImageSet,
        ranks: Ranks,
        should_stop: Callable[[], bool],
        on_progress: OnProgress,
    ) -> None:
        self._writer, self._teachers, self._renderer, self._views = writer, teachers, renderer, views
        self._encoding, self._images, self._ranks = encoding, images, ranks
        self._should_stop, self._on_progress = should_stop, on_progress
        self._labels = torch.from_numpy(images.labels).long()
        self._right = dict.fromkeys(teachers, 0)
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
        self._total = len(self._views) * manifest.samples
        self._before = self._total - sum(last - first for first, last in (manifest.rows(block) for _, block in missing))
        for view in self._views:
            blocks = [block for v, block in mine if v == view.index]
            batches = [ids for block in blocks for ids in split(np.arange(*manifest.rows(block)), manifest.batch_size)]
            stream = self._renderer.batches(view, batches)
            for block in blocks:
                self._bytes += self._writer.write(view.index, block, self._block(view, block, stream))
                if self._should_stop() and (view.index, block) != mine[-1]:
                    self._bytes += self._writer.drain()
                    raise CacheIncompleteError(self._stopped())
        self._writer.drain()
        self._ranks.wait()
        self._report(self._views[-1], 0)

    def _block(self, view: View, block: int, stream: Iterator[Any]) -> dict[str, NDArray[np.generic]]:
        """Compute the rows of a block; the host waits for the device at its end."""
        manifest = self._writer.manifest
        first, last = manifest.rows(block)
        digests = np.empty(last - first, np.uint64)
        parts: dict[str, list[Mapping[str, torch.Tensor]]] = {slug: [] for slug in self._teachers}
        right: dict[str, list[torch.Tensor]] = {slug: [] for slug in self._teachers}
        for _ in range(-(-(last - first) // manifest.batch_size)):
            batch = next(stream)
            assert batch.digests is not None
            for slug, logits in ask(self._teachers, batch):
                labels = self._labels[batch.samples].to(logits.device, non_blocking=True)
                parts[slug].append(self._encoding.encode(logits, labels))
                right[slug].append((logits.argmax(1) == labels).sum())
            digests[batch.samples - first] = batch.digests
            self._report(view, len(batch.samples))
        rows: dict[str, NDArray[np.generic]] = {"digests": digests}
        for slug, teachers in self._teachers.items():
            for name in parts[slug][0]:
                column = torch.cat([part[name] for part in parts[slug]]).cpu().numpy()
                refuse_unusable(column, np.arange(first, last), view, self._images, teachers.name, name)
                rows[f"teachers/{slug}/{name}"] = column
            self._right[slug] += int(torch.stack(right[slug]).sum())
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

    def _stopped(self) -> str:
        manifest = self._writer.manifest
        done, total = self._writer.count_committed(), len(manifest.views) * manifest.blocks
        command = self._writer.command
        how = f"Go on with:\n  {command}" if command else "Run the same command again to go on."
        return f"stopped as asked: {done} of {total} blocks of {self._writer.place} are committed. {how}"


def ask(teachers: Mapping[str, Teachers], batch: Rendered) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each slug and its answer, [B, C], for a batch that holds the pixels of every teacher in order."""
    begin = 0
    for slug, one in teachers.items():
        end = begin + len(one.eyes)
        yield slug, one.logits(batch.pixels[begin:end])
        begin = end


def split(samples: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Cut sample ids into batches."""
    return [samples[start : start + size] for start in range(0, len(samples), size)]


def refuse_unusable(
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
