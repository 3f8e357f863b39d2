"""Which rows of a training's data count in its loss."""

from typing import Any

import numpy as np

from logitcache.data import excluded_of, kept_of, leave_out, modality_of, whole_of
from logitcache.data.optional import counted_offsets_of, counting
from logitcache.errors import InputError
from logitcache.store import with_rows

__all__ = ["with_loss_on"]


def with_loss_on(samples: Any, loss_on: str | None) -> Any:
    """Return training data with the rows that count; samples without such a row are left out.

    Args:
        samples: The data set.
        loss_on: Rows that count (`LOSSES_ON`). None counts all.

    Raises:
        InputError: In this kind of data every row counts, or none does.
    """
    found = counting(modality_of(samples), samples, loss_on)
    if loss_on is None:
        return found
    kept, offsets = kept_of(found), counted_offsets_of(found)
    gone = np.setdiff1d(kept, with_rows(offsets, kept))
    if len(gone) == len(kept):
        raise InputError(f"--loss-on {loss_on} counts no row of this data: none is of a completion. Leave it out.")
    return leave_out(found, [*excluded_of(found), *(gone + whole_of(found)[1])])
