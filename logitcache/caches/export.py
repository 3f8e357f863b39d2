"""`logitcache export`: rows for other tools, as Parquet or safetensors. Without torch; a block (Parquet) or a view in memory at a time."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import InputError
from logitcache.runtime.files import PARTIAL, explain_write_errors, local_path
from logitcache.runtime.progress import OnProgress, Progress, silent
from logitcache.store import Cache, drawn_targets, kept_values, open_cache, rest_level, samples_of

__all__ = ["export_cache"]

Rows = dict[str, NDArray[Any]]


def export_cache(
    cache: str | Path | Cache,
    out: str | Path,
    *,
    views: Sequence[int] | None = None,
    teacher: str | None = None,
    on_progress: OnProgress = silent,
) -> list[Path]:
    """Write rows as a file that other tools read; the manifest goes into its metadata, as JSON under `logitcache`.

    A row has `view`, `sample` (position in the data set), `row` where samples have several, `label`, `digest` of what the teacher
    was shown, and: `logits` (every class, float32) of a cache that keeps every class, else `ids` (ascending), `values` (their
    raw logits, float32) and `rest` (the logit that each other class counts with at temperature 1); of draws `ids` (ascending, one that
    was drawn several times as often), `targets` (what each adds to its class, float32), and of the exact distribution `first`, the
    likeliest class, `log_prob_first`, `log_prob_label` and `entropy` in nats. Samples that the cache leaves out have no rows.

    Args:
        cache: What to export.
        out: `FILE.parquet`, one file, a row group a block; or `FILE.safetensors`, one file a view: several are numbered
            FILE-00001-of-00004.safetensors.
        views: Which views; None: all.
        teacher: Slug of one of several teachers.
        on_progress: Called after every block.

    Returns:
        The files written.

    Raises:
        InputError: Another ending, a file that is there, a view that is not; or pyarrow is missing.
        LogitCacheError: The cache cannot be opened or read.
    """
    opened, target = open_cache(cache).of(teacher), local_path(out)
    total = len(opened.manifest.views)
    chosen = list(range(total)) if views is None else list(views)
    if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= set(range(total)):
        raise InputError(f"{opened.place} has views 0 to {total - 1}, each once: {chosen} cannot be exported")
    writers: dict[str, Callable[[Cache, Path, list[int], OnProgress], list[Path]]] = {
        ".parquet": _to_parquet,
        ".safetensors": _to_safetensors,
    }
    if target.suffix not in writers:
        raise InputError(f"--out {out} must end in .parquet or .safetensors")
    return writers[target.suffix](opened, target, chosen, on_progress)


def _to_parquet(cache: Cache, out: Path, views: list[int], on_progress: OnProgress) -> list[Path]:
    try:
        import pyarrow as pa  # noqa: PLC0415  (an extra)
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError as error:
        raise InputError("Parquet needs the package pyarrow: pip install 'logitcache[parquet]'") from error
    _refuse_existing([out])
    partial, writer = out.with_name(f".{out.name}{PARTIAL}"), None
    try:
        with explain_write_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            for rows in _blocks(cache, views, on_progress):
                table = pa.table({name: _arrow(pa, column) for name, column in rows.items()})
                if writer is None:
                    schema = table.schema.with_metadata({"logitcache": _notes(cache)})
                    writer = pq.ParquetWriter(partial, schema, compression="zstd")
                writer.write_table(table.cast(writer.schema))
            assert writer is not None  # a cache has rows
            writer.close()
            partial.replace(out)
    finally:
        if writer is not None and writer.is_open:
            writer.close()
        partial.unlink(missing_ok=True)
    return [out]


def _arrow(pa: Any, column: NDArray[Any]) -> Any:
    flat = pa.array(np.ascontiguousarray(column).reshape(-1))
    return flat if column.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, column.shape[1])


def _to_safetensors(cache: Cache, out: Path, views: list[int], on_progress: OnProgress) -> list[Path]:
    from safetensors.numpy import save_file  # noqa: PLC0415

    count = len(views)
    files = (
        [out]
        if count == 1
        else [out.with_name(f"{out.stem}-{n + 1:05}-of-{count:05}{out.suffix}") for n in range(count)]
    )
    _refuse_existing(files)
    partial = [file.with_name(f".{file.name}{PARTIAL}") for file in files]
    try:
        with explain_write_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            for file, view in zip(partial, views, strict=True):
                parts = list(_blocks(cache, [view], on_progress))
                tensors = {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])}
                save_file(tensors, file, {"logitcache": _notes(cache)})
            for file, whole in zip(partial, files, strict=True):  # all or none
                file.replace(whole)
    finally:
        for file in partial:
            file.unlink(missing_ok=True)
    return files


def _refuse_existing(files: Iterable[Path]) -> None:
    for file in files:
        if file.exists():
            raise InputError(f"{file} exists; nothing was written. Remove it, or choose another --out.")


def _notes(cache: Cache) -> str:
    return json.dumps({"fingerprint": cache.fingerprint, "manifest": cache.manifest.to_json()})


def _blocks(cache: Cache, views: list[int], on_progress: OnProgress) -> Iterable[Rows]:
    manifest, slug, labels, offsets = cache.manifest, cache.teacher, cache.labels(), cache.offsets()
    kept = cache.kept_rows()
    for position, view in enumerate(views):
        for block, (first, last, columns) in enumerate(cache.blocks(view, slug)):
            numbers = np.arange(first, last)
            samples = samples_of(offsets, numbers)
            rows: Rows = {
                "view": np.full(last - first, view, np.int32),
                "sample": samples + manifest.data["first"],
                **({} if offsets is None else {"row": numbers}),
                "label": labels[first:last],
                "digest": cache.digests(view, (block,)),
            }
            rows |= _of_encoding(manifest.encoding, columns, len(manifest.classes))
            yield rows if kept[first:last].all() else {name: column[kept[first:last]] for name, column in rows.items()}
            done = position * manifest.view_rows + last
            on_progress(Progress("exporting", done, len(views) * manifest.view_rows, "rows"))


def _of_encoding(encoding: Mapping[str, Any], columns: Mapping[str, NDArray[Any]], classes: int) -> Rows:
    """Return what an encoding keeps of rows, in words of its own."""
    if encoding["kind"] == "sampled":
        ids, targets = drawn_targets(encoding, columns)
        facts = columns["facts"].astype(np.float32)
        found: Rows = {"ids": ids.astype(np.int32), "targets": targets, "first": columns["first"].astype(np.int32)}
        return found | dict(zip(("log_prob_first", "log_prob_label", "entropy"), facts.T.copy(), strict=True))
    of_kept, values = kept_values(encoding, columns)
    if of_kept is None:
        return {"logits": values}
    level = rest_level(encoding, columns, values, classes)
    return {"ids": of_kept.astype(np.int32), "values": values, "rest": level}
