"""`logitcache verify`: check that a cache is intact, that its rows are the teacher's, and that the data has not changed."""

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

_PROBE_TOLERANCE = 1e-3  # relative; devices differ by 1e-6
# Total variation between two answers of a server for one row. In bfloat16 another batch size changed the worst of 384 rows by 0.076, and
# float32 by 0.065 (SmolLM2-135M, WikiText-2, batches of 4 against 1, on a CPU; 99 of 100 rows by less than 0.05).
_SERVED_TOLERANCE = 0.2


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Result of verifying a cache.

    Attributes:
        path: Path of the cache.
        blocks: Number of blocks whose every byte was compared.
        problems: Missing or damaged files; empty if the cache is intact.
        probe_gap: Largest relative gap between stored rows and the probe, beyond rounding; 0.0 for none (f32: bit for bit).
        pixels_checked: Number of samples, over all views, that were rendered again and compared with the digests of the teacher's
            input; None if not requested, or if it cannot be done.
        pixels_problem: Description of the first difference, or None.
        replayed: Number of samples, over all views, on which the teacher was run again; None if not requested.
        replay_gap: Largest relative gap between the teacher's output now and the stored rows, beyond rounding.
        replay_problem: Description of the first row that disagrees, or None.
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
        """Whether no problem was found."""
        return not self.problems and self.pixels_problem is None and self.replay_problem is None

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain objects."""
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
    """Verify a cache.

    Args:
        cache: Path of the cache.
        data: Data set, if it has moved since the dump.
        check_rows: Number of samples of each view to render again and compare with their digests; 0 skips the data.
        replay: Number of samples, over all views, on which to run the teacher again and compare its logits with the stored rows.
        teacher: Teacher, if it was given as an object or has another name now.
        teacher_weights: Weights of the teacher, if they have moved since the dump.
        device: Device for the teacher; `auto` prefers the type of device of the dump.
        repair: Whether to drop damaged blocks. The cache is then unfinished until the dump's own command is run again.
        on_progress: Called as files are read.

    Raises:
        LogitCacheError: If the cache or its data cannot be opened.
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
    shown_again = bool(check_rows) and not problems and _is_replayable(opened)
    if shown_again:
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
        pixels_checked=len(manifest.views) * min(check_rows, len(opened.kept())) if shown_again else None,
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
    """Compare stored rows with the probe, allowing for the encoding's rounding.

    Returns:
        The largest relative gap, and the blocks of view 0 with rows whose gap exceeds `_PROBE_TOLERANCE`.
    """
    probed, exact = cache.probe(cache.teacher)
    if ((probed < 0) | (probed >= cache.manifest.view_rows)).any():
        raise CorruptCacheError(
            f"{cache.place}: the probe refers to {cache.manifest.row_axis}s that do not exist. Dump the cache again."
        )
    if not len(probed):  # all of them are excluded
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
    """Run the teacher again on rows of all views; return the largest gap and a description of the first row that disagrees.

    Raises:
        CacheMismatchError: If the teacher's weights have changed.
    """
    from logitcache.data.contract import recorded_data  # noqa: PLC0415
    from logitcache.runtime.device import pick_device  # noqa: PLC0415
    from logitcache.teachers.recorded import live_teacher_of, served_teacher_of  # noqa: PLC0415  (torch; not needed for the files)

    samples = recorded_data(cache, data)
    where = pick_device("cpu" if device == "auto" and cache.manifest.device == "cpu" else device)  # as at the dump
    if teacher is not None and len(cache.teachers) > 1:
        raise InputError(
            f"--teacher names one network, but {cache.place} holds {len(cache.teachers)} teachers; leave it out"
        )
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
                    f"the teacher's output has changed: view {position}, {manifest.row_axis} {row} has a relative difference of "
                    f"{gaps[beyond[0]]:.2g} beyond rounding, as one of {len(beyond)} of the {len(wanted)} rows in its batch"
                )
    return largest, first


def _gaps(cache: Cache, view: int, rows: "NDArray[np.int64]", exact: "NDArray[np.float32]") -> "NDArray[np.float32]":
    """Return the largest gap of each stored row from exact logits, allowing for the encoding's rounding or sampling, [B]."""
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
    """Return the total variation between stored and given log-probabilities of each row of a view, [B]."""
    columns = cache.rows(view, cache.teacher, rows)
    stored = decode_rows(cache.manifest.encoding, columns, len(cache.manifest.classes))
    variations: NDArray[np.float32] = np.abs(np.exp(stored) - np.exp(exact)).sum(1) / 2
    return variations


def _is_replayable(cache: Cache) -> bool:
    from logitcache.data.contract import is_replayable  # noqa: PLC0415  (torch; not needed for the files)

    return is_replayable(cache)


def _check_data(cache: Cache, data: Any, rows: int) -> None:
    from logitcache.data.contract import cache_views, check_inputs, recorded_data  # noqa: PLC0415  (torch; not needed for the files)

    samples, kept = recorded_data(cache, data), cache.kept()
    total = len(kept)
    count = min(rows, total)
    for view in cache_views(cache):
        offset = view.index * total // (count * len(cache.manifest.views))  # different samples in each view
        check_inputs(cache, samples, view, kept[np.unique((np.arange(count) * total // count + offset) % total)])
