"""How long a look at a cache takes, beside merely reading the same blocks.

    python benchmarks/stats.py --rows 1280000 --out benchmarks/results/stats.json

The cache is made up: logits of a teacher that is right in about four rows of five, encoded as a dump does, one view. Both ways run in a
process of its own each, alternately: reading takes every block once, one after another, and drops it; `cache_stats` reads with two
threads. Memory is the growth of the peak after the imports, labels included.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import manifest_of, write_result
from store import CLASSES

from logitcache.encoding import Encoding, FullEncoding, TopKEncoding
from logitcache.store import CacheWriter

_READ = """
cache = open_cache(sys.argv[1])
for view in range(len(cache.manifest.views)):
    for _ in cache.blocks(view, "t"):
        pass
"""
_STATS = "cache_stats(sys.argv[1])"
_PROCESS = """
import json, pathlib, sys, time
from logitcache.stats import cache_stats
from logitcache.store import open_cache
def peak():  # of this process alone: getrusage begins with the parent's
    return int(pathlib.Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024
before, started = peak(), time.perf_counter()
{}
seconds = time.perf_counter() - started
print(json.dumps([seconds, peak() - before]))
"""


def build(path: Path, rows: int, encoding: Encoding) -> None:
    """Write a cache of one view."""
    manifest, random = manifest_of(rows, CLASSES, encoding), torch.Generator().manual_seed(0)
    labels = torch.randint(CLASSES, (rows,), generator=random, dtype=torch.int32)
    columns = {"t": encoding.columns(CLASSES)}
    with CacheWriter(path, manifest, columns, labels.numpy(), command="") as writer:
        probe = np.arange(2), {"t": np.zeros((2, CLASSES), np.float32)}
        writer.begin(*probe)
        for view, block in writer.missing():
            first, last = manifest.span(block)
            here = labels[first:last].long()
            logits = 2 * torch.randn(len(here), CLASSES, generator=random)
            boost = 8 + 2 * torch.randn(len(here), 1, generator=random)
            logits.scatter_add_(1, here[:, None], boost)
            made = {f"teachers/t/{name}": column.numpy() for name, column in encoding.encode(logits, here).items()}
            made["digests"] = np.random.default_rng(block).integers(0, 2**63, len(here)).astype(np.uint64)
            writer.write(view, block, made)
        writer.finish()


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=320_000)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--full", action="store_true", help="keep every class")
    parser.add_argument("--precision", default="u8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cache", type=Path, help="where the made-up cache is kept; made where it is not there yet")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    encoding: Encoding = (
        FullEncoding(arguments.precision) if arguments.full else TopKEncoding(arguments.k, arguments.precision)
    )
    found: dict[str, list[list[float]]] = {"reading": [], "stats": []}
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.cache or Path(folder) / "c.zarr"
        if not path.exists():
            build(path, arguments.rows, encoding)
        for turn in range(arguments.rounds + 1):  # the first one warms up
            for name, code in (("reading", _READ), ("stats", _STATS)):
                done = subprocess.run(
                    [sys.executable, "-c", _PROCESS.format(code), str(path)], capture_output=True, text=True, check=True
                )
                if turn:
                    found[name].append(json.loads(done.stdout))
    rows = []
    for name, runs in found.items():
        seconds, grown = (statistics.median(values) for values in zip(*runs, strict=True))
        rows.append(
            {"way": name, "seconds": seconds, "rows_per_second": arguments.rows / seconds, "peak_growth_bytes": grown}
        )
        print(
            f"{name:>8}: {seconds:6.2f} s, {arguments.rows / seconds / 1e6:.2f} M rows/s, peak grew by {grown / 1e6:.0f} MB"
        )
    ratio = rows[1]["seconds"] / rows[0]["seconds"]
    print(f"a look takes {ratio:.2f} times as long as reading")
    write_result(
        arguments.out, rows, rows_held=arguments.rows, encoding=encoding.to_json(), classes=CLASSES, ratio=ratio
    )


if __name__ == "__main__":
    main()
