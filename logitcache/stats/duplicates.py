"""Find likely duplicate images by equal pixels or nearly equal logits."""

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import CorruptCacheError
from logitcache.runtime.progress import OnProgress, Progress
from logitcache.stats.records import Duplicate
from logitcache.stats.rows import Floats, Ints, pieces
from logitcache.store import Cache, decode_rows, recorded_arrays

__all__ = ["find_duplicates"]

_SHOWN = 100
_EQUAL = 10_000  # maximum number of pairs with equal pixels
_SAMPLES = 65_536
_LOGITS = 1 << 24  # maximum number of logits in memory, 64 MB
_WORK = 4e10  # maximum number of multiplications, one or two seconds
_DIGESTS = 1 << 23  # maximum number of digests in memory, 64 MB
_AT_ONCE = 1024  # rows to compare with all rows of their class at a time
_BY_CHANCE = 0.1  # expected number of samples whose nearest neighbour is so much nearer than the second by chance
# Of 210 copies planted among 10,000 images of Fashion-MNIST (35 each: exact, JPEG, noise, darker, shifted, brighter), 58 are found in f16
# and 54 in u8, 35 of them by their pixels, and no other pair; with `_BY_CHANCE` 1, 68 among 70 (f16), and with `_NEXT` alone, 83 among 86.
# Of 2,000 rows of 3 classes that were drawn at random, `_NEXT` alone takes 67 to 83 pairs for copies, and `_BY_CHANCE` none (three draws
# in each precision).
_NEAR = 0.5  # maximum distance, relative to the median distance between nearest neighbours
_NEXT = 0.35  # maximum distance, relative to the distance from either sample to its second neighbour


def find_duplicates(
    cache: Cache, teacher: str, labels: NDArray[np.int32], on_progress: OnProgress, *, by_logits: bool
) -> tuple[list[Duplicate], int]:
    """Find likely duplicates in view 0, by pixels and, with `by_logits`, by logits.

    Equal pixel digests are searched for among all samples. Near logits are searched for among the first samples, at most 65,536 and
    2**24 logits, or fewer if the teacher predicts one class for most of them, because each sample is compared with all others of the same
    top class. Two samples are near if the distance of their centered logits is less than half the median distance between nearest
    neighbours, and also small compared with the distance from either sample to its second neighbour, because the rows of a confident
    teacher are close to each other in general. How small depends on the number of samples and on the dimension of the logits, so that
    hardly any pair is found by chance (see `_next_ratio`); distances below what rounding leaves certain count as that much, so that equal
    rows are no evidence where rounding makes many rows equal. Random crops hide most copies.

    Returns:
        Pairs, nearest first, at most 100; and the number of samples searched by logits.
    """
    drawn = cache.manifest.encoding["kind"] == "sampled"  # of which no logits can be made
    logits, says, rows, rounding = _no_logits() if drawn else _first_logits(cache, teacher)
    reach = _reach(says, logits.shape[1]) if by_logits else 0
    logits, says, rows, rounding = logits[:reach], says[:reach], rows[:reach], rounding[:reach]
    scale, near = _near(logits, says, rounding)
    equal = itertools.islice(_equal_pixels(cache, on_progress), _EQUAL)
    pairs: dict[tuple[int, int], tuple[float, bool]] = {}
    for distance, one, other in near:
        pairs[int(rows[one]), int(rows[other])] = (distance, False)
    place = {int(row): position for position, row in enumerate(rows.tolist())}
    for one, other in equal:
        distance = 0.0
        if one in place and other in place and scale > 0:
            distance = float(np.linalg.norm(logits[place[one]] - logits[place[other]])) / scale
        pairs[one, other] = (distance, True)
    order = sorted((distance, not same, one, other) for (one, other), (distance, same) in pairs.items())[:_SHOWN]
    first = cache.manifest.first_row
    return [
        Duplicate(first + one, first + other, distance, (int(labels[one]), int(labels[other])), not differ)
        for distance, differ, one, other in order
    ], len(rows)


def _no_logits() -> tuple[Floats, Ints, Ints, Floats]:
    return np.zeros((0, 1), np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32)


def _first_logits(cache: Cache, teacher: str) -> tuple[Floats, Ints, Ints, Floats]:
    """Return the centered logits of the first samples in view 0, [M, C], and their top classes, row numbers and rounding distances, [M]."""
    manifest, classes, kept = cache.manifest, len(cache.manifest.classes), cache.kept_rows()
    most = min(manifest.view_rows, _SAMPLES, max(_LOGITS // classes, 1))
    logits, rows, rounding = np.empty((most, classes), np.float32), np.empty(most, np.int64), np.empty(most, np.float32)
    found = 0
    for block in range(manifest.blocks):
        first, last = manifest.span(block)
        if found == most or first >= 2 * most:
            break
        try:
            columns = cache.block(0, teacher, block)
        except CorruptCacheError:  # reported when all blocks are read
            continue
        for part in pieces(columns):
            taken = min(part.stop, last - first, part.start + most - found) - part.start
            here = slice(part.start, part.start + taken)
            stored = {name: column[here] for name, column in columns.items()}
            dense = decode_rows(manifest.encoding, stored, classes)
            rounding[found : found + taken] = _rounding_distance(manifest.encoding["dtype"], stored, dense)
            with np.errstate(invalid="ignore"):  # rows that are not finite are dropped below
                logits[found : found + taken] = dense - dense.mean(1, keepdims=True)
            rows[found : found + taken] = np.arange(first + here.start, first + here.stop)
            found += taken
    logits, rows, rounding = logits[:found], rows[:found], rounding[:found]
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(logits.sum(1)) & kept[rows]
    if not finite.all():
        logits, rows, rounding = logits[finite], rows[finite], rounding[finite]
    return logits, logits.argmax(1), rows, rounding


def _rounding_distance(dtype: str, stored: Mapping[str, NDArray[Any]], dense: Floats) -> Floats:
    """Return the root mean square distance that rounding alone leaves between two rows of a precision, [B].

    Each logit has an error that is uniform over one step, hence a variance of step**2 / 12; the difference of two has twice that.
    """
    step = stored["scale"][:, 1] if dtype == "u8" else np.abs(dense).max(1) * {"f16": 2.0**-11, "f32": 2.0**-24}[dtype]
    found: Floats = step * np.float32((dense.shape[1] / 6) ** 0.5)
    return found


def _reach(says: Ints, classes: int) -> int:
    """Return how many of the first samples can be compared within their top classes with at most `_WORK` multiplications."""
    reach = len(says)
    while (np.bincount(says[:reach]).astype(np.float64) ** 2).sum() * max(classes, 32) > _WORK:
        reach //= 2
    return reach


def _next_ratio(first: Floats, second: Floats, most: int) -> float:
    """Return the largest ratio of the distances to the nearest and the second neighbour that is evidence of a copy, at most `_NEXT`.

    Among M points of a locally uniform density in D dimensions, the ratio is below r by chance for M * r**D of them; r is such that this
    is `_BY_CHANCE`. D is estimated from the median ratio, which is 2**(-1 / D) (Facco et al., Estimating the intrinsic dimension of
    datasets by a minimal neighborhood information, Scientific Reports 2017). A teacher of 3 classes has rows in 2 dimensions, where
    the ratio among 10,000 rows must be 0.003; the 10 classes of Fashion-MNIST fill 6.5 dimensions, where 0.17 is enough.

    Args:
        first: Distance of each point to its nearest neighbour, [M].
        second: Distance to its second neighbour, [M].
        most: Largest possible dimension, one less than the number of classes.
    """
    with np.errstate(invalid="ignore"):
        ratios = first / second
    median = float(np.median(ratios[second > 0])) if (second > 0).any() else 1.0
    dimension = min(np.log(2) / max(-np.log(max(median, 1e-9)), 1e-9), most)
    return float(min(_NEXT, (_BY_CHANCE / max(len(first), 1)) ** (1 / dimension)))


def _near(logits: Floats, says: Ints, rounding: Floats) -> tuple[float, list[tuple[float, int, int]]]:
    """Return the median distance between nearest neighbours, and the near pairs: distance relative to it, two positions."""
    nearest = np.arange(len(says))
    first, second = np.zeros((2, len(says)))
    for group in np.split(np.argsort(says, kind="stable"), np.flatnonzero(np.diff(np.sort(says))) + 1):
        rows = logits[group]
        squares = np.einsum("ij,ij->i", rows, rows)
        for start in range(0, len(group), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            distances = squares - 2 * (
                rows[part] @ rows.T
            )  # without the row's own square, which does not change the order
            every = np.arange(len(distances))
            distances[every, every + start] = np.inf
            found = distances.argmin(1)
            nearest[group[part]] = group[found]
            first[group[part]] = np.linalg.norm(rows[part] - rows[found], axis=1)
            distances[every, found] = np.inf
            second[group[part]] = np.sqrt(np.maximum(distances.min(1) + squares[part], 0))
    has = np.flatnonzero(nearest != np.arange(len(says)))  # samples that are not the only one of their class
    scale = float(np.median(first[has])) if len(has) else 0.0
    discernible = np.maximum(first, rounding)
    has_two = np.flatnonzero(np.isfinite(second) & (nearest != np.arange(len(says))))
    ratio = (
        _next_ratio(discernible[has_two], np.maximum(second, rounding)[has_two], logits.shape[1] - 1)
        if len(has_two)
        else 0.0
    )
    pairs = {
        (min(one, other), max(one, other)): float(first[one]) / scale
        for one, other in zip(has.tolist(), nearest[has].tolist(), strict=True)
        if first[one] < _NEAR * scale and discernible[one] <= ratio * min(second[one], second[other])
    }
    return scale, [(distance, *pair) for pair, distance in pairs.items()]


def _equal_pixels(cache: Cache, on_progress: OnProgress) -> Iterator[tuple[int, int]]:
    """Yield pairs of rows with the same pixel digest in view 0, each row with the next equal one."""
    manifest, rows_kept = cache.manifest, cache.kept_rows()
    if "seeds" in recorded_arrays(manifest):  # nobody here has seen the pixels: all digests are 0
        return
    parts = -(-manifest.view_rows // _DIGESTS)
    task = f"comparing {'pixels' if manifest.of_images else 'digests'}"
    for part in range(parts):
        kept: list[NDArray[np.uint64]] = [np.zeros(0, np.uint64)]
        places: list[Ints] = [np.zeros(0, np.int64)]
        for block in range(manifest.blocks):
            first, last = manifest.span(block)
            on_progress(Progress(task, part * manifest.view_rows + last, parts * manifest.view_rows, "rows"))
            try:
                digests = cache.digests(0, [block])
            except CorruptCacheError:
                continue
            mine = np.flatnonzero((digests % parts == part) & rows_kept[first:last])
            kept.append(digests[mine])
            places.append(mine + first)
        digests, rows = np.concatenate(kept), np.concatenate(places)
        order = np.argsort(digests, kind="stable")
        same = np.flatnonzero(np.diff(digests[order]) == 0)
        yield from zip(rows[order[same]].tolist(), rows[order[same + 1]].tolist(), strict=True)
