"""Rendering of contexts: padded sequences of one context each, or packed sequences of several contexts."""

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

_PADDING = -1  # context number of padding


@dataclass(frozen=True, slots=True)
class TextView:
    """The unmodified text. If there are several views, they differ only in the classes drawn for sampled rows.

    Attributes:
        recipe: Recipe, always `none`.
        index: Position of the view in its cache.
        group: Number of its group; each view has its own.
    """

    recipe: str = "none"
    index: int = 0
    group: int = 0

    @property
    def mixes(self) -> bool:
        """Whether rows have two labels; always False."""
        return False

    @property
    def runs_others_code(self) -> bool:
        """Whether a step is a user's own code; always False."""
        return False

    def to_json(self) -> dict[str, Any]:
        """Return the manifest entry."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class TextInputs:
    """Input of a language model: `input_ids`, `position_ids` and `documents`, each [B, length] int64.

    Positions restart at each context. `documents` numbers the contexts of a sequence from 0; it is -1 for padding, which is at the end.
    In packed sequences a network must mask attention between contexts; restarting the positions is not sufficient.

    Attributes:
        length: Length of a sequence, in tokens.
        packs: Whether a sequence holds as many contexts as fit (next fit, in the order of the batch) or only one.
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
        """Return sequences full of id 0, of one context each. Packed sequences may be longer than any context."""
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
        """Return the sequence number of each context of a batch, from 0, [B].

        Raises:
            InputError: If a context is longer than a sequence.
        """
        lengths = documents.lengths[ids]
        if len(long := np.flatnonzero(lengths > self.length)):
            raise InputError(
                f"context {ids[long[0]]:,} has {lengths[long[0]]:,} tokens, more than --sequence-length {self.length:,}; choose a larger "
                "length"
            )
        return next_fit(lengths, self.length) if self.packs else np.arange(len(ids))

    def render(self, documents: Documents, ids: Ids) -> tuple[dict[str, Tensor], Tensor]:
        """Return the input for a batch of contexts, in the order of `ids`, and the mask of outputs that are rows, [B, length] bool.

        Output p of a sequence is a row if token p + 1 is a target in the same context and counts in the loss.

        Raises:
            InputError: If a context is longer than a sequence.
        """
        sequence, lengths = self.sequences(documents, ids), documents.lengths[ids]
        count = int(sequence[-1]) + 1 if len(sequence) else 0
        ends = np.cumsum(lengths)
        first = np.searchsorted(sequence, sequence)  # first context of the same sequence
        begins = ends - lengths - np.where(first > 0, ends[first - 1], 0)  # within the sequence
        at = rows_of(documents.documents, ids)  # indices of the tokens
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
    """Renders batches of contexts for one or more networks."""

    def __init__(
        self,
        documents: Documents,
        inputs: Sequence[TextInputs],
        *,
        with_digests: bool = False,
        device: torch.device | None = None,
    ) -> None:
        """Configure a renderer.

        Args:
            documents: Contexts.
            inputs: Preprocessing of each network.
            with_digests: Whether to hash the teacher's input.
            device: Device that will use the inputs; for a GPU they are put in page-locked memory.
        """
        self._documents, self._inputs, self._with_digests = documents, tuple(inputs), with_digests
        self._pinned = device is not None and device.type == "cuda"

    def batches(self, view: TextView, batches: Iterable[Ids]) -> Iterator[Rendition]:
        """Yield the rendition of each batch of context ids, in order. A batch is one gather, so worker processes would not be faster."""
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
