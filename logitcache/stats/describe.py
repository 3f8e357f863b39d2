"""Compute the statistics of a cache in one pass: two threads (more for a bucket) read one block at a time, and only sums are kept."""

import contextlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import CorruptCacheError
from logitcache.runtime.progress import OnProgress, Progress, silent
from logitcache.stats.agreement import STRETCH, Agreement, LabelErrors
from logitcache.stats.contents import NO_PROBE, probe_loss
from logitcache.stats.duplicates import find_duplicates
from logitcache.stats.info import cache_info
from logitcache.stats.methods import PREVIEW_ROWS, Preview, Previews, preview_rows
from logitcache.stats.records import CacheInfo, CacheStats, Duplicate, Health, OddSample, ProbeLoss
from logitcache.stats.rows import Answers, answers_of, chosen, joined, pieces, read_rows
from logitcache.stats.serves import is_mixed
from logitcache.stats.teacher import Confusions, ViewSums
from logitcache.stats.tokens import Tokens
from logitcache.store import Cache, MissingChunkError, open_cache

__all__ = ["cache_stats"]

_TEXT = "text"
_THREADS = 2
# Minimum k to search for near-duplicates: the demo's cache lists 1 pair in full, and over 100 as top-1 or top-2.
_LEAST_K = 10


def cache_stats(
    cache: str | Path | Cache, *, teacher: str | None = None, on_progress: OnProgress = silent
) -> CacheStats:
    """Compute the statistics of a cache.

    Every row is read once, and the first 65,536 of view 0 a second time to find near-duplicates. Besides the labels, memory use is two
    blocks, 80 bytes for each of at most 524,288 samples, 20 bytes for each sample whose views all contradict its label, and 64 MB of
    logits, for caches of any size.

    For text, label errors are not searched for, and duplicates are copies of whole contexts. Memory then also holds the tokens, which of
    them are targets, and 40 bytes per context.

    For an unfinished or damaged cache, the statistics cover the rows that can be read, and `health` lists the rest.

    Args:
        cache: Cache, or its path or address.
        teacher: Slug of the teacher to read; None if the cache has only one.
        on_progress: Called after every block.

    Raises:
        LogitCacheError: The cache cannot be opened, or its labels cannot be read.
    """
    opened = open_cache(cache, unfinished=True).of(teacher)
    manifest, slug = opened.manifest, opened.teacher
    labels = opened.labels()
    reading = _Reading(opened, slug, labels)
    reading.everything(on_progress)
    health, probe = _probed(reading.health(), opened, slug)
    odd, odd_total = reading.label_errors.surest()
    if (
        manifest.modality == _TEXT
    ):  # an unexpected token is not a label error, and the first tokens of contexts are often the same
        odd, odd_total, duplicates, among = list[OddSample](), 0, list[Duplicate](), 0
    else:
        by_logits = reading.unmixed[0] and _says_enough(manifest.encoding)
        duplicates, among = find_duplicates(opened, slug, labels, on_progress, by_logits=by_logits)
    info = cache_info(opened)
    views = [sums.stats(v, manifest.views[v]["recipe"]) for v, sums in enumerate(reading.views)]
    return CacheStats(
        **{one.name: getattr(info, one.name) for one in fields(CacheInfo)},
        health=health,
        views=views,
        agreement=reading.agreement.of_pairs(),
        agreement_of_all=reading.agreement.of_all(),
        confusions=reading.confusions.most(reading.label_errors.class_rows),
        preview=reading.previews.summary(reading.wrong()),
        odd=odd,
        odd_total=odd_total,
        duplicates=duplicates,
        duplicates_among=among,
        probe=probe,
        tokens=None if reading.tokens is None else reading.tokens.stats(),
    )


def _probed(health: Health, cache: Cache, teacher: str) -> tuple[Health, ProbeLoss]:
    try:
        return health, probe_loss(cache, teacher)
    except MissingChunkError:
        return replace(health, missing=[*health.missing, "probe, or rows of it"]), NO_PROBE
    except CorruptCacheError:
        return replace(health, damaged=[*health.damaged, "probe, or rows of it"]), NO_PROBE


@dataclass(frozen=True, slots=True)
class _Block:
    """Result of reading one block of one view: predictions and previews, or the problem."""

    found: Answers | None
    previews: list[Preview]
    problem: CorruptCacheError | None


class _Reading:
    """One pass over the rows of a cache, by stretches of samples and then by view."""

    def __init__(self, cache: Cache, teacher: str, labels: NDArray[np.int32]) -> None:
        self._cache, self._teacher, self._labels = cache, teacher, labels
        manifest = cache.manifest
        classes = len(manifest.classes)
        kept = {"full": classes, "sampled": 1}.get(manifest.encoding["kind"]) or manifest.encoding["k"]
        self.views = [ViewSums(classes, kept) for _ in manifest.views]
        self.agreement, self.label_errors = Agreement(len(manifest.views)), LabelErrors(classes)
        self.confusions = Confusions(classes)
        self.previews = Previews()
        self._missing: list[tuple[int, int]] = []
        self._damaged: list[tuple[int, int]] = []
        self.unmixed = [not is_mixed(view["recipe"]) for view in manifest.views]
        self._kept = cache.kept_rows()
        self.tokens = None
        if manifest.modality == _TEXT:
            with contextlib.suppress(CorruptCacheError):  # reported by verify
                self.tokens = Tokens(cache)

    def everything(self, on_progress: OnProgress) -> None:
        """Read all rows."""
        manifest = self._cache.manifest
        step = max(STRETCH // manifest.block_rows, 1)
        threads = max(_THREADS, self._cache.place.at_once)
        with ThreadPoolExecutor(threads, thread_name_prefix="logitcache-stats") as executor:
            for start in range(0, manifest.blocks, step):
                blocks = range(start, min(start + step, manifest.blocks))
                begin, end = manifest.span(blocks[0])[0], manifest.span(blocks[-1])[1]
                self.agreement.begin(end - begin)
                self.label_errors.begin(end - begin)
                for view in range(len(manifest.views)):
                    for block, found in self._blocks(executor, view, blocks):
                        first, last = manifest.span(block)
                        self._take(view, block, slice(first - begin, last - begin), found)
                        done = begin * len(manifest.views) + view * (end - begin) + last - begin
                        on_progress(Progress("reading", done, len(manifest.views) * manifest.view_rows, "rows"))
                self.agreement.end()
                self.label_errors.end(manifest.first_row + begin, self._labels[begin:end])

    def _blocks(self, executor: ThreadPoolExecutor, view: int, blocks: range) -> Iterator[tuple[int, _Block]]:
        try:
            self._cache.read_records(view)  # once, instead of in every thread
        except CorruptCacheError as error:
            yield from ((block, _Block(None, [], error)) for block in blocks)
            return
        yield from zip(blocks, executor.map(lambda block: self._block(view, block), blocks), strict=True)

    def _block(self, view: int, block: int) -> _Block:
        """Read one block and compute its predictions and previews; called from several threads."""
        manifest = self._cache.manifest
        classes = len(manifest.classes)
        first, last = manifest.span(block)
        every = max(-(-manifest.view_rows * len(manifest.views) // PREVIEW_ROWS), 1)
        found, previews = list[Answers](), list[Preview]()
        try:
            columns = self._cache.block(view, self._teacher, block)
            for part in pieces(columns):
                here, true = {name: column[part] for name, column in columns.items()}, self._labels[first:last][part]
                found.append(answers_of(manifest.encoding, here, true, classes))
                number = view * manifest.view_rows + first + part.start
                looked_at = _scattered(number + np.arange(len(true))) % every == 0
                some = np.flatnonzero(found[-1].finite & self._kept[first:last][part] & looked_at)
                if len(some) and manifest.encoding["kind"] != "sampled":  # draws have no logits to preview
                    few = {name: column[some] for name, column in here.items()}
                    rows = read_rows(manifest.encoding, few, true[some], classes)
                    previews.append(preview_rows(rows, mixed=not self.unmixed[view]))
        except CorruptCacheError as error:
            return _Block(None, [], error)
        return _Block(joined(found), previews, None)

    def _take(self, view: int, block: int, part: slice, read: _Block) -> None:
        if read.found is None:
            (self._missing if isinstance(read.problem, MissingChunkError) else self._damaged).append((view, block))
            return
        first, last = self._cache.manifest.span(block)
        labels, kept = self._labels[first:last], self._kept[first:last]
        self.views[view].add(chosen(read.found, kept), labels[kept])
        for preview in read.previews:
            self.previews.add(preview)
        found = replace(read.found, finite=read.found.finite & kept)
        self.agreement.add(view, part, found)
        if self.tokens is not None and view == 0:
            self.tokens.add(first, found, labels)
        if self.unmixed[view]:  # rows of mixed views have two labels
            self.label_errors.add(part, found, labels)
            self.confusions.add(found.says[found.finite], labels[found.finite])

    def wrong(self) -> float:
        """Return the fraction of rows of unmixed views whose top class is not the label."""
        chosen = [sums for sums, unmixed in zip(self.views, self.unmixed, strict=True) if unmixed]
        rows = sum(sums.rows for sums in chosen)
        return sum(sums.wrong for sums in chosen) / rows if rows else 0.0

    def health(self) -> Health:
        """Return the missing and damaged blocks, and the numbers of invalid rows."""
        manifest = self._cache.manifest
        missing, damaged = (
            [f"view {view}, block {block}" for view, block in sorted(blocks)]
            for blocks in (self._missing, self._damaged)
        )
        return Health(
            finished=self._cache.finished,
            blocks=manifest.blocks * len(manifest.views),
            missing=missing,
            damaged=damaged,
            constant_rows=sum(view.constant for view in self.views),
            not_finite_rows=sum(view.not_finite for view in self.views),
        )


def _says_enough(encoding: Mapping[str, Any]) -> bool:
    """Return whether an encoding keeps enough logits per row to tell images apart."""
    return encoding["kind"] == "full" or int(encoding.get("k", 0)) >= _LEAST_K


def _scattered(numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Hash row numbers (Knuth's multiplicative hashing), to select rows independently of the order of the data."""
    return (numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
