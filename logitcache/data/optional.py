"""Optional methods of a modality, with the default behavior if it does not have them."""

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
    "has_fixed_shapes",
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
    """Divide an epoch's samples into batches: `size` consecutive samples each, or as the modality's `arrange` packs them.

    Args:
        modality: Modality of the data.
        samples: Data set.
        inputs: Preprocessing of the student.
        order: Sample ids in the order of the epoch, [N].
        size: Batch size in samples, or in the modality's own unit (sequences for text).
        drop_last: Whether to leave out a smaller last batch.
    """
    if (arrange := getattr(modality, "arrange", None)) is not None:
        found: list[Ids] = arrange(samples, inputs, order, size, drop_last=drop_last)
        return found
    used = len(order) - len(order) % size if drop_last else len(order)
    return [order[start : min(start + size, used)] for start in range(0, used, size)]


def continued(modality: Modality, views: Sequence[Any], begun: Sequence[Mapping[str, Any]]) -> tuple[Any, ...]:
    """Return views that are compatible with an unfinished cache of an earlier version (the modality's `continued`).

    Args:
        modality: Modality of the data.
        views: Views as this version makes them.
        begun: Manifest entries of the views of the cache.
    """
    method = getattr(modality, "continued", None)
    return tuple(views if method is None else method(views, begun))


def batched_unit(modality: Modality) -> str:
    """Return the plural name of the unit of `--batch-size`: that of samples, or the modality's own."""
    return str(getattr(modality, "batched_unit", modality.unit))


def divided(modality: Modality, samples: Any, inputs: Any, batch: Ids, size: int) -> list[Ids]:
    """Divide a batch into as few micro-batches of at most `size` samples as possible, of similar size (or the modality's `divide`).

    Args:
        modality: Modality of the data.
        samples: Data set.
        inputs: Preprocessing of the student.
        batch: Sample ids of a batch from `arranged`.
        size: Size of a micro-batch in samples, or in the modality's own unit.
    """
    if (divide := getattr(modality, "divide", None)) is not None:
        found: list[Ids] = divide(samples, inputs, batch, size)
        return found
    return np.array_split(batch, -(-len(batch) // size))


def for_training(modality: Modality, inputs: Any, samples: Any, sequence_length: int | None = None) -> Any:
    """Return the preprocessing of a student for training: `inputs`, or the result of the modality's `for_training`.

    Args:
        modality: Modality of the data.
        inputs: Preprocessing chosen by `Modality.choose_inputs`.
        samples: Data set.
        sequence_length: Length of a sequence in tokens, if the user sets it.

    Raises:
        InputError: If this kind of data has no sequences.
    """
    if (change := getattr(modality, "for_training", None)) is not None:
        return change(inputs, samples, sequence_length)
    if sequence_length is not None:
        raise _for_text("--sequence-length", modality)
    return inputs


def counting(modality: Modality, samples: Any, loss_on: str | None) -> Any:
    """Return a copy of a data set in which only some rows count in the loss (the modality's `counting`).

    Args:
        modality: Modality of the data.
        samples: Data set.
        loss_on: Rows that count, a value of `--loss-on`. None counts all.

    Raises:
        InputError: If the modality does not support this.
    """
    if loss_on is None:
        return samples
    if (choose := getattr(modality, "counting", None)) is None:
        raise _for_text("--loss-on", modality)
    return choose(samples, loss_on)


def counted_offsets_of(samples: Any) -> Ids | None:
    """Return the number of rows before each sample that count in the loss, and the total, [N + 1]; None if each sample is one row."""
    found: Ids | None = getattr(samples, "counted_offsets", None)
    return offsets_of(samples) if found is None else found


def held_out(modality: Modality, samples: Any, kept: Ids, share: float) -> Ids:
    """Return the samples to hold out for evaluation, ascending (the modality's `held_out`).

    Args:
        modality: Modality of the data.
        samples: Data set.
        kept: Samples that are not excluded, ascending.
        share: Fraction of these samples to hold out.

    Raises:
        InputError: If the modality does not support this, or no sample would be left to train on.
    """
    if (choose := getattr(modality, "held_out", None)) is None:
        raise _for_text("--holdout", modality)
    found: Ids = choose(samples, kept, share)
    return found


def measured_besides(
    modality: Modality, samples: Any, loss: float, rows: int, ids: Ids, names: Sequence[str]
) -> Mapping[str, float]:
    """Return additional metrics of an evaluation.

    Args:
        modality: Modality of the data.
        samples: Data set.
        loss: Mean cross-entropy in nats.
        rows: Number of rows.
        ids: Samples that were evaluated, ascending.
        names: Names of networks that may come with files the modality needs, such as a tokenizer.
    """
    found = getattr(modality, "measured_besides", None)
    return {} if found is None else found(samples, loss, rows, ids, names)


def resident_samples(
    modality: Modality, samples: Any, views: Sequence[Any], inputs: Any, device: torch.device
) -> tuple[Resident | None, str]:
    """Return samples that are rendered on the device without the host, or None and the reason.

    Args:
        modality: Modality of the data, with fixed shapes.
        samples: Data set.
        views: All views that will be rendered.
        inputs: Preprocessing of the student.
        device: Device that renders.
    """
    found: tuple[Resident | None, str] = modality.resident(samples, views, inputs, device)  # type: ignore[attr-defined]
    return found


def has_fixed_shapes(modality: Modality) -> bool:
    """Return whether each sample is one row and one entry of a tensor of fixed shape, which a modality with `resident` promises."""
    return hasattr(modality, "resident")


def save_network(modality: Modality, samples: Any, network: Any, folder: Path, names: Sequence[str]) -> None:
    """Save a trained network in the format of other libraries too, if the modality has one.

    Args:
        modality: Modality of the data.
        samples: Data set.
        network: Trained network.
        folder: Folder to write to; existing files of the same names are replaced.
        names: Names of networks (teacher, student) that may come with files the modality needs, such as a tokenizer.
    """
    if (save := getattr(modality, "save_network", None)) is not None:
        save(samples, network, folder, names)


def usual_training(modality: Modality, student: Any) -> Mapping[str, Any]:
    """Return the modality's default training settings, where they differ from the general defaults."""
    found = getattr(modality, "usual_training", None)
    return {} if found is None else found(student)


def usual_batch(modality: Modality) -> int:
    """Return the default batch size of a teacher."""
    return int(getattr(modality, "usual_batch", _USUAL_BATCH))


def facts_of(samples: Any) -> Mapping[str, Any]:
    """Return the facts about a data set that the manifest records in `data` in addition to the common ones."""
    found: Mapping[str, Any] = getattr(samples, "facts", {})
    return found


def carried_arrays(modality: Modality, samples: Any) -> Mapping[str, tuple[str, NDArray[Any]]]:
    """Return the arrays of the data that a cache carries: name to axis name and values; none for images."""
    arrays = getattr(modality, "arrays", None)
    found: Mapping[str, tuple[str, NDArray[Any]]] = {} if arrays is None else arrays(samples)
    return found


def carried_data(modality: Modality, cache: Cache) -> Any | None:
    """Return the data that a cache carries, or None if the modality does not store data in caches."""
    recorded = getattr(modality, "recorded", None)
    return None if recorded is None else recorded(cache)


def carried_stretch(modality: Modality, cache: Cache, first: int, last: int) -> Mapping[str, tuple[str, NDArray[Any]]]:
    """Return the arrays that a cache of samples `first` to `last` - 1 would carry; samples are numbered as in `cache`."""
    data = carried_data(modality, cache)
    return {} if data is None else carried_arrays(modality, modality.part(data, first, last))


def carried_together(modality: Modality, caches: Sequence[Cache]) -> Mapping[str, tuple[str, NDArray[Any]]]:
    """Return the arrays that a cache carries when it joins caches of consecutive stretches of one data set."""
    every = [carried_data(modality, cache) for cache in caches]
    join = getattr(modality, "joined", None)
    return {} if join is None or None in every else carried_arrays(modality, join(every))


def _for_text(option: str, modality: Modality) -> InputError:
    """Return the error for an option for text that is given for other data."""
    return InputError(f"{option} is for text, but the data is {modality.name}; leave it out")


def with_recorded(modality: Modality, cache: Cache, views: list[Any]) -> list[Any]:
    """Return views with the parameters of another tool's augmentation attached, which a cache of imported rows records."""
    attach = getattr(modality, "with_recorded", None)
    return views if attach is None else attach(cache, views)


def views_are_equal(modality: Modality) -> bool:
    """Return whether all views are the same, because the modality has no augmentation."""
    return bool(getattr(modality, "views_are_equal", False))
