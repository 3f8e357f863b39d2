"""How fast rows go to disk and come back, beside other ways of keeping the same bytes.

    python benchmarks/store.py --rows 1280000 --out benchmarks/results/store.json

Writing: whole blocks through the writer (checksums, temporary file, fsync, rename, record), beside the same bytes written to files
with one fsync each and nothing else. Verifying: every file against the ledger, beside merely reading the files, both from a disk
whose pages are not in memory. Opening: a cache of 100 million rows in 8 views, of which only metadata and labels are there.
Reading is what training does: a view decoded into memory once, a random batch of 256 one gather. Beside it, on the same bytes:
numpy's take from memory-mapped arrays, one a column; a record by key as TinyViT reads its logits (a dictionary of keys, seek, read, two
arrays out of the bytes, stacked); a Dataset of samples with torch's collate.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import alternating_seconds, alternating_times, manifest_of, write_result
from torch.utils.data import Dataset, default_collate

from logitcache.encoding import Encoding, FullEncoding, TopKEncoding
from logitcache.runtime.files import describe
from logitcache.runtime.memory import keep_freed_memory
from logitcache.store import Cache, CacheWriter, Manifest, check_files, open_cache
from logitcache.store.ledger import Ledger
from logitcache.train.targets import HeldRows

CLASSES, BATCH = 1000, 256


def open_writer(path: Path, manifest: Manifest, encoding: Encoding) -> CacheWriter:
    """Begin a cache."""
    writer = CacheWriter(
        path, manifest, {"t": encoding.columns(CLASSES)}, np.zeros(manifest.samples, np.int32), command=""
    )
    writer.begin(np.arange(2), {"t": np.zeros((2, CLASSES), np.float32)})
    return writer


def build(path: Path, rows: int, k: int) -> Cache:
    """Write a cache of one view of random top-k rows."""
    encoding, random = TopKEncoding(k, "f16"), np.random.default_rng(0)
    manifest = manifest_of(rows, CLASSES, encoding)
    with open_writer(path, manifest, encoding) as writer:
        for view, block in writer.missing():
            first, last = manifest.span(block)
            ids = np.sort(random.integers(0, CLASSES - k - 1, (last - first, k + 1)), 1) + np.arange(k + 1)
            made = {"digests": np.zeros(last - first, np.uint64)}
            made["teachers/t/ids"] = np.diff(ids, axis=1, prepend=0)
            made["teachers/t/values"] = random.standard_normal((last - first, k + 1), np.float32).astype(np.float16)
            made["teachers/t/rest"] = random.standard_normal((last - first, 4), np.float32).astype(np.float16)
            writer.write(view, block, made)
        writer.finish()
    return open_cache(path)


def write_beside_the_disk(folder: Path, blocks: int, rounds: int) -> dict[str, dict[str, float]]:
    """Write full f16 rows through the writer, and the same bytes plainly; then verify the cache, and read its files plainly: MB/s.

    Of each the fastest round and the median: memory that a virtual machine's host has not given it yet makes a page of the page cache
    cost five times as much, and whom that strikes is chance.
    """
    encoding = FullEncoding("f16")
    manifest = manifest_of(blocks * 4096, CLASSES, encoding)
    rows = {
        "digests": np.zeros(4096, np.uint64),
        "teachers/t/logits": np.random.default_rng(0).standard_normal((4096, CLASSES), np.float32).astype(np.float16),
    }
    data = rows["teachers/t/logits"].tobytes()

    def clean() -> None:
        for name in ("w.zarr", "plain"):
            shutil.rmtree(folder / name, ignore_errors=True)

    def ours() -> None:
        with open_writer(folder / "w.zarr", replace(manifest, block_rows=4096), encoding) as writer:
            for view, block in writer.missing():
                writer.write(view, block, rows)
            writer.finish()

    def plain() -> None:
        (folder / "plain").mkdir()
        for block in range(blocks):
            with (folder / "plain" / str(block)).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())

    def forget() -> None:
        for path in (folder / "w.zarr").rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def verify() -> None:
        assert not check_files(open_cache(folder / "w.zarr"))

    def read() -> None:
        for path in sorted((folder / "w.zarr").rglob("*")):
            if path.is_file():
                path.read_bytes()

    times = alternating_times({"ours": ours, "plain": plain}, rounds, clean)
    ours()
    times |= alternating_times({"verify": verify, "read": read}, rounds, forget)
    return {
        name: {
            "fastest": blocks * len(data) / min(found) / 1e6,
            "median": blocks * len(data) / statistics.median(found) / 1e6,
        }
        for name, found in times.items()
    }


def open_a_large_one(path: Path, rows: int) -> dict[str, float]:
    """Open a cache of so many rows, in a process of its own: seconds, and MB more than after the imports."""
    encoding = TopKEncoding(64, "f16")
    manifest = manifest_of(rows, CLASSES, encoding, views=8)
    with open_writer(path, manifest, encoding) as writer:
        Ledger(writer.place).mark(
            {name: describe(writer.place.read(name)) for name in writer.place.sizes() if not name.startswith(".")}
        )
    code = (
        "import resource, sys, time; from logitcache.store import open_cache; a = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        "s = time.perf_counter(); open_cache(sys.argv[1]); s = time.perf_counter() - s; "
        "print(s, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - a) / 1000)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    seconds, grown = map(float, done.stdout.split())
    return {"rows": rows, "seconds": seconds, "grown_mb": grown}


class PerSample(Dataset[dict[str, np.ndarray]]):
    """One row at a time, as data sets are usually written."""

    def __init__(self, columns: dict[str, np.ndarray]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["rest"])

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {name: column[index] for name, column in self.columns.items()}


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=320_000)
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=384, help="of 8 MB, written")
    parser.add_argument("--large", type=int, default=100_000_000, help="rows of the cache that is only opened")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command line does; for all
    with tempfile.TemporaryDirectory() as folder:
        written = write_beside_the_disk(Path(folder), arguments.blocks, 2 * arguments.rounds)
        for ours, plain in (("ours", "plain"), ("verify", "read")):
            for kind, rate in written[ours].items():
                beside = written[plain][kind]
                print(f"{ours}: {rate:.0f} MB/s, {plain} {beside:.0f} ({rate / beside:.2f} of it), {kind}")
        large = open_a_large_one(Path(folder) / "large.zarr", arguments.large)
        print(f"opening {large['rows']:,} rows in 8 views: {large['seconds']:.3f} s, {large['grown_mb']:.0f} MB")
        cache = build(Path(folder) / "c.zarr", arguments.rows, arguments.k)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        seconds = []
        for _ in range(arguments.rounds):
            view = None  # before the next, or there would be two
            started = time.perf_counter()
            view = open_cache(cache.place.path).view(0, "t")
            seconds.append(time.perf_counter() - started)
        opened = arguments.rows / statistics.median(seconds)
        held = view.nbytes
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        print(
            f"a view into memory: {opened / 1e6:.2f} M rows/s; {held / 1e6:.0f} MB held, peak grew by {grown / 1e6:.0f} MB"
        )
        columns = {name: np.ascontiguousarray(view[name]) for name in view.dtype.names}
        mapped = {}
        for name, column in columns.items():
            np.save(Path(folder) / f"{name}.npy", column)
            mapped[name] = np.load(Path(folder) / f"{name}.npy", mmap_mode="r")
        records = Path(folder) / "records.bin"
        record = sum(column.nbytes for column in columns.values()) // arguments.rows
        parts = [np.ascontiguousarray(c).view(np.uint8).reshape(arguments.rows, -1) for c in columns.values()]
        np.concatenate(parts, 1).tofile(records)
        order = np.random.default_rng(1).permutation(arguments.rows)
        batches = [order[start : start + BATCH] for start in range(0, arguments.rows, BATCH)]
        few = batches[:10]
        samples, ours_held = PerSample(columns), HeldRows(view, torch.device("cpu"))
        place = {str(index): int(index) * record for batch in few for index in batch}

        def ours() -> None:
            for batch in batches:
                ours_held.take(torch.from_numpy(batch))

        def memmap() -> None:
            for batch in batches:
                for column in mapped.values():
                    np.take(column, batch, 0)

        def keyed() -> None:
            with records.open("rb") as file:
                for batch in few:
                    read = []
                    for index in batch:
                        file.seek(place[str(index)])
                        data = file.read(record)
                        values, ids = data[: 2 * (arguments.k + 1)], data[2 * (arguments.k + 1) : 4 * (arguments.k + 1)]
                        read.append(
                            (np.frombuffer(values, np.float16).astype(np.float32), np.frombuffer(ids, np.int16))
                        )
                    for parts in zip(*read, strict=True):
                        torch.from_numpy(np.stack(parts))

        def collated() -> None:
            for batch in few:
                default_collate([samples[int(index)] for index in batch])

        torch.set_num_threads(1)
        runs = {"ours": ours, "memmap": memmap, "record by key": keyed, "Dataset and collate": collated}
        seconds = alternating_seconds({name: partial(run) for name, run in runs.items()}, arguments.rounds)
        shown = {name: batches if name in ("ours", "memmap") else few for name in runs}
        rates = {name: sum(map(len, shown[name])) / value for name, value in seconds.items()}
        for name, rate in rates.items():
            print(f"{name:>20}: {rate / 1e3:8.0f} k rows/s; ours is {rates['ours'] / rate:.2f} times that")
        rows = [{"way": name, "rows_per_second": rate} for name, rate in rates.items()]
        more = {"rows_held": arguments.rows, "k": arguments.k, "view_rows_per_second": opened}
        write_result(
            arguments.out,
            rows,
            **more,
            bytes_held=held,
            peak_growth_bytes=grown,
            mb_per_second=written,
            large=large,
        )


if __name__ == "__main__":
    main()
