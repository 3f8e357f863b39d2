"""What rows cost and what they lose: bytes, KL and decoding time, beside the bound of the ids and beside DistillKit's codec.

    python benchmarks/encoding.py --out benchmarks/results/encoding.json
    python benchmarks/encoding.py --cache cifar.zarr --top-k 10,20     # a real network's
    python benchmarks/encoding.py --cost 512x50257,512x128256          # how long encoding takes, and its memory

The default teacher is a synthetic language model: 128,256 classes whose frequency falls with their id (Zipf), noise, and a few
dozen boosted tokens a row; median entropy and the mass of the 64 largest are printed. DistillKit's format is public (its README);
here it is written from that description: the k largest log-probabilities by size, the first `exact` as bfloat16, a polynomial
through the others, ids packed into ceil(log2 C) bits. Its KL is given twice: as it is used, what is missing from 1 spread evenly;
and with the exact mass of the rest, which it does not store.

With `--cost` nothing is stored: `TopKEncoding.encode` of random logits is timed beside `torch.topk` and `logsumexp`, which any encoding of
the largest needs, and the memory of each beyond the logits is given.
"""

import argparse
import math
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import alternating_seconds, manifest_of, peak_bytes, write_result
from torch import Tensor

from logitcache.encoding import TopKEncoding, dense
from logitcache.runtime.memory import keep_freed_memory
from logitcache.store import Cache, CacheWriter, compressed_bytes, open_cache
from logitcache.train.targets import HeldRows

VOCABULARY = 128_256


def language_model(rows: int, generator: torch.Generator) -> Tensor:
    """Draw logits of a synthetic language model, [B, 128256]: median entropy 1.8 nats, 98 % of the mass in the 64 largest."""
    prior = -1.05 * torch.log(torch.arange(1, VOCABULARY + 1) + 5.0) + 10
    logits = prior + 0.6 * torch.randn(rows, VOCABULARY, generator=generator)
    count = torch.randint(20, 80, (rows, 1), generator=generator)
    ids = (VOCABULARY * torch.rand(rows, 80, generator=generator) ** 4).long()
    lift = 6.5 + 5 * torch.rand(rows, 80, generator=generator) * torch.rand(rows, 1, generator=generator)
    return logits.scatter(1, ids, logits.gather(1, ids) + lift * (torch.arange(80) < count))


@dataclass(frozen=True)
class Published:
    """DistillKit's `logprob_compressor`, with the settings its README gives."""

    classes: int
    k: int
    exact: int
    terms: tuple[float, ...]  # exponents; 0.5 is its "sqrt"

    @property
    def id_bits(self) -> int:
        """Bits of a class id."""
        return math.ceil(math.log2(self.classes))

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return math.ceil(self.k * self.id_bits / 8) + 2 * self.exact + 4 * len(self.terms)

    @property
    def curve(self) -> np.ndarray:
        """Value of each term at each place, [places, terms]."""
        return np.linspace(0, 1, self.k - self.exact)[:, None] ** np.array(self.terms)

    def encode(self, log_p: Tensor) -> np.ndarray:
        """Turn log-probabilities, [B, C], into bytes, [B, row_bytes]."""
        values, ids = log_p.topk(self.k, 1)
        bits = (ids.numpy()[:, :, None] >> np.arange(self.id_bits)) & 1
        head = values[:, : self.exact].bfloat16().view(torch.uint8).numpy()
        tail = values[:, self.exact :].double().numpy()
        terms = np.ascontiguousarray(np.linalg.lstsq(self.curve, tail.T, rcond=None)[0].T.astype("<f4"))
        packed = np.packbits(bits.reshape(len(ids), -1).astype(np.uint8), axis=1, bitorder="little")
        return np.concatenate([packed, head, terms.view(np.uint8)], 1)

    def decode(self, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and log-probabilities, [B, k]."""
        width, head = math.ceil(self.k * self.id_bits / 8), 2 * self.exact
        bits = np.unpackbits(data[:, :width], axis=1, count=self.k * self.id_bits, bitorder="little")
        ids = bits.reshape(len(data), self.k, self.id_bits) @ (1 << np.arange(self.id_bits)).astype(np.int32)
        exact = (
            torch.from_numpy(np.ascontiguousarray(data[:, width : width + head])).view(torch.bfloat16).float().numpy()
        )
        terms = np.ascontiguousarray(data[:, width + head :]).view("<f4")
        return ids, np.concatenate([exact, terms @ self.curve.T.astype(np.float32)], 1)


RECOMMENDED = Published(VOCABULARY, 128, 16, (0, 1, 2, 3, 4, 0.5))
BUDGET = Published(VOCABULARY, 50, 1, (0, 1, 0.5))


def kl(log_p: Tensor, scores: Tensor) -> float:
    """KL(p || softmax(scores)), summed over rows, in nats."""
    return float((log_p.exp() * (log_p - scores.log_softmax(1))).sum())


def theirs_as_used(codec: Published, ids: Tensor, values: Tensor, log_p: Tensor, *, exact_rest: bool) -> float:
    """KL of decoded rows; the rest evenly, with the mass that is missing from 1 or the exact one."""
    rest = (1 - log_p.gather(1, ids).exp().sum(1)) if exact_rest else (1 - values.exp().sum(1))
    level = rest.clamp_min(1e-9).log() - math.log(codec.classes - codec.k)
    return kl(log_p, level[:, None].repeat(1, codec.classes).scatter(1, ids, values))


def id_entropy(ids: np.ndarray, classes: int) -> float:
    """Bytes a row that any coder needs which knows how often each class is kept, and nothing of a row but its ids.

    Sum over classes of the entropy of being kept; frequencies are shared by bins of neighbouring classes, so that few rows do not
    flatter the bound.
    """
    edges = (
        np.unique(np.geomspace(1, classes + 1, 200).astype(np.int64) - 1) if classes > 1000 else np.arange(classes + 1)
    )
    kept, _ = np.histogram(ids, edges)
    widths = np.diff(edges)
    p = np.clip(kept / (len(ids) * widths), 1e-12, 1 - 1e-12)
    return float((widths * -(p * np.log2(p) + (1 - p) * np.log2(1 - p))).sum() / 8)


class Trial:
    """One k: ours, and perhaps a published codec, on the same rows."""

    def __init__(self, k: int, classes: int, codec: Published | None) -> None:
        self.encoding, self.classes, self.codec = TopKEncoding(k, "u8"), classes, codec
        self.specs = self.encoding.columns(classes)
        self.columns: dict[str, list[np.ndarray]] = {name: [] for name in self.specs}
        self.packed: list[np.ndarray] = []
        self.lost = np.zeros(3)  # KL, summed: ours; theirs as used; theirs with the exact rest

    def add(self, logits: Tensor, log_p: Tensor, labels: Tensor) -> None:
        """Encode and measure some rows."""
        columns = self.encoding.encode(logits, labels)
        self.lost[0] += kl(log_p, dense(self.encoding.decode(columns, labels, self.classes), 1.0))
        for name, spec in self.specs.items():
            self.columns[name].append(columns[name].numpy().astype(spec.dtype))
        if self.codec:
            self.packed.append(self.codec.encode(log_p))
            ids, values = (torch.from_numpy(x) for x in self.codec.decode(self.packed[-1]))
            for position, exact in ((1, False), (2, True)):
                self.lost[position] += theirs_as_used(self.codec, ids.long(), values, log_p, exact_rest=exact)

    def result(self, labels: Tensor, folder: Path) -> dict[str, Any]:
        """Write the rows as a cache, time the way back, and sum up."""
        stored, count = {name: np.concatenate(parts) for name, parts in self.columns.items()}, len(labels)
        sizes = {name: compressed_bytes(self.specs[name], column) / count for name, column in stored.items()}
        cache = self._written(stored, labels, folder)
        runs: dict[str, Callable[[], object]] = {
            "ours": partial(self._back, cache, labels),
            "chunks": partial(self._unpacked, cache, labels),
        }
        if self.codec:
            runs["theirs"] = partial(self.codec.decode, np.concatenate(self.packed))
        seconds, lost = alternating_seconds(runs, 5), self.lost / count
        found: dict[str, Any] = {
            "k": self.encoding.k,
            "precision": "u8",
            "classes": self.classes,
            "rows": count,
            "bytes": sum(sizes.values()),
            "bytes_by_column": sizes,
            "id_bytes_bound": id_entropy(np.cumsum(stored["ids"].astype(np.int64), 1), self.classes),
            "kl": lost[0],
            "decode_us": seconds["chunks"] / count * 1e6,
            "files_to_batches_us": seconds["ours"] / count * 1e6,
        }
        if self.codec:
            theirs = {"bytes": self.codec.row_bytes, "kl_as_used": lost[1], "kl_with_exact_rest": lost[2]}
            found["distillkit"] = theirs | {"decode_us": seconds["theirs"] / count * 1e6}
        return found

    def _written(self, stored: dict[str, np.ndarray], labels: Tensor, folder: Path) -> Cache:
        count = len(labels)
        manifest = manifest_of(count, self.classes, self.encoding)
        path = folder / f"{self.encoding.k}.zarr"
        with CacheWriter(path, manifest, {"t": self.specs}, labels.numpy().astype(np.int32), command="") as writer:
            writer.begin(np.arange(1), {"t": np.zeros((1, self.classes), np.float32)})
            for view, block in writer.missing():
                first, last = manifest.span(block)
                rows = {f"teachers/t/{name}": column[first:last] for name, column in stored.items()}
                writer.write(view, block, rows | {"digests": np.zeros(last - first, np.uint64)})
            writer.finish()
        return open_cache(path)

    def _unpacked(self, cache: Cache, labels: Tensor) -> None:
        """From compressed chunks to ids and logits in the order of the rows, checked; as the published decoder is timed."""
        for first, last, columns in cache.blocks(0, "t"):
            block = {name: torch.from_numpy(column) for name, column in columns.items()}
            for start in range(0, last - first, 1024):
                rows = {name: column[start : start + 1024] for name, column in block.items()}
                self.encoding.decode(rows, labels[first + start : first + start + 1024], self.classes)

    def _back(self, cache: Cache, labels: Tensor) -> None:
        """From the files, checked, into memory, and from there in random batches of 256 to ids and logits: as training does."""
        held = HeldRows(cache.view(0, "t"), torch.device("cpu"))
        order = np.random.default_rng(0).permutation(len(labels))
        for start in range(0, len(order), 256):
            batch = torch.from_numpy(order[start : start + 256])
            self.encoding.decode(held.take(batch), labels[batch], self.classes)


def show(row: dict[str, Any]) -> None:
    """Print a row of the result."""
    parts = ", ".join(f"{name} {size:.1f}" for name, size in row["bytes_by_column"].items())
    of_bound = row["bytes_by_column"]["ids"] / row["id_bytes_bound"]
    print(
        f"k={row['k']} {row['precision']} of {row['classes']:,}: {row['bytes']:.1f} B a row ({parts}); ids {of_bound:.2f} of their bound "
        f"{row['id_bytes_bound']:.1f} B; KL {row['kl']:.4g}; decode {row['decode_us']:.2f} us a row, "
        f"{row['files_to_batches_us']:.2f} from files to random batches of 256"
    )
    if other := row.get("distillkit"):
        print(
            f"    DistillKit: {other['bytes']} B; KL {other['kl_as_used']:.4g} as used, {other['kl_with_exact_rest']:.4g} with the exact "
            f"rest (ours is {row['kl'] / other['kl_as_used']:.2f} and {row['kl'] / other['kl_with_exact_rest']:.2f} of that); decode "
            f"{other['decode_us']:.2f} us ({other['decode_us'] / row['decode_us']:.1f} times ours)"
        )


def extra_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Return the memory that a call takes at its peak beyond what was taken before."""
    if device.type != "cuda":
        return peak_bytes(run)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    return torch.cuda.max_memory_allocated(device) - before


def cost(rows: int, classes: int, device: torch.device) -> dict[str, Any]:
    """Time the encoding of the 64 largest beside `torch.topk` and `logsumexp`, and measure the memory of each."""
    generator = torch.Generator(device).manual_seed(0)
    logits = 3 * torch.randn(rows, classes, generator=generator, device=device)
    labels = torch.randint(0, classes, (rows,), generator=generator, device=device)
    encoding = TopKEncoding(64, "u8")

    def waited(run: Callable[[], object]) -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    calls: dict[str, Callable[[], object]] = {
        "encode": partial(encoding.encode, logits, labels),
        "topk": partial(torch.topk, logits, 64, 1),
        "logsumexp": partial(torch.logsumexp, logits, 1),
    }
    taken = {name: extra_bytes(run, device) for name, run in calls.items()}
    seconds = alternating_seconds({name: partial(waited, run) for name, run in calls.items()}, 5)
    us = {name: value / rows * 1e6 for name, value in seconds.items()}
    ratio = us["encode"] / (us["topk"] + us["logsumexp"])
    share = 1 + taken["encode"] / (4 * rows * classes)
    print(
        f"[{rows:,}, {classes:,}] on {device}: encode {us['encode']:.1f} us a row, topk {us['topk']:.1f}, logsumexp {us['logsumexp']:.1f}: "
        f"{ratio:.2f} of both; at its peak {share:.2f} times the logits"
    )
    return {"rows": rows, "classes": classes, "us": us, "ratio": ratio, "bytes": taken, "peak_of_logits": share}


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", help="a full f32 cache, instead of the synthetic language model")
    parser.add_argument("--top-k", default="128,50")
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--cost", metavar="ROWSxCLASSES,...", help="time and memory of encoding alone")
    parser.add_argument("--device", default="cpu", help="of --cost")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as the command line does; for all
    if arguments.cost:
        shapes = [tuple(map(int, shape.split("x"))) for shape in arguments.cost.split(",")]
        costs = [cost(rows, classes, torch.device(arguments.device)) for rows, classes in shapes]
        write_result(arguments.out, costs, measured_on=arguments.device)
        return
    generator = torch.Generator().manual_seed(0)
    if arguments.cache:
        cache = open_cache(arguments.cache)
        teacher = torch.from_numpy(cache.view(0, cache.teachers[0])["logits"]).float()
        true, classes = torch.from_numpy(cache.labels()).long(), len(cache.manifest.classes)
        batches: Iterable[tuple[Tensor, Tensor | None]] = zip(teacher.split(4096), true.split(4096), strict=True)
    else:
        classes = VOCABULARY
        batches = ((language_model(128, generator), None) for _ in range(arguments.rows // 128))
    published = {} if arguments.cache else {codec.k: codec for codec in (RECOMMENDED, BUDGET)}
    trials = [Trial(k, classes, published.get(k)) for k in map(int, arguments.top_k.split(","))]
    labels, entropies, masses = [], [], []
    for logits, given in batches:
        log_p = logits.log_softmax(1)
        labels.append(torch.multinomial(log_p.exp(), 1, generator=generator).squeeze(1) if given is None else given)
        entropies.append(-(log_p.exp() * log_p).sum(1))
        masses.append(log_p.topk(min(64, classes), 1).values.exp().sum(1))
        for trial in trials:
            trial.add(logits, log_p, labels[-1])
    median, mass = float(torch.cat(entropies).median()), float(torch.cat(masses).mean())
    print(f"{sum(map(len, labels)):,} rows; median entropy {median:.2f} nats, mass of the 64 largest {mass:.3f}")
    with tempfile.TemporaryDirectory() as folder:
        rows = [trial.result(torch.cat(labels), Path(folder)) for trial in trials]
    for row in rows:
        show(row)
    write_result(arguments.out, rows, median_entropy_nats=median, mass_of_64=mass)


if __name__ == "__main__":
    main()
