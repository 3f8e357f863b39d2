"""Where the teacher's logits come from: the cache, the live teacher, or nowhere. The training loop cannot tell them apart."""

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
    """The views and blocks that the next part of an epoch trains on.

    Attributes:
        views: One view, or the views of a pair.
        blocks: Blocks of the cache, in this order; None for all.
    """

    views: Sequence[View]
    blocks: tuple[int, ...] | None = None


class Targets(Protocol):
    """Where a teacher's logits come from.

    Attributes:
        name: `cached`, `live` or `unused`; recorded with the run.
        preprocessing: One per live teacher; a batch holds the student's input first, then theirs.
    """

    name: str
    preprocessing: tuple[Inputs, ...]

    def begin(self, stretch: Stretch, upcoming: Stretch) -> None:
        """Prepare for a stretch; `upcoming` comes next, and is the same stretch where nothing comes next."""

    def logits(self, position: int, batch: Rendition, rows: RowLabels) -> AnyRows | None:
        """Return the teacher's logits for a batch, or None when training without a teacher.

        Args:
            position: Position of the view in the stretch.
            batch: The samples, as that view shows them.
            rows: Their rows.

        Returns:
            [R, C] float32 without gradient, or rows of which the largest were kept; on the student's device.
        """

    def close(self) -> None:
        """Release threads and networks."""


class LabelsOnly:
    """No teacher."""

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
    """Logits from a cache: a view is held in the memory of the student's device, and a batch is one gather, decoded there."""

    name = "cached"
    preprocessing: tuple[Inputs, ...] = ()

    def __init__(self, cache: Cache, device: torch.device, *, in_place: bool = False) -> None:
        """Read nothing yet.

        Args:
            cache: The cache.
            device: Device of the logits.
            in_place: Whether the rows of each stretch are held where those of the one before were, for steps that are captured. `held`
                changes with them, so stretches must be as long as one another.
        """
        self._cache, self._decoder, self._in_place = cache, RowDecoder(cache, device), in_place
        self._streams: list[ViewStream] = []
        self._stretch: Stretch | None = None
        self._held: list[ViewRows] = []

    def begin(self, stretch: Stretch, upcoming: Stretch) -> None:
        """Decode the rows of a stretch into memory, and begin to read the upcoming ones in the background."""
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
        """Return the rows of a view of the stretch that was begun last; unless `in_place` they stay when another is begun."""
        return self._held[position]

    def predicted(self, view: View, rows: Ids) -> NDArray[np.int64]:
        """Return the class of the teacher's largest logit for ascending rows of a view, [R]: from memory where the view is held."""
        held = self._stretch if self._stretch and self._stretch.blocks is None else Stretch(())
        if view in held.views:
            return _largest(self._held[list(held.views).index(view)].of(rows))
        return predicted_classes(self._cache, view, rows)

    def close(self) -> None:
        """End the threads that read ahead."""
        for stream in self._streams:
            stream.close()


class RowDecoder:
    """Decodes the stored rows of one cache into logits on one device."""

    def __init__(self, cache: Cache, device: torch.device) -> None:
        """Take the labels of all rows to the device.

        Args:
            cache: The cache.
            device: Device of the logits.
        """
        self.cache, self.device = cache, device
        self.encoding, self.classes = read_encoding(cache.manifest.encoding), len(cache.manifest.classes)
        self.labels = torch.from_numpy(cache.labels()).long().to(device)
        self.left_out = np.flatnonzero(~cache.kept_rows()) if cache.manifest.excluded else np.empty(0, np.int64)  # rows

    def check(self, view: View, rows: NDArray[np.void]) -> None:
        """Raise CorruptCacheError if rows of a view name classes that do not exist."""
        if problem := self.encoding.check({name: rows[name] for name in rows.dtype.names or ()}, self.classes):
            raise CorruptCacheError(f"{self.cache.place}, view {view.index}: {problem}. Dump the cache again.")

    def hold(
        self, view: View, rows: NDArray[np.void], blocks: tuple[int, ...] | None = None, *, in_bytes: bool = False
    ) -> "ViewRows":
        """Hold what `Cache.view` read of a view in the memory of the device.

        Args:
            view: The view.
            rows: Its rows, [N], with a field for each column.
            blocks: Blocks that they are of, in this order; None for all.
            in_bytes: Whether to copy them as a GPU holds them, on any device.

        Raises:
            CorruptCacheError: They name classes that do not exist.
        """
        self.check(view, rows)
        begins = None
        if blocks is not None:  # the place in memory at which the rows of each block begin
            manifest = self.cache.manifest
            begins = np.full(manifest.blocks, -1, np.int64)
            lengths = [last - first for first, last in map(manifest.span, blocks)]
            begins[list(blocks)] = np.cumsum([0, *lengths[:-1]])
        return ViewRows(self, HeldRows(rows, self.device, in_bytes=in_bytes), begins)


class ViewRows:
    """Rows of one view in memory, decoded when they are asked for. Unless they are replaced they never change."""

    def __init__(self, decoder: RowDecoder, held: "HeldRows", begins: Ids | None) -> None:
        self._decoder, self._held, self._begins = decoder, held, begins

    @property
    def left_out(self) -> Ids:
        """Row ids of samples that the cache leaves out, ascending."""
        return self._decoder.left_out

    def of(self, rows: Ids) -> AnyRows:
        """Gather and decode rows: [R, C] float32, or what was kept.

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
        """Gather and decode rows as `of`, without asking the host: row ids are on the device, [R] int64, and all blocks are held."""
        assert self._begins is None
        return self._decoded(rows, rows)

    def _decoded(self, ids: Tensor, at: Tensor) -> AnyRows:
        columns, decoder = self._held.take(at), self._decoder
        return decoder.encoding.decode(columns, decoder.labels.index_select(0, ids), decoder.classes)

    def replace(self, view: View, rows: NDArray[np.void]) -> None:
        """Hold as many rows of another view in the same memory.

        Raises:
            CorruptCacheError: They name classes that do not exist.
        """
        self._decoder.check(view, rows)
        self._held.replace(rows)


class SomeRows:
    """Some rows of a view as they are stored, read once and held in the memory of the host; decoded when they are asked for."""

    def __init__(self, cache: Cache, view: View, rows: Ids, device: torch.device) -> None:
        """Read them.

        Args:
            cache: The cache.
            view: The view.
            rows: Row ids, ascending, [R].
            device: Device of the logits.

        Raises:
            CorruptCacheError: They are damaged.
        """
        self._decoder, self._ids = RowDecoder(cache, device), rows
        self._columns = cache.rows(view.index, cache.teacher, rows)

    def of(self, rows: Ids) -> AnyRows:
        """Decode some of them: [R, C] float32, or what was kept or drawn.

        Args:
            rows: Row ids, [R].
        """
        decoder, at = self._decoder, np.searchsorted(self._ids, rows)
        columns = {name: to_device(torch.from_numpy(x[at]), decoder.device) for name, x in self._columns.items()}
        labels = decoder.labels.index_select(0, to_device(torch.from_numpy(rows), decoder.device))
        return decoder.encoding.decode(columns, labels, decoder.classes)


class HeldRows:
    """Rows of a view in the memory of a device, all columns of a row beside each other."""

    def __init__(self, rows: NDArray[np.void], device: torch.device, *, in_bytes: bool = False) -> None:
        """Take them there.

        Args:
            rows: As `Cache.view` gives them: [N], with a field for each column.
            device: Device of the batches.
            in_bytes: Whether to copy them as bytes on the CPU too, which can be replaced.
        """
        # On the CPU as they are: there torch's calls cost a small batch more than numpy's.
        as_they_are = device.type == "cpu" and not in_bytes
        self._rows = rows if as_they_are else _bytes_of(rows).to(device, copy=True)
        self._columns = [
            (name, slice(offset, offset + field.itemsize), torch.from_numpy(np.empty(0, field.base)).dtype, field.shape)
            for name, (field, offset, *_) in (rows.dtype.fields or {}).items()
        ]

    def replace(self, rows: NDArray[np.void]) -> None:
        """Hold as many other rows in the same memory."""
        assert isinstance(self._rows, Tensor)
        self._rows.copy_(_bytes_of(rows))

    def take(self, samples: Tensor) -> dict[str, Tensor]:
        """Gather a batch of rows, once for all columns: each, [B, ...], a part of one copy on the device of the rows.

        Args:
            samples: Positions of the rows in memory, [B] int64, on that device.
        """
        if isinstance(self._rows, np.ndarray):
            rows = self._rows.take(samples.numpy())
            return {name: torch.from_numpy(rows[name]) for name, *_ in self._columns}
        batch = self._rows.index_select(0, samples)
        return {
            name: batch[:, place].view(dtype).view(len(batch), *shape) for name, place, dtype, shape in self._columns
        }


def _bytes_of(rows: NDArray[np.void]) -> Tensor:
    """What every device can gather: [N, bytes of a row]."""
    return torch.from_numpy(rows.view(np.uint8).reshape(len(rows), -1))


class LiveTargets(LabelsOnly):
    """The teacher itself, run as it was for the cache."""

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
    """Return the class of the teacher's largest stored logit for ascending rows of a view, [R]; read from the cache."""
    columns = {name: torch.from_numpy(x) for name, x in cache.rows(view.index, cache.teacher, rows).items()}
    labels = torch.from_numpy(cache.labels()[rows]).long()
    decoded = read_encoding(cache.manifest.encoding).decode(columns, labels, len(cache.manifest.classes))
    return _largest(decoded)


def _largest(rows: AnyRows) -> NDArray[np.int64]:
    """Return the class of the largest logit of each row, [R]; it is the same at any temperature."""
    return top_classes(rows).cpu().numpy()
