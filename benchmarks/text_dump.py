"""What a dump of text costs beside the teacher alone: rows a second of `dump`, and of the bare loop that computes the same of each row.

    python benchmarks/text_dump.py --out benchmarks/results/text-dump-cpu.json

The bare loop is the model over the same batches of padded documents, its head over 256 rows at a time, and of their logits the k largest,
log-sum-exp, mean and deviation, thrown away. A dump besides hashes, rounds, compresses, writes and syncs, and asks the teacher for the rows
of a probe, which are not counted. Two teachers: the 260k-parameter Llama that ships, over its stories; and a Llama of four layers with
random weights and a vocabulary of 49,152.
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from common import alternating_seconds, write_result

from logitcache import dump_logits
from logitcache.data import Documents, load_data
from logitcache.data.text.modality import TEXT
from logitcache.models.language.load import load_language_network
from logitcache.runtime.memory import keep_freed_memory

_ROWS = 256


def bare_loop(network: torch.nn.Module, documents: Documents, batch: int, k: int) -> Callable[[], None]:
    """Return what runs the model over all documents and computes what a row is made of."""
    inputs = TEXT.choose_inputs(documents, None)
    (view,) = TEXT.make_views("none", 1, 0)
    batches = [np.arange(start, min(start + batch, len(documents))) for start in range(0, len(documents), batch)]

    def run() -> None:
        with torch.inference_mode():
            for rendered in TEXT.renderer(documents, [inputs]).batches(view, batches):
                keep = rendered.kept(TEXT.row_labels(documents, view, rendered.samples), 0)
                output = network(**rendered.inputs[0])
                for some in torch.split(output.states[keep], _ROWS):
                    logits = output.head(some).float()
                    logits.topk(k, 1)
                    logits.logsumexp(1)
                    torch.var_mean(logits, 1)

    return run


def compare(
    name: str, teacher: str, documents: Documents, batch: int, k: int, folder: Path, rounds: int
) -> dict[str, object]:
    """Time a dump and the bare loop in alternation."""
    torch.manual_seed(0)
    network = load_language_network(teacher, documents.vocabulary).module.eval()
    rows = len(documents.labels)

    def dump() -> None:
        shutil.rmtree(folder / "c.zarr", ignore_errors=True)
        dump_logits(teacher=network, data=documents, out=folder / "c.zarr", top_k=k, precision="u8", batch_size=batch)

    seconds = alternating_seconds({"bare loop": bare_loop(network, documents, batch, k), "dump": dump}, rounds)
    ratio = seconds["bare loop"] / seconds["dump"]
    rates = {one: rows / value for one, value in seconds.items()}
    print(
        f"{name}: {rows:,} rows, bare loop {rates['bare loop']:,.0f} rows/s, dump {rates['dump']:,.0f} ({ratio:.3f} of it)"
    )
    return {"teacher": name, "rows": rows, "k": k, "batch_size": batch, "seconds": seconds, "ratio": ratio}


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--wide-documents", type=int, default=12)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    random = np.random.default_rng(0)
    count = arguments.wide_documents
    wide = Documents(random.integers(0, 49_152, 512 * count), np.arange(count + 1) * 512, 49_152)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [
            compare("stories-mini", "hf:stories-mini", load_data("stories-mini"), 8, 64, folder, arguments.rounds),
            compare(
                "llama 49,152",
                "llama:hidden=256,layers=4,heads=4,intermediate=768",
                wide,
                4,
                64,
                folder,
                arguments.rounds,
            ),
        ]
    write_result(arguments.out, rows)


if __name__ == "__main__":
    main()
