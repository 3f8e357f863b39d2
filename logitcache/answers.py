"""What the teacher says about a batch: from the cache, live, or nothing at all. The training loop cannot tell them apart."""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from logitcache.data import Rendered
from logitcache.encoding import FullEncoding
from logitcache.errors import CacheMismatchError
from logitcache.models import hash_weights, load_network
from logitcache.store import Cache, ViewStream
from logitcache.teacher import Teacher
from logitcache.views import View
from logitcache.views.geometry import Preprocessing

__all__ = ["Answers", "CachedAnswers", "LabelsOnly", "LiveAnswers", "live_teacher_of", "teacher_classes"]


class Answers(Protocol):
    """Where a teacher's logits come from.

    Attributes:
        name: `cached`, `live` or `unused`; recorded with the run.
        eyes: The preprocessing a live teacher looks through; its pixels stand second in a batch.
    """

    name: str
    eyes: tuple[Preprocessing, ...]

    def begin(self, view: View, upcoming: View) -> None:
        """Prepare for an epoch of one view; another comes next."""

    def logits(self, batch: Rendered) -> Tensor | None:
        """Answer for a batch: [B, C] float32 without gradient, on the student's device; None where nobody answers."""

    def close(self) -> None:
        """Let go of threads."""


class LabelsOnly:
    """No teacher."""

    name = "unused"
    eyes: tuple[Preprocessing, ...] = ()

    def begin(self, view: View, upcoming: View) -> None:
        """Do nothing."""

    def logits(self, batch: Rendered) -> Tensor | None:
        """Answer nothing."""
        del batch
        return None

    def close(self) -> None:
        """Do nothing."""


class CachedAnswers:
    """What the teacher said: a view in memory, a batch one gather, decoded on the student's device."""

    name = "cached"
    eyes: tuple[Preprocessing, ...] = ()

    def __init__(self, cache: Cache, device: torch.device) -> None:
        self._stream, self._device = ViewStream(cache, cache.teachers[0]), device
        self._encoding = FullEncoding.from_json(cache.manifest.encoding)

    def begin(self, view: View, upcoming: View) -> None:
        """Take the view into memory, and have the next one fetched meanwhile."""
        columns = self._stream.take(view.index, upcoming.index)
        self._columns = {name: torch.from_numpy(column) for name, column in columns.items()}

    def logits(self, batch: Rendered) -> Tensor:
        """Gather and decode the batch's rows."""
        samples = torch.from_numpy(batch.samples)
        rows = {name: column.index_select(0, samples).to(self._device) for name, column in self._columns.items()}
        return self._encoding.decode(rows)

    def close(self) -> None:
        """End the thread that reads ahead."""
        self._stream.close()


class LiveAnswers(LabelsOnly):
    """The teacher itself, run as it was for the cache."""

    name = "live"

    def __init__(self, teacher: Teacher) -> None:
        self._teacher, self.eyes = teacher, (teacher.preprocessing,)

    def logits(self, batch: Rendered) -> Tensor:
        """Run the teacher."""
        return self._teacher.logits(batch.pixels[1])


def live_teacher_of(cache: Cache, module: nn.Module | None, weights: str | None, device: torch.device) -> Teacher:
    """Build the teacher of a cache, to run as it ran for the dump.

    Args:
        cache: Says which teacher, batch size, threads and preprocessing.
        module: The network, where it has no name.
        weights: Where its weights are, if not where the dump found them.
        device: Where to run it.

    Raises:
        CacheMismatchError: Its weights are others.
        InputError: It cannot be built.
    """
    manifest, entry = cache.manifest, cache.manifest.teachers[0]
    network = load_network(module or entry["name"], len(manifest.classes), weights or entry["weights"] or None)
    found = hash_weights(network.module.state_dict())
    if found != entry["weights_sha256"]:
        raise CacheMismatchError(
            f"the live teacher {network.name} has weights sha256 {found[:12]}, {cache.path} was dumped with "
            f"{entry['weights_sha256'][:12]}. Name the recorded weights with --teacher-weights, or dump again."
        )
    return Teacher(
        network,
        Preprocessing.from_json(manifest.preprocessing),
        classes=len(manifest.classes),
        batch_size=manifest.batch_size,
        threads=manifest.threads,
        device=device,
    )


def teacher_classes(cache: Cache, view: View, samples: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the class of the teacher's largest stored logit for samples of a view, [B]."""
    stored = cache.view(view.index, cache.teachers[0])
    rows = {name: torch.from_numpy(column[samples]) for name, column in stored.items()}
    return FullEncoding.from_json(cache.manifest.encoding).decode(rows).argmax(1).numpy()
