"""From sample ids to pixels, in batches: one gather for arrays in memory, worker processes for files; the same pixels either way."""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from logitcache.data.exclusion import excluded_of, leave_out, shown_beside
from logitcache.data.images.sets import ArrayImages, ImageSet, resident
from logitcache.data.images.views import View, blend, read_recipe
from logitcache.data.images.views.digests import digests
from logitcache.data.images.views.preprocessing import Preprocessing
from logitcache.data.images.views.render import cut, cut_batch
from logitcache.data.protocol import Ids, Rendition, whole_of
from logitcache.errors import InputError, UnreadableError
from logitcache.runtime.device import decoding_workers, to_device
from logitcache.runtime.workers import Failure, Workers, in_shared_memory, make_loader, pack, unpack
from logitcache.store import is_among

__all__ = ["Renderer", "preprocessing_for", "render"]


def render(data: ImageSet, view: View, samples: Ids) -> Tensor | list[Tensor]:
    """Show samples in a view: [B, C, H, W] uint8 where sizes agree, else one tensor a sample. Shared by teacher and student."""
    whole, first = whole_of(data)
    samples = samples + first
    pixels, mixed = _unmixed(whole, view, samples), view.mixed(samples, len(whole), excluded_of(whole))
    return pixels if mixed is None else blend(pixels, _unmixed(whole, view, mixed.partners), mixed)


def _unmixed(data: ImageSet, view: View, samples: Ids) -> Tensor | list[Tensor]:
    if isinstance(data, ArrayImages) and view.keeps_size:
        height, width = data.images.shape[-2:]
        boxes = view.boxes(samples, np.full(len(samples), height), np.full(len(samples), width))
        pixels = cut_batch(data.images, to_device(torch.from_numpy(samples), data.images.device), boxes)
        return torch.stack(view.changed(list(pixels), samples)) if view.changes_pixels else pixels
    images = [data.image(int(sample)) for sample in samples]
    boxes = view.boxes(samples, np.array([i.shape[1] for i in images]), np.array([i.shape[2] for i in images]))
    rows = [cut(image, boxes, row) for row, image in enumerate(images)]
    return view.changed([row.contiguous() for row in rows], samples) if view.changes_pixels else rows


class Renderer:
    """Renders batches for one or two networks."""

    def __init__(
        self,
        data: ImageSet,
        preprocessings: Sequence[Preprocessing],
        *,
        with_digests: bool = False,
        workers: int | None = None,
        device: torch.device | None = None,
        skip_unreadable: bool = False,
        on_device: bool = False,
    ) -> None:
        """Choose what comes out.

        Args:
            data: Where images come from.
            preprocessings: One for each network that looks.
            with_digests: Whether to hash the shared rendition.
            workers: Processes that decode and render; None chooses 0 where a batch is one gather and up to 8 elsewhere.
            device: Where pixels are used. For a GPU they are cut out of images that are kept there, where images are in memory, a batch
                is one gather, and nobody hashes it or `on_device` says so; else left in page-locked memory, which the GPU fetches while
                the host goes on.
            skip_unreadable: Whether a sample that cannot be read is left out of its batch and named in it, instead of raising an error.
            on_device: Whether pixels are hashed there too. The digests are the same.
        """
        self._in_memory = isinstance(whole_of(data)[0], ArrayImages)
        self._workers = decoding_workers() if workers is None else workers
        self._source = _Source(data, tuple(preprocessings), with_digests, skip_unreadable)
        self._pinned = device is not None and device.type == "cuda"
        near = None if device is None or (with_digests and not on_device) else resident(data, device)
        self._near = None if near is None else _Source(near, tuple(preprocessings), with_digests)
        self._order = _Order()
        self._processes = Workers(
            functools.partial(  # without a way back to this object: the processes end as soon as nobody holds it
                make_loader,
                self._source,
                batch_sampler=self._order,
                num_workers=self._workers,
                collate_fn=_as_is,
                pin_memory=self._pinned,
                generator=torch.Generator(),  # or it would draw from the global one, and change what dropout draws next
            )
        )

    def batches(self, view: View, batches: Iterable[Ids]) -> Iterator[Rendition]:
        """Yield the batches of sample ids rendered in a view, in order."""
        one_gather = self._in_memory and view.keeps_size and not view.changes_pixels
        if one_gather and self._near:
            yield from (self._near.rendered(view, samples) for samples in batches)
            return
        if self._workers == 0 or one_gather:  # a gather is cheaper than sending its result between processes
            for samples in batches:
                batch = self._source.rendered(view, samples)
                yield batch.pin_memory() if self._pinned else batch
            return
        _, first = whole_of(self._source.data)
        self._order.batches = [[(view.only(samples + first), samples)] for samples in batches]
        yield from self._processes.items()


class _Order:
    """The batch sampler of a loader that outlives an epoch: what its workers do next."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[View, Ids]]] = []

    def __iter__(self) -> Iterator[list[tuple[View, Ids]]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _Source(Dataset[Rendition | Failure]):
    """What a worker runs: one item is one whole batch."""

    def __init__(
        self,
        data: ImageSet,
        preprocessings: tuple[Preprocessing, ...],
        with_digests: bool,
        skip_unreadable: bool = False,
    ) -> None:
        self.data, self._preprocessings, self._with_digests = data, preprocessings, with_digests
        self._skip_unreadable = skip_unreadable

    def rendered(self, view: View, samples: Ids) -> Rendition:
        try:
            return self._rendered(self.data, view, samples, {})
        except UnreadableError:
            if not self._skip_unreadable:
                raise
        return self._without_unreadable(view, samples)

    def _without_unreadable(self, view: View, samples: Ids) -> Rendition:
        """Render a batch without the samples that cannot be read, and without mixing any of them into others."""
        (whole, first), excluded = whole_of(self.data), excluded_of(self.data)
        shown = shown_beside(self.data, view, samples)
        reasons: dict[int, str] = {}
        for sample in shown[~is_among(shown, excluded)].tolist():
            try:
                whole.image(sample)
            except UnreadableError as error:
                reasons[sample] = error.reason
        kept = samples[~np.isin(samples + first, list(reasons))]
        if not len(kept):
            return Rendition(kept, tuple(torch.empty(0) for _ in self._preprocessings), np.empty(0, np.uint64), reasons)
        return self._rendered(leave_out(self.data, np.append(excluded, list(reasons))), view, kept, reasons)

    def _rendered(self, data: ImageSet, view: View, samples: Ids, unreadable: Mapping[int, str]) -> Rendition:
        shared = render(data, view, samples)
        fitted: list[Tensor] = []
        for position, network in enumerate(self._preprocessings):
            twin = next((i for i in range(position) if _same_geometry(self._preprocessings[i], network)), None)
            fitted.append(network.fit(shared) if twin is None else fitted[twin])
        hashed = digests(shared, view.digest) if self._with_digests else None
        return Rendition(samples, tuple(fitted), hashed, unreadable)

    def __getitem__(self, item: tuple[View, Ids]) -> Rendition | Failure:
        try:
            batch: Rendition = in_shared_memory(self.rendered(*item))
        except BaseException as error:  # noqa: BLE001  (sent to the main process, and raised there)
            return Failure.of(error, f"samples {item[1].min()} to {item[1].max()} cannot be rendered")
        return batch

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel to a process that is started anew (spawn, forkserver), where importing the data set may fail."""
        return _restored, (pack((self.data, self._preprocessings, self._with_digests, self._skip_unreadable)),)


class _Unusable(Dataset[Failure]):
    """A data set that could not be built in a worker: every item says why."""

    def __init__(self, failure: Failure) -> None:
        self._failure = failure

    def __getitem__(self, _item: Any) -> Failure:
        return self._failure


def _restored(packed: bytes) -> "_Source | _Unusable":
    found = unpack(packed, "the data set cannot be built in a worker process")
    return _Unusable(found) if isinstance(found, Failure) else _Source(*found)


def _same_geometry(one: Preprocessing, other: Preprocessing) -> bool:
    return (one.image_size, one.crop_pct, one.resize) == (other.image_size, other.crop_pct, other.resize)


def _as_is(items: list[Any]) -> Any:
    return items[0]


def preprocessing_for(data: ImageSet, recipe: str, *said: Mapping[str, Any]) -> Preprocessing:
    """Choose a network's preprocessing.

    Where nothing is said, images of one size keep it and the data set's own mean and deviation; others are brought to 224
    pixels. After a random resized crop the box is stretched to the input; otherwise the shorter side is resized to
    image_size / crop_pct and the middle taken (crop_pct 0.875 for files, 1 for arrays).

    Args:
        data: What is looked at.
        recipe: Of the views.
        said: `mean`, `std`, `image_size` and `crop_pct`, where somebody wants or knows them; of two the first has its way.

    Raises:
        InputError: Not one number or three.
    """
    usual = dict(zip(("mean", "std"), data.normalization, strict=True))
    wanted: dict[str, Any] = {
        word: next((one[word] for one in (*said, usual) if one.get(word) is not None), None)
        for word in ("mean", "std", "image_size", "crop_pct")
    }
    native = data.native_size
    size = wanted["image_size"] or (min(native) if native else 224)
    if not read_recipe(recipe).keeps_size:
        resize = "stretch"
    elif native and (wanted["image_size"] is None or native == (size, size)):
        resize = "none"
    else:
        resize = "center-crop"
    m, s = wanted["mean"], wanted["std"]
    if {len(m), len(s)} - {1, 3}:
        raise InputError(
            f"mean and std must be one number each, or three (red, green, blue), not {list(m)} and {list(s)}"
        )
    (m0, m1, m2), (s0, s1, s2) = (x if len(x) == 3 else list(x) * 3 for x in (m, s))
    crop_pct = wanted["crop_pct"]
    if crop_pct is None:
        crop_pct = 1.0 if native else 0.875
    channels = next((one["in_channels"] for one in said if "in_channels" in one), 3)
    return Preprocessing(size, crop_pct, resize, (m0, m1, m2), (s0, s1, s2), channels)
