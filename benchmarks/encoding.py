"""What rows cost and what they lose: bytes, KL and decoding time, beside the bound of the ids and beside DistillKit's codec.

    python benchmarks/encoding.py --out benchmarks/results/encoding.json
    python benchmarks/encoding.py --cache cifar.zarr --top-k 10,20     # a real network's: its probe and view 0 in f32

The default teacher is a synthetic language model: 128,256 classes whose frequency falls with their id (Zipf), noise, and a few
dozen boosted tokens a row; median entropy and the mass of the 64 largest are printed. DistillKit's format is public (its README);
here it is written from that description: the k largest log-probabilities by size, the first `exact` as bfloat16, a polynomial
through the others, ids packed into ceil(log2 C) bits. Its KL is given twice: as it is used, what is missing from 1 spread evenly;
and with the exact mass of the rest, which it does not store.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import alternating_seconds, write_result
from numcodecs import Blosc
from torch import Tensor

from logitcache.encoding import TopKEncoding, dense
from logitcache.store import compressed_bytes, open_cache

VOCABULARY, BLOCK = 128_256, 4096


def language_model(rows: int, generator: torch.Generator) -> Tensor:
    """Draw logits of a synthetic language model, [B, 128256]."""
    prior = -1.05 * torch.log(torch.arange(1, VOCABULARY + 1) + 5.0) + 10
    logits = prior + 0.75 * torch.randn(rows, VOCABULARY, generator=generator)
    for row in range(rows):
        count = int(torch.randint(8, 60, (1,), generator=generator))
        ids = (VOCABULARY * torch.rand(count, generator=generator) ** 4).long()
        strength = 1.6 * torch.rand(1, generator=generator)
        logits[row, ids] += 3.0 + 5 * torch.rand(count, generator=generator) * strength
    return logits


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


def ours(
    k: int, precision: str, draw: Callable[[], tuple[Tensor, Tensor]], blocks: int, rest: list[Published]
) -> dict[str, Any]:
    """Encode, measure, decode; and the same by the codecs of `rest` on the same rows."""
    encoding, parts, labels, lost, count = TopKEncoding(k, precision), [], [], 0.0, 0
    entropies, masses = [], []
    packed: dict[Published, list[np.ndarray]] = {codec: [] for codec in rest}
    theirs = {codec: [0.0, 0.0] for codec in rest}
    for _ in range(blocks):
        logits, true = draw()
        log_p, columns = logits.log_softmax(1), encoding.encode(logits, true)
        lost += kl(log_p, dense(encoding.decode(columns, true, logits.shape[1])))
        entropies.append(-(log_p.exp() * log_p).sum(1))
        masses.append(log_p.topk(min(64, logits.shape[1]), 1).values.exp().sum(1))
        for codec in rest:
            data = codec.encode(log_p)
            packed[codec].append(data)
            ids, values = (torch.from_numpy(x) for x in codec.decode(data))
            for position, exact_rest in enumerate((False, True)):
                theirs[codec][position] += theirs_as_used(codec, ids.long(), values, log_p, exact_rest=exact_rest)
        parts.append(columns)
        labels.append(true)
        count += len(true)
    classes = logits.shape[1]
    specs = encoding.columns(classes)
    columns = {name: torch.cat([part[name] for part in parts]) for name in specs}
    stored = {name: column.numpy().astype(specs[name].dtype) for name, column in columns.items()}
    sizes = {name: compressed_bytes(specs[name], column) / count for name, column in stored.items()}
    chunks = {
        name: Blosc("zstd", 5, Blosc.SHUFFLE, typesize=column.itemsize).encode(np.ascontiguousarray(column)) if specs[name].compressed
        else column.tobytes()
        for name, column in stored.items()
    }  # fmt: skip
    true = torch.cat(labels)

    def decode() -> None:
        read = {}
        for name, column in stored.items():
            data = Blosc().decode(chunks[name]) if specs[name].compressed else chunks[name]
            read[name] = torch.from_numpy(np.frombuffer(data, column.dtype).reshape(column.shape).copy())
        encoding.decode(read, true, classes)

    runs: dict[str, Callable[[], object]] = {"ours": decode}
    runs |= {str(codec.k): partial(codec.decode, np.concatenate(packed[codec])) for codec in rest}
    seconds = alternating_seconds(runs, 5)
    found: dict[str, Any] = {
        "k": k,
        "precision": precision,
        "classes": classes,
        "rows": count,
        "median_entropy_nats": float(torch.cat(entropies).median()),
        "mass_of_64": float(torch.cat(masses).mean()),
        "bytes": sum(sizes.values()),
        "bytes_by_column": sizes,
        "id_bytes_bound": id_entropy(np.cumsum(stored["ids"].astype(np.int64), 1), classes),
        "kl": lost / count,
        "decode_us": seconds["ours"] / count * 1e6,
    }
    for codec in rest:
        found[f"distillkit k={codec.k}"] = {
            "bytes": codec.row_bytes,
            "kl_as_used": theirs[codec][0] / count,
            "kl_with_exact_rest": theirs[codec][1] / count,
            "decode_us": seconds[str(codec.k)] / count * 1e6,
        }
    return found


def show(row: dict[str, Any]) -> None:
    """Print a row of the result."""
    parts = ", ".join(f"{name} {size:.1f}" for name, size in row["bytes_by_column"].items())
    print(
        f"k={row['k']} {row['precision']} of {row['classes']:,}: {row['bytes']:.1f} B a row ({parts}); ids {row['bytes_by_column']['ids'] / row['id_bytes_bound']:.2f} "
        f"of their bound {row['id_bytes_bound']:.1f} B; KL {row['kl']:.4g}; decode {row['decode_us']:.2f} us a row"
    )
    for name, other in row.items():
        if isinstance(other, dict) and name.startswith("distillkit"):
            print(
                f"    {name}: {other['bytes']} B; KL {other['kl_as_used']:.4g} as used, {other['kl_with_exact_rest']:.4g} with the exact "
                f"rest (ours is {row['kl'] / other['kl_with_exact_rest']:.2f} of that); decode {other['decode_us']:.2f} us "
                f"({other['decode_us'] / row['decode_us']:.1f} times ours)"
            )


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", help="a full f32 cache, instead of the synthetic language model")
    parser.add_argument("--top-k", default="128,50")
    parser.add_argument("--rows", type=int, default=BLOCK)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows, started = [], time.perf_counter()
    for k in map(int, arguments.top_k.split(",")):
        if arguments.cache:
            cache = open_cache(arguments.cache)
            logits = torch.from_numpy(cache.view(0, cache.teachers[0])["logits"]).float()
            labels = torch.from_numpy(cache.labels()).long()
            rows.append(ours(k, "u8", lambda: (logits, labels), 1, []))
        else:
            generator = torch.Generator().manual_seed(0)

            def draw(generator: torch.Generator = generator) -> tuple[Tensor, Tensor]:
                logits = language_model(128, generator)
                return logits, torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)

            rest = [codec for codec in (RECOMMENDED, BUDGET) if codec.k == k]
            rows.append(ours(k, "u8", draw, arguments.rows // 128, rest))
        show(rows[-1])
    print(
        f"median entropy {rows[0]['median_entropy_nats']:.2f} nats, mass of the 64 largest {rows[0]['mass_of_64']:.3f}; ",
        end="",
    )
    print(f"{time.perf_counter() - started:.0f} s")
    write_result(arguments.out, rows)


if __name__ == "__main__":
    main()
