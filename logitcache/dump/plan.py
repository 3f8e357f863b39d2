"""`logitcache dump --plan`: estimate the time and space of a dump by measuring a few batches and the disk, before it starts."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from logitcache.data import kept_of, offsets_of
from logitcache.data.optional import carried_arrays
from logitcache.dump.dump import probe_rows
from logitcache.dump.fill import ask, refuse_unusable, samples_in, split
from logitcache.dump.given import prepare
from logitcache.dump.job import Job
from logitcache.dump.settings import DumpRequest, DumpSettings
from logitcache.encoding import encode_rows
from logitcache.errors import InputError
from logitcache.runtime.progress import Callbacks, OnProgress
from logitcache.runtime.settings import show_options
from logitcache.store import bytes_per_row, carried_bytes, compressed_bytes, metadata_bytes, open_place

__all__ = ["DumpPlan", "plan_dump"]

_SECONDS = 10.0  # time limit for measuring the teacher
_DISK_BYTES = 64_000_000


@dataclass(frozen=True, slots=True)
class DumpPlan:
    """Estimated time and space of a dump.

    Attributes:
        counts: Size of one view by unit: images, or documents and tokens.
        rows: Number of rows to store, over all views.
        bytes_by_array: Size of each array on disk, estimated from the measured rows.
        bytes_total: Total size.
        bytes_per_row: Bytes per row, for all teachers together, as `logitcache.store.bytes_per_row` defines it.
        free_bytes: Free space on the disk; None for object storage.
        disk_bytes_per_second: Speed of writing and syncing; None for object storage.
        measured_rows: Number of rows that were computed for the measurement.
        teacher_rows_per_second: Speed of rendering, the teacher's forward pass and encoding, including padding.
        hours: Duration of the whole dump on one such device.
        live_hours_per_epoch: Time that running the teacher live would add to each epoch of training.
        pays_after_epochs: Number of epochs after which the dump has cost less than the live teacher.
    """

    counts: dict[str, int]
    rows: int
    bytes_by_array: dict[str, int]
    bytes_total: int
    bytes_per_row: float
    free_bytes: int | None
    disk_bytes_per_second: float | None
    measured_rows: int
    teacher_rows_per_second: float
    hours: float
    live_hours_per_epoch: float
    pays_after_epochs: int

    @property
    def fits(self) -> bool:
        """Whether there is enough free space."""
        return self.free_bytes is None or self.bytes_total < self.free_bytes

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain objects."""
        return asdict(self) | {"fits": self.fits}


@show_options(DumpRequest, DumpSettings)
def plan_dump(
    teacher: str | nn.Module | Sequence[str | nn.Module],
    data: Any,
    out: str | Path,
    *,
    settings: DumpSettings | None = None,
    callbacks: Callbacks | None = None,
    should_stop: Callable[[], bool] | None = None,
    on_progress: OnProgress | None = None,
    **options: Any,
) -> DumpPlan:
    """Estimate the time and space of `dump_logits` with the same arguments. Only a temporary file is written.

    Callbacks are accepted so that both functions take the same arguments, but they are not called.

    {arguments}

    Raises:
        LogitCacheError: If `dump_logits` would raise it too.
    """
    del callbacks, should_stop, on_progress
    job, place = prepare(teacher, data, out, DumpSettings.over(settings, options)), open_place(out)
    with contextlib.closing(job):
        rate, measured, row_bytes = _measure(job)
    manifest = job.manifest
    rows = manifest.view_rows * len(manifest.views)
    sizes = {name: int(size * rows) for name, size in row_bytes.items()}
    probed = len(probe_rows(0, manifest.view_rows, len(manifest.classes), offsets_of(job.samples)))
    sizes |= {
        "digests": 8 * rows,
        "labels": 4 * manifest.view_rows,
        **({} if manifest.rows is None else {"offsets": 8 * manifest.samples + 8}),
        "probe": 4 * probed * len(manifest.teachers) * len(manifest.classes),
    }
    arrays = carried_arrays(job.modality, job.samples)
    carried = {name: values for name, (_, values) in arrays.items()}
    sizes |= {name: carried_bytes(values) for name, values in carried.items()}
    columns = {slug: job.encoding.columns(len(manifest.classes)) for slug in job.teachers}
    sizes["metadata"] = metadata_bytes(manifest, columns, probed, arrays)
    counts = {job.modality.unit: len(kept_of(job.samples))} | {n: len(v) for n, v in carried.items() if n == "tokens"}
    path = getattr(place, "path", None)
    free, disk = _disk(path) if path is not None else (None, None)
    seconds = max(rows / rate, sum(sizes.values()) / disk if disk else 0)
    return DumpPlan(
        counts=counts,
        rows=rows,
        bytes_by_array=sizes,
        bytes_total=sum(sizes.values()),
        bytes_per_row=bytes_per_row(sizes, rows, list(job.teachers)),
        free_bytes=free,
        disk_bytes_per_second=disk,
        measured_rows=measured,
        teacher_rows_per_second=rate,
        hours=seconds / 3600,
        live_hours_per_epoch=manifest.view_rows / rate / 3600,
        pays_after_epochs=max(int(np.ceil(round(seconds * rate / manifest.view_rows, 6))), 1),
    )


def _measure(job: Job) -> tuple[float, int, dict[str, float]]:
    """Run the teacher on some batches.

    Smaller batches are padded and take as long as full ones, so full batches are timed and the number of batches in all blocks is used.

    Returns:
        Rows per second, number of measured rows, and compressed bytes per row of each column.
    """
    manifest, view, kept = job.manifest, job.views[0], kept_of(job.samples)
    size = min(manifest.batch_size, len(kept))
    order = np.resize(np.random.default_rng(0).permutation(kept), max(-(-len(kept) // size), 2) * size)
    parts: dict[str, list[torch.Tensor]] = {}
    began, timed, rows = time.perf_counter(), 0, 0
    for number, batch in enumerate(job.renderer.batches(view, split(order, size))):
        if not len(batch.samples):
            continue
        targets = job.modality.row_labels(job.samples, view, batch.samples)
        for slug, here, logits in ask(job.teachers, batch, targets, batch.samples):
            shown = logits if isinstance(logits, torch.Tensor) else logits.values
            refuse_unusable(shown.cpu().numpy(), targets.ids[here], view, job.samples, job.teachers[slug].name)
            labels, random = targets.labels[here].to(logits.device), job.uniforms(view, targets.ids[here])
            with torch.inference_mode():
                encoded = encode_rows(job.encoding, logits, labels, random)
            for name, column in encoded.items():
                parts.setdefault(f"teachers/{slug}/{name}", []).append(column.cpu())
        rows += len(targets.ids)
        if number == 0 and job.given is None:
            began = time.perf_counter()  # the first batch is a warm-up
            continue
        timed += 1
        if time.perf_counter() - began > _SECONDS:
            break
    of_view = sum(-(-len(samples_in(manifest, offsets_of(job.samples), n)) // size) for n in range(manifest.blocks))
    seconds = of_view * (time.perf_counter() - began) / max(timed, 1)
    rate = manifest.view_rows / seconds
    specs = job.encoding.columns(len(manifest.classes))
    sizes = {}
    for key, columns in parts.items():
        spec = specs[key.rpartition("/")[2]]
        sizes[key] = compressed_bytes(spec, torch.cat(columns).numpy().astype(spec.dtype)) / rows
    return rate, rows, sizes


def _disk(path: Path) -> tuple[int, float]:
    """Return the free bytes and the write speed, in bytes per second, of the disk that a path is on."""
    folder = next(parent for parent in [path.absolute(), *path.absolute().parents] if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < 2 * _DISK_BYTES:
        return free, 1e9  # too little space for a measurement
    data = os.urandom(_DISK_BYTES)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            began = time.perf_counter()
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            return free, _DISK_BYTES / (time.perf_counter() - began)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error}") from error
