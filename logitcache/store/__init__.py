"""The cache on disk or in object storage, as specified in docs/format.md. Independent of torch, data sets and models."""

import sys

from logitcache.errors import InputError
from logitcache.store.classes import NumberedClasses, classes_from_json, classes_to_json
from logitcache.store.decode import completion, decode_rows, kept_values, rest_level, rounding, total_variation
from logitcache.store.draws import draw_gaps, drawn_targets, row_uniforms
from logitcache.store.layout import (
    PROBE_BYTES,
    Carried,
    block_rows_for,
    carried_bytes,
    compressed_bytes,
    metadata_bytes,
    recorded_arrays,
)
from logitcache.store.ledger import history
from logitcache.store.manifest import FORMAT, Manifest, average_of, read_manifest
from logitcache.store.offsets import Ids, count_rows, is_among, kept_mask, rows_of, samples_of, with_rows
from logitcache.store.places import Place, open_place
from logitcache.store.reader import Cache, MissingChunkError, ViewStream, find_newest, open_cache
from logitcache.store.size import DiskUse, bytes_per_row, disk_use
from logitcache.store.verify import FileProblem, check_files, drop_damaged, forget_damaged_records
from logitcache.store.writer import CacheWriter, Columns, refuse_derived, refuse_other_cache

__all__ = [
    "FORMAT",
    "PROBE_BYTES",
    "Cache",
    "CacheWriter",
    "Carried",
    "Columns",
    "DiskUse",
    "FileProblem",
    "Ids",
    "Manifest",
    "MissingChunkError",
    "NumberedClasses",
    "Place",
    "ViewStream",
    "average_of",
    "block_rows_for",
    "bytes_per_row",
    "carried_bytes",
    "check_files",
    "classes_from_json",
    "classes_to_json",
    "completion",
    "compressed_bytes",
    "count_rows",
    "decode_rows",
    "disk_use",
    "draw_gaps",
    "drawn_targets",
    "drop_damaged",
    "find_newest",
    "forget_damaged_records",
    "history",
    "is_among",
    "kept_mask",
    "kept_values",
    "metadata_bytes",
    "open_cache",
    "open_place",
    "read_manifest",
    "recorded_arrays",
    "refuse_derived",
    "refuse_other_cache",
    "rest_level",
    "rounding",
    "row_uniforms",
    "rows_of",
    "samples_of",
    "total_variation",
    "with_rows",
]

if sys.flags.optimize:  # zarr 3.1 has side effects in assert statements and reads nothing without them
    raise InputError("zarr cannot read under python -O or PYTHONOPTIMIZE; run Python without it")
