"""Draws against the largest logits: the angle of the gradient, and what a student learns, by bytes a token.

    python benchmarks/sampled.py --out benchmarks/results/sampled-cpu.json
    python benchmarks/sampled.py --rows rows.npz --out benchmarks/results/sampled-smollm2-cpu.json
    python benchmarks/sampled.py --learning --out benchmarks/results/sampled-learning-cpu.json

Without `--rows` the teacher is the one that ships, over its own stories. The angle is that between the gradient of KL at temperature 1 from
stored rows and from full rows, with respect to the logits of a stand-in for a student (the teacher's logits with noise of half their
deviation), over all rows; and that of the means of 64 rows each. Learning: a student of 0.1 M parameters, nats a token on the test stories
after `--epochs` passes, `--seeds` seeds, with draws made anew for each epoch, which takes a view for each, and made once. Bytes are those
of compressed columns in one view. `rows.npz` has `logits` [R, C] float32 and `labels` [R] of another teacher.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import write_result
from torch import Tensor

from logitcache import dump_logits, train_student
from logitcache.encoding import Encoding, SampledEncoding, TopKEncoding, encode_rows
from logitcache.methods import get_loss
from logitcache.store import Cache, compressed_bytes, row_uniforms

DRAWS, LARGEST, GROUP = (6, 12, 25, 50, 100), (2, 4, 8, 16, 32), 64
LEARNED_ANEW, LEARNED_ONCE, LEARNED_LARGEST = (3, 6, 25, 100), (12, 50, 100), (1, 2, 8, 32)


def gradient(student: Tensor, teacher: Any, labels: Tensor, tail: str) -> Tensor:
    """Return that of the mean loss with respect to the student's logits."""
    student = student.clone().requires_grad_()
    value = get_loss("kd", temperature=1.0, tail=tail)(student, teacher, labels).sum()
    return torch.autograd.grad(value, student)[0].double()


def degrees(one: Tensor, other: Tensor) -> float:
    """Return the angle between two gradients, of all rows together."""
    return float(torch.rad2deg(torch.acos((one * other).sum() / (one.norm() * other.norm()))))


def angle(encoding: Encoding, logits: Tensor, labels: Tensor, student: Tensor, exact: Tensor) -> dict[str, Any]:
    """Measure one encoding."""
    rows, classes = np.arange(len(logits)), logits.shape[1]
    columns = encode_rows(encoding, logits, labels, row_uniforms(encoding.to_json(), 0, rows, None, 0))
    specs = encoding.columns(classes)
    size = sum(compressed_bytes(specs[name], one.numpy().astype(specs[name].dtype)) for name, one in columns.items())
    stored = encoding.decode(columns, labels, classes)
    found = gradient(student, stored, labels, "bucket" if isinstance(encoding, TopKEncoding) else "uniform")
    count = len(rows) // GROUP * GROUP
    mine, theirs = (one[:count].view(-1, GROUP, classes).mean(1) for one in (found, exact))
    return {
        "encoding": encoding.to_json(),
        "bytes_per_row": size / len(rows),
        "degrees": degrees(found, exact),
        "degrees_of_groups": degrees(mine, theirs),
    }


def angles(logits: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    """Measure every encoding."""
    random = torch.Generator().manual_seed(0)
    student = logits + 0.5 * logits.std(1, keepdim=True) * torch.randn(logits.shape, generator=random)
    exact = gradient(student, logits, labels, "uniform")
    encodings: list[Encoding] = [*(SampledEncoding(n) for n in DRAWS), *(TopKEncoding(k, "u8") for k in LARGEST)]
    return [angle(one, logits, labels, student, exact) for one in encodings]


def payload(cache: Cache) -> float:
    """Return the compressed bytes of a row in one view."""
    part = f"teachers/{cache.teacher}/"
    size = sum(size for name, size in cache.place.sizes().items() if name.startswith(part) and "/c/" in name)
    return size / cache.manifest.view_rows / len(cache.manifest.views)


def learning(folder: Path, epochs: int, seeds: int) -> list[dict[str, Any]]:
    """Train the demo's student from caches of each kind."""
    kinds: list[dict[str, Any]] = [{"encoding": "sampled", "draws": n, "views": epochs} for n in LEARNED_ANEW]
    kinds += [{"encoding": "sampled", "draws": n, "views": 1} for n in LEARNED_ONCE]
    kinds += [{"encoding": "topk", "top_k": k, "precision": "u8"} for k in LEARNED_LARGEST]
    common: dict[str, Any] = {"method": "kd", "preset": "language"}
    common |= {"epochs": epochs, "batch_size": 2, "lr": 3e-3, "warmup_epochs": 0.3, "sequence_length": 400}
    found = []
    for number, kind in enumerate(kinds):
        cache = dump_logits("hf:stories-mini", "stories-mini", folder / f"{number}.zarr", **kind)
        losses = []
        for seed in range(seeds):
            run = train_student(
                cache,
                "llama:hidden=48,layers=3,heads=4,kv_heads=2,intermediate=96",
                out=folder / f"runs/{number}-{seed}",
                test_data="stories-mini:test",
                seed=seed,
                **common,
            )
            losses.append(run.metrics[-1]["test_loss"])
        found.append({**kind, "bytes_per_row": payload(cache), "test_nats": losses})
        print(found[-1], flush=True)
    return found


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--learning", action="store_true")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if arguments.learning:
            rows = learning(Path(name), arguments.epochs, arguments.seeds)
            write_result(arguments.out, rows, epochs=arguments.epochs)
            return
        logits, labels = read_rows(arguments.rows) if arguments.rows else shipped_rows(Path(name))
    measured = angles(logits, labels)
    for one in measured:
        print(one)
    write_result(arguments.out, measured, teacher_rows=len(logits), classes=logits.shape[1])


def read_rows(path: Path) -> tuple[Tensor, Tensor]:
    """Read logits, [R, C], and labels, [R], of another teacher."""
    with np.load(path) as file:
        return torch.from_numpy(file["logits"]), torch.from_numpy(file["labels"])


def shipped_rows(folder: Path) -> tuple[Tensor, Tensor]:
    """Return every tenth row of the teacher that ships on its test stories."""
    cache = dump_logits("hf:stories-mini", "stories-mini:test", folder / "full.zarr", encoding="full", precision="f32")
    rows = np.arange(0, cache.manifest.view_rows, 10)
    return torch.from_numpy(cache.rows(0, cache.teacher, rows)["logits"]), torch.from_numpy(cache.labels()[rows]).long()


if __name__ == "__main__":
    main()
