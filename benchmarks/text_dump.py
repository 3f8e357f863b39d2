"""What a dump of text costs beside the teacher alone: rows a second of `dump`, and of the bare loop that computes the same of each row.

    OMP_NUM_THREADS=1 python benchmarks/text_dump.py --out benchmarks/results/text-dump-cpu.json

The bare loop is the model over the same batches of padded documents, its head over 256 rows at a time, and of their logits what a row is
made of, thrown away: the k largest (of equal ones the first ids), the label's, log-sum-exp, mean and deviation of the others. A dump
besides hashes, rounds, compresses, writes and syncs, and asks the teacher first for the rows of a probe, which are not counted: a constant
of 16 documents and a batch of them again, so each teacher has few documents and many. Both are timed in alternation, by the processor time
of the process, all its threads included, and by the clock; a ratio is the median of those of the rounds.

Two teachers: the 260k-parameter Llama that ships, over its stories once and several times; and a Llama of four layers with random weights
and a vocabulary of 49,152.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import write_result
from torch import Tensor

from logitcache import dump_logits
from logitcache.data import Documents, load_data
from logitcache.data.text.modality import TEXT
from logitcache.models.language.load import load_language_network
from logitcache.runtime.memory import keep_freed_memory

_ROWS = 256
_CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}


def statistics_of(logits: Tensor, labels: Tensor, k: int) -> tuple[Tensor, ...]:
    """Return what a row is made of, as one writes it with torch: two passes for the deviation, which take a quarter of `torch.var_mean`."""
    values, ids = logits.topk(k + 1, 1)
    tied = values[:, k - 1] == values[:, k]
    ids, values = ids[:, :k], values[:, :k]
    if tied.any():
        ids[tied] = torch.sort(logits[tied], dim=1, descending=True, stable=True).indices[:, :k]
    rest, n = logits.scatter(1, ids, 0), logits.shape[1] - k
    mean = rest.sum(1, keepdim=True) / n
    variance = rest.sub_(mean).square_().scatter_(1, ids, 0).sum(1) / n
    return ids, values, logits.gather(1, labels[:, None]), logits.logsumexp(1), mean, variance.sqrt()


def bare_loop(network: torch.nn.Module, documents: Documents, batch: int, k: int) -> Callable[[], None]:
    """Return what runs the model over all documents and computes what a row is made of."""
    inputs = TEXT.choose_inputs(documents, None)
    (view,) = TEXT.make_views("none", 1, 0)
    batches = [np.arange(start, min(start + batch, len(documents))) for start in range(0, len(documents), batch)]

    def run() -> None:
        with torch.inference_mode():
            for rendered in TEXT.renderer(documents, [inputs]).batches(view, batches):
                rows = TEXT.row_labels(documents, view, rendered.samples)
                output = network(**rendered.inputs[0])
                states = output.states[rendered.kept(rows, 0)]
                for some, labels in zip(torch.split(states, _ROWS), torch.split(rows.labels, _ROWS), strict=True):
                    statistics_of(output.head(some).float(), labels, k)

    return run


def compare(
    name: str, teacher: str, documents: Documents, batch: int, k: int, folder: Path, rounds: int
) -> dict[str, Any]:
    """Time a dump and the bare loop in alternation, after one round of warming up."""
    torch.manual_seed(0)
    network = load_language_network(teacher, documents.vocabulary).module.eval()
    rows = len(documents.labels)

    def dump() -> None:
        dump_logits(teacher=network, data=documents, out=folder / "c.zarr", top_k=k, precision="u8", batch_size=batch)

    runs = {"bare loop": bare_loop(network, documents, batch, k), "dump": dump}
    seconds: dict[str, dict[str, list[float]]] = {clock: {one: [] for one in runs} for clock in _CLOCKS}
    for turn in range(rounds + 1):
        for one, run in runs.items():
            shutil.rmtree(folder / "c.zarr", ignore_errors=True)
            began = {clock: read() for clock, read in _CLOCKS.items()}
            run()
            for clock, read in _CLOCKS.items():
                seconds[clock][one] += [read() - began[clock]] if turn else []
    found: dict[str, Any] = {"teacher": name, "documents": len(documents), "rows": rows, "k": k, "batch_size": batch}
    for clock, times in seconds.items():
        ratios = [bare / dumped for bare, dumped in zip(times["bare loop"], times["dump"], strict=True)]
        found[clock] = {
            "us_a_row": {one: statistics.median(values) / rows * 1e6 for one, values in times.items()},
            "ratio": statistics.median(ratios),
            "ratios": [round(one, 3) for one in ratios],
        }
        took = ", ".join(f"{one} {value:.1f}" for one, value in found[clock]["us_a_row"].items())
        print(
            f"{name}, {len(documents):,} documents, {rows:,} rows, {clock}: {found[clock]['ratio']:.3f} ({took} us a row)"
        )
    return found


def repeated(documents: Documents, times: int) -> Documents:
    """Return the documents several times over."""
    return TEXT.joined([documents] * times)


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stories", type=int, nargs="*", default=[1, 4], help="how many times over")
    parser.add_argument("--wide-documents", type=int, nargs="*", default=[16, 48])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    random, stories = np.random.default_rng(0), load_data("stories-mini")
    with tempfile.TemporaryDirectory() as name:
        folder, rounds = Path(name), arguments.rounds
        teachers = [("stories-mini", "hf:stories-mini", 8, repeated(stories, times)) for times in arguments.stories]
        for count in arguments.wide_documents:
            wide = Documents(random.integers(0, 49_152, 512 * count), np.arange(count + 1) * 512, 49_152)
            teachers.append(("llama 49,152", "llama:hidden=256,layers=4,heads=4,intermediate=768", 4, wide))
        found = [
            compare(title, spec, documents, batch, 64, folder, rounds) for title, spec, batch, documents in teachers
        ]
    write_result(arguments.out, found)


if __name__ == "__main__":
    main()
