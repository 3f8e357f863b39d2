"""What a dump costs beside the teacher alone: rows a second of `dump`, and of the bare loop over the same loader and network.

    python benchmarks/dump.py --out benchmarks/results/dump-cpu.json

The bare loop is `with torch.inference_mode(): for x in loader: network(x)`, over the same renderer (a view of crops and flips),
batches, threads and normalisation; a dump hashes pixels, encodes, compresses, writes and syncs besides. It asks the teacher for 256
rows more, the probe: they are counted. Two cases: a CIFAR ResNet
over images in memory, and a torchvision ResNet over a folder of JPEG files that is made for the purpose.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import alternating_seconds, write_result
from PIL import Image

from logitcache import dump_logits
from logitcache.data import ArrayImages, ImageSet, Renderer, load_data, preprocessing_for
from logitcache.device import pick_device
from logitcache.models import load_network
from logitcache.views import make_views


def jpeg_folder(path: Path, count: int) -> str:
    """Write JPEG files of smooth noise, 320 x 256, in ten classes."""
    random = np.random.default_rng(0)
    for number in range(count):
        small = Image.fromarray(random.integers(0, 256, (16, 20, 3), np.uint8))
        folder = path / f"class {number % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        small.resize((320, 256), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=90)
    return f"imagefolder:{path}"


def compare(
    images: ImageSet, teacher: str, recipe: str, batch: int, folder: Path, arguments: argparse.Namespace
) -> dict[str, object]:
    """Time a dump and the bare loop in alternation."""
    device = pick_device(arguments.device)
    torch.manual_seed(0)
    network = load_network(teacher, len(images.classes)).module
    preprocessing = preprocessing_for(images, recipe)
    (view,) = make_views(recipe, 1, 0)

    def bare() -> None:
        module = network.to(device).eval()
        renderer = Renderer(images, [preprocessing], workers=arguments.workers)
        batches = [np.arange(start, min(start + batch, len(images))) for start in range(0, len(images), batch)]
        with torch.inference_mode():
            for rendered in renderer.batches(view, batches):
                module(preprocessing.normalize(rendered.pixels[0].to(device, non_blocking=True)))

    def dump() -> None:
        shutil.rmtree(folder / "c.zarr", ignore_errors=True)
        dump_logits(
            teacher=network, data=images, out=folder / "c.zarr", augment=recipe, batch_size=batch,
            workers=arguments.workers, device=arguments.device,
        )  # fmt: skip

    runs: dict[str, Callable[[], object]] = {"bare loop": bare, "dump": dump}
    seconds = alternating_seconds(runs, arguments.rounds)
    asked = {"bare loop": len(images), "dump": len(images) + min(len(images), 256)}  # the probe is asked for besides
    rates = {name: asked[name] / value for name, value in seconds.items()}
    print(
        f"{teacher}, {len(images):,} images: bare loop {rates['bare loop']:,.1f} rows/s, dump {rates['dump']:,.1f} "
        f"({rates['dump'] / rates['bare loop']:.3f} of it; its probe counted as rows)"
    )
    return {"teacher": teacher, "images": len(images), "recipe": recipe, "batch_size": batch, "rows_per_second": rates}


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar", default="resnet56")
    parser.add_argument("--images", type=int, default=10_000, help="of 32 x 32, in memory")
    parser.add_argument("--files", type=int, default=1_024, help="JPEG files")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
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
