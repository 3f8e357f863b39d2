"""From context ids to a network's input: padded sequences of one context each, or sequences that hold as many as fit."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from logitcache.data.protocol import Ids, Rendition
from logitcache.data.text.documents import Documents
from logitcache.data.text.packing import next_fit
from logitcache.errors import InputError
from logitcache.runtime.tensors import to_inputs
from logitcache.store import rows_of

__all__ = ["TextInputs", "TextRenderer", "TextView"]

_PADDING = -1  # number of the context that padding belongs to


@dataclass(frozen=True, slots=True)
class TextView:
    """Text as it is. Where there are several views, they show the same, and rows are drawn anew for each.

    Attributes:
        recipe: `none`.
        index: Place of the view in its cache.
        group: Number of its group, of which it is the only one.
    """

    recipe: str = "none"
    index: int = 0
    group: int = 0

    @property
    def mixes(self) -> bool:
        """Whether rows have two labels: no."""
        return False

    @property
    def runs_others_code(self) -> bool:
        """Whether a step is a user's own code: no."""
        return False

    def to_json(self) -> dict[str, Any]:
        """Return the manifest entry."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class TextInputs:
    """What a language model is given: `input_ids`, `position_ids` and `documents`, each [B, length] int64.

    Positions restart at each context. `documents` is the number of the context within its sequence that a token belongs to, from 0;
    of padding, which is at the end, it is -1. Where a sequence holds more than one context, a network must not let one see another:
    positions alone do not see to that.

    Attributes:
        length: Tokens of a sequence.
        packs: Whether a sequence holds as many contexts as fit (next fit, in the order of the batch), or one.
    """

    length: int
    packs: bool = False

    def on(self, rendered: Any, device: torch.device) -> Any:
        """Return a rendered batch on a device."""
        return to_inputs(rendered, device)

    def variants(self, inputs: Any, test_time_views: str) -> Sequence[Any]:
        """Return the input itself: text has no test-time augmentation."""
        del test_time_views
        return [inputs]

    def blank(self, samples: int) -> dict[str, Tensor]:
        """Return sequences of one context each, full of id 0; where contexts are packed, a sequence may be longer than any of them."""
        ids = torch.zeros(samples, self.length, dtype=torch.int64)
        return {
            "input_ids": ids,
            "position_ids": ids.clone() if self.packs else torch.arange(self.length).repeat(samples, 1),
            "documents": ids.clone(),
        }

    def to_json(self) -> dict[str, Any]:
        """Return the manifest entry."""
        return asdict(self)

    def sequences(self, documents: Documents, ids: Ids) -> Ids:
        """Return the sequence of each context of a batch, from 0, [B].

        Raises:
            InputError: A context is longer than a sequence.
        """
        lengths = documents.lengths[ids]
        if len(long := np.flatnonzero(lengths > self.length)):
            raise InputError(
                f"context {ids[long[0]]:,} has {lengths[long[0]]:,} tokens, more than sequences of {self.length:,}: choose a larger "
                "--sequence-length"
            )
        return next_fit(lengths, self.length) if self.packs else np.arange(len(ids))

    def render(self, documents: Documents, ids: Ids) -> tuple[dict[str, Tensor], Tensor]:
        """Return the input for a batch of contexts, and which outputs are rows, [B, length] bool: sequence by sequence, as `ids`.

        Output p of a sequence is a row where token p + 1 is a target of the same context, and counts.

        Raises:
            InputError: A context is longer than a sequence.
        """
        sequence, lengths = self.sequences(documents, ids), documents.lengths[ids]
        count = int(sequence[-1]) + 1 if len(sequence) else 0
        ends = np.cumsum(lengths)
        first = np.searchsorted(sequence, sequence)  # of the contexts of the same sequence
        begins = ends - lengths - np.where(first > 0, ends[first - 1], 0)  # within the sequence
        at = rows_of(documents.documents, ids)  # places of the tokens
        place = np.arange(len(at)) - np.repeat(ends - lengths, lengths)  # within the context
        where = np.repeat(sequence * self.length + begins, lengths) + place

        def laid_out(values: Any, filler: int) -> Tensor:
            found = np.full(count * self.length, filler, np.int64)
            found[where] = values
            return torch.from_numpy(found.reshape(count, self.length))

        inputs = {
            "input_ids": laid_out(documents.tokens[at], 0),
            "position_ids": laid_out(place, 0),
            "documents": laid_out(np.repeat(np.arange(len(ids)) - first, lengths), _PADDING),
        }
        keep = np.zeros(count * self.length, np.bool_)
        keep[where[documents.counted_targets[at]] - 1] = True
        return inputs, torch.from_numpy(keep.reshape(count, self.length))


class TextRenderer:
    """Renders batches of contexts for one network or more."""

    def __init__(
        self,
        documents: Documents,
        inputs: Sequence[TextInputs],
        *,
        with_digests: bool = False,
        device: torch.device | None = None,
    ) -> None:
        """Choose what comes out.

        Args:
            documents: The contexts.
            inputs: One for each network.
            with_digests: Whether to hash what a teacher is shown.
            device: Where the inputs are used; for a GPU they are left in page-locked memory.
        """
        self._documents, self._inputs, self._with_digests = documents, tuple(inputs), with_digests
        self._pinned = device is not None and device.type == "cuda"

    def batches(self, view: TextView, batches: Iterable[Ids]) -> Iterator[Rendition]:
        """Yield batches of context ids, in order. One is a gather, which no process of its own would make faster."""
        del view
        for ids in batches:
            made: Mapping[TextInputs, Any] = {one: one.render(self._documents, ids) for one in set(self._inputs)}
            batch = Rendition(
                ids,
                tuple(made[one][0] for one in self._inputs),
                self._documents.row_digests(ids) if self._with_digests else None,
                keep=tuple(made[one][1] for one in self._inputs),
            )
            yield batch.pin_memory() if self._pinned else batch
