"""`logitcache export`: write rows for other tools as Parquet or safetensors, without torch.

At most one block (Parquet) or one view (safetensors) is in memory at a time.
"""

import copy
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import InputError, unknown_name
from logitcache.runtime.files import PARTIAL, explain_write_errors, local_path
from logitcache.runtime.plugins import import_extra
from logitcache.runtime.progress import OnProgress, Progress, silent
from logitcache.store import Cache, Manifest, drawn_targets, kept_values, open_cache, rest_level, samples_of

__all__ = ["export_cache"]

Rows = Mapping[str, Any]
_LAYOUTS = ("rows", "documents")


def export_cache(
    cache: str | Path | Cache,
    out: str | Path,
    *,
    view_ids: Sequence[int] | None = None,
    teacher: str | None = None,
    layout: str = "rows",
    anonymous: bool = False,
    on_progress: OnProgress = silent,
) -> list[Path]:
    """Export rows to files for other tools, with the manifest in their metadata, as JSON under `logitcache`.

    Each row has `view`, `sample` (index in the data set), `row` if samples have several, `label` and `digest` of the teacher's input.
    A cache of every class adds `logits` (float32). A top-k cache adds `ids` (ascending), `values` (raw logits, float32) and `rest` (the
    logit of each other class at temperature 1). A cache of sampled classes adds `ids` (ascending, with repetitions), `targets` (the
    contribution of each to its class, float32) and, of the exact distribution, `first` (the most likely class), `log_prob_first`,
    `log_prob_label` and `entropy` in nats. Excluded samples are not exported.

    With `layout="documents"`, for text, each row is a document: `input_ids`, its L tokens; and `token_ids` and `top_values`, L - 1 lists
    each, with the known ids and log-probabilities at temperature 1 of each position, largest first. List i is the distribution of token
    i + 1, and is empty if that token is not a target. The names are those of DistillKit's raw format.

    Args:
        cache: Cache to export.
        out: `FILE.parquet` for a single file with a row group per block, or `FILE.safetensors` for a file per view; several files are
            numbered FILE-00001-of-00004.safetensors.
        view_ids: Indices of the views to export. Defaults to all.
        teacher: Slug of the teacher, if there are several.
        layout: `rows`, or `documents` for text as Parquet.
        anonymous: Whether the manifest in the file leaves out paths and addresses.
        on_progress: Called after every block.

    Returns:
        Paths of the files written.

    Raises:
        InputError: If the file extension or a view is invalid, if a file exists, or if pyarrow is missing.
        LogitCacheError: If the cache cannot be opened or read.
    """
    opened, target = open_cache(cache).of(teacher), local_path(out)
    if anonymous:
        opened = _without_paths(opened)
    total = len(opened.manifest.views)
    chosen = list(range(total)) if view_ids is None else list(view_ids)
    if not chosen or len(set(chosen)) != len(chosen) or not set(chosen) <= set(range(total)):
        raise InputError(
            f"cannot export views {chosen} of {opened.place}; expected distinct views from 0 to {total - 1}"
        )
    writers: dict[str, Callable[[Cache, Path, list[int], OnProgress], list[Path]]] = {
        ".parquet": _to_parquet,
        ".safetensors": _to_safetensors,
    }
    if target.suffix not in writers:
        raise InputError(f"--out {out} must end in .parquet or .safetensors")
    if layout not in _LAYOUTS:
        raise unknown_name("layout", layout, _LAYOUTS)
    if layout == "documents":
        _refuse_documents(opened, target)
        return _write_parquet(opened, target, _documents(opened, on_progress))
    return writers[target.suffix](opened, target, chosen, on_progress)


def _without_paths(cache: Cache) -> Cache:
    """Return the same cache with an anonymous manifest."""
    from logitcache.caches.anonymous import anonymous  # noqa: PLC0415  (torch)

    found = copy.copy(cache)
    found.manifest = anonymous(cache.manifest)
    return found


def _refuse_documents(cache: Cache, out: Path) -> None:
    """Raise InputError if a cache cannot be exported as documents."""
    if cache.manifest.modality != "text":
        raise InputError(
            f"--layout documents is for text, but {cache.place} holds {cache.manifest.modality}; use --layout rows"
        )
    if out.suffix != ".parquet":
        raise InputError(f"--layout documents is only available as Parquet; --out {out} must end in .parquet")
    if cache.manifest.encoding["kind"] == "full":
        raise InputError(
            f"--layout documents needs a top-k cache, but {cache.place} keeps every class; make one with `logitcache slice {cache.place} "
            "--top-k 64 --out PATH`"
        )


def _to_parquet(cache: Cache, out: Path, views: list[int], on_progress: OnProgress) -> list[Path]:
    return _write_parquet(cache, out, _blocks(cache, views, on_progress))


def _write_parquet(cache: Cache, out: Path, parts: Iterable[Rows]) -> list[Path]:
    pa, pq = (import_extra(name, "Parquet", "parquet") for name in ("pyarrow", "pyarrow.parquet"))
    _refuse_existing([out])
    partial, writer = out.with_name(f".{out.name}{PARTIAL}"), None
    try:
        with explain_write_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            for rows in parts:
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


def _arrow(pa: Any, column: "NDArray[Any] | _Nested") -> Any:
    if isinstance(column, _Nested):
        found = pa.array(column.values)
        for begins in reversed(column.begins):
            found = pa.ListArray.from_arrays(pa.array(begins.astype(np.int32)), found)
        return found
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


class _Nested(NamedTuple):
    """Nested lists: offsets of each level, outermost first, and the values of the innermost lists."""

    begins: tuple[NDArray[np.int64], ...]
    values: NDArray[Any]


def _documents(cache: Cache, on_progress: OnProgress) -> Iterable[dict[str, Any]]:
    """Yield the documents of a text cache in order, some at a time."""
    manifest, slug, offsets = cache.manifest, cache.teacher, cache.offsets()
    tokens, begins, targets = (cache.array(name) for name in ("tokens", "documents", "targets"))
    assert offsets is not None
    kept = np.zeros(manifest.samples, np.bool_)
    kept[cache.kept()] = True
    waiting: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
    document = done = 0
    for _, last, columns in cache.blocks(0, slug):
        waiting.append(_largest_first(manifest, columns))
        until = int(np.searchsorted(offsets[1:], last, side="right"))  # complete documents so far
        if until > document:
            ids, values = (np.concatenate(parts) for parts in zip(*waiting, strict=True))
            whole = int(offsets[until]) - done
            some = np.arange(document, until)[kept[document:until]]
            rows = (
                np.concatenate([np.arange(offsets[n], offsets[n + 1]) for n in some] or [np.empty(0, np.int64)]) - done
            )
            yield _lists_of(some, tokens, begins, targets, ids[rows], values[rows])
            waiting, document, done = [(ids[whole:], values[whole:])], until, int(offsets[until])
        on_progress(Progress("exporting", last, manifest.view_rows, "rows"))


def _largest_first(
    manifest: Manifest, columns: Mapping[str, NDArray[Any]]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the kept ids and their log-probabilities at temperature 1, largest first, [R, K] each."""
    ids, values = kept_values(manifest.encoding, columns)
    assert ids is not None
    others = len(manifest.classes) - ids.shape[1]
    level = rest_level(manifest.encoding, columns, values, len(manifest.classes)).astype(np.float64)
    top = values.max(1).astype(np.float64)
    total = np.exp(values - top[:, None]).sum(1) + others * np.exp(level - top)
    logprobs = (values - (top + np.log(total))[:, None]).astype(np.float32)
    order = np.argsort(-logprobs, 1, kind="stable")
    return np.take_along_axis(ids, order, 1), np.take_along_axis(logprobs, order, 1)


def _lists_of(
    documents: NDArray[np.int64],
    tokens: NDArray[Any],
    begins: NDArray[Any],
    targets: NDArray[np.bool_],
    ids: NDArray[np.int64],
    values: NDArray[np.float32],
) -> dict[str, Any]:
    """Return the columns of some documents, given the ids and log-probabilities of their targets, [R, K] each."""
    spans = [(int(begins[n]), int(begins[n + 1])) for n in documents]
    lengths = np.array([end - begin for begin, end in spans], np.int64)
    filled = np.concatenate([targets[begin + 1 : end] for begin, end in spans] or [np.empty(0, np.bool_)])
    inner = np.concatenate([[0], np.cumsum(filled * ids.shape[1])])
    of_rows = np.concatenate([[0], np.cumsum(np.maximum(lengths - 1, 0))])
    whole = np.concatenate([tokens[begin:end] for begin, end in spans] or [tokens[:0]])
    return {
        "input_ids": _Nested((np.concatenate([[0], np.cumsum(lengths)]),), whole.astype(np.int64)),
        "token_ids": _Nested((of_rows, inner), ids.reshape(-1).astype(np.int32)),
        "top_values": _Nested((of_rows, inner), values.reshape(-1)),
    }


def _notes(cache: Cache) -> str:
    return json.dumps({"fingerprint": cache.fingerprint, "manifest": cache.manifest.to_json()})


def _blocks(cache: Cache, views: list[int], on_progress: OnProgress) -> Iterable[dict[str, Any]]:
    manifest, slug, labels, offsets = cache.manifest, cache.teacher, cache.labels(), cache.offsets()
    kept = cache.kept_rows()
    for position, view in enumerate(views):
        for block, (first, last, columns) in enumerate(cache.blocks(view, slug)):
            numbers = np.arange(first, last)
            samples = samples_of(offsets, numbers)
            rows: dict[str, Any] = {
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
    """Return the exported columns of an encoding."""
    if encoding["kind"] == "sampled":
        ids, targets = drawn_targets(encoding, columns)
        facts = columns["facts"].astype(np.float32)
        found: dict[str, Any] = {
            "ids": ids.astype(np.int32),
            "targets": targets,
            "first": columns["first"].astype(np.int32),
        }
        return found | dict(zip(("log_prob_first", "log_prob_label", "entropy"), facts.T.copy(), strict=True))
    of_kept, values = kept_values(encoding, columns)
    if of_kept is None:
        return {"logits": values}
    level = rest_level(encoding, columns, values, classes)
    return {"ids": of_kept.astype(np.int32), "values": values, "rest": level}
