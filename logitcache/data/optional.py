"""What a modality may do besides, each with what happens where it does not."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from logitcache.data.protocol import Ids, Modality, Resident, offsets_of
from logitcache.errors import InputError
from logitcache.store import Cache

__all__ = [
    "arranged",
    "batched_unit",
    "carried_arrays",
    "carried_data",
    "carried_stretch",
    "carried_together",
    "continued",
    "counted_offsets_of",
    "counting",
    "divided",
    "facts_of",
    "for_training",
    "held_out",
    "measured_besides",
    "resident_samples",
    "save_network",
    "usual_batch",
    "usual_training",
    "views_are_equal",
    "with_recorded",
]

_USUAL_BATCH = 256


def arranged(
    modality: Modality, samples: Any, inputs: Any, order: Ids, size: int, *, drop_last: bool = False
) -> list[Ids]:
    """Divide an epoch's order of samples into batches: `size` consecutive samples each, or as the modality's `arrange` puts them together.

    Args:
        modality: Kind of the data.
        samples: The data set.
        inputs: The student's.
        order: Sample ids, [N].
        size: Samples of a batch, or what the modality counts: of text, sequences.
        drop_last: Whether to leave out a last batch that is smaller.
    """
    if (arrange := getattr(modality, "arrange", None)) is not None:
        found: list[Ids] = arrange(samples, inputs, order, size, drop_last=drop_last)
        return found
    used = len(order) - len(order) % size if drop_last else len(order)
    return [order[start : min(start + size, used)] for start in range(0, used, size)]


def continued(modality: Modality, views: Sequence[Any], begun: Sequence[Mapping[str, Any]]) -> tuple[Any, ...]:
    """Return views as a cache has them that an earlier version may have begun, as the modality's `continued` knows.

    Args:
        modality: Kind of the data.
        views: Views as this version makes them.
        begun: Manifest entries of the views of the cache.
    """
    method = getattr(modality, "continued", None)
    return tuple(views if method is None else method(views, begun))


def batched_unit(modality: Modality) -> str:
    """Return the plural of what `--batch-size` counts: samples, or what the modality's `arrange` makes of them."""
    return str(getattr(modality, "batched_unit", modality.unit))


def divided(modality: Modality, samples: Any, inputs: Any, batch: Ids, size: int) -> list[Ids]:
    """Divide a batch into the fewest parts of at most `size` samples, as even as can be; or as the modality's `divide` counts.

    Args:
        modality: Kind of the data.
        samples: The data set.
        inputs: The student's.
        batch: Sample ids, as `arranged` lists them.
        size: Samples of a part, or what the modality counts.
    """
    if (divide := getattr(modality, "divide", None)) is not None:
        found: list[Ids] = divide(samples, inputs, batch, size)
        return found
    return np.array_split(batch, -(-len(batch) // size))


def for_training(modality: Modality, inputs: Any, samples: Any, sequence_length: int | None = None) -> Any:
    """Return what a student is given while it trains: what was chosen for it, or what the modality's `for_training` makes of that.

    Args:
        modality: Kind of the data.
        inputs: What `Modality.choose_inputs` chose.
        samples: The data set.
        sequence_length: Tokens of a sequence, where somebody asks for so many.

    Raises:
        InputError: This kind of data has no sequences.
    """
    if (change := getattr(modality, "for_training", None)) is not None:
        return change(inputs, samples, sequence_length)
    if sequence_length is not None:
        raise _for_text("--sequence-length", modality)
    return inputs


def counting(modality: Modality, samples: Any, loss_on: str | None) -> Any:
    """Return a data set of which only some rows count in a loss, as the modality's `counting` chooses them.

    Args:
        modality: Kind of the data.
        samples: The data set.
        loss_on: Rows that count, in the words of `--loss-on`. None counts all.

    Raises:
        InputError: In this kind of data every row counts.
    """
    if loss_on is None:
        return samples
    if (choose := getattr(modality, "counting", None)) is None:
        raise _for_text("--loss-on", modality)
    return choose(samples, loss_on)


def counted_offsets_of(samples: Any) -> Ids | None:
    """Return the number of rows that count in a loss before each sample, and of all at the end, [N + 1]; None where each is one row."""
    found: Ids | None = getattr(samples, "counted_offsets", None)
    return offsets_of(samples) if found is None else found


def held_out(modality: Modality, samples: Any, kept: Ids, share: float) -> Ids:
    """Return the samples that are evaluated instead of trained on, as the modality's `held_out` chooses them, ascending.

    Args:
        modality: Kind of the data.
        samples: The data set.
        kept: Samples that are not left out, ascending.
        share: Fraction of these samples to hold out.

    Raises:
        InputError: This kind of data holds none out, or no other would be left.
    """
    if (choose := getattr(modality, "held_out", None)) is None:
        raise _for_text("--holdout", modality)
    found: Ids = choose(samples, kept, share)
    return found


def measured_besides(
    modality: Modality, samples: Any, loss: float, rows: int, ids: Ids, names: Sequence[str]
) -> Mapping[str, float]:
    """Return further metrics of an evaluation.

    Args:
        modality: Kind of the data.
        samples: The data set.
        loss: Mean cross-entropy in nats.
        rows: Number of rows.
        ids: Samples that were evaluated, ascending.
        names: Names of networks that may have what belongs to the data, as a tokenizer.
    """
    found = getattr(modality, "measured_besides", None)
    return {} if found is None else found(samples, loss, rows, ids, names)


def resident_samples(
    modality: Modality, samples: Any, views: Sequence[Any], inputs: Any, device: torch.device
) -> tuple[Resident | None, str]:
    """Return samples that a device renders by itself, or None and the reason.

    Args:
        modality: Kind of the data.
        samples: The data set.
        views: All views that will be shown.
        inputs: The student's preprocessing.
        device: The device.
    """
    if (find := getattr(modality, "resident", None)) is None:
        return None, f"{modality.name} is rendered by the host"
    found: tuple[Resident | None, str] = find(samples, views, inputs, device)
    return found


def save_network(modality: Modality, samples: Any, network: Any, folder: Path, names: Sequence[str]) -> None:
    """Write a trained network also in the form that other libraries load; nothing where its kind of data has none.

    Args:
        modality: Kind of the data.
        samples: The data set.
        network: The network.
        folder: Folder to write to; files of the same names are replaced.
        names: Names of networks that may have what belongs to the data, as a tokenizer: teacher, student.
    """
    if (save := getattr(modality, "save_network", None)) is not None:
        save(samples, network, folder, names)


def usual_training(modality: Modality, student: Any) -> Mapping[str, Any]:
    """Return settings of a training that are usual for a kind of data; none where the defaults are meant for it."""
    found = getattr(modality, "usual_training", None)
    return {} if found is None else found(student)


def usual_batch(modality: Modality) -> int:
    """Return how many samples a teacher is given at a time where nobody says it."""
    return int(getattr(modality, "usual_batch", _USUAL_BATCH))


def facts_of(samples: Any) -> Mapping[str, Any]:
    """Return what a manifest records of a data set in `data`, besides what it records of every one."""
    found: Mapping[str, Any] = getattr(samples, "facts", {})
    return found


def carried_arrays(modality: Modality, samples: Any) -> Mapping[str, tuple[str, NDArray[Any]]]:
    """Return the arrays that a cache carries of its data: name to the name of their axis and their values; of images none."""
    arrays = getattr(modality, "arrays", None)
    found: Mapping[str, tuple[str, NDArray[Any]]] = {} if arrays is None else arrays(samples)
    return found


def carried_data(modality: Modality, cache: Cache) -> Any | None:
    """Return the data that a cache carries; None where its kind of data stays outside."""
    recorded = getattr(modality, "recorded", None)
    return None if recorded is None else recorded(cache)


def carried_stretch(modality: Modality, cache: Cache, first: int, last: int) -> Mapping[str, tuple[str, NDArray[Any]]]:
    """Return what a stretch of a cache carries: of its samples, numbered as in the cache, from the first to one before the last."""
    data = carried_data(modality, cache)
    return {} if data is None else carried_arrays(modality, modality.part(data, first, last))


def carried_together(modality: Modality, caches: Sequence[Cache]) -> Mapping[str, tuple[str, NDArray[Any]]]:
    """Return what a cache carries that joins stretches of one data set, in order."""
    every = [carried_data(modality, cache) for cache in caches]
    join = getattr(modality, "joined", None)
    return {} if join is None or None in every else carried_arrays(modality, join(every))


def _for_text(option: str, modality: Modality) -> InputError:
    """Return the error for an option of text beside data of another kind."""
    return InputError(f"{option} is for text, and the data is {modality.name}: leave it out")


def with_recorded(modality: Modality, cache: Cache, views: list[Any]) -> list[Any]:
    """Return views with what a cache records of them besides the manifest: how another tool, whose rows it holds, made each input."""
    attach = getattr(modality, "with_recorded", None)
    return views if attach is None else attach(cache, views)


def views_are_equal(modality: Modality) -> bool:
    """Return whether all views show the same, because this kind of data is never augmented."""
    return bool(getattr(modality, "views_are_equal", False))
