"""What a dump and a training of text take of memory beyond the model: long documents, a wide vocabulary.

    python benchmarks/text_memory.py --out benchmarks/results/text-memory-cpu.json

A Llama of one narrow layer, so that what is measured is the rows: documents of 2,048 tokens, 128,256 ids, the 64 largest in a byte each.
Each runs in a process of its own; its peak of resident memory is compared with what it is once the model has run on a few tokens. The
logits of one document alone, [2047, 128256], are 1.05 GB in float32.
"""

import argparse
import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import in_own_process, write_result

from logitcache import dump_logits, train_student
from logitcache.data import Documents
from logitcache.models.language.load import load_language_network
from logitcache.runtime.memory import keep_freed_memory

IDS, LENGTH = 128_256, 2048
NETWORK = f"llama:hidden=64,layers=1,heads=2,intermediate=128,context={LENGTH}"


def peak() -> float:
    """Return the largest resident memory so far, in MB."""
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (1e6 if sys.platform == "darwin" else 1e3)


def measure(what: str, folder: Path, documents: int) -> None:
    """Print by how many MB memory grows while something runs."""
    keep_freed_memory()
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    data = Documents(random.integers(0, IDS, LENGTH * documents), np.arange(documents + 1) * LENGTH, IDS)
    torch.manual_seed(0)
    network = load_language_network(NETWORK, IDS).module
    with torch.no_grad():
        network(torch.zeros(1, 16, dtype=torch.long))
    before = peak()
    if what == "dump":
        dump_logits(network.eval(), data, folder / "c.zarr", top_k=64, precision="u8", batch_size=4)
    else:
        train_student(folder / "c.zarr", network, method="kd", epochs=1, batch_size=2, out=folder / "run")
    print(peak() - before)


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", choices=["dump", "train"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only:
        measure(arguments.only, arguments.folder, arguments.documents)
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for what in ("dump", "train"):
            words = ["--only", what, "--folder", folder, "--documents", str(arguments.documents)]
            grown = float(in_own_process(__file__, *words))
            print(f"{what}: {grown:,.0f} MB beyond the model")
            rows.append(
                {"what": what, "ids": IDS, "tokens": LENGTH, "documents": arguments.documents, "megabytes": grown}
            )
    write_result(arguments.out, rows)


if __name__ == "__main__":
    main()
