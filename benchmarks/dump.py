"""What a dump costs beside the teacher alone: rows a second of `dump`, and of the bare loop over the same loader and network.

    python benchmarks/dump.py --out benchmarks/results/dump-cpu.json

The bare loop is `with torch.inference_mode(): for x in loader: network(x)`, over the same renderer (a view of crops and flips),
batches, threads and normalisation; a dump hashes pixels, encodes, compresses, writes and syncs besides. It asks the teacher for 256
rows more, the probe: they are counted. Two cases: a CIFAR ResNet
over images in memory, and a torchvision ResNet over a folder of JPEG files that is made for the purpose.

On a shared CPU the network's own time wanders by a tenth and more between two runs of either. So the time outside of it is measured
too, and a second ratio given that has the network's fastest run in both.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import alternating_seconds, write_result
from PIL import Image
from torch import Tensor, nn

from logitcache import dump_logits
from logitcache.data import ArrayImages, ImageSet, Renderer, load_data, preprocessing_for
from logitcache.data.images.views import make_views
from logitcache.models import load_network
from logitcache.runtime.device import pick_device
from logitcache.runtime.memory import keep_freed_memory


def jpeg_folder(path: Path, count: int) -> str:
    """Write JPEG files of smooth noise, 320 x 256, in ten classes."""
    random = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(random.integers(0, 256, (16, 20, 3), np.uint8))
        folder = path / f"class {number % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        small.resize((320, 256), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
    return f"imagefolder:{path}"


class Timed(nn.Module):
    """A network that counts the seconds it takes; on a CPU, where a call returns when it is done."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.seconds = network, 0.0

    def forward(self, x: Tensor) -> Tensor:
        """Answer."""
        began = time.perf_counter()
        output: Tensor = self.network(x)
        self.seconds += time.perf_counter() - began
        return output


def compare(
    images: ImageSet, teacher: str, recipe: str, batch: int, folder: Path, arguments: argparse.Namespace
) -> dict[str, object]:
    """Time a dump and the bare loop in alternation."""
    device = pick_device(arguments.device)
    torch.manual_seed(0)
    network = Timed(load_network(teacher, len(images.classes)).module)
    preprocessing = preprocessing_for(images, recipe)
    (view,) = make_views(recipe, 1, 0)

    def bare() -> None:
        module = network.to(device).eval()
        renderer = Renderer(images, [preprocessing], workers=arguments.workers)
        batches = [np.arange(start, min(start + batch, len(images))) for start in range(0, len(images), batch)]
        with torch.inference_mode():
            for rendered in renderer.batches(view, batches):
                module(preprocessing.normalize(rendered.inputs[0].to(device, non_blocking=True)))

    def dump() -> None:
        shutil.rmtree(folder / "c.zarr", ignore_errors=True)
        dump_logits(
            teacher=network, data=images, out=folder / "c.zarr", augment=recipe, batch_size=batch,
            workers=arguments.workers, device=arguments.device,
        )  # fmt: skip

    asked = {"bare loop": len(images), "dump": len(images) + min(len(images), 256)}  # the probe is asked for besides
    inside: dict[str, list[float]] = {name: [] for name in asked}  # seconds a row
    outside: dict[str, list[float]] = {name: [] for name in asked}

    def timed(name: str, run: Callable[[], object]) -> None:
        network.seconds, began = 0.0, time.perf_counter()
        run()
        whole = time.perf_counter() - began
        inside[name].append(network.seconds / asked[name])
        outside[name].append((whole - network.seconds) / asked[name])

    runs = {"bare loop": partial(timed, "bare loop", bare), "dump": partial(timed, "dump", dump)}
    seconds = alternating_seconds(runs, arguments.rounds)
    rates = {name: asked[name] / value for name, value in seconds.items()}
    print(
        f"{teacher}, {len(images):,} images: bare loop {rates['bare loop']:,.1f} rows/s, dump {rates['dump']:,.1f} "
        f"({rates['dump'] / rates['bare loop']:.3f} of it; its probe counted as rows)"
    )
    fastest = min(min(found) for found in inside.values())
    ratio = (fastest + min(outside["bare loop"])) / (fastest + min(outside["dump"]))
    beside = {name: min(found) * 1e6 for name, found in outside.items()}
    print(
        f"    outside of the network {beside['bare loop']:.1f} and {beside['dump']:.1f} us a row of {fastest * 1e6:.0f}: {ratio:.3f}"
    )
    return {
        "teacher": teacher,
        "images": len(images),
        "recipe": recipe,
        "batch_size": batch,
        "rows_per_second": rates,
        "network_us": fastest * 1e6,
        "outside_us": beside,
        "ratio_at_equal_network": ratio,
    }


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", default="resnet56")
    parser.add_argument("--images", type=int, default=5_120, help="of 32 x 32, in memory")
    parser.add_argument("--files", type=int, default=1_024, help="JPEG files")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command line does; for both
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (arguments.images, 32, 32, 3), np.uint8)
    arrays = ArrayImages(pixels, random.integers(0, 100, arguments.images), [str(n) for n in range(100)])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [compare(arrays, arguments.cifar, "pad-crop-flip", 256, folder, arguments)]
        files = load_data(jpeg_folder(folder / "jpeg", arguments.files))
        rows.append(compare(files, "torchvision:resnet18", "random-resized-crop-flip", 64, folder, arguments))
    write_result(arguments.out, rows)


if __name__ == "__main__":
    main()
