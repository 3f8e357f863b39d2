"""Import another tool's rows of images, with their views and recorded augmentation.

Blocks are written in the same way as by a dump, so an interrupted import can be resumed and gives the same bytes.
"""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.data import ArrayImages, Ids, as_samples, modality_of, whole_of
from logitcache.data.images.views import RecordedBoxes, View, read_recipe
from logitcache.data.images.views.digests import MULTILINEAR
from logitcache.dump.dump import probe_rows
from logitcache.dump.given import given_entry
from logitcache.dump.job import make_manifest
from logitcache.dump.settings import DumpSettings
from logitcache.errors import InputError, UnreadableError
from logitcache.imports.fkd import FkdReader
from logitcache.imports.image_reader import ImageReader, Shown
from logitcache.imports.settings import ImportSettings
from logitcache.imports.tinyvit import TinyViTReader
from logitcache.runtime.device import pick_device
from logitcache.runtime.progress import OnProgress, Progress
from logitcache.runtime.wording import is_chance
from logitcache.store import CacheWriter, Manifest, block_rows_for, open_place, read_manifest
from logitcache.teachers.given import GivenRows

__all__ = ["import_images"]

_MOST = 64  # default limit for top_k
_TRIED = 4096  # rows to compare with the labels before anything is written
_HELD_BYTES = 512 << 20  # maximum size of a block's rows over all views
_ROUND = 256  # granularity of the block size in rows
_FEW = 2048  # number of rows up to which images are rendered without worker processes
_LOG = logging.getLogger(__name__)


def import_images(
    kind: str, source: str | Path, out: str | Path, settings: ImportSettings, command: str, on_progress: OnProgress
) -> None:
    """Write or resume a cache of another tool's rows of images.

    Args:
        kind: `tinyvit` or `fkd`.
        source: Folder of the source.
        out: Path of the cache.
        settings: Settings of the import.
        command: Command line that resumes the import.
        on_progress: Called after every block.

    Raises:
        InputError: The source cannot be read, or does not match the images.
        LogitCacheError: The cache cannot be written.
    """
    if settings.data is None:
        raise InputError(
            f"{kind} requires the data set, because the source has no labels or class names; set --data to the images that the teacher "
            "saw, e.g. imagefolder:PATH"
        )
    samples = as_samples(settings.data)
    if modality_of(samples).name != "images":
        raise InputError(f"{kind} has rows of images, but {settings.data} is {modality_of(samples).name}")
    reader: ImageReader = (TinyViTReader if kind == "tinyvit" else FkdReader)(source, samples, settings.views)
    _refuse_chance(reader, samples, source)
    job = _Job(kind, source, out, settings, samples, reader)
    columns = {job.slug: job.rows.columns()}
    labels = samples.labels.astype(np.int32)
    with CacheWriter(out, job.manifest, columns, labels, command=command) as writer:
        if writer.finished:
            return
        probed, exact = job.probe()
        writer.begin(probed, {job.slug: exact})
        missing = writer.missing()
        if reader.row_bytes:  # all views of an image are stored together, so read them once
            missing.sort(key=lambda one: (one[1], one[0]))
        total = len(job.views) * job.manifest.view_rows
        done = total - sum(last - first for first, last in (job.manifest.span(block) for _, block in missing))
        for view, block in missing:
            first, last = job.manifest.span(block)
            writer.write(view, block, job.block(view, np.arange(first, last)))
            done += last - first
            on_progress(Progress("importing", done, total, "rows"))
        writer.finish()


class _Job:
    """Plan of an import, and access to its rows.

    Attributes:
        manifest: Manifest of the cache.
        views: Views of the cache.
        slug: Slug of the teacher.
        rows: Encoder of the rows.
    """

    def __init__(
        self,
        kind: str,
        source: str | Path,
        out: str | Path,
        settings: ImportSettings,
        samples: Any,
        reader: ImageReader,
    ) -> None:
        self._source, self._samples, self._reader = source, samples, reader
        self._modality, classes = modality_of(samples), len(samples.classes)
        version = read_recipe(reader.recipe).version
        self.views = [
            View(reader.recipe, version, 0, key, index, index, MULTILINEAR) for index, key in enumerate(reader.keys)
        ]
        self._inputs = self._modality.choose_inputs(samples, self.views[0], {}, {})
        most = min(reader.largest - 1, classes - 2)
        if reader.largest < 2:
            raise InputError(f"{source} has one class per row, which is not enough for a distribution")
        if most < 1:
            raise InputError(f"top-k rows need at least 3 classes, but {settings.data} has {classes}")
        if settings.top_k is not None and settings.top_k > most:
            raise InputError(
                f"--top-k {settings.top_k} is too large: {source} has {reader.largest:,} classes per row; use at most {most:,}"
            )
        self.rows = GivenRows(settings.top_k or min(_MOST, most), settings.precision, classes, own=reader.own)
        entry = given_entry(
            f"{kind}:{settings.teacher_name or Path(source).name}",
            str(source),
            self._inputs,
            {"by": kind} | ({} if reader.own else {"label": "among the largest"}),
        )
        begun = read_manifest(open_place(out))
        self.slug, self.manifest = entry["slug"], self._manifest(settings, entry, begun)
        few = isinstance(whole_of(samples)[0], ArrayImages) or len(samples) * len(self.views) <= _FEW
        self._renderer = self._modality.renderer(
            samples, [self._inputs], with_digests=True, workers=0 if few else None, device=pick_device("cpu")
        )

    def _manifest(self, settings: ImportSettings, entry: dict[str, Any], begun: Manifest | None) -> Manifest:
        usual = block_rows_for(len(self._samples), self.rows.widest_bytes())
        most = _HELD_BYTES // max(self._reader.row_bytes, 1) // _ROUND * _ROUND
        made = DumpSettings(block_rows=settings.block_rows or min(usual, max(most, _ROUND)))
        views, where = self.views, pick_device("cpu")
        return make_manifest(made, self._samples, settings.data, views, [entry], self.rows.encoding, begun, where)

    def probe(self) -> tuple[Ids, NDArray[np.float32]]:
        """Return the rows of view 0 for the probe, [P], and their log-probabilities, [P, C]."""
        rows = probe_rows(0, self.manifest.view_rows, len(self.manifest.classes), None)
        known = self._reader.rows(0, rows).known
        return rows, self.rows.whole(known, self._samples.labels[rows], f"{self._source}, view 0")

    def block(self, view: int, samples: Ids) -> dict[str, NDArray[Any]]:
        """Return the arrays of a block of a view."""
        shown = self._reader.rows(view, samples)
        subject = f"{self._source}, view {view}, samples {samples[0]} to {samples[-1]}"
        columns = self.rows.encode(shown.known, self._samples.labels[samples], subject)
        found = {f"teachers/{self.slug}/{name}": column for name, column in columns.items()}
        if self._reader.recipe == "recorded-seeds":
            return found | {"seeds": shown.recorded, "digests": np.zeros(len(samples), np.uint64)}
        return found | {"boxes": shown.recorded, "digests": self._digests(view, samples, shown)}

    def _digests(self, view: int, samples: Ids, shown: Shown) -> NDArray[np.uint64]:
        """Render the images as the teacher saw them and return digests of their pixels, [B]."""
        boxes = RecordedBoxes(lambda: shown.recorded, int(samples[0]))
        size = self.manifest.batch_size
        batches = [samples[start : start + size] for start in range(0, len(samples), size)]
        found = list[NDArray[np.uint64]]()
        try:
            for batch in self._renderer.batches(replace(self.views[view], recorded=boxes), batches):
                assert isinstance(batch.digests, np.ndarray)
                found.append(batch.digests)
        except UnreadableError as error:
            raise InputError(f"cannot read an image that {self._source} has labels for: {error.reason}") from error
        return np.concatenate(found)


def _refuse_chance(reader: ImageReader, samples: Any, source: str | Path) -> None:
    """Raise InputError if the accuracy of the rows is no better than chance, because they are then for other images or classes.

    Raises:
        InputError: The accuracy is no better than chance, on 1,000 rows or more.
    """
    classes, right, rows = len(samples.classes), 0, 0
    for found, labels in _some(reader, samples):
        largest = np.take_along_axis(found.ids, found.logprobs.argmax(1)[:, None], 1)[:, 0]
        right, rows = right + int((largest == labels).sum()), rows + len(labels)
    if is_chance(right, rows, classes):
        raise InputError(
            f"the accuracy of {source} is {right / rows:.2%} on {rows:,} rows, which is chance ({1 / classes:.2%}); the images of --data "
            "or their classes are in a different order"
        )
    if rows:
        _LOG.info("%s: accuracy %.1f%% on %s rows", source, 100 * right / rows, f"{rows:,}")


def _some(reader: ImageReader, samples: Any) -> Iterator[tuple[Any, NDArray[np.int64]]]:
    """Yield the rows and labels of evenly spaced images, view by view, until there are enough rows."""
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(_TRIED, len(samples))).astype(np.int64))
    for view in range(min(len(reader.keys), -(-_TRIED // len(chosen)))):
        yield reader.rows(view, chosen).known, samples.labels[chosen]
