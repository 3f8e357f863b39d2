"""Text caches for other training loops: packed sequences with their rows, as a map-style and an iterable torch data set."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from logitcache.data import Ids, kept_of, modality_of
from logitcache.data.contract import recorded_data
from logitcache.data.optional import arranged, for_training
from logitcache.data.text.modality import TEXT
from logitcache.encoding import AnyRows
from logitcache.errors import InputError
from logitcache.runtime.processes import place_in_group
from logitcache.runtime.settings import Settings, option, show_options
from logitcache.runtime.tensors import shared
from logitcache.store import Cache, with_rows
from logitcache.train.counting import with_loss_on
from logitcache.train.datasets import TeacherRows
from logitcache.train.order import epoch_number, only, shuffled
from logitcache.train.settings import LOSSES_ON

__all__ = ["PackedDataset", "PackedIterableDataset", "PackedSettings", "collate_packed"]

_IGNORED = -100  # label of a token that does not count, the convention of torch's cross-entropy and transformers
_MOST_WORKERS = 256


@dataclass(frozen=True, kw_only=True, repr=False)
class PackedSettings(Settings):
    """Settings of packed sequences."""

    sequence_length: int | None = option(
        None,
        minimum=2,
        shown="that of the dump",
        help="Length of a sequence in tokens; shorter ones are padded at the end.",
    )
    loss_on: str | None = option(
        None,
        shown="all rows of the cache",
        help="Rows that count in the loss: all, assistant or completion, as in `train_student`.",
    )
    shuffle: bool = option(True, help="Pack documents in a random order, which depends only on the seed and the epoch.")
    seed: int = option(0, minimum=0, help="Seed of the sampling order.")
    teacher: str | None = option(None, shown="the only one", help="Teacher, if the cache holds several.")

    def __post_init__(self) -> None:
        """Check names."""
        super().__post_init__()
        self.check_name("loss_on", "rows to count", LOSSES_ON)


@dataclass(frozen=True, kw_only=True, repr=False)
class PackedRequest(Settings):
    """The arguments of a packed data set besides its settings."""

    cache: str | Path | Cache = option(form="python", help="Cache of text with the teacher's logits, or its path.")


class _Sequences:
    """Documents of a cache packed into sequences by best fit, with the teacher's rows."""

    def __init__(self, cache: str | Path | Cache, settings: PackedSettings) -> None:
        self._settings, self.teacher = settings, TeacherRows(cache, settings.teacher)
        opened = self.teacher.cache
        if opened.manifest.modality != TEXT.name:
            raise InputError(f"{opened.place} is a cache of {opened.manifest.modality}, not of text")
        data = recorded_data(opened, None)
        self._data, self._modality = with_loss_on(data, settings.loss_on), modality_of(data)
        recorded = opened.manifest.teachers[0]["preprocessing"]
        chosen = self._modality.choose_inputs(self._data, self.teacher.views[0], recorded)
        self._inputs = for_training(self._modality, chosen, self._data, settings.sequence_length)

    def packed(self, epoch: int) -> list[Ids]:
        """Return the contexts of each sequence of an epoch."""
        count, kept = len(self._data), kept_of(self._data)
        order = only(shuffled(count, self._settings.seed, epoch), kept) if self._settings.shuffle else kept
        order = with_rows(self._data.counted_offsets, order)
        return arranged(self._modality, self._data, self._inputs, order, 1)

    def item(self, contexts: Ids, epoch: int) -> dict[str, Any]:
        """Return a sequence in the form described in `PackedDataset`."""
        inputs, keep = self._inputs.render(self._data, contexts)
        found = {name: values[0] for name, values in inputs.items()} | {"keep": keep[0]}
        labels = torch.full_like(found["input_ids"], _IGNORED)
        labels[1:][found["keep"][:-1]] = found["input_ids"][1:][found["keep"][:-1]]
        rows = self._data.counted_rows(contexts)
        return found | {"labels": labels, "rows": self.teacher.at(epoch).logits(rows)}


class PackedDataset(Dataset[dict[str, Any]]):
    """Packed sequences of a text cache with the teacher's rows, as a map-style data set that any sampler can shuffle and divide.

    An item holds, for a sequence of L tokens with R rows that count:

        input_ids       tokens, [L] int64; 0 for padding, which is at the end
        position_ids    position of each token in its document, [L] int64
        documents       number of the document within the sequence, [L] int64; -1 for padding
        labels          the token itself if its row counts, else -100, [L] int64; not shifted, as in transformers
        keep            mask of the outputs that are rows, [L] bool; output p is the row of token p + 1
        rows            the teacher's rows, [R, V] float32, `TopKRows` or `DrawnRows`

    Sequences are packed once and do not change between epochs; `set_epoch` chooses the view if the cache has several. Use
    `collate_packed` to make batches. The model must mask attention between documents: pass `documents` to it, as
    `logitcache.models.language.CausalNetwork` requires, or only `position_ids`, without a KV cache, if it separates documents by these.
    """

    @show_options(PackedRequest, PackedSettings)
    def __init__(self, cache: str | Path | Cache, **options: Any) -> None:
        """Pack the documents of a cache.

        {arguments}

        Raises:
            LogitCacheError: If the cache cannot be opened, is not of text, or has a document that is longer than a sequence.
        """
        self._sequences = _Sequences(cache, PackedSettings(**options))
        self._packed = self._sequences.packed(0)

    def __len__(self) -> int:
        return len(self._packed)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, 0, 1, ..., which determines the view.

        Raises:
            InputError: If it is not a non-negative integer.
        """
        self._sequences.teacher.set_epoch(epoch)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._sequences.item(self._packed[index], self._sequences.teacher.epoch or 0)


class PackedIterableDataset(IterableDataset[dict[str, Any]]):
    """The items of `PackedDataset` as an iterable data set, packed again for each epoch as in `logitcache train`.

    Each pass is the next epoch, unless `set_epoch` chooses one. Processes of torch.distributed and DataLoader workers divide a pass. All
    processes have the same number of items, so a few may be repeated. accelerate would divide the stream again; use `PackedDataset` with
    it.
    """

    @show_options(PackedRequest, PackedSettings)
    def __init__(self, cache: str | Path | Cache, **options: Any) -> None:
        """Open a cache.

        {arguments}

        Raises:
            LogitCacheError: If the cache cannot be opened, is not of text, or has a document that is longer than a sequence.
        """
        self._sequences = _Sequences(cache, PackedSettings(**options))
        self._next = shared(torch.zeros(_MOST_WORKERS, dtype=torch.int64))  # next epoch of each worker

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass, 0, 1, ...; later passes continue from there.

        Raises:
            InputError: If it is not a non-negative integer.
        """
        self._next.fill_(epoch_number(epoch))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Put the epoch of a copy in shared memory, so that its workers see changes."""
        self.__dict__.update(state)
        shared(self._next)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        if workers > _MOST_WORKERS:
            raise InputError(
                f"a DataLoader of packed sequences can have at most {_MOST_WORKERS} workers, not {workers}"
            )
        rank, world = place_in_group()
        epoch = int(self._next[worker])
        self._next[worker] = epoch + 1
        packed = self._sequences.packed(epoch)
        even = -(-len(packed) // (world or 1)) * (world or 1)
        mine = [packed[place % len(packed)] for place in range(rank, even, world or 1)]
        for contexts in mine[worker::workers]:
            yield self._sequences.item(contexts, epoch)


def collate_packed(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Collate packed sequences into a batch: tensors are stacked, [B, L], and rows are concatenated in the order of `states[keep]`.

    Args:
        items: Items of `PackedDataset` or `PackedIterableDataset`.
    """
    found = {name: torch.stack([one[name] for one in items]) for name in items[0] if name != "rows"}
    return found | {"rows": _joined([one["rows"] for one in items])}


def _joined(rows: Sequence[AnyRows]) -> Any:
    first = rows[0]
    return torch.cat(list(rows)) if isinstance(first, torch.Tensor) else type(first).cat(rows)  # type: ignore[arg-type]
