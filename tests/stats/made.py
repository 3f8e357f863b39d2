"""Caches of made-up logits, and what the obvious formulas say of them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from logitcache.encoding import Encoding, FullEncoding, TopKEncoding
from logitcache.store import CacheWriter, Manifest

ENCODINGS = [
    *(FullEncoding(dtype) for dtype in ("f32", "f16", "u8")),
    *(TopKEncoding(k, dtype) for k in (2, 8) for dtype in ("f32", "f16", "u8")),
]
SAMPLES, VIEWS, CLASSES, BLOCK = 600, 3, 12, 256


def draw(views: int = VIEWS, samples: int = SAMPLES, classes: int = CLASSES, seed: int = 0) -> tuple[Any, Any]:
    """Logits of a fair teacher whose views resemble each other, [V, N, C], and labels, [N]."""
    random = np.random.RandomState(seed)
    labels = random.randint(0, classes - 1, samples)  # the last class has no sample
    logits = 2.0 * random.randn(1, samples, classes) + 0.7 * random.randn(views, samples, classes)
    logits[:, np.arange(samples), labels] += 4 * random.rand(samples)
    return logits.astype(np.float32), labels.astype(np.int32)


def make(
    path: Path,
    logits: Any,
    labels: Any,
    encoding: Encoding | None = None,
    *,
    recipes: tuple[str, ...] = (),
    digests: Any = None,
    leave_out: tuple[tuple[int, int], ...] = (),
    finish: bool = True,
    seed: int = 0,
    data: dict[str, Any] | None = None,
    teacher: str = "T",
    names: tuple[str, ...] = (),
) -> Path:
    """Write a cache."""
    encoding = encoding or FullEncoding("f32")
    views, samples, classes = logits.shape
    if digests is None:
        digests = np.arange(views * samples, dtype=np.uint64).reshape(views, samples)
    recipes = recipes or ("none",) * views
    manifest = Manifest(
        samples=samples,
        classes=names or tuple(f"class {i}" for i in range(classes)),
        block_rows=BLOCK,
        batch_size=64,
        threads=1,
        device="cpu",
        views=tuple(
            {"recipe": recipe, "recipe_version": 1, "seed": seed, "key": v, "index": v, "group": v}
            for v, recipe in enumerate(recipes)
        ),
        data={"spec": "x", "length": samples, "digest": "d", "first": 0} | (data or {}),
        teachers=(
            {
                "slug": "t",
                "name": teacher,
                "weights": "w",
                "weights_sha256": teacher,
                "class_map": None,
                "preprocessing": {},
                "members": [],
            },
        ),
        encoding=encoding.to_json(),
        software={"torch": "1"},
    )
    probe = np.arange(0, samples, 50)
    with CacheWriter(path, manifest, {"t": encoding.columns(classes)}, labels, command="logitcache dump") as writer:
        writer.begin(probe, {"t": logits[0, probe]})
        for view, block in writer.missing():
            first, last = manifest.span(block)
            if (view, block) not in leave_out:
                rows = encode(encoding, logits[view, first:last], labels[first:last])
                writer.write(
                    view,
                    block,
                    {f"teachers/t/{k}": v for k, v in rows.items()} | {"digests": digests[view, first:last]},
                )
        writer.drain()
        if finish:
            writer.finish()
    return path


def encode(encoding: Encoding, logits: Any, labels: Any) -> dict[str, Any]:
    """Encode as a dump does."""
    columns = encoding.encode(torch.from_numpy(logits), torch.from_numpy(labels).long())
    specs = encoding.columns(logits.shape[1])
    return {name: column.numpy().astype(specs[name].dtype) for name, column in columns.items()}


def softmax(logits: Any, temperature: float = 1.0) -> Any:
    """In double precision."""
    p = np.exp((logits.astype(np.float64) - logits.max(-1, keepdims=True)) / temperature)
    return p / p.sum(-1, keepdims=True)
