"""What an objective from hidden states costs, forward and backward, beside cross-entropy of all logits and beside other chunked forms.

    python benchmarks/lm_loss.py --classes 49152,128256 --out benchmarks/results/lm-loss-cpu.json

Every form gives gradients of hidden states and of the last layer. They run in alternation; time and memory are printed as ratios to
cross-entropy of all logits at once. `kept whole` and `projected again` are the two forms that are published for rows of the largest
(arXiv 2608.03796), written here: the student's logits stay and the loss goes over them in chunks, or are computed a second time.
Methods are measured with cross-entropy beside them, as they are used on language models (temperature 1; `bucket` where they take it);
those at temperature 4 need the exponentials of two temperatures.
The kernels of Liger Kernel 0.8 and Cut Cross-Entropy 25.1 are Triton's and stop without a GPU; Liger's chunked losses in plain torch
run, but want the teacher's hidden states and head, which no cache has.
On a CPU seconds are those of the process (OMP_NUM_THREADS=1), which other work disturbs less than the clock.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from common import alternating_times, peak_bytes, write_result
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from logitcache.encoding import TopKRows
from logitcache.methods import Objective, language_settings, linear_loss, make_objective

Loss = Callable[[Tensor, Tensor, TopKRows, Tensor], Tensor]


def whole_cross_entropy(hidden: Tensor, weight: Tensor, rows: TopKRows, labels: Tensor) -> Tensor:
    """Cross-entropy of all logits at once."""
    del rows
    return F.cross_entropy((hidden @ weight.T).float(), labels)


def chunked_cross_entropy(hidden: Tensor, weight: Tensor, rows: TopKRows, labels: Tensor, *, chunk: int) -> Tensor:
    """Cross-entropy in chunks, whose logits are computed again in the backward pass."""
    del rows

    def one(h: Tensor, w: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy((h @ w.T).float(), y, reduction="sum")

    parts = zip(hidden.split(chunk), labels.split(chunk), strict=True)
    return torch.stack([checkpoint(one, h, weight, y, use_reentrant=False) for h, y in parts]).sum() / len(labels)


def chunked_dense_kl(hidden: Tensor, weight: Tensor, rows: TopKRows, labels: Tensor, *, chunk: int) -> Tensor:
    """KL on completed rows in chunks, whose logits are computed again in the backward pass."""
    del labels

    def one(h: Tensor, w: Tensor, part: TopKRows) -> Tensor:
        log_q = (h @ w.T).float().log_softmax(1)
        return F.kl_div(log_q, part.at(1.0).log_softmax(1), reduction="sum", log_target=True)

    parts = [(hidden[i : i + chunk], rows[i : i + chunk]) for i in range(0, len(hidden), chunk)]
    return torch.stack([checkpoint(one, h, weight, part, use_reentrant=False) for h, part in parts]).sum() / len(hidden)


def sparse_kl(logits: Tensor, rows: TopKRows) -> Tensor:
    """KL on the classes that were kept, from the student's log-sum-exp, summed."""
    logits = logits.float()
    log_q = logits.gather(1, rows.ids) - logits.logsumexp(1, keepdim=True)
    log_p = rows.values.log_softmax(1)
    return (log_p.exp() * (log_p - log_q)).sum()


def kept_whole(hidden: Tensor, weight: Tensor, rows: TopKRows, labels: Tensor, *, chunk: int) -> Tensor:
    """KL on rows of the largest in chunks of student logits that are kept whole."""
    del labels
    parts = zip((hidden @ weight.T).split(chunk), range(0, len(hidden), chunk), strict=True)
    return torch.stack([sparse_kl(part, rows[i : i + chunk]) for part, i in parts]).sum() / len(hidden)


def projected_again(hidden: Tensor, weight: Tensor, rows: TopKRows, labels: Tensor, *, chunk: int) -> Tensor:
    """KL on rows of the largest in chunks, whose logits are computed again in the backward pass."""
    del labels

    def one(h: Tensor, w: Tensor, part: TopKRows) -> Tensor:
        return sparse_kl(h @ w.T, part)

    parts = [(hidden[i : i + chunk], rows[i : i + chunk]) for i in range(0, len(hidden), chunk)]
    return torch.stack([checkpoint(one, h, weight, part, use_reentrant=False) for h, part in parts]).sum() / len(hidden)


def ours(hidden: Tensor, weight: Tensor, rows: TopKRows, labels: Tensor, *, objective: Objective, chunk: int) -> Tensor:
    """An objective of logitcache."""
    return linear_loss(objective, hidden, weight, rows, labels, chunk_rows=chunk).total


def used_on_text(name: str) -> Objective:
    """Return a method as it is used on language models, with cross-entropy beside it."""
    settings = language_settings(name, largest_alone=True)
    preset = settings.pop("preset", None)
    return make_objective(name, settings, preset=preset, ce_weight=0.5)


def losses(chunk: int) -> dict[str, Loss]:
    """Name every form; what all others are compared with comes first."""
    kd = {
        f"ours: ce + kd, T = {t:g}, {tail}": partial(
            ours, objective=make_objective("kd", {"temperature": t} | more, ce_weight=0.5, kd_weight=0.5), chunk=chunk
        )
        for t, tail, more in ((1.0, "bucket", {"tail": "bucket"}), (1.0, "uniform", {}), (2.0, "uniform", {}))
    }
    named = {
        f"ours: ce + {name}": partial(ours, objective=used_on_text(name), chunk=chunk)
        for name in ("reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "dkd", "loca", "swap", "rld")
    }
    named |= {
        f"ours: ce + {name}, T = 4": partial(
            ours, objective=make_objective(name, {"temperature": 4.0}, ce_weight=0.5), chunk=chunk
        )
        for name in ("skew_kl", "skew_reverse_kl")
    }
    return {
        "ce": whole_cross_entropy,
        "ce, chunks, checkpoint": partial(chunked_cross_entropy, chunk=chunk),
        "dense kl, chunks, checkpoint": partial(chunked_dense_kl, chunk=chunk),
        "top-k kl, logits kept whole": partial(kept_whole, chunk=chunk),
        "top-k kl, projected again": partial(projected_again, chunk=chunk),
        "ours: ce": partial(ours, objective=make_objective("ce", {}), chunk=chunk),
        **kd,
        **named,
    }


def made_up_rows(count: int, classes: int, k: int, device: torch.device) -> tuple[TopKRows, Tensor]:
    """Draw rows of the k largest and labels, half of which are the teacher's first class."""
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(0, classes // (k + 1), (count, k + 1), generator=random)
    ids += torch.arange(k + 1) * (classes // (k + 1))  # ascending, and none twice
    values = 3 + 2 * torch.randn(count, k + 1, generator=random)
    rest = torch.tensor([-4.0, 1.5, 7.5, -12.0]).expand(count, 4)
    place = torch.where(torch.rand(count, generator=random) < 0.5, values.argmax(1), values.argmin(1))
    rows = TopKRows(ids, values, rest, classes, torch.zeros(count, dtype=torch.bool))
    return rows.to(device), ids.gather(1, place[:, None]).squeeze(1).to(device)


def peak_of(run: Callable[[], object], device: torch.device) -> int:
    """Return the largest number of bytes that are allocated at once while something runs, beyond those before it."""
    if device.type != "cuda":
        return peak_bytes(run)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def step(loss: Loss, hidden: Tensor, weight: Tensor, rows: TopKRows, labels: Tensor) -> None:
    """Forward and backward; the gradients are dropped before it."""
    hidden.grad = weight.grad = None
    loss(hidden, weight, rows, labels).backward()


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", default="49152,128256")
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=576)
    parser.add_argument("--top-k", type=int, default=64)
    parser.add_argument("--chunk", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--only", default="", help="forms whose names contain this, beside cross-entropy")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    kept = []
    for classes in map(int, arguments.classes.split(",")):
        rows, labels = made_up_rows(arguments.rows, classes, arguments.top_k, device)
        random = torch.Generator().manual_seed(1)
        hidden = torch.randn(arguments.rows, arguments.hidden, generator=random).to(device, dtype).requires_grad_()
        weight = torch.randn(classes, arguments.hidden, generator=random).mul_(0.05).to(device, dtype).requires_grad_()
        forms = {name: form for name, form in losses(arguments.chunk).items() if name == "ce" or arguments.only in name}
        runs = {name: partial(step, form, hidden, weight, rows, labels) for name, form in forms.items()}
        clock = time.perf_counter if device.type == "cuda" else time.process_time
        times = alternating_times(runs, arguments.rounds, clock=clock)
        seconds = {name: statistics.median(found) for name, found in times.items()}
        fastest = {name: min(found) for name, found in times.items()}
        print(f"{classes:,} classes, {arguments.rows:,} rows, hidden {arguments.hidden}, {arguments.dtype} on {device}")
        print(f"{'':<34} {'s':>8} {'/ ce':>6} {'least / ce':>10} {'MB':>8} {'/ ce':>6}")
        memory: dict[str, int] = {}
        for name, run in runs.items():
            hidden.grad = weight.grad = None
            memory[name] = peak_of(run, device)
            time_ratio, least_ratio = seconds[name] / seconds["ce"], fastest[name] / fastest["ce"]
            memory_ratio = memory[name] / memory["ce"]
            print(
                f"{name:<34} {seconds[name]:8.3f} {time_ratio:6.2f} {least_ratio:10.2f} {memory[name] / 1e6:8.0f} {memory_ratio:6.2f}",
                flush=True,
            )
            kept.append(
                {
                    "classes": classes,
                    "form": name,
                    "seconds": seconds[name],
                    "time_ratio": time_ratio,
                    "least_time_ratio": least_ratio,
                    "bytes": memory[name],
                    "memory_ratio": memory_ratio,
                }
            )
    shape = {"rows_n": arguments.rows, "hidden": arguments.hidden, "k": arguments.top_k, "chunk": arguments.chunk}
    write_result(arguments.out, kept, **shape, dtype=arguments.dtype, rounds=arguments.rounds)


if __name__ == "__main__":
    main()
