"""Top-k rows from log-probabilities of a server or of another tool's cache.

These list the largest classes and the true token at temperature 1. Only the total mass of the other classes is known, as what is missing
to 1.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from logitcache.encoding.topk import TopKRows
from logitcache.errors import InputError

__all__ = ["rows_of_logprobs"]

_ABOVE_ONE = 1e-2  # tolerance of sums above 1, for float16 probabilities
_LEAST = 2.0**-24  # resolution of float32 near 1


def rows_of_logprobs(
    ids: NDArray[np.int64],
    logprobs: NDArray[Any],
    labels: NDArray[np.int64],
    k: int,
    classes: int,
    *,
    own: bool = True,
) -> TopKRows:
    """Keep the k largest classes and the label of each row, and assign the missing probability to the rest.

    Ids beyond the vocabulary are dropped and the remaining probabilities are renormalized.

    Args:
        ids: Distinct classes of each row in any order, [R, M], padded with -1.
        logprobs: Log-probabilities of these classes at temperature 1, [R, M].
        labels: True class of each row, [R].
        k: Number of largest classes to keep besides the label.
        classes: Number of classes C.
        own: Whether each row lists its label. If False, an unlisted label gets an equal share of the unlisted classes' mass.

    Returns:
        Top-k rows of k + 1 classes.

    Raises:
        InputError: If a row lacks its label, has too few classes, or does not contain log-probabilities.
    """
    where, values, true = torch.from_numpy(ids), torch.from_numpy(logprobs).double(), torch.from_numpy(labels)[:, None]
    there = where >= 0
    _refuse(~(torch.isfinite(values) | ~there).all(1), "has a log-probability that is not finite")
    _refuse((values.masked_fill(~there, 0) > 1e-3).any(1), "has log-probabilities above 0: are they logits?")
    beyond = there & (where >= classes)
    if bool(beyond.any()):
        values = values - torch.log1p(-values.exp().masked_fill(~beyond, 0).sum(1, keepdim=True).clamp(max=1 - 1e-9))
        there = there & ~beyond
    values = values.masked_fill(~there, -torch.inf)
    if not own:
        where, values, there = _with_labels(where, values, there, true, classes)
    named = there & (where == true)
    _refuse(named.sum(1) != 1, "does not list its label exactly once")
    _refuse(there.sum(1) < k + 1, f"has fewer than {k + 1} classes", counts=there.sum(1))
    # Ties are broken by the lower id, as in a dump.
    where, order = torch.where(there, where, classes).sort(1)
    twice = (where[:, 1:] == where[:, :-1]) & (where[:, 1:] < classes)
    _refuse(twice.any(1), "names a class twice")
    values, named = values.gather(1, order), named.gather(1, order)
    order = values.masked_fill(named, torch.inf).sort(dim=1, descending=True, stable=True).indices
    kept, left = order[:, : k + 1].sort(1).values, order[:, k + 1 :]
    sums = values.exp().gather(1, kept).sum(1, keepdim=True)
    _refuse((sums > 1 + _ABOVE_ONE).squeeze(1), "has probabilities that sum to more than 1", counts=sums.squeeze(1))
    known = values.exp().gather(1, left).sum(1, keepdim=True)
    values, is_label = values.gather(1, kept), named.gather(1, kept)
    smallest = values.masked_fill(is_label, torch.inf).amin(1, keepdim=True)  # upper bound for the classes in the rest
    most = (classes - k - 1) * smallest.exp()
    mass = (1 - sums).maximum(known).clamp(min=_LEAST).minimum(most).clamp(min=1e-30)
    rest = torch.full((len(values), 4), torch.nan)
    rest[:, 2:3] = mass.log().float()
    label_value = values.masked_fill(~is_label, 0).sum(1, keepdim=True)
    unranked = (values > label_value).sum(1) == k
    return TopKRows(where.gather(1, kept), values.float(), rest, classes, unranked, mass_only=True)


def _with_labels(
    where: torch.Tensor, values: torch.Tensor, there: torch.Tensor, labels: torch.Tensor, classes: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Append unlisted labels with an equal share of the mass that the listed classes leave, [R, M + 1] each."""
    missing = ~(there & (where == labels)).any(1, keepdim=True)
    mass = (1 - values.exp().sum(1, keepdim=True)).clamp(min=_LEAST)
    others = (classes - there.sum(1, keepdim=True)).clamp(min=1)
    share = (mass / others).log().minimum(values.masked_fill(~there, torch.inf).amin(1, keepdim=True))
    return (
        torch.cat([where, torch.where(missing, labels, -1)], 1),
        torch.cat([values, share.masked_fill(~missing, -torch.inf)], 1),
        torch.cat([there, missing], 1),
    )


def _refuse(wrong: torch.Tensor, problem: str, counts: torch.Tensor | None = None) -> None:
    """Raise InputError for the first row where `wrong`, [R] bool, is true."""
    if bool(wrong.any()):
        row = int(wrong.int().argmax())
        found = "" if counts is None else f" ({counts[row].item():g})"
        raise InputError(f"row {row} {problem}{found}")
