"""Rows from log-probabilities that somebody else computed: a server, or another tool's cache.

They give the largest of a row and the true token's, at temperature 1. Of the other classes only the mass is known: what is missing to 1.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from logitcache.encoding.topk import TopKRows
from logitcache.errors import InputError

__all__ = ["rows_of_logprobs"]

_ABOVE_ONE = 1e-2  # by which probabilities in float16 may exceed it
_LEAST = 2.0**-24  # what float32 can tell of a sum near 1


def rows_of_logprobs(
    ids: NDArray[np.int64],
    logprobs: NDArray[Any],
    labels: NDArray[np.int64],
    k: int,
    classes: int,
    *,
    own: bool = True,
) -> TopKRows:
    """Choose the k largest and the label's of each row, and give what is missing to probability 1 to the rest.

    Ids beyond the vocabulary are left out, and the others' probabilities divided by what remains, as if the teacher did not have them.

    Args:
        ids: Classes of each row, each once, in any order, [R, M]; -1 where a row has fewer.
        logprobs: Log-probabilities of these classes at temperature 1, [R, M].
        labels: True classes, [R].
        k: Number of the largest to keep beside the label.
        classes: Number of classes, C.
        own: Whether each row names its label. Else a label that a row does not name has the share of the unnamed classes' mass that each
            of them has, as if they were equal.

    Returns:
        Rows of k + 1 classes.

    Raises:
        InputError: A row lacks its label, has fewer classes, or is no set of log-probabilities; says which.
    """
    where, values, true = torch.from_numpy(ids), torch.from_numpy(logprobs).double(), torch.from_numpy(labels)[:, None]
    there = where >= 0
    _refuse(~(torch.isfinite(values) | ~there).all(1), "has a log-probability that is no number")
    _refuse((values.masked_fill(~there, 0) > 1e-3).any(1), "has log-probabilities above 0: are they logits?")
    beyond = there & (where >= classes)
    if bool(beyond.any()):
        values = values - torch.log1p(-values.exp().masked_fill(~beyond, 0).sum(1, keepdim=True).clamp(max=1 - 1e-9))
        there = there & ~beyond
    values = values.masked_fill(~there, -torch.inf)
    if not own:
        where, values, there = _with_labels(where, values, there, true, classes)
    named = there & (where == true)
    _refuse(named.sum(1) != 1, "does not name its own token once")
    _refuse(there.sum(1) < k + 1, f"has fewer than {k + 1} classes", counts=there.sum(1))
    # Of equals the first ids are taken, as a dump takes them.
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
    smallest = values.masked_fill(is_label, torch.inf).amin(1, keepdim=True)  # none of the rest is larger
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
    """Name the label in rows that do not: with its share of what the named classes leave to the others, [R, M + 1] each."""
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
    """Raise InputError for the first row that is wrong, [R] bool."""
    if bool(wrong.any()):
        row = int(wrong.int().argmax())
        found = "" if counts is None else f" ({counts[row].item():g})"
        raise InputError(f"row {row} {problem}{found}")
