"""How fast rows come back: opening a view, and random batches of 256 beside other ways of keeping the same bytes.

    python benchmarks/reading.py --rows 1280000 --out benchmarks/results/reading.json

Ours is what training does: a view decoded into memory once, a batch one gather per column. Beside it, on the same bytes: numpy's
take from memory-mapped arrays; a seek and a read per record; a Dataset of samples with torch's collate.
"""

import argparse
import resource
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import alternating_seconds, write_result
from torch.utils.data import Dataset, default_collate

from logitcache.answers import gather
from logitcache.encoding import TopKEncoding
from logitcache.store import Cache, CacheWriter, Manifest, block_rows_for, open_cache

CLASSES, BATCH = 1000, 256


def build(path: Path, rows: int, k: int) -> Cache:
    """Write a cache of one view of random top-k rows."""
    columns = TopKEncoding(k, "f16").columns(CLASSES)
    width = max(column.nbytes for column in columns.values())
    manifest = Manifest(
        samples=rows,
        classes=tuple(map(str, range(CLASSES))),
        block_rows=block_rows_for(rows, width),
        batch_size=BATCH,
        threads=1,
        device="cpu",
        views=({"recipe": "none", "recipe_version": 1, "seed": 0, "key": 0, "index": 0, "group": 0},),
        data={"spec": "", "length": rows, "digest": ""},
        preprocessing={},
        teachers=({"slug": "t", "name": "t", "weights": "", "weights_sha256": "", "class_map": None},),
        encoding=TopKEncoding(k, "f16").to_json(),
        software={},
    )
    random = np.random.default_rng(0)
    with CacheWriter(path, manifest, {"t": columns}, np.zeros(rows, np.int32), command="") as writer:
        writer.begin(np.arange(2), {"t": np.zeros((2, CLASSES), np.float32)})
        started = time.perf_counter()
        for view, block in writer.missing():
            first, last = manifest.rows(block)
            ids = np.sort(random.integers(0, CLASSES - k - 1, (last - first, k + 1)), 1) + np.arange(k + 1)
            made = {"digests": np.zeros(last - first, np.uint64)}
            made["teachers/t/ids"] = np.diff(ids, axis=1, prepend=0)
            made["teachers/t/values"] = random.standard_normal((last - first, k + 1), np.float32).astype(np.float16)
            made["teachers/t/rest"] = random.standard_normal((last - first, 4), np.float32).astype(np.float16)
            writer.write(view, block, made)
        writer.finish()
    print(f"written with the making of random rows: {rows / (time.perf_counter() - started) / 1e3:.0f} k rows/s")
    return open_cache(path)


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
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        cache = build(Path(folder) / "c.zarr", arguments.rows, arguments.k)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.perf_counter()
        columns = open_cache(cache.path).view(0, "t")
        opened = arguments.rows / (time.perf_counter() - started)
        held = sum(column.nbytes for column in columns.values())
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        print(
            f"a view into memory: {opened / 1e6:.2f} M rows/s; {held / 1e6:.0f} MB held, peak grew by {grown / 1e6:.0f} MB"
        )
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
        samples = PerSample(columns)

        def ours() -> None:
            for batch in batches:
                gather(columns, batch)

        def memmap() -> None:
            for batch in batches:
                for column in mapped.values():
                    np.take(column, batch, 0)

        def keyed() -> None:
            with records.open("rb") as file:
                for batch in few:
                    for index in batch:
                        file.seek(int(index) * record)
                        np.frombuffer(file.read(record), np.uint8)

        def collated() -> None:
            for batch in few:
                default_collate([samples[int(index)] for index in batch])

        torch.set_num_threads(1)
        runs = {"ours": ours, "memmap": memmap, "keyed read": keyed, "Dataset and collate": collated}
        seconds = alternating_seconds({name: partial(run) for name, run in runs.items()}, arguments.rounds)
        shown = {name: batches if name in ("ours", "memmap") else few for name in runs}
        rates = {name: sum(map(len, shown[name])) / value for name, value in seconds.items()}
        for name, rate in rates.items():
            print(f"{name:>20}: {rate / 1e3:8.0f} k rows/s; ours is {rates['ours'] / rate:.2f} times that")
        rows = [{"way": name, "rows_per_second": rate} for name, rate in rates.items()]
        more = {"rows_held": arguments.rows, "k": arguments.k, "view_rows_per_second": opened}
        write_result(arguments.out, rows, **more, bytes_held=held, peak_growth_bytes=grown)


if __name__ == "__main__":
    main()
