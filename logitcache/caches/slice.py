"""`logitcache slice`: a smaller cache from a larger one, with fewer views, samples, logits per row, or bits."""

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
    """Write a part of a cache as a new cache, or resume a slice that was interrupted.

    The probe is copied, so that `verify` and `fidelity` can compare the slice with the teacher's exact rows. Rows keep their bits
    unless they are rounded again.

    {arguments}

    Returns:
        The new cache.

    Raises:
        InputError: If the slice would hold more than the cache, or everything in it.
        LogitCacheError: If a cache cannot be opened or written.
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
            "the slice would be a full copy; reduce it with --views, --samples, --top-k, --precision or --cached-teacher, or make it "
            "--anonymous"
        )
    begin, end = (
        first - manifest.data["first"],
        last - manifest.data["first"],
    )  # range of samples, numbered as in the larger cache
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
        return found | opened.shown_of(view, wanted + shift)

    words = to_command_line(SliceRequest(cache=str(opened.place), out=out), chosen) or []
    return write_derived(
        [opened],
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
        InputError: If there are fewer, or if a group of views would be split.
    """
    every = cache.manifest.views
    count = len(every) if views is None else views
    if not 1 <= count <= len(every):
        raise InputError(
            f"{cache.place} has {counted(len(every), 'view')}; --views must be from 1 to that many, not {count}"
        )
    if count < len(every) and every[count - 1]["group"] == every[count]["group"]:
        size = sum(view["group"] == 0 for view in every)
        raise InputError(
            f"--views {count} would split a group of {size} views that belong together; use a multiple of {size}"
        )
    return count


def _kept_samples(cache: Cache, samples: tuple[int, int] | None) -> tuple[int, int]:
    """Return the range of samples to keep, as the first one and one past the last, numbered as in the data set.

    Raises:
        InputError: If the cache does not hold the range.
    """
    manifest = cache.manifest
    begin, end = manifest.data["first"], manifest.data["first"] + manifest.samples
    first, last = samples or (begin, end)
    if not begin <= first < last <= end:
        raise InputError(
            f"{cache.place} holds samples {begin}:{end}; --samples {first}:{last} is not within that range"
        )
    return first, last


def _kept_rows(cache: Cache, begin: int, end: int) -> tuple[int, int, NDArray[np.int64] | None]:
    """Return the first row of a range of samples, one past its last row, and the range's own offsets, [N + 1].

    Raises:
        InputError: If the samples have no rows.
    """
    offsets = cache.offsets()
    if offsets is None:
        return begin, end, None
    first, last = int(offsets[begin]), int(offsets[end])
    if first == last:
        raise InputError(
            f"samples {begin}:{end} of {cache.place} have no rows, so the slice would be empty; choose a wider range"
        )
    return first, last, offsets[begin : end + 1] - first


def _kept_probe(
    cache: Cache, samples: tuple[int, int] | None, first: int, last: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the probe's row ids within the range to keep, relative to its first row, [P], and their logits, [P, C].

    Args:
        cache: Cache to slice.
        samples: Range of samples to keep, or None for all.
        first: First row to keep.
        last: One past the last row to keep.

    Raises:
        InputError: If the probe has no rows in the range.
    """
    probed, exact = cache.probe(cache.teacher)
    if samples is None:
        return probed, exact
    inside = (probed >= first) & (probed < last)
    if len(probed) and not inside.any():
        raise InputError(
            f"none of the {len(probed)} probe rows of {cache.place} is within samples {samples[0]}:{samples[1]}, so the slice could not "
            f"be verified; take at least {counted(2 * cache.manifest.samples // len(probed), 'sample')}"
        )
    return probed[inside] - first, exact[inside]


def _target(source: Encoding, top_k: int | None, precision: str | None) -> Encoding:
    if isinstance(source, SampledEncoding):
        if top_k is not None or precision is not None:
            raise InputError(
                "--top-k and --precision do not apply to a cache of sampled classes; slice its views or samples instead"
            )
        return source
    dtype = precision or source.dtype
    order = ("u8", "f16", "f32")
    if dtype in order and order.index(dtype) > order.index(source.dtype):
        raise InputError(f"--precision {dtype} is higher than the cache's {source.dtype}; use {source.dtype} or lower")
    if isinstance(source, TopKEncoding):
        if top_k is not None and top_k > source.k:
            raise InputError(
                f"--top-k {top_k} is more than the {source.k} largest logits that the cache keeps; use {source.k} or less"
            )
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
