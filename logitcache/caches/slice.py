"""`logitcache slice`: a smaller cache out of a larger one: fewer views, fewer samples, fewer logits a row, fewer bits."""

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcache.caches.anonymous import anonymous
from logitcache.caches.derive import encoding_of, exclusions_within, open_sources, origin, write_derived
from logitcache.caches.settings import SliceRequest, SliceSettings
from logitcache.data.contract import cache_modality
from logitcache.data.optional import carried_stretch
from logitcache.encoding import (
    Encoding,
    FullEncoding,
    SampledEncoding,
    TopKEncoding,
    TopKRows,
    encode_rows,
    widest_bytes,
)
from logitcache.errors import InputError
from logitcache.runtime.progress import OnProgress, silent
from logitcache.runtime.settings import show_options, to_command_line
from logitcache.runtime.wording import counted
from logitcache.store import Cache, block_rows_for

__all__ = ["slice_cache"]


@show_options(SliceRequest, SliceSettings)
def slice_cache(
    cache: str | Path | Cache,
    out: str | Path,
    *,
    on_progress: OnProgress = silent,
    **options: Any,
) -> Cache:
    """Write a part of a cache as a cache of its own; a slice that was stopped continues where it stopped.

    The probe comes along, so that `verify` and `fidelity` measure the slice against the teacher's exact rows. Where nothing
    is rounded again, rows keep their bits.

    {arguments}

    Returns:
        The new cache.

    Raises:
        InputError: More than the larger one holds, or nothing less.
        LogitCacheError: It cannot be opened or written.
    """
    chosen = SliceSettings(**options)
    (whole,) = open_sources([cache], out)
    opened = whole.of(chosen.teacher)
    manifest, slug, classes = opened.manifest, opened.teacher, len(opened.manifest.classes)
    source = encoding_of(opened)
    target = _target(source, chosen.top_k, chosen.precision)
    count, (first, last) = _kept_views(opened, chosen.views), _kept_samples(opened, chosen.samples)
    same = count == len(manifest.views) and target == source and last - first == manifest.samples
    if same and opened.teachers == whole.teachers and not chosen.anonymous:
        raise InputError(
            "a slice must leave something out: --views, --samples, --top-k, --precision, --cached-teacher or --anonymous"
        )
    begin, end = first - manifest.data["first"], last - manifest.data["first"]  # samples of the larger one
    shift, stop, offsets = _kept_rows(opened, begin, end)
    probe = _kept_probe(opened, chosen.samples, shift, stop)
    made = replace(
        manifest,
        samples=last - first,
        rows=None if offsets is None else stop - shift,
        block_rows=manifest.block_rows
        if last - first == manifest.samples
        else block_rows_for(stop - shift, widest_bytes(target.columns(classes))),
        views=manifest.views[:count],
        data=manifest.data | {"first": first},
        excluded=exclusions_within(manifest, first, last),
        encoding=target.to_json(),
        derived={"by": "slice", "from": [origin(opened)]},
    )
    labels = opened.labels()[shift:stop]

    def rows(view: int, wanted: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        stored = opened.rows(view, slug, wanted + shift)
        found = _converted(source, target, stored, labels[wanted], classes)
        return found | {"digests": opened.digests_of(view, wanted + shift)}

    words = to_command_line(SliceRequest(cache=str(opened.place), out=out), chosen) or []
    return write_derived(
        out,
        anonymous(made) if chosen.anonymous else made,
        labels,
        offsets,
        probe,
        rows,
        command=shlex.join(["logitcache", "slice", *words]),
        doing="slicing",
        anonymous=chosen.anonymous,
        on_progress=on_progress,
        carried=carried_stretch(cache_modality(opened), opened, begin, end),
    )


def _kept_views(cache: Cache, views: int | None) -> int:
    """Return the number of views to keep.

    Raises:
        InputError: There are fewer, or views that belong together would be parted.
    """
    every = cache.manifest.views
    count = len(every) if views is None else views
    if not 1 <= count <= len(every):
        raise InputError(f"{cache.place} has {counted(len(every), 'view')}: a slice takes 1 to that many, not {count}")
    if count < len(every) and every[count - 1]["group"] == every[count]["group"]:
        size = sum(view["group"] == 0 for view in every)
        raise InputError(
            f"--views {count} would cut a group of {size} views that belong together: take a multiple of {size}"
        )
    return count


def _kept_samples(cache: Cache, samples: tuple[int, int] | None) -> tuple[int, int]:
    """Return the stretch of the data set to keep, from the first sample to one before the last.

    Raises:
        InputError: The cache does not hold it.
    """
    manifest = cache.manifest
    begin, end = manifest.data["first"], manifest.data["first"] + manifest.samples
    first, last = samples or (begin, end)
    if not begin <= first < last <= end:
        raise InputError(f"{cache.place} has samples {begin}:{end} of its data: a slice cannot take {first}:{last}")
    return first, last


def _kept_rows(cache: Cache, begin: int, end: int) -> tuple[int, int, NDArray[np.int64] | None]:
    """Return the first row of a stretch of samples, one past its last, and its own offsets, [N + 1].

    Raises:
        InputError: Its samples have no rows.
    """
    offsets = cache.offsets()
    if offsets is None:
        return begin, end, None
    first, last = int(offsets[begin]), int(offsets[end])
    if first == last:
        raise InputError(f"samples {begin}:{end} of {cache.place} have no rows: nothing would be in the slice")
    return first, last, offsets[begin : end + 1] - first


def _kept_probe(
    cache: Cache, samples: tuple[int, int] | None, first: int, last: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the probe's rows of the stretch to keep, numbered from its beginning, [P], and their logits, [P, C].

    Args:
        cache: The larger one.
        samples: Samples to keep, as asked for; None: all.
        first: First row to keep.
        last: One past the last.

    Raises:
        InputError: There are none.
    """
    probed, exact = cache.probe(cache.teacher)
    if samples is None:
        return probed, exact
    inside = (probed >= first) & (probed < last)
    if len(probed) and not inside.any():
        raise InputError(
            f"none of the {len(probed)} rows that {cache.place} keeps exactly is among samples {samples[0]}:{samples[1]}, so that "
            f"nothing could be measured: take at least {counted(2 * cache.manifest.samples // len(probed), 'sample')}"
        )
    return probed[inside] - first, exact[inside]


def _target(source: Encoding, top_k: int | None, precision: str | None) -> Encoding:
    if isinstance(source, SampledEncoding):
        if top_k is not None or precision is not None:
            raise InputError(
                "the cache holds draws: a slice takes fewer of its views or samples, not --top-k or --precision"
            )
        return source
    dtype = precision or source.dtype
    order = ("u8", "f16", "f32")
    if dtype in order and order.index(dtype) > order.index(source.dtype):
        raise InputError(f"the cache holds {source.dtype}: a slice cannot hold {dtype}")
    if isinstance(source, TopKEncoding):
        if top_k is not None and top_k > source.k:
            raise InputError(f"the cache keeps the {source.k} largest: a slice cannot keep {top_k}")
        return replace(source, k=source.k if top_k is None else top_k, dtype=dtype)
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
        assert isinstance(rows, Tensor)
        columns = encode_rows(target, rows, true, None)
    return {name: column.numpy() for name, column in columns.items()}
