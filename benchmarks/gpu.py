"""Measure everything that depends on a GPU, in at most eight minutes.

    python benchmarks/gpu.py --out benchmarks/results/gpu.json
    python benchmarks/gpu.py --rehearse --out gpu.json          the same code at tiny sizes, on a CPU

Each part runs in its own process with a time limit, so a part that fails, hangs or runs out of memory does not affect the others. Its
results are written as soon as they exist. Compare ratios within one part only, because parts do not share a warm GPU.

    unseen          the tests in tests/gpu, one by one, which cover everything that has never run on a GPU
    steps           a training step of ResNet-20 on images in memory, called and as a CUDA graph, beside the whole step of a bare loop of
                    cross-entropy as one CUDA graph, at batch 64 and 512, in float32 and in bfloat16 with channels-last
    compiled        the same with torch.compile, at batch 64
    deterministic   two trainings of one seed, cached and live, compared bit by bit
    dump            dumps of images in memory beside the bare teacher, float32 and bfloat16 with channels-last
    encode          TopKEncoding.encode beside torch.topk and logsumexp: time and peak memory
    lm-loss         an objective from hidden states at 32,768 tokens and 128,256 classes: peak memory beside the logits
    files           a student trained from JPEG files beside a bare loop with torchvision's transforms and as many workers
    dump-files      a dump of JPEG files beside torchvision's plain loop with as many workers
"""

import argparse
import json
import logging
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import alternating_seconds, where
from lm_loss import losses as losses_of_text
from lm_loss import made_up_rows, peak_of
from lm_loss import step as step_of_text
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import datasets, transforms

from logitcache import dump_logits, train_student
from logitcache.data import ArrayImages
from logitcache.encoding import TopKEncoding
from logitcache.models import load_network

ROOT = Path(__file__).parents[1]
WORDS = argparse.Namespace(rehearse=False, into=None)  # the command line
METHODS = ("ce", "kd", "rld", "dkd", "sld")
FAST = {"amp": True, "channels_last": True}


def sized(full: int, tiny: int) -> int:
    """Return a size, or the smaller one in a rehearsal."""
    return tiny if WORDS.rehearse else full


def device() -> torch.device:
    """Return the device to measure."""
    return torch.device("cpu" if WORDS.rehearse else "cuda")


def synchronize() -> None:
    """Wait for the GPU."""
    if device().type == "cuda":
        torch.cuda.synchronize()


def made_up_images(count: int, classes: int = 100) -> ArrayImages:
    """Return random images with the shape of CIFAR's."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (count, 32, 32, 3), np.uint8)
    return ArrayImages(pixels, random.integers(0, classes, count), [str(n) for n in range(classes)])


@contextmanager
def folder() -> Iterator[Path]:
    """Yield a temporary folder for caches and runs."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


# ---- The bare loop: what a step costs at the least.


class BareLoop:
    """Bare loop with cross-entropy, ResNet-20 and images on the device: gather, crop, flip, forward, backward, SGD, sum of the loss."""

    def __init__(self, images: ArrayImages, batch: int, *, amp: bool, channels_last: bool, compiled: bool) -> None:
        self._batch, self._amp, there = batch, amp, device()
        self._images, self._labels = images.images.to(there), torch.from_numpy(images.labels).to(there)
        torch.manual_seed(0)
        self._model = load_network(sized_network(), len(images.classes)).module.to(there).train()
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._model.to(memory_format=self._format)
        self._run: Any = torch.compile(self._model) if compiled else self._model
        self._optimizer = torch.optim.SGD(self._model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4, fused=True)
        self._places = torch.zeros(len(images), dtype=torch.int64, device=there)
        self._top, self._left, self._flip = (torch.zeros_like(self._places) for _ in range(3))
        self._next, self._sum = torch.zeros(1, dtype=torch.int64, device=there), torch.zeros((), device=there)
        self._offsets = torch.arange(batch, device=there)
        self._graph: torch.cuda.CUDAGraph | None = None

    def _pixels(self, samples: Tensor, places: Tensor) -> Tensor:
        padded = F.pad(self._images[samples], (4, 4, 4, 4))
        rows = self._top[places][:, None] + torch.arange(32, device=samples.device)
        across = torch.arange(32, device=samples.device)
        columns = self._left[places][:, None] + torch.where(self._flip[places][:, None] > 0, 31 - across, across)
        index = (rows[:, :, None] * 40 + columns[:, None, :]).flatten(1)[:, None].expand(-1, 3, -1)
        pixels = padded.flatten(2).gather(2, index).view(len(samples), 3, 32, 32)
        return ((pixels.float() / 255 - 0.5) / 0.25).contiguous(memory_format=self._format)

    def step(self) -> None:
        """Take a step: no host reads, static shapes."""
        places = self._next + self._offsets
        samples = self._places[places]
        with torch.autocast(device().type, torch.bfloat16, enabled=self._amp):
            logits = self._run(self._pixels(samples, places))
        loss = F.cross_entropy(logits.float(), self._labels[samples])
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._sum += loss.detach()
        self._next += self._batch

    def epoch(self) -> float:
        """Return the seconds per step of an epoch; its random numbers are drawn before it starts."""
        count = len(self._places)
        self._places.copy_(torch.randperm(count))
        for numbers, most in ((self._top, 9), (self._left, 9), (self._flip, 2)):
            numbers.copy_(torch.randint(0, most, (count,)))
        self._next.zero_()
        synchronize()
        began, steps = time.perf_counter(), count // self._batch
        for _ in range(steps):
            if self._graph is None:
                self.step()
            else:
                self._graph.replay()
        float(self._sum)
        return (time.perf_counter() - began) / steps

    def capture(self) -> None:
        """Capture the step, so that all further steps are replayed on a GPU."""
        if device().type != "cuda":
            return
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self.step()


def sized_network() -> str:
    """Return the name of the student network."""
    return "resnet8" if WORDS.rehearse else "resnet20"


def untrained(name: str, classes: int) -> nn.Module:
    """Return an untrained network as the teacher, because its speed does not depend on its weights."""
    torch.manual_seed(0)
    return load_network(name, classes).module


def our_step(cache: Any, images: ArrayImages, batch: int, method: str, out: Path, **more: Any) -> dict[str, Any]:
    """Return the seconds per step of the fastest epoch after the first, and the log line on how steps are executed."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("logitcache")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        found = train_student(
            cache, sized_network(), data=images, method=method, epochs=sized(4, 2), batch_size=batch, drop_last=True,
            device=str(device()), out=out, sched="cosine", keep_best=False, **more,
        )  # fmt: skip
    finally:
        logger.removeHandler(handler)
    seconds = [one["seconds"] / (len(images) // batch) for one in found.metrics[1:]]
    return {"step_ms": 1e3 * min(seconds), "said": [line for line in said if line.startswith("steps are")]}


def measure_steps(
    batches: list[int], modes: dict[str, dict[str, Any]], methods: tuple[str, ...]
) -> list[dict[str, Any]]:
    """Compare the steps of logitcache with those of the bare loop, and keep each result even if another one fails."""
    rows: list[dict[str, Any]] = []
    with folder() as here:
        for batch in batches:
            images = made_up_images(sized(200 * 64 if batch == 64 else 100 * batch, 2 * batch))
            cache = dump_logits(
                untrained(sized_network(), 100), images, here / f"{batch}.zarr", augment="cifar", views=1, device=str(device()),
                batch_size=1024,
            )  # fmt: skip
            for mode, settings in modes.items():
                bare = BareLoop(images, batch, **{"amp": False, "channels_last": False, "compiled": False} | settings)
                eager = min(bare.epoch() for _ in range(2))
                bare.capture()
                best = min(bare.epoch() for _ in range(3))
                rows.append(
                    {"batch": batch, "mode": mode, "run": "bare graph", "step_ms": 1e3 * best, "eager_ms": 1e3 * eager}
                )
                print(rows[-1], flush=True)
                for method in methods:
                    for graph in ("on", "off"):
                        if graph == "off" and (method not in ("ce", "rld") or "compiled" in settings):
                            continue
                        run = here / f"{batch}-{mode}-{method}-{graph}".replace(" ", "-")
                        row: dict[str, Any] = {"batch": batch, "mode": mode, "run": f"{method}, graph {graph}"}
                        try:
                            row |= our_step(cache, images, batch, method, run, cuda_graph=graph, **settings)
                            row["over_bare_graph"] = row["step_ms"] / (1e3 * best)
                        except Exception as error:  # noqa: BLE001  (kept, and the next is measured)
                            row["error"] = f"{type(error).__name__}: {error}"
                        rows.append(row)
                        print(row, flush=True)
                        keep(rows)
    return rows


def part_steps() -> Any:
    """Measure steps in float32, and in bfloat16 with channels-last."""
    return measure_steps(
        [64] if WORDS.rehearse else [64, 512], {"float32": {}, "bfloat16 channels-last": FAST}, METHODS
    )


def part_compiled() -> Any:
    """Measure compiled steps."""
    return measure_steps([64], {"compiled, bfloat16 channels-last": {**FAST, "compiled": True}}, ("ce", "rld"))


# ---- The other parts.


def part_unseen() -> Any:
    """Run the tests in tests/gpu and return the outcome of each."""
    words = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "--tb=line", "tests/gpu"]
    words += ["-k", "boxes or largest"] if WORDS.rehearse else []
    environment = os.environ | {"LOGITCACHE_GPU_TESTS": device().type}
    found: dict[str, str] = {}
    tail: list[str] = []
    with subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        for line in run.stdout or ():
            tail = [*tail[-60:], line.rstrip()]
            if outcome := re.match(r"tests/gpu/\S+::(.+) (PASSED|FAILED|ERROR|SKIPPED)", line):
                found[outcome[1]] = outcome[2].lower()
                keep({"outcomes": found})
    wrong = [name for name, outcome in found.items() if outcome in ("failed", "error")]
    counts = {outcome: list(found.values()).count(outcome) for outcome in set(found.values())}
    return {"counts": counts, "wrong": wrong, "outcomes": found, "tail": tail if wrong or not found else tail[-3:]}


def part_deterministic() -> Any:
    """Train twice with one seed, eagerly and replayed, and with the live teacher, and return the largest difference of a weight."""
    rows = []
    with folder() as here:
        images = made_up_images(sized(3200, 200))
        teacher = untrained("resnet8", 100)
        arguments = {"augment": "cifar", "views": 1, "precision": "f32", "device": str(device()), "batch_size": 64}
        cache = dump_logits(teacher, images, here / "c.zarr", deterministic=True, **arguments)

        def weights(name: str, **more: Any) -> Tensor:
            run = train_student(
                cache, sized_network(), data=images, method="rld", epochs=2, batch_size=64, device=str(device()), out=here / name, **more
            )  # fmt: skip
            return torch.cat([value.double().flatten().cpu() for value in run.student.state_dict().values()])

        for name, more in {"default": {}, "deterministic": {"deterministic": True}}.items():
            runs = {label: weights(f"{name}-{label}", **more) for label in ("first", "second")}
            runs["live"] = weights(f"{name}-live", live_teacher=teacher, **more)
            runs |= {f"graph {n}": weights(f"{name}-graph-{n}", cuda_graph="on", **more) for n in (1, 2)}
            pairs = (("first", "second"), ("first", "live"), ("graph 1", "graph 2"), ("first", "graph 1"))
            rows += [
                {"mode": name, "pair": list(pair), "largest_difference": float((runs[pair[0]] - runs[pair[1]]).abs().max())}
                for pair in pairs
            ]  # fmt: skip
            keep(rows)
    return rows


def part_dump() -> Any:
    """Compare a dump of images in memory with the bare teacher."""
    rows, count, batch = [], sized(51_200, 256), sized(1024, 64)
    images = made_up_images(count)
    with folder() as here:
        for name, settings in {"float32": {}, "bfloat16 channels-last": FAST}.items():
            teacher = untrained("resnet8" if WORDS.rehearse else "resnet56", 100)
            bare = bare_rows_a_second(teacher, images, batch, **{"amp": False, "channels_last": False} | settings)
            moments: list[tuple[float, int]] = []
            began = time.perf_counter()
            dump_logits(
                teacher, images, here / f"{len(rows)}.zarr", augment="cifar", views=2, batch_size=batch, device=str(device()),
                on_progress=lambda one, moments=moments: moments.append((time.perf_counter(), one.done)), **settings,
            )  # fmt: skip
            whole = 2 * count / (time.perf_counter() - began)
            steady = steady_rate(moments)
            rows.append({"mode": name, "bare": bare, "whole": whole, "steady": steady, "whole_over_bare": whole / bare})
            keep(rows)
    return rows


def steady_rate(moments: list[tuple[float, int]]) -> float | None:
    """Return the rows per second between 25 % and 90 % of a dump, or None if it was too short to measure."""
    most = max((done for _, done in moments), default=0)
    inside = [(at, done) for at, done in moments if 0.25 * most <= done <= 0.9 * most]
    if len(inside) < 2 or inside[-1][0] == inside[0][0]:
        return None
    return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])


def bare_rows_a_second(teacher: nn.Module, images: ArrayImages, batch: int, *, amp: bool, channels_last: bool) -> float:
    """Return the images per second of the bare teacher on images on the device."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    module, pixels = teacher.to(device(), memory_format=layout).eval(), images.images.to(device())

    def forward() -> None:
        with torch.inference_mode(), torch.autocast(device().type, torch.bfloat16, enabled=amp):
            for some in pixels.split(batch):
                module(((some.float() / 255 - 0.5) / 0.25).contiguous(memory_format=layout))
        synchronize()

    return len(images) / alternating_seconds({"forward": forward}, 3)["forward"]


def part_encode() -> Any:
    """Compare top-k encoding with torch.topk and logsumexp, which it needs in any case."""
    rows: list[dict[str, Any]] = []
    shapes = [(64, 2000)] if WORDS.rehearse else [(1024, 1000), (4096, 50_257), (4096, 128_256)]
    for count, classes in shapes:
        logits, labels = (
            torch.randn(count, classes, device=device()),
            torch.randint(0, classes, (count,), device=device()),
        )
        runs: dict[str, Callable[[], object]] = {
            f"encode {dtype}": partial(TopKEncoding(64, dtype).encode, logits, labels) for dtype in ("f16", "u8")
        }
        runs |= {
            "topk": lambda logits=logits: logits.topk(64, 1),
            "logsumexp": lambda logits=logits: logits.logsumexp(1),
        }
        seconds = alternating_seconds(runs, sized(10, 1))
        least = seconds["topk"] + seconds["logsumexp"]
        for name, run in runs.items():
            peak = peak_of(run, device())
            rows.append({
                "shape": [count, classes], "run": name, "us_a_row": 1e6 * seconds[name] / count, "over_least": seconds[name] / least,
                "peak_bytes": peak, "peak_over_logits": 1 + peak / (4 * logits.numel()),
            })  # fmt: skip
        keep(rows)
        del logits, runs
    return rows


def part_lm_loss() -> Any:
    """Measure the memory and time of objectives from hidden states."""
    tokens, classes, width, chunk = (sized(32_768, 64), sized(128_256, 500), sized(2048, 32), sized(1024, 16))
    teacher, labels = made_up_rows(tokens, classes, sized(64, 8), device())
    dtype = torch.float32 if WORDS.rehearse else torch.bfloat16
    hidden = torch.randn(tokens, width, device=device(), dtype=dtype, requires_grad=True)
    weight = torch.randn(classes, width, device=device(), dtype=dtype).mul_(0.05).requires_grad_()
    rows: list[dict[str, Any]] = []
    forms = {name: form for name, form in losses_of_text(chunk).items() if name == "ce" or name.startswith("ours")}
    for name, form in forms.items():
        row: dict[str, Any] = {"form": name, "tokens": tokens, "classes": classes}
        try:
            run = partial(step_of_text, form, hidden, weight, teacher, labels)
            run()
            began = time.perf_counter()
            run()
            synchronize()
            row["seconds"] = time.perf_counter() - began
            hidden.grad = weight.grad = None
            row["peak_bytes"] = peak_of(run, device())
            row["peak_over_float32_logits"] = row["peak_bytes"] / (4 * tokens * classes)
        except RuntimeError as error:  # out of memory, say
            row["error"] = str(error).partition("\n")[0]
            hidden.grad = weight.grad = None
            if device().type == "cuda":
                torch.cuda.empty_cache()
        rows.append(row)
        keep(rows)
    return rows


def jpegs(here: Path, count: int) -> Path:
    """Write smooth random pictures, 500 x 375, in ten folders."""
    random = np.random.default_rng(0)
    for number in range(count):
        place = here / "jpegs" / str(number % 10)
        place.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(place / f"{number}.jpg", quality=90)
    return here / "jpegs"


def plain_loader(place: Path, batch: int, workers: int, *steps: Any) -> Any:
    """Return a DataLoader of an image folder, as in torchvision's examples."""
    change = transforms.Compose([*steps, transforms.PILToTensor()])
    data = datasets.ImageFolder(str(place), change)
    return torch.utils.data.DataLoader(
        data, batch, num_workers=workers, pin_memory=device().type == "cuda", persistent_workers=True
    )


def part_files() -> Any:
    """Compare training from JPEG files with a bare loop."""
    count, batch, workers, size = sized(2048, 24), sized(128, 8), sized(12, 1), sized(224, 32)
    network = "resnet8" if WORDS.rehearse else "torchvision:resnet18"
    with folder() as here:
        place = jpegs(here, count)
        loader = plain_loader(
            place, batch, workers, transforms.RandomResizedCrop(size, antialias=True), transforms.RandomHorizontalFlip()
        )
        model = load_network(network, 10).module.to(device(), memory_format=torch.channels_last).train()
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)

        def epoch() -> float:
            began = time.perf_counter()
            for pixels, labels in loader:
                shown = (pixels.to(device(), non_blocking=True).float() / 255 - 0.5) / 0.25
                with torch.autocast(device().type, torch.bfloat16):
                    logits = model(shown.contiguous(memory_format=torch.channels_last))
                F.cross_entropy(logits.float(), labels.to(device(), non_blocking=True)).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            synchronize()
            return count / (time.perf_counter() - began)

        bare = [epoch() for _ in range(3)][1:]
        rows: list[dict[str, Any]] = [{"run": "bare", "images_per_second": bare}]
        keep(rows)
        given = {
            "augment": "imagenet",
            "image_size": size,
            "workers": workers,
            "device": str(device()),
            "batch_size": batch,
        }
        cache = dump_logits(untrained(network, 10), f"imagefolder:{place}", here / "c.zarr", views=1, **given)
        for method, graph in (("ce", "off"), ("kd", "off"), ("kd", "on")):
            found = train_student(
                cache, network, method=method, epochs=3, batch_size=batch, workers=workers, image_size=size, test_data=None,
                device=str(device()), out=here / f"{method}-{graph}", keep_best=False, cuda_graph=graph, **FAST,
            )  # fmt: skip
            speeds = [one["images_per_second"] for one in found.metrics[1:]]
            ratio = max(speeds) / max(bare)
            rows.append({"run": method, "cuda_graph": graph, "images_per_second": speeds, "over_bare": ratio})
            keep(rows)
    return rows


def part_dump_files() -> Any:
    """Compare a dump of JPEG files with torchvision's plain loop."""
    count, batch, size = sized(3072, 24), sized(256, 8), sized(224, 32)
    network = "resnet8" if WORDS.rehearse else "torchvision:resnet50"
    rows: list[dict[str, Any]] = []
    with folder() as here:
        place = jpegs(here, count)
        for workers in [1] if WORDS.rehearse else [8, 16]:
            model = load_network(network, 10).module.to(device(), memory_format=torch.channels_last).eval()
            steps = (transforms.Resize(round(size / 0.875), antialias=True), transforms.CenterCrop(size))
            loader = plain_loader(place, batch, workers, *steps)
            began = time.perf_counter()
            with torch.inference_mode(), torch.autocast(device().type, torch.bfloat16):
                for pixels, _ in loader:
                    shown = (pixels.to(device(), non_blocking=True).float() / 255 - 0.5) / 0.25
                    model(shown.contiguous(memory_format=torch.channels_last))
            synchronize()
            plain = count / (time.perf_counter() - began)
            began = time.perf_counter()
            dump_logits(
                untrained(network, 10), f"imagefolder:{place}", here / f"{workers}.zarr", image_size=size, batch_size=batch,
                workers=workers, device=str(device()), **FAST,
            )  # fmt: skip
            ours = count / (time.perf_counter() - began)
            rows.append({"workers": workers, "plain": plain, "dump": ours, "dump_over_plain": ours / plain})
            keep(rows)
    return rows


PARTS: dict[str, tuple[Callable[[], Any], int]] = {  # with the most seconds that it may take
    "unseen": (part_unseen, 150),
    "steps": (part_steps, 110),
    "deterministic": (part_deterministic, 45),
    "dump": (part_dump, 45),
    "encode": (part_encode, 25),
    "lm-loss": (part_lm_loss, 40),
    "files": (part_files, 60),
    "dump-files": (part_dump_files, 60),
    "compiled": (part_compiled, 120),
}


def keep(found: Any) -> None:
    """Write the results of a part so far, in case it is stopped."""
    if WORDS.into is not None:
        unfinished = WORDS.into.with_suffix(".part")
        unfinished.write_text(json.dumps(found))
        unfinished.replace(WORDS.into)


def run_part(name: str, limit: float) -> dict[str, Any]:
    """Run a part in its own process, and return its results and outcome."""
    with tempfile.TemporaryDirectory() as place:
        into = Path(place) / "found.json"
        words = [
            sys.executable,
            __file__,
            "--part",
            name,
            "--into",
            str(into),
            *(["--rehearse"] if WORDS.rehearse else []),
        ]
        began, ended, said = time.monotonic(), "finished", Path(place) / "said.txt"
        with said.open("wb") as file:  # a session of its own, so that what it has started ends with it
            process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
            try:
                if status := process.wait(limit):
                    ended = f"failed with {status}"
            except subprocess.TimeoutExpired:
                ended = f"stopped after {limit:.0f} s"
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        found = json.loads(into.read_text()) if into.exists() else None
        last = {} if ended == "finished" else {"said": said.read_text(errors="replace")[-2000:]}
        return {"ended": ended, "seconds": time.monotonic() - began, "found": found, **last}


def main() -> None:
    """Run the parts one after another while time remains, and write the results of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--parts", default=",".join(PARTS), help="names with commas between them")
    parser.add_argument("--minutes", type=float, default=8.0, help="time for all parts together")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on a CPU")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    parser.parse_args(namespace=WORDS)
    if WORDS.part:
        keep(PARTS[WORDS.part][0]())
        return
    if not WORDS.rehearse and not torch.cuda.is_available():
        parser.error("there is no GPU here: --rehearse runs everything at tiny sizes on the CPU")
    deadline, found = time.monotonic() + 60 * WORDS.minutes, dict[str, Any]()
    for name in WORDS.parts.split(","):
        left = deadline - time.monotonic()
        limit = min(PARTS[name][1] * sized(1, 5), left)
        found[name] = run_part(name, limit) if left > 5 else {"ended": "no time was left"}
        print(f"{name}: {found[name]['ended']}, {found[name].get('seconds', 0):.0f} s", flush=True)
        if WORDS.out is not None:
            WORDS.out.parent.mkdir(parents=True, exist_ok=True)
            WORDS.out.write_text(json.dumps({**where(), "rehearsal": WORDS.rehearse, "parts": found}, indent=1) + "\n")
    print(summary(found))


def summary(found: dict[str, Any]) -> str:
    """Return a summary: the median ratio of each kind of step, and the tests that failed."""
    lines = []
    for name in ("steps", "compiled"):
        rows = found.get(name, {}).get("found") or []
        for method in METHODS:
            ratios = [
                row["over_bare_graph"]
                for row in rows
                if row["run"] == f"{method}, graph on" and "over_bare_graph" in row
            ]
            if ratios:
                lines.append(f"{name}, {method}: {statistics.median(ratios):.2f} of the bare graph")
    wrong = (found.get("unseen", {}).get("found") or {}).get("wrong")
    return "\n".join([*lines, *([f"wrong on this GPU: {', '.join(wrong)}"] if wrong else [])])


if __name__ == "__main__":
    main()
