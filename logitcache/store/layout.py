"""Arrays of a cache, their division into blocks, and the bytes of their metadata and chunks.

zarr encodes metadata and compressed chunks in memory; an uncompressed chunk is its rows followed by their CRC-32C. The writer decides where
and when these bytes reach the disk, so that any zarr reader understands them and a block is still committed as a unit. Chunks are decoded
here, with the codecs given in the metadata.
"""

import functools
import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import google_crc32c
import numcodecs.blosc
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.api.asynchronous import consolidate_metadata
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, TransposeCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.core.sync import sync
from zarr.storage import MemoryStore, StorePath

from logitcache.errors import FormatVersionError
from logitcache.runtime.files import Pieces
from logitcache.store.manifest import Manifest

numcodecs.blosc.use_threads = False  # with threads the bytes of a chunk differ from call to call

__all__ = [
    "PROBE_BYTES",
    "ArraySpec",
    "Carried",
    "ChunkDecoder",
    "ChunkEncoder",
    "Column",
    "block_rows_for",
    "cache_arrays",
    "carried_bytes",
    "checksum_holds",
    "chunk_key",
    "compressed_bytes",
    "metadata_bytes",
    "metadata_files",
    "probe_ids",
    "read_array",
    "read_whole",
    "recorded_arrays",
    "row_arrays",
    "whole_array_files",
    "with_stored_names",
]

Column = tuple[tuple[int, ...], str, tuple[str, ...], int, bool]

PROBE_BYTES = 64_000_000  # maximum size of one teacher's probe
_CONFIG: Any = {"write_empty_chunks": True, "order": "C"}  # a chunk of zeros must exist: absence means corruption
_WIDEST_CHUNK = 8 << 20  # bytes
_BLOSC_BLOCK = 1 << 19  # bytes; several columns of a block, each with its own entropy code
_BLOSC_BLOCK_OF_IDS = (
    _WIDEST_CHUNK  # for vocabularies: 1.094 times the lower bound instead of 1.08 (k = 50) to 1.101 (k = 128)
)
_LABEL_CHUNK = _CARRIED_CHUNK = 1 << 20
_RECORDED: dict[str, tuple[str, Column]] = {  # recipe of a view to the array that says what its rows showed
    "recorded-boxes": ("boxes", ((5,), "<f4", ("box",), 1, True)),
    "recorded-seeds": ("seeds", ((), "<i4", (), 1, True)),
}
_ROUND = 256  # rows; a multiple of common batch sizes, so that only the last batch of a view is padded


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array of a cache.

    Attributes:
        key: Path inside the group.
        shape, chunks: Shape of the array and of its chunks, as in zarr.
        dtype: Name of the numpy dtype, little-endian.
        dimensions: Names of the dimensions, as in zarr's `dimension_names`.
        compression: Codec before the checksum: None, "zstd", or "blosc" (zstd on shuffled bytes).
        level: Compression level of blosc, 1 to 9.
        by_column: Whether blosc compresses in column-major order (ids of the same rank are more similar than those of a row).
    """

    key: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: str
    dimensions: tuple[str, ...]
    compression: str | None = None
    level: int = 1
    by_column: bool = True


def block_rows_for(rows: int, row_bytes: int) -> int:
    """Return the rows per block that split a view evenly into the fewest blocks of at most 8 MiB per chunk and 16,384 rows.

    The split is even because chunks of logits are not compressed, so a partly filled last block would store its padding; with
    powers of two, CIFAR-100 in float16 would take 31 % more. The limit of 16,384 rows bounds what a kill can lose. A block holds
    at least one batch of 256 rows, however wide they are, so the teacher's batches never straddle blocks.
    """
    most = min(max(_WIDEST_CHUNK // row_bytes // _ROUND, 1) * _ROUND, 16384)
    blocks = -(-rows // most)
    return -(-rows // blocks // _ROUND) * _ROUND


def recorded_arrays(manifest: Manifest) -> dict[str, Column]:
    """List the arrays that say, row by row, how another tool augmented the images: name to column; none where views are drawn here."""
    recipes = {view.get("recipe") for view in manifest.views}
    return dict(_RECORDED[recipe] for recipe in sorted(_RECORDED.keys() & recipes))


def row_arrays(manifest: Manifest, columns: Mapping[str, Mapping[str, Column]]) -> dict[str, ArraySpec]:
    """Return the arrays that are written in blocks, by key.

    Args:
        manifest: Manifest of the cache.
        columns: Columns of the encoding by teacher slug and name: (shape of one row, dtype, names of its dimensions, compression
            level or 0, whether column-major).
    """
    head, chunk, axis = (len(manifest.views), manifest.view_rows), (1, manifest.block_rows), manifest.row_axis
    specs = [ArraySpec("digests", head, chunk, "<u8", ("view", axis))]
    specs += [_row_array(name, column, head, chunk, axis) for name, column in recorded_arrays(manifest).items()]
    for slug, encoded in columns.items():
        for name, column in encoded.items():
            specs.append(_row_array(f"teachers/{slug}/{name}", column, head, chunk, axis))
    return {spec.key: spec for spec in specs}


def _row_array(key: str, column: Column, head: tuple[int, int], chunk: tuple[int, int], axis: str) -> ArraySpec:
    row, dtype, names, level, by_column = column
    compression = "blosc" if level else None
    return ArraySpec(key, head + row, chunk + row, dtype, ("view", axis, *names), compression, level, by_column)


Carried = Mapping[str, tuple[str, NDArray[Any]]]  # arrays copied from the data: name -> (axis name, values [n])


def cache_arrays(
    manifest: Manifest, rows: dict[str, ArraySpec], probe: int, carried: Carried | None = None
) -> dict[str, ArraySpec]:
    """Return all arrays of a cache: those written in blocks, labels, offsets, the probe, and arrays copied from the data.

    Args:
        manifest: Manifest of the cache.
        rows: Arrays that are written in blocks.
        probe: Number of rows in the probe.
        carried: Arrays copied from the data.
    """
    n, c, ends = manifest.view_rows, len(manifest.classes), manifest.samples + 1
    row = "row" if manifest.rows is None else "probe_row"  # `row` is the axis of the view's rows there, which are more
    whole = [
        ArraySpec("labels", (n,), (min(n, _LABEL_CHUNK),), "<i4", (manifest.row_axis,), "zstd"),
        ArraySpec(probe_ids(manifest), (probe,), (probe,), "<i8", (row,), "zstd"),
        *(
            ArraySpec(f"probe/logits/{teacher['slug']}", (probe, c), (probe, c), "<f4", (row, "class"))
            for teacher in manifest.teachers
        ),
    ]
    if manifest.rows is not None:
        whole.append(ArraySpec("offsets", (ends,), (min(ends, _LABEL_CHUNK),), "<i8", ("boundary",), "zstd"))
    whole += [_carried(name, axis, values) for name, (axis, values) in (carried or {}).items()]
    return rows | {spec.key: spec for spec in whole}


def _carried(name: str, axis: str, values: NDArray[Any]) -> ArraySpec:
    count, dtype = max(len(values), 1), values.dtype.newbyteorder("<").str
    return ArraySpec(name, (len(values),), (min(count, _CARRIED_CHUNK),), dtype, (axis,), "zstd")


def carried_bytes(values: NDArray[Any]) -> int:
    """Estimate the compressed size of an array copied from the data, in bytes, from its first chunk."""
    first = np.ascontiguousarray(values[:_CARRIED_CHUNK])
    return len(numcodecs.zstd.compress(first.tobytes())) * len(values) // max(len(first), 1)


def with_stored_names(specs: Mapping[str, ArraySpec], root: bytes) -> dict[str, ArraySpec]:
    """Take the axis names from an existing cache, so that resuming or extending it does not change its metadata.

    Args:
        specs: Arrays of the cache, with this version's axis names.
        root: Content of the cache's root `zarr.json`.
    """
    stored = json.loads(root).get("consolidated_metadata", {}).get("metadata", {})
    named = {key: tuple(entry.get("dimension_names") or ()) for key, entry in stored.items()}
    return {
        key: replace(spec, dimensions=named[key]) if len(named.get(key, ())) == len(spec.shape) else spec
        for key, spec in specs.items()
    }


def probe_ids(manifest: Manifest) -> str:
    """Return the key of the array with the probe's row ids (sample ids if each sample is one row)."""
    return f"probe/{manifest.row_axis}s"


def _fields(spec: ArraySpec) -> dict[str, Any]:
    """Return the arguments with which zarr creates an array."""
    size = np.dtype(spec.dtype).itemsize
    filters, before = list[Any](), list[Any]()
    if spec.compression == "zstd":
        before = [ZstdCodec(level=3)]
    elif spec.compression == "blosc":
        together = _BLOSC_BLOCK if spec.level == 1 else _BLOSC_BLOCK_OF_IDS
        before = [BloscCodec(cname="zstd", clevel=spec.level, shuffle="shuffle", typesize=size, blocksize=together)]
        if len(spec.shape) == 3 and spec.by_column:
            filters = [TransposeCodec(order=(0, 2, 1))]
    return {
        "shape": spec.shape,
        "chunks": spec.chunks,
        "dtype": spec.dtype,
        "filters": filters,
        "serializer": BytesCodec(endian="little") if size > 1 else BytesCodec(endian=None),
        "compressors": [*before, Crc32cCodec()],
        "fill_value": 0,
        "dimension_names": spec.dimensions,
        "config": _CONFIG,
    }


@functools.lru_cache(maxsize=256)
def _metadata_of(spec: ArraySpec) -> Any:
    """Return zarr's metadata of an array. Creating an array takes zarr milliseconds, most of them to change threads."""
    return zarr.create_array(MemoryStore(), name=spec.key, zarr_format=3, **_fields(spec)).metadata


def _array(spec: ArraySpec, memory: dict[str, Buffer]) -> zarr.Array:  # type: ignore[type-arg]
    """Return an array whose chunks are put into `memory`, by path."""
    return zarr.Array(zarr.AsyncArray(_metadata_of(spec), StorePath(MemoryStore(memory), spec.key), _CONFIG))


def metadata_files(manifest: Manifest, specs: dict[str, ArraySpec]) -> dict[str, bytes]:
    """Return the content of every `zarr.json` of a cache, by path."""
    memory: dict[str, Buffer] = {}
    sync(_describe(MemoryStore(memory), {"logitcache": manifest.to_json()}, specs.values()))
    return {key: memory[key].to_bytes() for key in sorted(memory)}


async def _describe(store: MemoryStore, attributes: dict[str, Any], specs: Iterable[ArraySpec]) -> None:
    """Create a group and its arrays, with consolidated metadata; in one go, because each call from outside changes threads twice."""
    group = await zarr.AsyncGroup.from_store(store, attributes=attributes, zarr_format=3)
    for spec in specs:
        await group.create_array(spec.key, **_fields(spec))
    with warnings.catch_warnings():
        # Readers then take the arrays' metadata from the root and never list the folder, where .logitcache would make zarr warn.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        await consolidate_metadata(store)


def metadata_bytes(
    manifest: Manifest, columns: Mapping[str, Mapping[str, Column]], probe: int, carried: Carried | None = None
) -> int:
    """Return the size of the metadata of a cache that is not there yet; the arguments are those of `row_arrays` and `cache_arrays`."""
    specs = cache_arrays(manifest, row_arrays(manifest, columns), probe, carried)
    return sum(map(len, metadata_files(manifest, specs).values()))


def whole_array_files(spec: ArraySpec, values: NDArray[np.generic]) -> dict[str, bytes]:
    """Return the content of every chunk of an array that is written at once, by path."""
    if values.shape != spec.shape:  # zarr would truncate or broadcast the values
        raise ValueError(f"{spec.key} must have shape {spec.shape}, not {values.shape}")
    memory: dict[str, Buffer] = {}
    _array(spec, memory)[...] = values
    return {key: buffer.to_bytes() for key, buffer in sorted(memory.items()) if not key.endswith("zarr.json")}


def read_array(spec: ArraySpec, read: Callable[[str], bytes]) -> NDArray[Any]:
    """Decode an array that was written at once.

    Args:
        spec: Description of the array.
        read: Function that returns the bytes of a chunk, given its path.

    Raises:
        ValueError, RuntimeError: If a chunk is damaged.
    """
    return read_whole(_array(spec, {}), read)


def read_whole(array: "zarr.Array", read: Callable[[str], bytes]) -> NDArray[Any]:  # type: ignore[type-arg]
    """Decode an array that was written at once, like `read_array`, given the zarr array with its metadata."""
    decode, rest = ChunkDecoder(array), "/0" * (array.ndim - 1)
    chunks = [decode(read(f"{array.path}/c/{number}{rest}")) for number in range(-(-array.shape[0] // array.chunks[0]))]
    return np.concatenate(chunks)[: array.shape[0]]


def chunk_key(spec: ArraySpec, view: int, block: int) -> str:
    """Return the path of the chunk that holds one block of one view."""
    return "/".join([spec.key, "c", str(view), str(block), *("0" for _ in spec.shape[2:])])


def checksum_holds(chunk: bytes) -> bool:
    """Return whether the content of a chunk file matches the CRC-32C at its end."""
    return chunk[-4:] == _checksum(memoryview(chunk)[:-4])


def _checksum(data: memoryview) -> bytes:
    return int(google_crc32c.value(np.frombuffer(data, np.uint8))).to_bytes(
        4, "little"
    )  # needs an array, not a memoryview


class ChunkEncoder:
    """Encode blocks of one array as the bytes of their chunk files. Thread-safe."""

    def __init__(self, spec: ArraySpec) -> None:
        self._metadata: Any = _metadata_of(replace(spec, shape=spec.chunks))
        self._key = chunk_key(spec, 0, 0).removeprefix(f"{spec.key}/")
        self._shape, self._dtype, self._plain = spec.chunks, np.dtype(spec.dtype), spec.compression is None

    def __call__(self, rows: NDArray[np.generic]) -> Pieces:
        """Encode at most `block_rows` rows, padded with zeros to a full block. Uncompressed full blocks are not copied.

        Raises:
            ValueError: If the shape of the rows does not match, or if there are too many.
        """
        if rows.shape[1:] != self._shape[2:]:
            raise ValueError(f"a row must have shape {self._shape[2:]}, not {rows.shape[1:]}")
        if len(rows) > self._shape[1]:
            raise ValueError(f"a block has {self._shape[1]} rows, not {len(rows)}")
        block = np.ascontiguousarray(rows[None], self._dtype)
        if len(rows) < self._shape[1]:
            block = np.zeros(self._shape, self._dtype)
            block[0, : len(rows)] = rows
        if (
            self._plain
        ):  # same bytes as from zarr, which copies three times, one chunk at a time, and is slower than the disk
            data = block.reshape(-1).view(np.uint8).data
            return data, _checksum(data)
        memory: dict[str, Buffer] = {}
        place = StorePath(MemoryStore(memory), "")
        zarr.Array(zarr.AsyncArray(self._metadata, place, _CONFIG))[...] = block
        return [memory[self._key].to_bytes()]


class ChunkDecoder:
    """Decode chunk files of one array, like zarr but with two copies less. Thread-safe."""

    def __init__(self, array: "zarr.Array") -> None:  # type: ignore[type-arg]
        """Take codecs and shape from the array.

        Raises:
            FormatVersionError: If the array has a codec that the format does not define.
        """
        self._dtype, self._stored, self._axes = array.dtype.newbyteorder("<"), array.chunks, None
        self._decompress: Callable[[Any], Any] | None = None
        for codec in (*array.filters, array.serializer, *array.compressors):
            match codec:
                case TransposeCodec():
                    self._stored = tuple(self._stored[axis] for axis in codec.order)
                    self._axes = np.argsort(codec.order)
                case BloscCodec():
                    self._decompress = numcodecs.blosc.decompress
                case ZstdCodec():
                    self._decompress = numcodecs.zstd.decompress
                case BytesCodec() | Crc32cCodec():
                    pass
                case _:
                    raise FormatVersionError(
                        f"{array.path} is stored with {codec}, which this version cannot read. Upgrade logitcache to read it."
                    )

    def __call__(self, data: bytes) -> NDArray[Any]:
        """Return a block, [1, block_rows, ...], read-only.

        Raises:
            ValueError, RuntimeError: If the chunk is damaged.
        """
        if not checksum_holds(data):
            raise ValueError("its checksum does not match")
        content = memoryview(data)[:-4]
        found = np.frombuffer(self._decompress(content) if self._decompress else content, self._dtype).reshape(
            self._stored
        )
        return found if self._axes is None else found.transpose(self._axes)


def compressed_bytes(column: Column, rows: NDArray[np.generic]) -> int:
    """Return the size in bytes of a chunk with these rows of a column."""
    block = (1, len(rows))
    return sum(map(len, ChunkEncoder(_row_array("x", column, block, block, "row"))(rows)))
