"""Render batches of samples: with one gather for arrays in memory, or in worker processes for files. The pixels are the same."""

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
    """Render samples in a view: [B, C, H, W] uint8, or one tensor per sample if sizes differ. Teacher and student share the result."""
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
    """Renders batches of images for one or more networks."""

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
        """Configure a renderer.

        Args:
            data: Data set.
            preprocessings: Preprocessing of each network.
            with_digests: Whether to hash the shared rendition.
            workers: Number of worker processes that decode and render. None chooses 0 if a batch is one gather, and up to 8 otherwise.
            device: Device that will use the pixels. For a GPU, in-memory images are kept on it and crops are gathered there, if a batch
                is one gather and it is either not hashed or `on_device` is set. Otherwise batches are put in page-locked memory, so
                that copies to the GPU are asynchronous.
            skip_unreadable: Whether to leave unreadable samples out of their batch and report them in it, instead of raising an error.
            on_device: Whether to hash pixels on the device too. The digests are the same.
        """
        self._in_memory = isinstance(whole_of(data)[0], ArrayImages)
        self._workers = decoding_workers() if workers is None else workers
        self._source = _Source(data, tuple(preprocessings), with_digests, skip_unreadable)
        self._pinned = device is not None and device.type == "cuda"
        near = None if device is None or (with_digests and not on_device) else resident(data, device)
        self._near = None if near is None else _Source(near, tuple(preprocessings), with_digests)
        self._order = _Order()
        self._processes = Workers(
            functools.partial(  # holds no reference to this object, so the processes end when it is garbage-collected
                make_loader,
                self._source,
                batch_sampler=self._order,
                num_workers=self._workers,
                collate_fn=_as_is,
                pin_memory=self._pinned,
                generator=torch.Generator(),  # the global generator would be advanced, which changes later dropout masks
            )
        )

    def batches(self, view: View, batches: Iterable[Ids]) -> Iterator[Rendition]:
        """Yield the rendition of each batch of sample ids in a view, in order."""
        one_gather = self._in_memory and view.keeps_size and not view.changes_pixels
        if one_gather and self._near:
            yield from (self._near.rendered(view, samples) for samples in batches)
            return
        if self._workers == 0 or one_gather:  # a gather costs less than sending its result between processes
            for samples in batches:
                batch = self._source.rendered(view, samples)
                yield batch.pin_memory() if self._pinned else batch
            return
        _, first = whole_of(self._source.data)
        self._order.batches = [[(view.only(samples + first), samples)] for samples in batches]
        yield from self._processes.items()


class _Order:
    """Batch sampler of a loader that is kept between epochs; `batches` is replaced for each epoch."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[View, Ids]]] = []

    def __iter__(self) -> Iterator[list[tuple[View, Ids]]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _Source(Dataset[Rendition | Failure]):
    """Data set that runs in the workers; one item is one whole batch."""

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
        """Render a batch without the samples that cannot be read, neither as rows nor as mixing partners."""
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
        """Pickle for a worker started with spawn or forkserver, in which importing the data set may fail."""
        return _restored, (pack((self.data, self._preprocessings, self._with_digests, self._skip_unreadable)),)


class _Unusable(Dataset[Failure]):
    """Placeholder for a data set that could not be built in a worker; every item is the failure."""

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

    By default, images that all have one size keep it, others are resized to 224 pixels, and mean and standard deviation are those of the
    data set. A random resized crop is stretched to the input size. Otherwise the shorter side is resized to image_size / crop_pct and
    the center is cropped (crop_pct 0.875 for files, 1 for arrays).

    Args:
        data: Data set.
        recipe: Recipe of the views.
        said: Settings `mean`, `std`, `image_size` and `crop_pct`, as far as they are known; earlier mappings take precedence.

    Raises:
        InputError: If mean or std is neither one number nor three.
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
