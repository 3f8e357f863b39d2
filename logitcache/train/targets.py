"""Sources of the teacher's logits: the cache, the live teacher, or none. They have the same interface for the training loop."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcache.data import Ids, Inputs, Rendition, RowLabels, View
from logitcache.encoding import AnyRows, read_encoding, top_classes
from logitcache.errors import CorruptCacheError
from logitcache.runtime.device import to_device
from logitcache.store import Cache, ViewStream
from logitcache.teachers.forward import Teachers

__all__ = [
    "CachedTargets",
    "HeldRows",
    "LabelsOnly",
    "LiveTargets",
    "RowDecoder",
    "SomeRows",
    "Stretch",
    "Targets",
    "ViewRows",
    "predicted_classes",
]


class Stretch(NamedTuple):
    """The views and blocks of a part of an epoch.

    Attributes:
        views: One view, or the views of a pair.
        blocks: Blocks of the cache, in order; None for all.
    """

    views: Sequence[View]
    blocks: tuple[int, ...] | None = None


class Targets(Protocol):
    """A source of the teacher's logits.

    Attributes:
        name: Name recorded with the run: `cached`, `live` or `unused`.
        preprocessing: Preprocessing of each live teacher; a batch holds the student's input first, then theirs.
    """

    name: str
    preprocessing: tuple[Inputs, ...]

    def begin(self, stretch: Stretch, upcoming: Stretch) -> None:
        """Prepare for a stretch. `upcoming` is the next one, or the same stretch if there is none."""

    def logits(self, position: int, batch: Rendition, rows: RowLabels) -> AnyRows | None:
        """Return the teacher's logits for a batch, or None when training without a teacher.

        Args:
            position: Position of the view in the stretch.
            batch: Samples rendered in that view.
            rows: Rows of the samples.

        Returns:
            Logits, [R, C] float32 without gradient, or top-k or sampled rows, on the student's device.
        """

    def close(self) -> None:
        """Release threads and networks."""


class LabelsOnly:
    """No teacher: training on labels alone."""

    name = "unused"
    preprocessing: tuple[Inputs, ...] = ()

    def begin(self, stretch: Stretch, upcoming: Stretch) -> None:
        """Do nothing."""

    def logits(self, position: int, batch: Rendition, rows: RowLabels) -> AnyRows | None:
        """Return None."""
        del position, batch, rows
        return None

    def close(self) -> None:
        """Do nothing."""


class CachedTargets:
    """Logits from a cache. A view is kept in the memory of the student's device, where batches are gathered and decoded."""

    name = "cached"
    preprocessing: tuple[Inputs, ...] = ()

    def __init__(self, cache: Cache, device: torch.device, *, in_place: bool = False) -> None:
        """Store the arguments; nothing is read yet.

        Args:
            cache: Cache.
            device: Device of the logits.
            in_place: Whether to load the rows of each stretch into the same memory, for captured steps. The result of `held` then changes
                with them, and all stretches must have the same length.
        """
        self._cache, self._decoder, self._in_place = cache, RowDecoder(cache, device), in_place
        self._streams: list[ViewStream] = []
        self._stretch: Stretch | None = None
        self._held: list[ViewRows] = []

    def begin(self, stretch: Stretch, upcoming: Stretch) -> None:
        """Load the rows of a stretch, and start to read those of the upcoming one in the background."""
        self._streams = self._streams or [ViewStream(self._cache, self._cache.teacher) for _ in stretch.views]
        parts = ([(view.index, one.blocks) for view in one.views] for one in (stretch, upcoming))
        taken = [stream.take(part, later) for stream, part, later in zip(self._streams, *parts, strict=True)]
        if self._in_place and self._held:
            for held, view, rows in zip(self._held, stretch.views, taken, strict=True):
                held.replace(view, rows)
        else:
            self._held = [
                self._decoder.hold(view, rows, stretch.blocks, in_bytes=self._in_place)
                for view, rows in zip(stretch.views, taken, strict=True)
            ]
        self._stretch = stretch

    def logits(self, position: int, batch: Rendition, rows: RowLabels) -> AnyRows:
        """Gather and decode the batch's rows."""
        del batch
        return self._held[position].of(rows.ids)

    def held(self, position: int) -> "ViewRows":
        """Return the rows of a view of the current stretch. They remain valid for later stretches unless `in_place`."""
        return self._held[position]

    def predicted(self, view: View, rows: Ids) -> NDArray[np.int64]:
        """Return the teacher's predicted class for ascending rows of a view, [R], from memory if the view is loaded."""
        held = self._stretch if self._stretch and self._stretch.blocks is None else Stretch(())
        if view in held.views:
            return _largest(self._held[list(held.views).index(view)].of(rows))
        return predicted_classes(self._cache, view, rows)

    def close(self) -> None:
        """Stop the read-ahead threads."""
        for stream in self._streams:
            stream.close()


class RowDecoder:
    """Decodes the stored rows of one cache into logits on one device."""

    def __init__(self, cache: Cache, device: torch.device) -> None:
        """Copy the labels of all rows to the device.

        Args:
            cache: Cache.
            device: Device of the logits.
        """
        self.cache, self.device = cache, device
        self.encoding, self.classes = read_encoding(cache.manifest.encoding), len(cache.manifest.classes)
        self.labels = torch.from_numpy(cache.labels()).long().to(device)
        self.left_out = np.flatnonzero(~cache.kept_rows()) if cache.manifest.excluded else np.empty(0, np.int64)  # rows

    def check(self, view: View, rows: NDArray[np.void]) -> None:
        """Raise CorruptCacheError if rows of a view refer to classes that do not exist."""
        if problem := self.encoding.check({name: rows[name] for name in rows.dtype.names or ()}, self.classes):
            raise CorruptCacheError(f"{self.cache.place}, view {view.index}: {problem}. Dump the cache again.")

    def hold(
        self, view: View, rows: NDArray[np.void], blocks: tuple[int, ...] | None = None, *, in_bytes: bool = False
    ) -> "ViewRows":
        """Load the rows of a view into the memory of the device.

        Args:
            view: View.
            rows: Rows from `Cache.view`, [N], with a field for each column.
            blocks: Blocks that the rows belong to, in order; None for all.
            in_bytes: Whether to copy them as raw bytes on the CPU too, as on a GPU.

        Raises:
            CorruptCacheError: If they refer to classes that do not exist.
        """
        self.check(view, rows)
        begins = None
        if blocks is not None:  # position in memory of the first row of each block
            manifest = self.cache.manifest
            begins = np.full(manifest.blocks, -1, np.int64)
            lengths = [last - first for first, last in map(manifest.span, blocks)]
            begins[list(blocks)] = np.cumsum([0, *lengths[:-1]])
        return ViewRows(self, HeldRows(rows, self.device, in_bytes=in_bytes), begins)


class ViewRows:
    """Rows of one view in memory, decoded on access. They do not change unless they are replaced."""

    def __init__(self, decoder: RowDecoder, held: "HeldRows", begins: Ids | None) -> None:
        self._decoder, self._held, self._begins = decoder, held, begins

    @property
    def left_out(self) -> Ids:
        """Row ids of samples that the cache leaves out, ascending."""
        return self._decoder.left_out

    def of(self, rows: Ids) -> AnyRows:
        """Gather and decode rows: [R, C] float32, or top-k or sampled rows.

        Args:
            rows: Row ids, [R].
        """
        at, decoder = rows, self._decoder
        if self._begins is not None:
            size = decoder.cache.manifest.block_rows
            at = self._begins[at // size] + at % size
        ids = to_device(torch.from_numpy(rows), decoder.device)
        return self._decoded(ids, ids if at is rows else to_device(torch.from_numpy(at), decoder.device))

    def at(self, rows: Tensor) -> AnyRows:
        """Gather and decode rows as in `of`, without synchronizing. Row ids, [R] int64, are on the device; all blocks must be loaded."""
        assert self._begins is None
        return self._decoded(rows, rows)

    def _decoded(self, ids: Tensor, at: Tensor) -> AnyRows:
        columns, decoder = self._held.take(at), self._decoder
        return decoder.encoding.decode(columns, decoder.labels.index_select(0, ids), decoder.classes)

    def replace(self, view: View, rows: NDArray[np.void]) -> None:
        """Load the same number of rows of another view into the same memory.

        Raises:
            CorruptCacheError: If they refer to classes that do not exist.
        """
        self._decoder.check(view, rows)
        self._held.replace(rows)


class SomeRows:
    """Selected rows of a view, read once into the memory of the host and decoded on access."""

    def __init__(self, cache: Cache, view: View, rows: Ids, device: torch.device) -> None:
        """Read the rows.

        Args:
            cache: Cache.
            view: View.
            rows: Row ids, ascending, [R].
            device: Device of the logits.

        Raises:
            CorruptCacheError: If they are damaged.
        """
        self._decoder, self._ids = RowDecoder(cache, device), rows
        self._columns = cache.rows(view.index, cache.teacher, rows)

    def of(self, rows: Ids) -> AnyRows:
        """Decode rows: [R, C] float32, or top-k or sampled rows.

        Args:
            rows: Row ids, [R].
        """
        decoder, at = self._decoder, np.searchsorted(self._ids, rows)
        columns = {name: to_device(torch.from_numpy(x[at]), decoder.device) for name, x in self._columns.items()}
        labels = decoder.labels.index_select(0, to_device(torch.from_numpy(rows), decoder.device))
        return decoder.encoding.decode(columns, labels, decoder.classes)


class HeldRows:
    """Rows of a view in the memory of a device; the columns of a row are contiguous."""

    def __init__(self, rows: NDArray[np.void], device: torch.device, *, in_bytes: bool = False) -> None:
        """Copy rows to a device.

        Args:
            rows: Rows from `Cache.view`, [N], with a field for each column.
            device: Device of the batches.
            in_bytes: Whether to copy them as raw bytes on the CPU too, so that they can be replaced.
        """
        # On the CPU they stay a numpy array, because numpy has less overhead than torch for small batches.
        as_they_are = device.type == "cpu" and not in_bytes
        self._rows = rows if as_they_are else _bytes_of(rows).to(device, copy=True)
        self._columns = [
            (name, slice(offset, offset + field.itemsize), torch.from_numpy(np.empty(0, field.base)).dtype, field.shape)
            for name, (field, offset, *_) in (rows.dtype.fields or {}).items()
        ]

    def replace(self, rows: NDArray[np.void]) -> None:
        """Load the same number of other rows into the same memory."""
        assert isinstance(self._rows, Tensor)
        self._rows.copy_(_bytes_of(rows))

    def take(self, samples: Tensor) -> dict[str, Tensor]:
        """Gather a batch of rows with one copy; the columns, [B, ...] each, are views of it.

        Args:
            samples: Positions of the rows in memory, [B] int64, on the device of the rows.
        """
        if isinstance(self._rows, np.ndarray):
            rows = self._rows.take(samples.numpy())
            return {name: torch.from_numpy(rows[name]) for name, *_ in self._columns}
        batch = self._rows.index_select(0, samples)
        return {
            name: batch[:, place].view(dtype).view(len(batch), *shape) for name, place, dtype, shape in self._columns
        }


def _bytes_of(rows: NDArray[np.void]) -> Tensor:
    """Return rows as raw bytes, which every device can gather, [N, bytes per row] uint8."""
    return torch.from_numpy(rows.view(np.uint8).reshape(len(rows), -1))


class LiveTargets(LabelsOnly):
    """The live teacher, run with the same settings as for the cache."""

    name = "live"

    def __init__(self, teachers: Teachers) -> None:
        self._teachers, self.preprocessing = teachers, teachers.preprocessing

    def logits(self, position: int, batch: Rendition, rows: RowLabels) -> Tensor:
        """Run the teacher."""
        del position
        return self._teachers.logits(batch, rows, first=1)

    def close(self) -> None:
        """Restore the mode of the network."""
        self._teachers.close()


def predicted_classes(cache: Cache, view: View, rows: Ids) -> NDArray[np.int64]:
    """Return the teacher's predicted class for ascending rows of a view, [R], read from the cache."""
    columns = {name: torch.from_numpy(x) for name, x in cache.rows(view.index, cache.teacher, rows).items()}
    labels = torch.from_numpy(cache.labels()[rows]).long()
    decoded = read_encoding(cache.manifest.encoding).decode(columns, labels, len(cache.manifest.classes))
    return _largest(decoded)


def _largest(rows: AnyRows) -> NDArray[np.int64]:
    """Return the class of the largest logit of each row, [R], which does not depend on the temperature."""
    return top_classes(rows).cpu().numpy()
