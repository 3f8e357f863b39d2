"""Measure a cache of very many token rows: opening it, planning an epoch, and training with bounded memory.

    python benchmarks/scale.py --rows 100000000 --out benchmarks/results/scale-cpu.json

The cache is synthetic: documents of 512 tokens, 512 ids, the 4 largest logits in u8, with the same block of rows repeated (4.1 GB before
compression for 100 million rows). The block comes from a dump of the first documents. Each measurement runs in its own process; memory is
the growth of peak resident memory after the imports. Planning is the work of `train` before its first step: it opens the data, shuffles,
packs documents into sequences and reads the first window.
"""

import argparse
import contextlib
import json
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from common import in_own_process, write_result

from logitcache import dump_logits, train_student
from logitcache.data import Documents
from logitcache.encoding import read_encoding
from logitcache.errors import StoppedError
from logitcache.models.language.load import load_language_network
from logitcache.store import CacheWriter, open_cache

LENGTH, IDS, KEPT = 512, 512, 4
IN_A_BLOCK = 128  # the same documents in each block, because `train` checks digests of their tokens
NETWORK = f"llama:hidden=8,layers=1,heads=1,intermediate=8,context={LENGTH}"
SETTINGS: dict[str, Any] = {"top_k": KEPT, "precision": "u8", "block_rows": IN_A_BLOCK * (LENGTH - 1)}


def build(path: Path, rows: int) -> None:
    """Write a cache of about this many rows."""
    count = rows // (LENGTH - 1)
    random = np.random.default_rng(0)
    some = random.integers(0, IDS, LENGTH * IN_A_BLOCK).astype(np.uint16)
    tokens = np.tile(some, count // IN_A_BLOCK + 1)[: LENGTH * count]
    data = Documents(tokens, np.arange(count + 1) * LENGTH, IDS)
    begun = dump_logits(
        load_language_network(NETWORK, IDS).module.eval(),
        data.part(0, IN_A_BLOCK),
        path.with_suffix(".begun.zarr"),
        **SETTINGS,
    )
    manifest = replace(
        begun.manifest,
        samples=count,
        rows=int(data.offsets[-1]),
        data={**begun.manifest.data, "length": count, "digest": data.digest()},
    )
    slug = manifest.teachers[0]["slug"]
    stored = zarr.open_group(path.with_suffix(".begun.zarr"), mode="r")
    names = ["digests", *(f"teachers/{slug}/{name}" for name in begun.columns(slug))]
    block: dict[str, Any] = {name: stored[name][0, : manifest.block_rows] for name in names}  # type: ignore[index]
    columns = {slug: read_encoding(manifest.encoding).columns(IDS)}
    with CacheWriter(path, manifest, columns, data.labels, data.offsets, command="", carried=data.arrays()) as writer:
        writer.begin(np.arange(2), {slug: np.zeros((2, IDS), np.float32)})
        for view, number in writer.missing():
            first, last = manifest.span(number)
            writer.write(view, number, {name: values[: last - first] for name, values in block.items()})
        writer.finish()


def opened(path: Path) -> dict[str, float]:
    """Open the cache several times; the first time includes reading its files from disk."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        open_cache(path)
        times.append(time.perf_counter() - started)
    return {"first_ms": times[0] * 1e3, "again_ms": min(times) * 1e3}


def trained(path: Path, steps: int) -> dict[str, float]:
    """Train for some steps of 16 sequences with 1 GB for the teacher's rows, then stop."""
    started, asked = time.perf_counter(), []

    def stop() -> bool:
        asked.append(time.perf_counter())
        return len(asked) > steps

    options = {"method": "kd", "epochs": 1, "batch_size": 16, "memory_budget": 10**9, "workers": 0}
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(StoppedError):
        train_student(path, NETWORK, out=Path(folder) / "run", should_stop=stop, **options)
    return {"first_step_s": asked[0] - started, "steps_per_s": (len(asked) - 1) / (asked[-1] - asked[0])}


def measure(what: str, path: Path, steps: int) -> None:
    """Print the result of a measurement as JSON."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = opened(path) if what == "open" else trained(path, steps)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * (1 if sys.platform == "darwin" else 1024)
    print(json.dumps({"what": what, **found, "megabytes": grown / 1e6}))


def main() -> None:
    """Build the cache, measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument(
        "--folder", type=Path, help="folder for the cache, which is kept; a temporary folder by default"
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", choices=["open", "train"], help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        path = (chosen.folder or Path(temporary)) / "made-up.zarr"
        if chosen.only:
            measure(chosen.only, path, chosen.steps)
            return
        if not path.exists():
            build(path, chosen.rows)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        rows: list[dict[str, Any]] = [
            {"what": "cache", "rows": open_cache(path).manifest.rows, "gigabytes": size / 1e9}
        ]
        for what in ("open", "train"):
            words = ["--only", what, "--folder", str(path.parent), "--steps", str(chosen.steps)]
            rows.append(json.loads(in_own_process(__file__, *words)))
        print("\n".join(map(str, rows)))
        write_result(chosen.out, rows)


if __name__ == "__main__":
    main()
