"""`logitcache merge`: combine several caches into one with more samples, more views, or the mean of several teachers."""

import itertools
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from logitcache.caches.derive import encoding_of, open_sources, origin, write_derived
from logitcache.data.contract import cache_modality, cache_views
from logitcache.data.optional import carried_together
from logitcache.encoding import encode_rows, mean_of, read_encoding, widest_bytes
from logitcache.errors import CacheMismatchError, InputError
from logitcache.runtime.progress import OnProgress, silent
from logitcache.store import PROBE_BYTES, Cache, Manifest, average_of, block_rows_for, kept_mask, samples_of

__all__ = ["merge_caches"]

_OURS = {"block_rows", "derived"}  # may differ; the merged cache gets its own
_LAST_BITS = ("batch_size", "device", "forward.", "software.", "threads")
_NOT_PIXELS = {"digest", "index", "group"}  # entries of a view that do not decide its pixels
_VALUES_AT_ONCE = 16_000_000  # logits in memory, as float32


def merge_caches(
    caches: Sequence[str | Path | Cache],
    out: str | Path,
    *,
    average: bool = False,
    allow_mixed: bool = False,
    on_progress: OnProgress = silent,
) -> Cache:
    """Merge caches, or resume a merge that was interrupted.

    The way in which the caches differ determines the result: different samples of a data set are joined, different views are
    concatenated, and with `average` the logits of several teachers are averaged. Joined rows keep their bits.

    Args:
        caches: Two or more caches of the same data, preprocessing and encoding. Views keep the given order.
        out: Path of the new cache.
        average: Whether to average the raw logits, and the probes, of several teachers on the same views. Requires every class in
            f32 or f16; use `slice_cache` afterwards for a smaller encoding.
        allow_mixed: Whether to accept caches dumped on other devices, with other batch sizes or other library versions.
        on_progress: Called after every block.

    Returns:
        The new cache.

    Raises:
        InputError: If there are fewer than two caches, if their samples have gaps or overlaps, or if views are repeated.
        CacheMismatchError: If they differ in anything else.
        LogitCacheError: If a cache cannot be opened or the new one cannot be written.
    """
    if isinstance(caches, str | Path | Cache) or len(caches) < 2:
        found = f"{caches}" if isinstance(caches, str | Path | Cache) else f"{len(caches)}"
        raise InputError(f"a merge needs two or more caches, not {found}")
    opened = [cache.of(None) for cache in open_sources(list(caches), out)]
    free = {key for key in _differing(opened) if not (allow_mixed and key.startswith(_LAST_BITS))}
    command = ["logitcache", "merge", *(str(cache.place) for cache in opened), "--out", str(out)]
    command += ["--average"] * average + ["--allow-mixed"] * allow_mixed
    more = {"command": shlex.join(command), "doing": "merging", "on_progress": on_progress}
    if average:
        _refuse(opened, free, "teachers")
        return _averaged(opened, out, more)
    kinds = {"samples" if key in ("samples", "rows", "data.first") else key.partition(".")[0] for key in free}
    if kinds == {"samples"}:
        return _joined(opened, out, more)
    _refuse(opened, free, "views")
    return _appended(opened, out, more)


def _differing(opened: Sequence[Cache]) -> set[str]:
    """Return the manifest keys in which any cache differs from the first.

    Raises:
        InputError: If two caches do not differ.
    """
    found = set[str]()
    for one, other in itertools.combinations(opened, 2):
        differences = {key for key, _, _ in one.manifest.differences(other.manifest)}
        differences = {key for key in differences if key.partition(".")[0] not in _OURS}
        if not differences:
            raise InputError(
                f"{one.place} and {other.place} hold the same rows, so there is nothing to merge; drop one of them"
            )
        found |= differences if one is opened[0] else set()
    return found


def _refuse(opened: Sequence[Cache], free: set[str], allowed: str) -> None:
    """Raise CacheMismatchError if caches differ in anything but the views or the teachers, as allowed."""
    wrong = {key for key in free if key.partition(".")[0] != allowed}
    if not wrong:
        return
    if _are_hashed_differently(opened):
        hint = (
            "\nThe pixels of these views are hashed with different functions, because some of the dumps were begun before 2026-11-28, so "
            "whether their teachers saw the same pixels cannot be checked. Dump those whose views have no `digest` again, into a new path."
        )
    elif all(key.startswith(_LAST_BITS) for key in wrong):
        hint = "\nThese change the last bits of a logit; pass --allow-mixed to accept that."
    elif any(key.startswith("teachers") for key in wrong):
        hint = "\nPass --average to store the mean of several teachers."
    elif len({len(cache.manifest.views) for cache in opened}) > 1:
        hint = "\nUse `logitcache slice --views` to keep the same views of each."
    else:
        hint = ""
    shown = free if allowed == "views" else wrong  # if samples differ too, differing views also prevent the merge
    lines = "".join(
        f"\n  {key}: {here!r} in {opened[0].place}, {there!r} in {cache.place}"
        for cache in opened[1:]
        for key, here, there in opened[0].manifest.differences(cache.manifest)
        if key in shown
    )
    raise CacheMismatchError(
        f"caches can only be merged if they differ only in samples, only in views or, with --average, only in teachers; these differ "
        f"in:{lines}{hint}"
    )


def _are_hashed_differently(opened: Sequence[Cache]) -> bool:
    """Return whether the pixels of a view are hashed with another function in some of the caches."""
    return any(
        len({view.get("digest") for view in views}) > 1
        for views in zip(*(cache.manifest.views for cache in opened), strict=False)
    )


def _made(opened: Sequence[Cache], by: str, **changes: Any) -> Manifest:
    """Return the manifest of the merged cache, which excludes the samples that any source excludes.

    Raises:
        CacheMismatchError: If the sources mix samples and exclude different ones.
    """
    manifest = opened[0].manifest
    every = {cache.manifest.excluded for cache in opened}
    mixes = any(view.mixes for cache in opened for view in cache_views(cache))
    if len(every) > 1 and mixes:
        raise CacheMismatchError(
            f"{', '.join(str(cache.place) for cache in opened)} mix samples and exclude different ones, which changes the pixels of "
            "others. Run the dump's own command of each with the same --exclude; it only rewrites what contains these samples."
        )
    excluded = tuple(sorted(set().union(*every)))
    made: dict[str, Any] = {"derived": {"by": by, "from": [origin(cache) for cache in opened]}, "excluded": excluded}
    return replace(manifest, **made, **changes)


def _joined(opened: Sequence[Cache], out: str | Path, more: dict[str, Any]) -> Cache:
    """Join adjacent ranges of samples of one data set."""
    ordered = sorted(opened, key=lambda cache: int(cache.manifest.data["first"]))
    begins = [int(cache.manifest.data["first"]) for cache in ordered]
    ends = [begin + cache.manifest.samples for begin, cache in zip(begins, ordered, strict=True)]
    for (before, _, end), (after, begin, _) in itertools.pairwise(zip(ordered, begins, ends, strict=True)):
        if end != begin:
            what = "a gap" if end < begin else "an overlap"
            raise InputError(
                f"there is {what} between {before.place} (up to sample {end}) and {after.place} (from {begin}); only adjacent ranges "
                "can be merged"
            )
    counts = [cache.manifest.view_rows for cache in ordered]
    bounds = np.cumsum([0, *counts[:-1]])  # rows of the new cache
    encoding, classes, slug = encoding_of(ordered[0]), len(ordered[0].manifest.classes), ordered[0].teacher
    count = ends[-1] - begins[0]
    manifest = _made(
        ordered,
        "merge",
        samples=count,
        rows=None if ordered[0].manifest.rows is None else sum(counts),
        block_rows=block_rows_for(sum(counts), widest_bytes(encoding.columns(classes))),
        data=ordered[0].manifest.data | {"first": begins[0]},
    )
    probes = [cache.probe(slug) for cache in ordered]
    every = -(-sum(exact.nbytes for _, exact in probes) // PROBE_BYTES)  # keep one in so many exact rows

    def rows(view: int, wanted: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        parts = []
        for position, cache in enumerate(ordered):
            here = wanted[(wanted >= bounds[position]) & (wanted < bounds[position] + counts[position])]
            if len(here):
                own = here - bounds[position]
                parts.append(cache.rows(view, slug, own) | cache.shown_of(view, own))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    return write_derived(
        ordered,
        out,
        manifest,
        np.concatenate([cache.labels() for cache in ordered]),
        _joined_offsets(ordered),
        (
            np.concatenate([probed + bound for (probed, _), bound in zip(probes, bounds, strict=True)])[::every],
            np.concatenate([exact for _, exact in probes])[::every],
        ),
        rows,
        carried=carried_together(cache_modality(ordered[0]), ordered),
        **more,
    )


def _joined_offsets(ordered: Sequence[Cache]) -> NDArray[np.int64] | None:
    """Return the offsets of concatenated caches, [N + 1], or None if each sample is one row."""
    found, end = list[NDArray[np.int64]](), 0
    for offsets in (cache.offsets() for cache in ordered):
        if offsets is None:
            return None
        found.append(offsets[:-1] + end)
        end += int(offsets[-1])
    return np.append(np.concatenate(found), end)


def _appended(opened: Sequence[Cache], out: str | Path, more: dict[str, Any]) -> Cache:
    """Concatenate the views of several caches."""
    if opened[0].manifest.encoding["kind"] == "sampled":
        raise InputError(
            f"{opened[0].place} holds sampled classes, which depend on the index of the view, so views of other caches cannot be appended. "
            "Run its dump's own command with a larger --views instead."
        )
    views: list[dict[str, Any]] = []
    sources: list[tuple[Cache, int]] = []
    groups, seen = 0, dict[tuple[Any, ...], Cache]()
    for cache in opened:
        members_of: dict[int, list[int]] = {}
        for position, view in enumerate(cache.manifest.views):
            members_of.setdefault(view["group"], []).append(position)
        for members in members_of.values():
            for shown in _shown(cache, members):
                if seen.setdefault(shown, cache) is not cache:
                    raise InputError(
                        f"view {members[0]} of {cache.place} shows the same pixels as a view of {seen[shown].place}. Dump one of them "
                        "with another --seed and an augmentation."
                    )
            for position in members:
                views.append(cache.manifest.views[position] | {"index": len(views), "group": groups})
                sources.append((cache, position))
            groups += 1
    slug, rounded = opened[0].teacher, opened[0].manifest.block_rows

    def rows(view: int, wanted: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        cache, position = sources[view]
        return cache.rows(position, slug, wanted) | cache.shown_of(position, wanted)

    manifest = _made(opened, "merge", views=tuple(views), block_rows=rounded)
    labels, offsets, probe = opened[0].labels(), opened[0].offsets(), opened[0].probe(slug)
    return write_derived(opened, out, manifest, labels, offsets, probe, rows, carried=opened[0].carried(), **more)


def _shown(cache: Cache, views: Sequence[int]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return what a group of views shows, in two forms, each equal for groups that show the same pixels.

    Returns:
        Digests of the first block's pixels; and what the pixels are made from, which also recognizes views whose pixels are hashed with
        different functions.
    """
    first = np.arange(cache.manifest.span(0)[1])
    pixels, made_from = list[bytes](), list[Any]()
    for view in views:
        shown = {name: one.tobytes() for name, one in cache.shown_of(view, first).items()}
        pixels += shown.values()  # of views that cannot be shown again the seeds
        made_from += [(name, value) for name, value in cache.manifest.views[view].items() if name not in _NOT_PIXELS]
        made_from += [(name, value) for name, value in shown.items() if name != "digests"]
    return tuple(pixels), tuple(made_from)


def _without(
    probe: tuple[NDArray[np.int64], NDArray[np.float32]], excluded: Sequence[int], cache: Cache
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return a probe without the rows of excluded samples, given by their ids in the data set."""
    rows, exact = probe
    kept = ~np.isin(samples_of(cache.offsets(), rows) + cache.manifest.data["first"], list(excluded))
    return rows[kept], exact[kept]


def _averaged(opened: Sequence[Cache], out: str | Path, more: dict[str, Any]) -> Cache:
    """Store the mean of several teachers' logits."""
    first, classes = opened[0].manifest, len(opened[0].manifest.classes)
    if first.encoding["kind"] != "full" or first.encoding["dtype"] == "u8":
        raise InputError(
            f"{opened[0].place} stores {first.encoding['kind']} rows in {first.encoding['dtype']}, whose mean is not the mean of the "
            "teachers' logits. Dump with --encoding full --precision f16 or f32, average, then use logitcache slice."
        )
    teacher = average_of([cache.manifest.teachers[0] for cache in opened])
    manifest, encoding = _made(opened, "average", teachers=(teacher,)), read_encoding(first.encoding)
    probes, labels = (
        [_without(cache.probe(cache.teacher), manifest.excluded, cache) for cache in opened],
        opened[0].labels(),
    )
    kept = kept_mask(manifest.samples, manifest.data["first"], manifest.excluded)
    kept_rows = kept[samples_of(opened[0].offsets(), np.arange(manifest.view_rows))]
    for cache, (samples, _) in zip(opened, probes, strict=True):
        if not np.array_equal(samples, probes[0][0]):
            raise CacheMismatchError(
                f"{cache.place} has a different probe than {opened[0].place}; dump it with the same --seed"
            )

    def rows(view: int, wanted: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        shown = [cache.shown_of(view, wanted) for cache in opened]
        for cache, other in zip(opened, shown, strict=True):
            if not np.array_equal(other["digests"][kept_rows[wanted]], shown[0]["digests"][kept_rows[wanted]]):
                raise CacheMismatchError(
                    f"the teachers of {cache.place} and {opened[0].place} saw different {cache_modality(cache).shown}; dump one of them "
                    "again with the options of the other"
                )
        step = max(_VALUES_AT_ONCE // classes, 1)
        parts = []
        for start in range(0, len(wanted), step):
            here = wanted[start : start + step]
            true = torch.from_numpy(labels[here]).long()
            logits = [torch.from_numpy(cache.rows(view, cache.teacher, here)["logits"]) for cache in opened]
            mean = mean_of(logits)
            parts.append({name: x.numpy() for name, x in encode_rows(encoding, mean, true, None).items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} | shown[0]

    exact = mean_of([torch.from_numpy(probe) for _, probe in probes]).numpy()
    probe, carried = (probes[0][0], exact), opened[0].carried()
    return write_derived(opened, out, manifest, labels, opened[0].offsets(), probe, rows, carried=carried, **more)
