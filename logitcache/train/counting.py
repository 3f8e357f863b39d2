"""Selection of the rows of the training data that count in the loss."""

from typing import Any

import numpy as np

from logitcache.data import excluded_of, kept_of, leave_out, modality_of, whole_of
from logitcache.data.optional import counted_offsets_of, counting
from logitcache.errors import InputError
from logitcache.store import with_rows

__all__ = ["with_loss_on"]


def with_loss_on(samples: Any, loss_on: str | None) -> Any:
    """Return a copy of the training data in which only some rows count in the loss; samples without such a row are excluded.

    Args:
        samples: Data set.
        loss_on: Rows that count, one of `LOSSES_ON`. None counts all.

    Raises:
        InputError: If the modality does not support this, or no row counts.
    """
    found = counting(modality_of(samples), samples, loss_on)
    if loss_on is None:
        return found
    kept, offsets = kept_of(found), counted_offsets_of(found)
    gone = np.setdiff1d(kept, with_rows(offsets, kept))
    if len(gone) == len(kept):
        raise InputError(f"--loss-on {loss_on} selects no row of this data, which has no completions. Leave it out.")
    return leave_out(found, [*excluded_of(found), *(gone + whole_of(found)[1])])
