"""The seam between data and everything that sees rows.

Methods, encodings, targets, the training step and `stats` see rows: logits [R, C] and labels [R]. A **modality** (images, text,
...) owns the rest: how a sample is rendered, what a network is given, and which outputs of a network are rows. For images
each sample is one row; for text each target token is one. A data set names its modality, and so does a cache's manifest.
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

    It may also have `modality`, the `Modality` that it belongs to, or its name (without it: images); `facts`, a mapping that a
    cache's manifest records of it in `data`; `offsets`, [N + 1] int64, the row at which
    each sample begins, and R at the end (without it each sample is one row); `whole` and `first`, where it is a stretch of another
    data set; `unreadable`, the samples that are known not to be readable, id to reason. `excluded` is set on a copy of it.

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
        """Identify the list of samples."""
        ...


def offsets_of(samples: Samples) -> Ids | None:
    """Return the row at which each sample begins, and R at the end, [N + 1]; None where each sample is one row."""
    found: Ids | None = getattr(samples, "offsets", None)
    return found


def whole_of(samples: Any) -> tuple[Any, int]:
    """Return the whole data set, and where these samples begin in it."""
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
    """A batch of samples as one view shows them.

    Attributes:
        samples: Sample ids, [B].
        inputs: For each network one input, not yet on its device (`Inputs.on`); for images [B, C, size, size] uint8.
        digests: Digest of the teacher's input for each row, [R] uint64, or on a GPU the same bits as int64; None if the renderer computes
            none.
        unreadable: Unreadable samples, which are not among `samples`: id in the whole data set to the reason. Empty unless the renderer
            skips unreadable samples.
        keep: For each network the mask of its outputs that are rows, [B, ...] bool, where networks are given the samples in other
            arrangements; all masks select the same rows in the same order. None: `RowLabels.keep` says it for all.
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
        """Return the same with inputs in page-locked memory; called by the thread of a loader."""
        return self._mapped(torch.Tensor.pin_memory)

    def share_memory(self) -> "Rendition":
        """Return the same with inputs in memory that processes share."""
        return self._mapped(torch.Tensor.share_memory_)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> "Rendition":
        inputs = tuple(map_tensors(change, one) for one in self.inputs)
        return replace(self, inputs=inputs, keep=None if self.keep is None else tuple(map(change, self.keep)))


def joined_digests(parts: Sequence[NDArray[np.uint64] | Tensor]) -> NDArray[np.uint64]:
    """Join the digests of several renditions, [N] uint64 on the host."""
    return np.concatenate([one.cpu().numpy().view(np.uint64) if isinstance(one, Tensor) else one for one in parts])


class View(Protocol):
    """One rendition of a whole data set, replayable from its manifest entry alone."""

    @property
    def recipe(self) -> str:
        """How it is made, in words."""
        ...

    @property
    def index(self) -> int:
        """Place of the view in its cache."""
        ...

    @property
    def group(self) -> int:
        """Views of one group belong together, for methods that pair views."""
        ...

    @property
    def mixes(self) -> bool:
        """Whether rows are mixed with others, so that they have two labels."""
        ...

    @property
    def runs_others_code(self) -> bool:
        """Whether a step is a user's own code, which may not be reproducible."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return the manifest entry."""
        ...


class Inputs(Protocol):
    """What one network is given: its preprocessing."""

    def on(self, rendered: Any, device: torch.device) -> Any:
        """Return the network's input on a device, from its entry in `Rendition.inputs`: a tensor, or a mapping of tensors."""
        ...

    def variants(self, inputs: Any, test_time_views: str) -> Sequence[Any]:
        """Return the inputs whose logits are averaged: the input itself, or with test-time augmentation several."""
        ...

    def blank(self, samples: int) -> Any:
        """Return an empty rendered batch of this many samples, to try whether it fits in memory."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Return the manifest entry."""
        ...


class Renderer(Protocol):
    """Renders batches for one network or more."""

    def batches(self, view: Any, batches: Iterable[Ids]) -> Iterator[Rendition]:
        """Yield batches of sample ids as a view shows them, in order."""
        ...


class Resident(Protocol):
    """Samples that a device renders by itself, each one row, from numbers that lie there before an epoch begins.

    Attributes:
        columns: How many numbers a sample has.
    """

    columns: int

    def numbers(self, view: Any, ids: Ids) -> NDArray[np.int64]:
        """Return the numbers of samples as a view shows them, [N, columns]; on the host."""
        ...

    def inputs(self, numbers: Tensor) -> Any:
        """Return a network's input for a batch from its numbers, [B, columns], without asking the host."""
        ...


class Modality(Protocol):
    """A kind of data: everything about it that is not rows.

    It may also have the methods that `data.optional` calls: `arrange` and `divide` (batches of samples that are put together),
    `continued` (views of a cache that an earlier version began), `for_training` (what a student is given, where that is not what its
    teacher is), `held_out` (samples that are evaluated instead of trained on), `counting` (rows that a loss counts), `save_network` (a
    student in the form that other libraries load), `arrays` and `recorded` (data that a cache carries), `resident` (samples that a
    device renders by itself); and `views_are_equal`, true where all views show the same.

    Attributes:
        name: `images`, or `package.module:name`, by which a cache finds it again.
        unit: Plural of a sample, for progress and speed: "images".
        shown: Name of a network's input in messages: "pixels".
        headline: The metric by which runs are compared: `test_accuracy`, `test_loss` or `perplexity`.
        software: Packages that decide what is rendered, beside numpy and torch; their versions go into the manifest.
        test_time_views: Names of the test-time augmentations, the first of which is none.
    """

    name: str
    unit: str
    shown: str
    headline: str
    software: tuple[str, ...]
    test_time_views: tuple[str, ...]

    def make_views(self, recipe: str, count: int, seed: int) -> Sequence[Any]:
        """Number `count` views of each recipe.

        Raises:
            LogitCacheError: A recipe that is not known, or means nothing.
        """
        ...

    def read_view(self, entry: Mapping[str, Any]) -> Any:
        """Read the manifest entry of a view.

        Raises:
            FormatVersionError: This version renders it differently.
        """
        ...

    def choose_inputs(self, samples: Any, view: Any, *said: Mapping[str, Any]) -> Any:
        """Choose the preprocessing of a network.

        Args:
            samples: The data set.
            view: The view that renders it.
            said: Options from a user, from a file of weights and from a cache; the first that is not None wins.

        Raises:
            InputError: Options that mean nothing.
        """
        ...

    def read_inputs(self, entry: Mapping[str, Any]) -> Any:
        """Read the manifest entry of a preprocessing."""
        ...

    def for_evaluation(self, inputs: Any, samples: Any) -> tuple[Any, Any]:
        """Return preprocessing and view for evaluating, on other samples, a network that was trained with `inputs`."""
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
        """Return what renders batches of samples for networks with these preprocessings.

        `skip_unreadable` is given only where it is true: what cannot be read is left out of its batch then, and named in it. A modality
        may take `on_device` too, which lets batches be rendered and hashed on `device`, to the same bits.
        """
        ...

    def digests(self, samples: Any, view: Any, ids: Ids) -> NDArray[np.uint64]:
        """Render samples and hash what a teacher is shown for each of their rows, [R] uint64."""
        ...

    def row_labels(self, samples: Any, view: Any, ids: Ids) -> RowLabels:
        """Return rows and labels of a batch of samples."""
        ...

    def rows(self, output: Any, keep: Tensor | None, *, classes: int, label: str) -> Iterable[Tensor]:
        """Yield the logits of a network's rows in order, [r, C] each: all at once, or where they are many a chunk at a time.

        Args:
            output: Output of the network.
            keep: As in `RowLabels`, on the device of the output.
            classes: Expected number of logits per row, for the error message.
            label: Subject of the error message, e.g. "the student".

        Raises:
            InputError: The output holds no logits.
        """
        ...

    def network(self, spec: Any, classes: int, weights: str | None) -> Network:
        """Build a network by name and load its weights (see `models.load_network`)."""
        ...

    def part(self, samples: Any, first: int, last: int) -> Any:
        """Return a stretch of a data set, as a data set of its own.

        Raises:
            InputError: This kind of data cannot be divided.
        """
        ...
