"""What a distilled epoch costs: from the cache beside labels alone, and beside the teacher in the loop.

    python benchmarks/train.py --out benchmarks/results/train-cpu.json

An epoch is what `logitcache train` reports as `seconds`: rendering, the teacher's logits, forward, loss, backward, optimizer; not
evaluation. Images are random, of CIFAR's shape; the teacher is untrained: neither changes what an epoch costs, except that methods
that edit rows by the label edit many. The fastest of all epochs of each counts: on a shared machine any may take a tenth longer.
What the live teacher should cost at best is measured apart: its forward pass and a student's epoch of labels alone, one after the
other.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import alternating_seconds, write_result

from logitcache import dump_logits, train_student
from logitcache.data import ArrayImages, Renderer
from logitcache.data.images.views import View
from logitcache.data.images.views.preprocessing import Preprocessing
from logitcache.models import load_network
from logitcache.runtime.device import pick_device
from logitcache.runtime.memory import keep_freed_memory


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="resnet8x4")
    parser.add_argument("--teacher", default="resnet56")
    parser.add_argument("--methods", default="kd,rld,sld")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command line does
    random, device = np.random.default_rng(0), pick_device(arguments.device)
    pixels = random.integers(0, 256, (arguments.images, 32, 32, 3), np.uint8)
    images = ArrayImages(pixels, random.integers(0, 100, arguments.images), [str(n) for n in range(100)])
    torch.manual_seed(0)
    teacher = load_network(arguments.teacher, 100).module
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = dump_logits(
            teacher=teacher, data=images, out=folder / "c.zarr", augment="cifar", views=2, batch_size=64, device=arguments.device
        )  # fmt: skip
        times: dict[str, list[float]] = {}

        def epoch(label: str, method: str, *, live: bool = False) -> None:
            out = folder / f"{label}-{len(times.setdefault(label, []))}"
            train_student(
                cache=cache, student=arguments.student, data=images, method=method, epochs=3, sched="cosine",
                live_teacher=teacher if live else False, device=arguments.device, out=out,
                on_epoch=lambda metrics: times[label].append(metrics["seconds"]),
            )  # fmt: skip

        def forward() -> None:
            """Ask the teacher about a view: what a live teacher adds at the least."""
            (entry,) = cache.manifest.teachers
            eyes = Preprocessing.from_json(entry["preprocessing"])
            batches = [np.arange(i, min(i + 64, len(images))) for i in range(0, len(images), 64)]
            module = teacher.to(device).eval()
            began = time.perf_counter()
            with torch.inference_mode():
                for batch in Renderer(images, [eyes]).batches(View.from_json(cache.manifest.views[0]), batches):
                    module(eyes.normalize(batch.inputs[0].to(device)))
            times.setdefault("teacher forward", []).append(time.perf_counter() - began)

        runs: dict[str, Callable[[], object]] = {"ce": partial(epoch, "ce", "ce")}
        runs |= {method: partial(epoch, method, method) for method in arguments.methods.split(",")}
        runs |= {"kd live": partial(epoch, "kd live", "kd", live=True), "teacher forward": forward}
        alternating_seconds(runs, arguments.rounds)
    fastest = {label: min(found) for label, found in times.items()}
    bound = (fastest["teacher forward"] + fastest["ce"]) / fastest["ce"]
    rows = []
    for label, seconds in fastest.items():
        ratio = seconds / fastest["ce"]
        print(f"{label:>16}: {arguments.images / seconds:8.1f} images/s, {ratio:.3f} of an epoch of ce")
        rows.append({"run": label, "images_per_second": arguments.images / seconds, "over_ce": ratio})
    gain = fastest["kd live"] / fastest["kd"]
    print(f"cached kd is {gain:.2f} times as fast as with the live teacher; (teacher forward + ce) / ce is {bound:.2f}")
    shape = {"student": arguments.student, "teacher": arguments.teacher, "images": arguments.images, "batch_size": 64}
    write_result(arguments.out, rows, **shape, live_over_cached=gain, bound=bound)


if __name__ == "__main__":
    main()
