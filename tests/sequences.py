"""A second modality, for the tests: sequences of digits of any length, with a row for each element but the first.

The label of a row is the sum of the digits so far, modulo `CLASSES`. Named on command lines as sequences:make.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from logitcache.data import Ids, Rendition, RowLabels, rows_of
from logitcache.errors import InputError
from logitcache.models import Network, load_network
from logitcache.runtime.philox import words
from logitcache.store import NumberedClasses

CLASSES, DIGITS, LONGEST = 5, 10, 9


@dataclass(frozen=True)
class View:
    """Shows the digits as they are, or each with something added."""

    recipe: str
    seed: int
    index: int
    group: int
    mixes = False
    runs_others_code = False

    def shown(self, digits: np.ndarray, sample: int) -> np.ndarray:
        if self.recipe == "none":
            return digits
        random = words(self.seed, self.index, np.full(len(digits), sample), 0)[:, 0]
        return (digits + random % 2) % DIGITS

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Inputs:
    """Sequences padded to the longest of the data set."""

    length: int

    def on(self, rendered: Tensor, device: torch.device) -> dict[str, Tensor]:
        return {"digits": rendered.to(device)}

    def variants(self, inputs: Any, test_time_views: str) -> Sequence[Any]:
        return [inputs]

    def blank(self, samples: int) -> Tensor:
        return torch.zeros(samples, self.length, dtype=torch.int64)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Sequences:
    """Labelled sequences, N of them with R rows in all."""

    def __init__(self, sequences: Sequence[np.ndarray]) -> None:
        self.sequences, self.modality = sequences, MODALITY
        self.classes = NumberedClasses(CLASSES)
        self.labels = np.concatenate([np.cumsum(one)[1:] % CLASSES for one in sequences]).astype(np.int64)
        self.offsets = np.cumsum([0, *(len(one) - 1 for one in sequences)])

    def __len__(self) -> int:
        return len(self.sequences)

    def digest(self) -> str:
        return blake2b(b"|".join(one.tobytes() for one in self.sequences), digest_size=16).hexdigest()


class Renderer:
    def __init__(self, data: Sequences, inputs: Sequence[Inputs], with_digests: bool) -> None:
        self.data, self.inputs, self.with_digests = data, inputs, with_digests

    def batches(self, view: View, batches: Iterable[Ids]) -> Iterator[Rendition]:
        for ids in batches:
            shown = torch.full((len(ids), LONGEST), 0)
            for place, sample in enumerate(ids.tolist()):
                digits = view.shown(self.data.sequences[sample], sample)
                shown[place, : len(digits)] = torch.from_numpy(digits)
            digests = MODALITY.digests(self.data, view, ids) if self.with_digests else None
            yield Rendition(ids, tuple(shown for _ in self.inputs), digests)


class Digits:
    name, unit, shown, headline = "sequences:MODALITY", "sequences", "digits", "test_loss"
    software: tuple[str, ...] = ()
    test_time_views: tuple[str, ...] = ("none",)

    def make_views(self, recipe: str, count: int, seed: int) -> list[View]:
        return [View(recipe, seed, index, index) for index in range(count)]

    def read_view(self, entry: Mapping[str, Any]) -> View:
        return View(**entry)

    def choose_inputs(self, samples: Sequences, view: View, *said: Mapping[str, Any]) -> Inputs:
        if unknown := [name for one in said for name, value in one.items() if value is not None and name != "length"]:
            raise InputError(f"sequences have no {unknown[0]}")
        return Inputs(LONGEST)

    def read_inputs(self, entry: Mapping[str, Any]) -> Inputs:
        return Inputs(**entry)

    def for_evaluation(self, inputs: Inputs, samples: Sequences) -> tuple[Inputs, View]:
        return inputs, View("none", 0, 0, 0)

    def renderer(self, samples, inputs, *, with_digests=False, workers=None, device=None) -> Renderer:
        return Renderer(samples, inputs, with_digests)

    def digests(self, samples: Sequences, view: View, ids: Ids) -> np.ndarray:
        """What the teacher was shown for a row: the sequence up to its element."""
        found = []
        for sample in ids.tolist():
            digits = view.shown(samples.sequences[sample], sample)
            found += [blake2b(digits[: end + 1].tobytes(), digest_size=8).digest() for end in range(1, len(digits))]
        return np.array([int.from_bytes(one, "little") for one in found], np.uint64)

    def row_labels(self, samples: Sequences, view: View, ids: Ids) -> RowLabels:
        rows = rows_of(samples.offsets, ids)
        lengths = samples.offsets[ids + 1] - samples.offsets[ids]
        keep = (np.arange(LONGEST) >= 1) & (np.arange(LONGEST) <= lengths[:, None])
        return RowLabels(rows, torch.from_numpy(samples.labels[rows]), None, torch.from_numpy(keep))

    def rows(self, output: Any, keep: Tensor | None, *, classes: int, label: str) -> Iterable[Tensor]:
        assert keep is not None
        kept = output["logits"][keep]
        yield from kept.split(7)  # a chunk at a time, as where rows are many

    def network(self, spec: Any, classes: int, weights: str | None) -> Network:
        return load_network(spec, classes, weights)

    def part(self, samples: Sequences, first: int, last: int) -> Any:
        raise InputError("sequences cannot be divided")


MODALITY = Digits()


class Net(nn.Module):
    """Reads the digits so far; returns [B, T, C] by name."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embed, self.hidden = nn.Embedding(DIGITS, 16), nn.Linear(16, 32)
        self.drop, self.out = nn.Dropout(0.1), nn.Linear(32, classes)

    def forward(self, digits: Tensor) -> dict[str, Tensor]:
        return {"logits": self.out(self.drop(torch.sin(self.hidden(self.embed(digits).cumsum(1)))))}


def teacher(classes: int) -> Net:
    """The same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return Net(classes)


def make(split: str) -> Sequences:
    random = np.random.RandomState(len(split))
    lengths = random.randint(2, LONGEST + 1, 90 if split == "train" else 40)
    return Sequences([random.randint(0, DIGITS, length) for length in lengths])
