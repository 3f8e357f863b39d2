"""`logitcache verify`: is a cache whole, are its rows the teacher's, and does the data still look as the teacher saw it?"""

from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import CacheMismatchError, CorruptCacheError, InputError
from logitcache.runtime.progress import OnProgress, silent
from logitcache.store import (
    Cache,
    FileProblem,
    check_files,
    decode_rows,
    draw_gaps,
    drop_damaged,
    forget_damaged_records,
    kept_values,
    open_cache,
    rounding,
    row_uniforms,
)

if TYPE_CHECKING:
    from logitcache.teachers.forward import Teachers

__all__ = ["VerifyReport", "verify_cache"]

_PROBE_TOLERANCE = 1e-3  # relative; two devices differ by 1e-6
_SERVED_TOLERANCE = 0.1  # of probability; a server's batches and caches change some hundredths of it in bfloat16


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What was looked at and what was found.

    Attributes:
        path: Of the cache.
        blocks: Blocks whose every byte was compared.
        problems: Files that are not what was written; empty for a whole cache.
        probe_gap: Largest relative gap between stored rows and the probe, beyond rounding; 0.0 means none (f32: bit for bit).
        pixels_checked: Samples, over all views, rendered again and compared with the digests of what the teacher was shown; None
            if that was not asked for.
        pixels_problem: What differs, or None.
        replayed: Samples, over all views, for which the teacher was run again; None if that was not asked for.
        replay_gap: Largest relative gap between what it says now and what is stored, beyond rounding.
        replay_problem: The first row that disagrees, or None.
        counted: Unit of `pixels_checked` and `replayed`: "rows" if each sample is one row of a view, else "samples".
        repaired: Whether damaged blocks were dropped, so that the dump's own command writes them again.
    """

    path: str
    blocks: int
    problems: list[FileProblem]
    probe_gap: float
    pixels_checked: int | None
    pixels_problem: str | None
    replayed: int | None
    replay_gap: float
    replay_problem: str | None
    counted: str
    repaired: bool

    @property
    def ok(self) -> bool:
        """Whether the cache can be trusted."""
        return not self.problems and self.pixels_problem is None and self.replay_problem is None

    def to_json(self) -> dict[str, Any]:
        """Return the same as plain objects."""
        return {"ok": self.ok, **asdict(self)}


def verify_cache(
    cache: str | Path,
    *,
    data: Any = None,
    check_rows: int = 256,
    replay: int = 0,
    teacher: Any = None,
    teacher_weights: str | None = None,
    device: str = "auto",
    repair: bool = False,
    on_progress: OnProgress = silent,
) -> VerifyReport:
    """Check a cache.

    Args:
        cache: Its path.
        data: The data set, if it is not where the dump found it.
        check_rows: Samples of each view to render again and compare with their digests; 0 leaves the data alone.
        replay: Samples, over all views, for which to run the teacher again and compare its logits with what is stored.
        teacher: The teacher, where it has no name that says how to build it, or another name now.
        teacher_weights: Where its weights are, if not where the dump found them.
        device: Where to run it; `auto` prefers the kind of device of the dump.
        repair: Whether to drop damaged blocks. The cache is unfinished then, until the dump's own command is run again.
        on_progress: Called as files are read.

    Raises:
        LogitCacheError: It cannot be opened at all, or its data cannot.
    """
    for name, number in (("check_rows", check_rows), ("replay", replay)):
        if not isinstance(number, int) or number < 0:
            raise InputError(f"`{name}` must be a whole number of 0 or more, not {number!r}")
    if repair:
        forget_damaged_records(cache)
    opened = open_cache(cache)
    manifest = opened.manifest
    problems = check_files(opened, on_progress)
    gap = 0.0
    if not problems:
        for slug in opened.teachers:
            found, unlike = _probe_gap(opened.of(slug))
            gap = max(gap, found)
            said = f"rows differ from the probe by {found:.2g}, relative"
            problems += [FileProblem(f"teachers/{slug}", said, 0, block) for block in unlike]
    pixels_problem = None
    if check_rows and not problems:
        try:
            _check_data(opened, data, check_rows)
        except CacheMismatchError as error:
            pixels_problem = str(error)
    gap_now, disagreement = 0.0, None
    if replay and not problems and not pixels_problem:
        gap_now, disagreement = _replay(opened, data, replay, teacher, teacher_weights, device)
    if repair and problems:
        drop_damaged(opened, problems)
    return VerifyReport(
        path=str(cache),
        blocks=len(manifest.views) * manifest.blocks,
        problems=problems,
        probe_gap=gap,
        pixels_checked=len(manifest.views) * min(check_rows, len(opened.kept()))
        if check_rows and not problems
        else None,
        pixels_problem=pixels_problem,
        replayed=min(replay, len(manifest.views) * len(opened.kept()))
        if replay and not problems and not pixels_problem
        else None,
        replay_gap=gap_now,
        replay_problem=disagreement,
        counted="rows" if manifest.rows is None else "samples",
        repaired=repair and bool(problems),
    )


def _probe_gap(cache: Cache) -> tuple[float, list[int]]:
    """Compare stored rows with the same rows kept in full, as the encoding would have rounded them.

    Returns:
        The largest relative gap, and the blocks of view 0 that hold rows with a gap beyond `_PROBE_TOLERANCE`.
    """
    probed, exact = cache.probe(cache.teacher)
    if ((probed < 0) | (probed >= cache.manifest.view_rows)).any():
        raise CorruptCacheError(
            f"{cache.place}: the probe names {cache.manifest.row_axis}s that do not exist. Dump the cache again."
        )
    if not len(probed):  # all of them are left out
        return 0.0, []
    gaps = _gaps(cache, 0, probed, exact)
    unlike = np.unique(probed[gaps > _PROBE_TOLERANCE] // cache.manifest.block_rows)
    return float(gaps.max()), unlike.tolist()


def _replay(
    cache: Cache,
    data: Any,
    rows: int,
    teacher: Any,
    teacher_weights: str | None,
    device: str,
) -> tuple[float, str | None]:
    """Run the teacher again on rows spread over all views: the largest gap, and the first row that disagrees.

    Raises:
        CacheMismatchError: The teacher has other weights.
    """
    from logitcache.data.contract import recorded_data  # noqa: PLC0415
    from logitcache.runtime.device import pick_device  # noqa: PLC0415
    from logitcache.teachers.recorded import live_teacher_of, served_teacher_of  # noqa: PLC0415  (torch; not needed for the files)

    samples = recorded_data(cache, data)
    where = pick_device("cpu" if device == "auto" and cache.manifest.device == "cpu" else device)  # as at the dump
    if teacher is not None and len(cache.teachers) > 1:
        raise InputError(f"{cache.place} holds {len(cache.teachers)} teachers, and --teacher names one network")
    largest, first = 0.0, None
    for slug in cache.teachers:
        one = cache.of(slug)
        served = "gives" in one.manifest.teachers[0]
        asked = served_teacher_of(one, teacher) if served else live_teacher_of(one, teacher, teacher_weights, where)
        with closing(asked) as runner:
            gap, disagreement = _compared(cache.of(slug), samples, runner, rows)
        largest = max(largest, gap)
        if disagreement and first is None:
            first = disagreement if len(cache.teachers) == 1 else f"{slug}: {disagreement}"
    return largest, first


def _compared(cache: Cache, samples: Any, runner: "Teachers", rows: int) -> tuple[float, str | None]:
    from logitcache.data import modality_of, offsets_of, rows_of  # noqa: PLC0415
    from logitcache.data.contract import cache_views  # noqa: PLC0415

    manifest, modality, offsets = cache.manifest, modality_of(samples), offsets_of(samples)
    renderer = modality.renderer(samples, runner.preprocessing, workers=0)
    largest, first = 0.0, None
    for position, view in enumerate(cache_views(cache)):
        count = min(
            (position + 1) * rows // len(manifest.views) - position * rows // len(manifest.views), len(cache.kept())
        )
        kept = cache.kept()
        ids = kept[np.unique((np.arange(count) * len(kept) // max(count, 1) + position) % len(kept))]
        for start in range(0, len(ids), manifest.batch_size):
            chosen = ids[start : start + manifest.batch_size]
            (batch,) = renderer.batches(view, [chosen])
            targets, wanted = modality.row_labels(samples, view, chosen), rows_of(offsets, chosen)
            if not len(wanted):  # samples may have no rows
                continue
            found, served = runner.logits(batch, targets).cpu().numpy(), "gives" in manifest.teachers[0]
            gaps = (_variations if served else _gaps)(cache, position, wanted, found)
            largest = max(largest, float(gaps.max()))
            beyond = np.flatnonzero(gaps > (_SERVED_TOLERANCE if served else _PROBE_TOLERANCE))
            if len(beyond) and first is None:
                row = wanted[beyond[0]] + manifest.first_row
                first = (
                    f"the teacher answers otherwise now: view {position}, {manifest.row_axis} {row} differs by "
                    f"{gaps[beyond[0]]:.2g}, relative, beyond rounding; {len(beyond)} of the {len(wanted)} rows of its batch do"
                )
    return largest, first


def _gaps(cache: Cache, view: int, rows: "NDArray[np.int64]", exact: "NDArray[np.float32]") -> "NDArray[np.float32]":
    """Compare stored rows of a view with exact ones, as the encoding would have rounded or drawn them: the largest gap of each row."""
    columns, encoding = cache.rows(view, cache.teacher, rows), cache.manifest.encoding
    random = row_uniforms(encoding, view, rows, cache.offsets(), int(cache.manifest.data["first"]))
    if random is not None:
        return draw_gaps(encoding, columns, random, exact, cache.labels()[rows])
    ids, stored = kept_values(cache.manifest.encoding, columns)
    kept = exact if ids is None else np.take_along_axis(exact, ids, 1)
    beyond = np.abs(stored - kept) - rounding(cache.manifest.encoding, columns, kept)
    gaps: NDArray[np.float32] = beyond.max(1).clip(0) / max(float(np.abs(stored).max()), 1e-30)
    return np.where(np.isfinite(kept).all(1), gaps, np.float32(np.inf))


def _variations(
    cache: Cache, view: int, rows: "NDArray[np.int64]", exact: "NDArray[np.float32]"
) -> "NDArray[np.float32]":
    """Compare stored log-probabilities of a view with others, as probabilities: the total variation of each row."""
    columns = cache.rows(view, cache.teacher, rows)
    stored = decode_rows(cache.manifest.encoding, columns, len(cache.manifest.classes))
    variations: NDArray[np.float32] = np.abs(np.exp(stored) - np.exp(exact)).sum(1) / 2
    return variations


def _check_data(cache: Cache, data: Any, rows: int) -> None:
    from logitcache.data.contract import cache_views, check_inputs, recorded_data  # noqa: PLC0415  (torch; not needed for the files)

    samples, kept = recorded_data(cache, data), cache.kept()
    total = len(kept)
    count = min(rows, total)
    for view in cache_views(cache):
        offset = view.index * total // (count * len(cache.manifest.views))  # other samples in every view
        check_inputs(cache, samples, view, kept[np.unique((np.arange(count) * total // count + offset) % total)])
