"""Records as `logitcache stats` would find them, made up: of any number of views and classes, and of teachers of any quality."""

from dataclasses import replace

import numpy as np

from logitcache.caches.fidelity import Fidelity, MethodError
from logitcache.stats import (
    Bin,
    CacheStats,
    Comparison,
    Confusion,
    Duplicate,
    Health,
    MethodPreview,
    OddSample,
    ProbeLoss,
    Quantiles,
    Side,
    ViewStats,
)

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'/><svg onload=alert(1)>",
    "</title></style></svg><h1>",
    "",
    " \t\n",
    "a very long name " * 40,
    "W" * 300,
    "مرحبا بالعالم",
    "\u202eturned\u202c",
    "🦆👩‍👩‍👧 emoji",
    "nul\x00bell\x07\ud800",
    "漢字" * 30,
    "&lt;b&gt; & `code` {braces} %s",
]
NOTHING = Quantiles(0, 0, 0, 0, 0, 0, 0, 0)
SPREAD = Quantiles(0.5, 1.0, 1.4, 1.7, 2.1, 3.0, 8.5, 1.8)


def view(number: int, classes: int, *, accuracy: float = 0.9, rows: int = 1000) -> ViewStats:
    """A view of a teacher that is a little too sure."""
    edges = np.linspace(0, 1, 16)
    counts = [rows * n // 120 for n in range(15)]
    bins = [
        Bin(float(low), float(high), count, (low + high) / 2 if count else 0.0, accuracy * high if count else 0.0)
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
    ]
    wrong = round(rows * (1 - accuracy))
    ranks = [rows - wrong, wrong // 2, wrong // 4, 0, wrong - wrong // 2 - wrong // 4]
    shares = [None if n == 3 else min(1.0, accuracy * (0.5 + n / classes)) for n in range(classes)]
    right = accuracy if rows else 0.0
    return ViewStats(
        *(number, "pad-crop-flip", rows, right, (1 + right) / 2, 1 - right, 0.93, 0.2, 0.03, bins, ranks, shares),
        *([0 if share is None else max(rows // classes, 1) for share in shares], 0, 0),
    )


def stats(
    names: list[str],
    *,
    views: int = 2,
    accuracy: float = 0.9,
    rows: int = 1000,
    encoding: dict[str, object] | None = None,
) -> CacheStats:
    """All of a cache."""
    classes = len(names)
    shown = min(views, 16)
    last = classes - 1
    odd = [OddSample(7 * n, n % classes, (n + 1) % classes, 0.99 - n / 1000, 0.001) for n in range(50)]
    pairs = [Duplicate(n, n + 500, 0.01 * n, (n % classes, last), n == 0) for n in range(30)]
    whole = [view(n, classes, accuracy=accuracy, rows=rows) for n in range(views)]
    erring = rows and accuracy < 1
    preview = MethodPreview(
        *(rows * views, rows * views, 1 - accuracy, 0.4, 1 - accuracy, 0.3, 1 - accuracy, 2.5),
        *((SPREAD, SPREAD, SPREAD) if rows else (NOTHING, NOTHING, NOTHING)),
        {"T=1": 0.01, "T=2": 0.05, "T=4": 0.24} if encoding else dict.fromkeys(("T=1", "T=2", "T=4"), 0.0),
        [accuracy * 0.5**n for n in range(min(classes, 50))] if rows else [],
    )
    return CacheStats(
        preprocessing_from={"mean": "weights"},
        path="c.zarr",
        fingerprint="a59f659b73f371c6",
        made={"begun": "2026-11-21T19:00:00Z", "host": "box", "command": "logitcache dump --out <c>.zarr"},
        manifest={
            "samples": rows,
            "classes": names,
            "views": [{"recipe": "pad-crop-flip", "seed": 0, "group": n} for n in range(views)],
            "data": {"spec": "arrays:<b>.npz", "length": rows, "first": 0, "digest": "00"},
            "teachers": [
                {
                    "name": "tiny:<net>",
                    "slug": "net",
                    "weights_sha256": None,
                    "class_map": None,
                    "preprocessing": {
                        "image_size": 16,
                        "crop_pct": 1.0,
                        "resize": "none",
                        "mean": [0.5, 0.5, 0.5],
                        "std": [0.2, 0.2, 0.3],
                    },
                }
            ],
            "encoding": encoding or {"kind": "full", "dtype": "f16"},
            "software": {"logitcache": "0.1.0", "torch": "2.15.0"},
            "forward": {"autocast": None, "channels_last": False, "compiled": False, "test_time_views": "none"},
            "device": "cpu",
            "batch_size": 64,
            "derived": None,
        },
        finished=rows > 0,
        blocks=2 * views,
        blocks_there=2 * views if rows else 0,
        rows=rows * views,
        rows_there=rows * views,
        serves=["ce", "kd"],
        refuses={},
        bytes_by_array={"teachers/net": 100_000, "digests": 8_000, "labels": 0},
        bytes_total=108_000,
        bytes_per_row=27.0,
        ratio_to_float32=0.55,
        health=Health(rows > 0, 2 * views, [] if rows else ["view 0, block 0"], [], 0, 0),
        views=whole,
        agreement=[[1.0 if a == b else 0.9 - 0.001 * (a + b) for b in range(shown)] for a in range(shown)]
        if rows
        else [],
        agreement_of_all=0.85,
        confusions=[Confusion(n % classes, (n + 1) % classes, 40 - n, 0.04) for n in range(20)] if erring else [],
        preview=preview,
        odd=odd if erring else [],
        odd_total=len(odd) + 11 if erring else 0,
        duplicates=pairs if rows else [],
        duplicates_among=rows,
        probe=ProbeLoss(64, 0.004, {"T=1": 1e-7, "T=4": 1e-7}, 0),
    )


def fidelity() -> Fidelity:
    """What storing does to a method that suffers, one that does not, and one that is refused."""
    both = {"fresh": 0.002, "trained": 0.24}
    small = {"fresh": 1e-7, "trained": 0.0}
    methods = [
        MethodError("kd", small, small, small, None),
        MethodError("rld", both, both, both, None),
        MethodError("dist", {}, {}, {}, "it looks at <every> logit"),
    ]
    return Fidelity({"kind": "topk", "k": 20, "dtype": "u8"}, 40.0, 64, {"T=1": 1e-3, "T=4": 1e-2}, 0.01, methods)


def comparison(classes: int) -> Comparison:
    """Two caches."""
    one = Side("a.zarr", "aa", "resnet56", "every class f16", 214.7, 0.95, 0.09, 0.01)
    other = replace(one, path="b.zarr", teacher="<wrn>", encoding="top-20 u8", bytes_per_row=44.0)
    near = {"T=1": 0.013, "T=4": 0.2}
    shares = [n / classes for n in range(classes)]
    return Comparison(
        (one, other),
        {"data": "the same"},
        1000,
        0.93,
        0.9,
        0.05,
        0.03,
        0.02,
        near,
        near,
        [None, *shares[1:]],
        ["Use `A`."],
    )
