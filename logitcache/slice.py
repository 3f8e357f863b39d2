"""`logitcache slice`: a smaller cache out of a larger one, without the teacher: fewer views, fewer logits a row, fewer bits."""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from logitcache.encoding import Encoding, FullEncoding, TopKEncoding, TopKRows, read_encoding
from logitcache.errors import CorruptCacheError, InputError
from logitcache.progress import OnProgress, Progress, silent
from logitcache.store import Cache, CacheWriter, check_files, open_cache, open_place

__all__ = ["slice_cache"]


def slice_cache(
    cache: str | Path | Cache,
    out: str | Path,
    *,
    views: int | None = None,
    top_k: int | None = None,
    precision: str | None = None,
    on_progress: OnProgress = silent,
) -> Cache:
    """Write a part of a cache as a cache of its own; a slice that was stopped continues where it stopped.

    The probe comes along, so that `verify` and `fidelity` measure the slice against the teacher's exact rows. Where nothing
    is rounded again, rows keep their bits.

    Args:
        cache: The larger one.
        out: Path of the new one.
        views: How many of its views, the first ones; None: all.
        top_k: How many of the largest logits of a row; None: as many as there are.
        precision: `f32`, `f16` or `u8`; None: that of the larger one.
        on_progress: Called after every block.

    Returns:
        The new cache.

    Raises:
        InputError: More than the larger one holds, or nothing less.
        LogitCacheError: It cannot be opened or written.
    """
    opened = open_cache(cache) if isinstance(cache, str | Path) else cache
    if str(open_place(out)) == str(opened.place):
        raise InputError(f"--out {out} is the cache that is cut: a slice is a cache of its own. Choose another path.")
    manifest, slug = opened.manifest, opened.teachers[0]
    source = read_encoding(manifest.encoding)
    target = _target(source, top_k, precision)
    count = len(manifest.views) if views is None else views
    if not 1 <= count <= len(manifest.views):
        raise InputError(f"{opened.place} has {len(manifest.views)} views: a slice takes 1 to that many, not {count}")
    if count == len(manifest.views) and target == source:
        raise InputError("a slice must leave something out: --views, --top-k or --precision")
    if problems := check_files(opened):  # a slice has digests of its own: what is wrong here would look right there
        raise CorruptCacheError(
            f"{opened.place}: {problems[0].file} {problems[0].problem} ({len(problems)} such files). `logitcache verify --repair "
            f"{opened.place}` and the dump's own command put it right; then cut."
        )
    origin = {"from": opened.fingerprint, "encoding": manifest.encoding, "views": len(manifest.views)}
    made = replace(manifest, views=manifest.views[:count], encoding=target.to_json(), derived=origin)
    columns, labels = {slug: target.columns(len(manifest.classes))}, opened.labels()
    samples, probe = opened.probe(slug)
    command = ["logitcache", "slice", str(opened.place), "--out", str(out)]
    for option, value in (("--views", views), ("--top-k", top_k), ("--precision", precision)):
        command += [option, str(value)] if value is not None else []
    with CacheWriter(out, made, columns, labels, command=shlex.join(command)) as writer:
        if not writer.complete:
            writer.begin(samples, {slug: probe})
            for view, block in writer.missing():
                first, last = manifest.rows(block)
                stored = opened.view(view, slug, (block,))
                found = _converted(source, target, stored, labels[first:last], len(manifest.classes))
                rows = {f"teachers/{slug}/{name}": column for name, column in found.items()}
                writer.write(view, block, rows | {"digests": opened.digests(view, (block,))})
                done = view * manifest.samples + last
                on_progress(Progress("slicing", done, count * manifest.samples, "rows"))
            writer.finish()
    return open_cache(out)


def _target(source: Encoding, top_k: int | None, precision: str | None) -> Encoding:
    dtype = precision or source.dtype
    order = ("u8", "f16", "f32")
    if dtype in order and order.index(dtype) > order.index(source.dtype):
        raise InputError(f"the cache holds {source.dtype}: a slice cannot hold {dtype}")
    if isinstance(source, TopKEncoding):
        if top_k is not None and top_k > source.k:
            raise InputError(f"the cache keeps the {source.k} largest: a slice cannot keep {top_k}")
        return TopKEncoding(source.k if top_k is None else top_k, dtype)
    return FullEncoding(dtype) if top_k is None else TopKEncoding(top_k, dtype)


def _converted(
    source: Encoding,
    target: Encoding,
    stored: Mapping[str, NDArray[Any]],
    labels: NDArray[np.int32],
    classes: int,
) -> dict[str, NDArray[Any]]:
    if source == target:
        return dict(stored)
    true = torch.from_numpy(labels).long()
    rows = source.decode({name: torch.from_numpy(column) for name, column in stored.items()}, true, classes)
    if isinstance(rows, TopKRows):
        assert isinstance(target, TopKEncoding)
        columns = target.narrow(rows, true)
    else:
        columns = target.encode(rows, true)
    return {name: column.numpy() for name, column in columns.items()}
