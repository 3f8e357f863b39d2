"""The interface between data and the code that works on rows.

Methods, encodings, targets, the training step and `stats` work on rows: logits [R, C] and labels [R]. A **modality** (images, text, ...)
defines everything else: how a sample is rendered, the input of a network, and which of its outputs are rows. For images each sample is
one row; for text each target token is one. A data set names its modality, and so does the manifest of a cache.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcache.models import Network
from logitcache.runtime.tensors import map_tensors
from logitcache.store import Ids

__all__ = [
    "Ids",
    "Inputs",
    "Modality",
    "Renderer",
    "Rendition",
    "Resident",
    "RowLabels",
    "Samples",
    "View",
    "offsets_of",
    "whole_of",
]


class Samples(Protocol):
    """A labelled data set.

    Optional attributes: `modality`, its `Modality` or the name of it (default images); `facts`, a mapping for the entry `data` of the
    manifest; `offsets`, [N + 1] int64, the first row of each sample, and R (default: each sample is one row); `whole` and `first`, if
    it is a stretch of another data set; `unreadable`, the samples known to be unreadable, id to reason. `excluded` is set on a copy.

    Attributes:
        labels: Class of each row, [R] int64.
        classes: Class names in index order, or `store.NumberedClasses`.
    """

    labels: NDArray[np.int64]
    classes: Sequence[str]

    def __len__(self) -> int:
        """Return the number of samples, N."""
        ...

    def digest(self) -> str:
        """Return a hash that identifies the list of samples."""
        ...


def offsets_of(samples: Samples) -> Ids | None:
    """Return the first row of each sample, and R, [N + 1]; None if each sample is one row."""
    found: Ids | None = getattr(samples, "offsets", None)
    return found


def whole_of(samples: Any) -> tuple[Any, int]:
    """Return the whole data set, and the index in it of the first of these samples."""
    return getattr(samples, "whole", samples), getattr(samples, "first", 0)


class RowLabels(NamedTuple):
    """The rows of a batch of samples, in the order in which `Modality.rows` yields their logits.

    Attributes:
        ids: Row ids, [R]; on the host.
        labels: Class of each row, [R] int64; on the host.
        second: Second labels of mixed rows (mixup, CutMix): classes, [R] int64, and the weights of the first labels, [R] float32.
            None if rows are not mixed.
        keep: Mask of each network's outputs that are rows, [B, ...] bool. None if all of them are, or if the rendition says so for each
            network (`Rendition.keep`).
    """

    ids: Ids
    labels: Tensor
    second: tuple[Tensor, Tensor] | None = None
    keep: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Rendition:
    """A batch of samples rendered in one view.

    Attributes:
        samples: Sample ids, [B].
        inputs: Input of each network, not yet on its device (see `Inputs.on`); for images [B, C, size, size] uint8.
        digests: Digest of the teacher's input for each row, [R] uint64, or on a GPU the same bits as int64; None if the renderer computes
            none.
        unreadable: Unreadable samples, which are not in `samples`: id in the whole data set to the reason. Empty unless the renderer
            skips unreadable samples.
        keep: Mask of each network's outputs that are rows, [B, ...] bool, if the networks arrange the samples differently. All masks
            select the same rows in the same order. None if `RowLabels.keep` applies to all networks.
    """

    samples: Ids
    inputs: tuple[Any, ...]
    digests: NDArray[np.uint64] | Tensor | None
    unreadable: Mapping[int, str] = field(default_factory=dict)
    keep: tuple[Tensor, ...] | None = None

    def kept(self, rows: RowLabels, network: int) -> Tensor | None:
        """Return the mask of a network's outputs that are rows, [B, ...] bool; None if all of them are.

        Args:
            rows: The rows of the batch.
            network: Position of the network in `inputs`.
        """
        return rows.keep if self.keep is None else self.keep[network]

    def pin_memory(self) -> "Rendition":
        """Return a copy with inputs in page-locked memory; called by the pinning thread of a loader."""
        return self._mapped(torch.Tensor.pin_memory)

    def share_memory(self) -> "Rendition":
        """Return a copy with inputs in shared memory."""
        return self._mapped(torch.Tensor.share_memory_)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> "Rendition":
        inputs = tuple(map_tensors(change, one) for one in self.inputs)
        return replace(self, inputs=inputs, keep=None if self.keep is None else tuple(map(change, self.keep)))


def joined_digests(parts: Sequence[NDArray[np.uint64] | Tensor]) -> NDArray[np.uint64]:
    """Concatenate the digests of several renditions, [N] uint64 on the host."""
    return np.concatenate([one.cpu().numpy().view(np.uint64) if isinstance(one, Tensor) else one for one in parts])


class View(Protocol):
    """One augmented version of a whole data set, replayable from its manifest entry alone."""

    @property
    def recipe(self) -> str:
        """Name of the recipe that produces it."""
        ...

    @property
    def index(self) -> int:
        """Position of the view in its cache."""
        ...

    @property
    def group(self) -> int:
        """Number of the group; methods that compare views use views of one group together."""
        ...

    @property
    def mixes(self) -> bool:
        """Whether samples are mixed with others, so that rows have two labels."""
        ...

    @property
    def runs_others_code(self) -> bool:
        """Whether a step is a user's own code, which may not be reproducible."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return the manifest entry."""
        ...


class Inputs(Protocol):
    """Preprocessing of one network."""

    def on(self, rendered: Any, device: torch.device) -> Any:
        """Return the network's input on a device, a tensor or a mapping of tensors, from its entry in `Rendition.inputs`."""
        ...

    def variants(self, inputs: Any, test_time_views: str) -> Sequence[Any]:
        """Return the inputs whose logits are averaged: the input itself, or several with test-time augmentation."""
        ...

    def blank(self, samples: int) -> Any:
        """Return a blank rendered batch of this many samples, to test whether it fits in memory."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return the manifest entry."""
        ...


class Renderer(Protocol):
    """Renders batches for one or more networks."""

    def batches(self, view: Any, batches: Iterable[Ids]) -> Iterator[Rendition]:
        """Yield the rendition of each batch of sample ids in a view, in order."""
        ...


class Resident(Protocol):
    """Samples rendered on the device without the host, from numbers that are copied there before each epoch. Each sample is one row.

    Attributes:
        columns: Number of numbers per sample.
    """

    columns: int

    def numbers(self, view: Any, ids: Ids) -> NDArray[np.int64]:
        """Return the numbers that describe samples in a view, [N, columns], on the host."""
        ...

    def inputs(self, numbers: Tensor) -> Any:
        """Return the network's input for a batch from its numbers, [B, columns], without synchronizing with the host."""
        ...


class Modality(Protocol):
    """A kind of data, and everything about it that is not rows.

    Optional methods, called through `data.optional`: `arrange` and `divide` (packing of samples into batches), `continued` (views of a
    cache that an earlier version started), `for_training` (preprocessing of a student, if it differs from its teacher's), `held_out`
    (samples for evaluation instead of training), `counting` (rows that count in the loss), `save_network` (save a student in the format
    of other libraries), `arrays` and `recorded` (data that a cache carries), `resident` (samples rendered on the device; a modality
    that has it promises batches of fixed shapes); and the attribute `views_are_equal`, True if all views are the same.

    Attributes:
        name: Name recorded in caches: `images`, or `package.module:name` to import it from.
        unit: Plural name of samples, for progress and speed: "images".
        shown: Name of a network's input in messages: "pixels".
        headline: Metric by which runs are compared: `test_accuracy`, `test_loss` or `perplexity`.
        software: Packages besides numpy and torch that affect rendering; their versions are recorded in the manifest.
        test_time_views: Names of the test-time augmentations; the first means none.
    """

    name: str
    unit: str
    shown: str
    headline: str
    software: tuple[str, ...]
    test_time_views: tuple[str, ...]

    def make_views(self, recipe: str, count: int, seed: int) -> Sequence[Any]:
        """Return `count` views of each recipe.

        Raises:
            LogitCacheError: If a recipe is unknown or invalid.
        """
        ...

    def read_view(self, entry: Mapping[str, Any]) -> Any:
        """Read the manifest entry of a view.

        Raises:
            FormatVersionError: If this version renders it differently.
        """
        ...

    def choose_inputs(self, samples: Any, view: Any, *said: Mapping[str, Any]) -> Any:
        """Choose the preprocessing of a network.

        Args:
            samples: Data set.
            view: View to preprocess.
            said: Options of the user, of a weights file and of a cache; the first that is not None takes precedence.

        Raises:
            InputError: If an option is invalid.
        """
        ...

    def read_inputs(self, entry: Mapping[str, Any]) -> Any:
        """Read the manifest entry of the preprocessing."""
        ...

    def for_evaluation(self, inputs: Any, samples: Any) -> tuple[Any, Any]:
        """Return the preprocessing and view to evaluate a network trained with `inputs` on other samples."""
        ...

    def renderer(
        self,
        samples: Any,
        inputs: Sequence[Any],
        *,
        with_digests: bool = False,
        workers: int | None = None,
        device: torch.device | None = None,
        skip_unreadable: bool = False,
    ) -> Renderer:
        """Return a renderer of batches for networks with these preprocessings.

        `skip_unreadable` is passed only if True; unreadable samples are then left out of their batch and reported in it. A modality may
        also accept `on_device`, which allows rendering and hashing on `device` with bit-identical results.
        """
        ...

    def digests(self, samples: Any, view: Any, ids: Ids) -> NDArray[np.uint64]:
        """Render samples and hash the teacher's input for each of their rows, [R] uint64."""
        ...

    def row_labels(self, samples: Any, view: Any, ids: Ids) -> RowLabels:
        """Return the rows and labels of a batch of samples."""
        ...

    def rows(self, output: Any, keep: Tensor | None, *, classes: int, label: str) -> Iterable[Tensor]:
        """Yield the logits of a network's rows in order, [r, C] each; large outputs are yielded in chunks.

        Args:
            output: Output of the network.
            keep: Mask as in `RowLabels`, on the device of the output.
            classes: Expected number of logits per row, for the error message.
            label: Subject of the error message, e.g. "the student".

        Raises:
            InputError: If the output holds no logits.
        """
        ...

    def network(self, spec: Any, classes: int, weights: str | None) -> Network:
        """Build a network by name and load its weights (see `models.load_network`)."""
        ...

    def part(self, samples: Any, first: int, last: int) -> Any:
        """Return samples `first` to `last` - 1 as a data set.

        Raises:
            InputError: If this kind of data cannot be divided.
        """
        ...
