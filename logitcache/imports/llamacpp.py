"""Read the file written by `llama-perplexity --kl-divergence-base FILE`.

The file starts with `_logits_`, then as int32 the length of a chunk, the number of ids, the number of chunks, and all tokens. Each chunk
has a row for each position of its second half: scale and lowest log-probability, float32 each, and a uint16 code for each id, padded to
an even number. Log-probability = scale · code + lowest. Logits more than 16 below the largest have code 0, so only the mass of the
smallest is used, which is the remainder.

The model sees its BOS token, if it has one, in place of the first token of each chunk. The file has the original token there and does not
record the BOS token.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from logitcache.errors import InputError
from logitcache.imports.reader import Document, files_of
from logitcache.teachers.given import KnownRows

__all__ = ["LlamaCppReader"]

_MAGIC, _HEADER = b"_logits_", 20


class LlamaCppReader:
    """Reads one memory-mapped file."""

    own = True

    def __init__(self, source: str | Path, bos: int | None) -> None:
        """Read the header.

        Raises:
            InputError: The file has a different format or is truncated, or `bos` is missing.
        """
        (file,) = files_of(source, ".bin", ".kld", ".dat", ".logits")[:1]
        data = np.memmap(file, np.uint8, "r") if file.stat().st_size else np.empty(0, np.uint8)
        if len(data) < _HEADER or data[:8].tobytes() != _MAGIC:
            raise InputError(
                f"{file} is not a file of llama-perplexity --kl-divergence-base: it does not start with _logits_"
            )
        length, ids, chunks = data[8:_HEADER].view("<i4").tolist()
        if length < 2 or ids < 2 or chunks < 1:
            raise InputError(f"{file} has an invalid header: {chunks} chunks of {length} tokens, {ids} ids")
        if bos is None:
            raise InputError(
                f"{file} does not record the token that the model saw in place of the first token of each chunk; set --bos ID (the "
                "tokenizer's BOS token if llama.cpp adds one), or --bos -1 if it adds none"
            )
        if not -1 <= bos < ids:
            raise InputError(f"--bos {bos} is out of range: {file} has {ids:,} ids")
        self._first = length // 2
        self._count, self._width = length - 1 - self._first, 2 * ((ids + 1) // 2) + 4
        begin = _HEADER + 4 * length * chunks
        expected = begin + 2 * chunks * self._count * self._width
        if len(data) != expected:
            raise InputError(
                f"{file} has {len(data):,} bytes, but {chunks} chunks of {length} tokens take {expected:,}; it was truncated "
                "(llama-perplexity does not notice a full disk). Make it again."
            )
        self._tokens = data[_HEADER:begin].view("<i4").reshape(chunks, length)
        self._rows = data[begin:].view("<u2").reshape(chunks, self._count, self._width)
        self.vocabulary: int | None = ids
        self._bos, self.facts = bos, dict[str, Any]({"bos": bos})

    def documents(self) -> Iterator[Document]:
        """Yield the chunks; the second half of each has rows."""
        targets = np.zeros(self._tokens.shape[1], np.bool_)
        targets[self._first + 1 :] = True
        for chunk in self._tokens:
            tokens = chunk.astype(np.int64)
            if self._bos >= 0:
                tokens[0] = self._bos
            yield Document(tokens, targets)

    def rows(self, number: int, largest: int) -> KnownRows:
        """Return the largest log-probabilities at each position of a chunk, and that of the token itself."""
        stored, ids = self._rows[number], int(self.vocabulary or 0)
        scale, lowest = (stored[:, at : at + 2].copy().view("<f4") for at in (0, 2))
        codes = stored[:, 4 : 4 + ids]
        labels = self._tokens[number][self._first + 1 :].astype(np.int64)[:, None]
        count = min(largest + 1, ids)
        top = np.argpartition(codes, ids - count, 1)[:, ids - count :].astype(np.int64)
        found = np.concatenate([np.where(top == labels, -1, top), labels], 1)
        values = scale * np.take_along_axis(codes, np.maximum(found, 0), 1).astype(np.float32) + lowest
        whole = self._first + self._count
        logprobs, every = np.full((whole, count + 1), -np.inf), np.full((whole, count + 1), -1, np.int64)
        every[self._first :], logprobs[self._first :] = found, np.where(found >= 0, values, -np.inf)
        return KnownRows(every, logprobs)
