"""Read DistillKit's data sets: Parquet with `input_ids` and rows in one of three forms. List i is the distribution of token i + 1.

* `token_ids`, `top_values`: uncompressed. `logitcache export --layout documents` also writes this form.
* `bytepacked_indices`, `compressed_logprobs`: ids in ceil(log2 d) bits each, most significant bit first. Of the k log-probabilities in
  descending order, the first `exact_k` are exact. The others are a sum of terms in their index t (from 0, or scaled to [0, 1] with
  `normalize_t`) and of residuals in bins, each with a scale and integers. With `delta_encoding`, the values are differences of
  neighbors.
* `packed_indices`, `exact_values`, `coeffs`: as many ids as fit into each 64-bit word, lowest bits first. The remaining values are a
  polynomial in t + 1 (in 1 / (t + 1) with `invert_polynomial`), optionally with a square root. Rows of this form may hold logits, from
  which the mass of the rest is unknown; such rows are refused.
"""

import json
import math
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.errors import InputError, first_line
from logitcache.imports.reader import Document, files_of
from logitcache.runtime.plugins import import_extra
from logitcache.teachers.given import KnownRows, rectangular

__all__ = ["DistillKitReader"]

_CODEC = "compression_config.yaml"
_FORMS = (
    ("token_ids", "top_values"),
    ("bytepacked_indices", "compressed_logprobs"),
    ("packed_indices", "exact_values", "coeffs"),
)
_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
_KEYS = {
    *("d", "k", "exact_k", "exact_dtype", "polynomial_terms", "term_dtype", "residual_bins"),
    *("delta_encoding", "error_diffusion", "normalize_t"),
}
_LEGACY_KEYS = {
    *("k", "exact_k", "polynomial_degree", "vocab_size", "invert_polynomial", "with_sqrt_term", "term_dtype"),
}
_TRIED = 16  # documents to check for whether rows contain their own token


class DistillKitReader:
    """Reads Parquet files."""

    vocabulary: int | None = None

    def __init__(self, source: str | Path, codec: str | Path | None) -> None:
        """Open the files.

        Raises:
            InputError: There are no files, they have a different form, or the codec configuration is missing or unknown.
        """
        self._parquet = import_extra("pyarrow.parquet", "Parquet", "parquet")
        self._files = files_of(source, ".parquet")
        self._opened = [self._open(file) for file in self._files]
        present = set(self._opened[0].schema_arrow.names)
        form = next((form for form in _FORMS if present.issuperset(form)), None)
        if form is None or "input_ids" not in present:
            raise InputError(
                f"{self._files[0]} is not a data set of DistillKit: it has the columns {', '.join(sorted(present))}; expected input_ids, "
                f"and {', or '.join(' and '.join(one) for one in _FORMS)}"
            )
        self._form, self._codec = form, dict[str, Any]()
        self.facts: dict[str, Any] = {"form": form[0]}
        if form[0] != "token_ids":
            self._codec = _read_codec(codec, Path(source).expanduser(), legacy=form[0] == "packed_indices")
            self.facts["codec"] = self._codec
        self._groups: list[tuple[int, int, int]] = []  # file, row group, its first document
        self._held: tuple[int, Any] = (-1, None)
        count = 0
        for number, opened in enumerate(self._opened):
            for group in range(opened.num_row_groups):
                self._groups.append((number, group, count))
                count += opened.metadata.row_group(group).num_rows
        self._begins, self._count = np.array([first for *_, first in self._groups], np.int64), count
        self.own = form[0] == "token_ids" and self._names_own()

    def documents(self) -> Iterator[Document]:
        """Yield the documents in order."""
        for number in range(len(self._groups)):
            table, first = self._group(number)
            lists = table.column(self._form[0])
            for place, tokens in enumerate(table.column("input_ids").to_pylist()):
                lengths = [len(one) for one in lists[place].as_py()]
                self._refuse_other_length(first + place, len(tokens), len(lengths))
                targets = np.zeros(len(tokens), np.bool_)
                targets[1:] = np.array([*lengths, 0], np.int64)[: len(tokens) - 1] > 0
                yield Document(np.array(tokens, np.int64), targets)

    def rows(self, number: int, largest: int) -> KnownRows:
        """Return the rows of a document, without the one at the last token, which has no target."""
        del largest
        table, first = self._group(int(np.searchsorted(self._begins, number, side="right")) - 1)
        place = number - first
        columns = [table.column(name)[place].as_py() for name in self._form]
        count = len(table.column("input_ids")[place].as_py()) - 1
        try:
            return self._decoded(*(one[:count] for one in columns))
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"document {number:,} of {self._files[0].parent} cannot be decoded: {error}") from error

    def _decoded(self, *columns: Any) -> KnownRows:
        if self._form[0] == "token_ids":
            return rectangular(list(zip(*columns, strict=True)))
        filled = [bool(one) for one in columns[0]]
        some = [np.array([one for one in column if one]) for column in columns]
        k = self._codec["k"]
        every = KnownRows(np.full((len(filled), k), -1, np.int64), np.full((len(filled), k), -np.inf))
        if any(filled):
            found = _decode_legacy(self._codec, *some) if len(columns) == 3 else _decode(self._codec, some[0], some[1])
            ids = np.where(np.isneginf(found.logprobs), -1, found.ids)  # ranks that are missing in the source
            every.ids[filled], every.logprobs[filled] = ids, found.logprobs
        return every

    def _names_own(self) -> bool:
        """Return whether the rows of the first documents all contain their own token."""
        for number, one in zip(range(min(_TRIED, self._count)), self.documents(), strict=False):
            ids = self.rows(number, 0).ids
            named = (ids == one.tokens[1:, None]).any(1) if len(ids) else np.empty(0, np.bool_)
            if not named[one.targets[1:] if one.targets is not None else ...].all():
                return False
        return True

    def _refuse_other_length(self, document: int, tokens: int, rows: int) -> None:
        if rows not in (tokens - 1, tokens):
            raise InputError(
                f"document {document:,} of {self._files[0].parent} has {tokens:,} tokens but {rows:,} rows; expected {tokens - 1:,} or "
                f"{tokens:,}"
            )

    def _open(self, file: Path) -> Any:
        try:
            return self._parquet.ParquetFile(file)
        except Exception as error:  # pyarrow raises various types
            raise InputError(f"{file} cannot be read as Parquet: {first_line(error)}") from error

    def _group(self, number: int) -> tuple[Any, int]:
        if self._held[0] != number:
            file, group, _ = self._groups[number]
            self._held = number, self._opened[file].read_row_group(group, columns=["input_ids", *self._form])
        return self._held[1], self._groups[number][2]


def _read_codec(given: str | Path | None, source: Path, *, legacy: bool) -> dict[str, Any]:
    """Read the configuration of the codec.

    Raises:
        InputError: The configuration is missing or not supported.
    """
    file = Path(given).expanduser() if given else (source if source.is_dir() else source.parent) / _CODEC
    if not file.is_file():
        raise InputError(
            f"there is no file {file}; compressed rows require the configuration of their codec. Set --codec FILE."
        )
    try:
        text = file.read_text()
        found = json.loads(text) if file.suffix == ".json" else import_module("yaml").safe_load(text)
    except ImportError as error:
        raise InputError(
            f"{file} is YAML, which requires the package pyyaml; install it, or use a JSON file with the same content"
        ) from error
    except Exception as error:  # YAML or JSON errors
        raise InputError(f"{file} cannot be read: {first_line(error)}") from error
    known, needed = (
        (_LEGACY_KEYS, {"k", "exact_k", "polynomial_degree", "vocab_size"})
        if legacy
        else (_KEYS, {"d", "k", "exact_k"})
    )
    if not isinstance(found, dict) or (odd := sorted((found.keys() - known) | (needed - found.keys()))):
        names = ", ".join(map(str, odd)) if isinstance(found, dict) else type(found).__name__
        raise InputError(f"{file} is not a supported configuration of DistillKit's codec (missing or unknown: {names})")
    for name in ("k", "exact_k", "vocab_size" if legacy else "d"):
        if type(found[name]) is not int or found[name] < (name != "exact_k"):
            raise InputError(f"{file} has {name}: {found[name]!r}; expected an integer")
    return found


def _decode(codec: Mapping[str, Any], packed: NDArray[Any], data: NDArray[Any]) -> KnownRows:
    """Decode rows from the bytes of ids, [R, I], and of log-probabilities, [R, P].

    Raises:
        ValueError: The number of bytes does not match the configuration.
    """
    k, exact, bits = codec["k"], codec["exact_k"], _id_bits(codec["d"])
    if packed.shape[1] != -(-k * bits // 8):
        raise ValueError(
            f"a row has {packed.shape[1]} bytes of ids, but {k} ids of {bits} bits (d = {codec['d']}) take {-(-k * bits // 8)}; check d"
        )
    rest, at = data.astype(np.uint8), 0

    def take(count: int) -> NDArray[np.uint8]:
        nonlocal at
        at += count
        if at > rest.shape[1]:
            raise ValueError(f"a row has {rest.shape[1]} bytes of log-probabilities, but the configuration needs more")
        return np.ascontiguousarray(rest[:, at - count : at])

    exact_dtype, term_dtype = codec.get("exact_dtype", "float32"), codec.get("term_dtype", "float32")
    values = _floats(take(exact * _BYTES[exact_dtype]), exact_dtype)
    terms = codec.get("polynomial_terms") or []
    fit = np.zeros((len(rest), k - exact), np.float32)
    if terms:
        coefficients = _floats(take(len(terms) * _BYTES[term_dtype]), term_dtype)
        places = np.arange(k - exact, dtype=np.float64)
        if codec.get("normalize_t"):
            places = np.linspace(0, 1, k - exact)
        shape = np.stack([_term(one, places) for one in terms], 1)
        fit = (coefficients.astype(np.float64) @ shape.T).astype(np.float32)
    done = 0
    for one in codec.get("residual_bins") or []:
        scale = _floats(take(_BYTES[one["scale_dtype"]]), one["scale_dtype"])
        width, count = one["element_bits"], one["num_elements"]
        codes = _unpacked(take(-(-count * width // 8)), width, count)
        whole = 2 * codes - 1 if width == 1 else codes - (1 << (width - 1))
        fit[:, done : done + count] += (whole.astype(np.float32) * scale).astype(np.float32)
        done += count
    if at != rest.shape[1]:
        raise ValueError(f"a row has {rest.shape[1]} bytes of log-probabilities, but the configuration needs {at}")
    logprobs = np.concatenate([values, fit], 1)
    if codec.get("delta_encoding", True):
        logprobs = np.cumsum(logprobs, 1, dtype=np.float32)
    return KnownRows(_unpacked(packed.astype(np.uint8), bits, k), logprobs)


def _decode_legacy(
    codec: Mapping[str, Any], packed: NDArray[Any], exact: NDArray[Any], coefficients: NDArray[Any]
) -> KnownRows:
    """Decode rows from 64-bit words of ids, [R, W], exact values, [R, E], and coefficients, [R, T]."""
    k, bits = codec["k"], _id_bits(codec["vocab_size"])
    each = 64 // bits
    if packed.shape[1] != -(-k // each):
        raise ValueError(f"a row has {packed.shape[1]} words of ids, but {k} ids of {bits} bits take {-(-k // each)}")
    words = packed.astype(np.uint64)
    shifts = np.arange(each, dtype=np.uint64) * np.uint64(bits)
    ids = ((words[:, :, None] >> shifts) & np.uint64((1 << bits) - 1)).reshape(len(words), -1)[:, :k].astype(np.int64)
    places = np.arange(1, k - codec["exact_k"] + 1, dtype=np.float64)
    sign = -1 if codec.get("invert_polynomial", True) else 1
    terms = [places ** (sign * power) for power in range(codec["polynomial_degree"] + 1)]
    terms += [np.sqrt(places)] if codec.get("with_sqrt_term") else []
    fit = coefficients.astype(np.float64) @ np.stack(terms) if len(places) else np.zeros((len(words), 0))
    return KnownRows(ids, np.concatenate([exact.astype(np.float64), fit], 1))


def _id_bits(ids: int) -> int:
    """Return the number of bits of an id, ceil(log2) computed in float32 as DistillKit does."""
    return math.ceil(float(np.log2(np.float32(ids))))


def _term(term: int | str, places: NDArray[np.float64]) -> NDArray[np.float64]:
    if isinstance(term, int):
        return places**term
    functions = {"sqrt": np.sqrt, "exp": np.exp}
    if term not in functions:
        raise ValueError(f"unknown term {term!r}; expected an integer, sqrt or exp")
    found: NDArray[np.float64] = functions[term](places)
    return found


def _floats(data: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """Convert the bytes of little-endian floats, [R, n · size], to [R, n] float32."""
    if dtype == "bfloat16":
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return data.view({"float16": "<f2", "float32": "<f4", "float64": "<f8"}[dtype]).astype(np.float32)


def _unpacked(data: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.int64]:
    """Unpack integers of `bits` bits each, most significant bit first, from bytes; return [R, count]."""
    stream = np.unpackbits(data, axis=1)[:, : count * bits].reshape(len(data), count, bits)
    weights = np.int64(1) << np.arange(bits - 1, -1, -1, dtype=np.int64)
    found: NDArray[np.int64] = stream.astype(np.int64) @ weights
    return found
