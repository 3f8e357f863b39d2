"""Rows to logits with numpy alone, for readers that must not wait for torch; the tests hold it equal to `encoding`."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import FormatVersionError

__all__ = ["decode_rows"]


def decode_rows(encoding: Mapping[str, Any], columns: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Turn columns into logits, [B, C] float32.

    Args:
        encoding: The manifest's entry.
        columns: Name to rows.

    Raises:
        FormatVersionError: This logitcache does not know the encoding.
    """
    if encoding["kind"] != "full":
        raise FormatVersionError(
            f"the cache has encoding {encoding['kind']!r}; this logitcache reads: full. Upgrade it."
        )
    return columns["logits"].astype(np.float32)
