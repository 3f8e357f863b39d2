"""What the teacher says about a batch: from the cache, live, or nothing at all. The training loop cannot tell them apart."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcache.data import Rendered
from logitcache.data.images.views import View
from logitcache.data.images.views.preprocessing import Preprocessing
from logitcache.encoding import TopKRows, dense, read_encoding
from logitcache.errors import CorruptCacheError
from logitcache.runtime.device import to_device
from logitcache.store import Cache, ViewStream
from logitcache.teachers.forward import Teachers

__all__ = [
    "Answers",
    "CachedAnswers",
    "HeldRows",
    "LabelsOnly",
    "LiveAnswers",
    "Shown",
    "teacher_classes",
]


class Shown(NamedTuple):
    """What a stretch of training shows.

    Attributes:
        turn: One view, or those of a pair.
        blocks: Of the cache, in this order; None for all.
    """

    turn: Sequence[View]
    blocks: tuple[int, ...] | None = None


class Answers(Protocol):
    """Where a teacher's logits come from.

    Attributes:
        name: `cached`, `live` or `unused`; recorded with the run.
        eyes: The preprocessing that live teachers look through; their pixels follow the student's in a batch.
    """

    name: str
    eyes: tuple[Preprocessing, ...]

    def begin(self, shown: Shown, upcoming: Shown) -> None:
        """Prepare for a view, or for the views of a pair, or for a window of them; `upcoming` comes next."""

    def logits(self, position: int, batch: Rendered) -> Tensor | TopKRows | None:
        """Answer for a batch in one view of the turn: [B, C] float32 without gradient, on the student's device; None: nobody does."""

    def close(self) -> None:
        """Let go of threads."""


class LabelsOnly:
    """No teacher."""

    name = "unused"
    eyes: tuple[Preprocessing, ...] = ()

    def begin(self, shown: Shown, upcoming: Shown) -> None:
        """Do nothing."""

    def logits(self, position: int, batch: Rendered) -> Tensor | TopKRows | None:
        """Answer nothing."""
        del position, batch
        return None

    def close(self) -> None:
        """Do nothing."""


class CachedAnswers:
    """What the teacher said: a view in the memory of the student's device, a batch one gather, decoded there."""

    name = "cached"
    eyes: tuple[Preprocessing, ...] = ()

    def __init__(self, cache: Cache, device: torch.device) -> None:
        self._cache, self._device = cache, device
        self._encoding, self._classes = read_encoding(cache.manifest.encoding), len(cache.manifest.classes)
        self._labels = torch.from_numpy(cache.labels()).long().to(device)
        self._streams: list[ViewStream] = []

    def begin(self, shown: Shown, upcoming: Shown) -> None:
        """Take what is shown into memory, and have what comes next fetched meanwhile."""
        self._streams = self._streams or [ViewStream(self._cache, self._cache.teacher) for _ in shown.turn]
        parts = ([(view.index, one.blocks) for view in one.turn] for one in (shown, upcoming))
        taken = [stream.take(part, later) for stream, part, later in zip(self._streams, *parts, strict=True)]
        for view, rows in zip(shown.turn, taken, strict=True):
            if problem := self._encoding.check({name: rows[name] for name in rows.dtype.names or ()}, self._classes):
                raise CorruptCacheError(f"{self._cache.place}, view {view.index}: {problem}. Dump the cache again.")
        self._held = [HeldRows(rows, self._device) for rows in taken]
        self._place = None
        if shown.blocks is not None:  # where the rows of each block begin
            manifest = self._cache.manifest
            self._place = np.full(manifest.blocks, -1, np.int64)
            lengths = [last - first for first, last in map(manifest.rows, shown.blocks)]
            self._place[list(shown.blocks)] = np.cumsum([0, *lengths[:-1]])

    def logits(self, position: int, batch: Rendered) -> Tensor | TopKRows:
        """Gather and decode the batch's rows."""
        return self.of(position, batch.samples)

    def of(self, position: int, samples: NDArray[np.int64]) -> Tensor | TopKRows:
        """Gather and decode the rows of some samples."""
        at = samples
        if self._place is not None:
            size = self._cache.manifest.block_rows
            at = self._place[at // size] + at % size
        ids = to_device(torch.from_numpy(samples), self._device)
        rows = self._held[position].take(ids if at is samples else to_device(torch.from_numpy(at), self._device))
        return self._encoding.decode(rows, self._labels.index_select(0, ids), self._classes)

    def close(self) -> None:
        """End the threads that read ahead."""
        for stream in self._streams:
            stream.close()


class HeldRows:
    """Rows of a view in the memory of a device, all columns of a row beside each other."""

    def __init__(self, rows: NDArray[np.void], device: torch.device) -> None:
        """Take them there.

        Args:
            rows: As `Cache.view` gives them: [N], with a field for each column.
            device: Where batches are wanted.
        """
        # On the CPU as they are: there torch's calls cost a small batch more than numpy's.
        self._rows = rows if device.type == "cpu" else _bytes_of(rows).to(device)
        self._columns = [
            (name, slice(offset, offset + field.itemsize), torch.from_numpy(np.empty(0, field.base)).dtype, field.shape)
            for name, (field, offset, *_) in (rows.dtype.fields or {}).items()
        ]

    def take(self, samples: Tensor) -> dict[str, Tensor]:
        """Gather a batch of rows, once for all columns: each, [B, ...], a part of one copy on the device of the rows.

        Args:
            samples: Which, [B] int64, on that device.
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


class LiveAnswers(LabelsOnly):
    """The teacher itself, run as it was for the cache."""

    name = "live"

    def __init__(self, teachers: Teachers) -> None:
        self._teachers, self.eyes = teachers, teachers.eyes

    def logits(self, position: int, batch: Rendered) -> Tensor:
        """Run the teacher."""
        del position
        return self._teachers.logits(batch.pixels[1:])

    def close(self) -> None:
        """Give the network back as it was."""
        self._teachers.close()


def teacher_classes(cache: Cache, view: View, samples: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the class of the teacher's largest stored logit for ascending samples of a view, [B]."""
    rows = {name: torch.from_numpy(column) for name, column in cache.rows(view.index, cache.teacher, samples).items()}
    labels = torch.from_numpy(cache.labels()[samples]).long()
    decoded = read_encoding(cache.manifest.encoding).decode(rows, labels, len(cache.manifest.classes))
    return dense(decoded).argmax(1).numpy()
