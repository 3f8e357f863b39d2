"""What each loss costs, forward and backward, beside plain KL and beside the formulation in common use.

    python benchmarks/methods.py --shapes 256x100,256x1000,4096x32000 --out benchmarks/results/methods-cpu.json

The common formulations are written here as distillation repositories write them (softmax, then logarithm; masks by a large
number; one matrix C by C), on one temperature after the other. Where one would need more memory than --memory it is left out.
"""

import argparse
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from common import alternating_seconds, peak_bytes, write_result
from torch import Tensor
from torch.nn import functional as F

from logitcache.methods import METHODS, get_loss

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def naive_kd(s: Tensor, z: Tensor, y: Tensor, t: float | Tensor = 4.0) -> Tensor:
    value = F.kl_div(F.log_softmax(s / t, 1), F.softmax(z / t, 1), reduction="none").sum(1, keepdim=True)
    return (value * t**2).mean()


def z_scores(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / (1e-7 + x.std(1, keepdim=True))


def naive_swap(z: Tensor, y: Tensor) -> Tensor:
    z, rows = z.clone(), torch.arange(len(z))
    top = z.argmax(1)
    bad = top != y
    z[rows[bad], top[bad]], z[rows[bad], y[bad]] = z[rows[bad], y[bad]], z[rows[bad], top[bad]]
    return z


def naive_dkd(s: Tensor, z: Tensor, y: Tensor, t: float = 4.0) -> Tensor:
    mask = torch.zeros_like(s).scatter_(1, y[:, None], 1).bool()
    q, p = F.softmax(s / t, 1), F.softmax(z / t, 1)
    q, p = (torch.cat([(x * mask).sum(1, keepdim=True), (x * ~mask).sum(1, keepdim=True)], 1) for x in (q, p))
    target = F.kl_div(q.log(), p, reduction="batchmean") * t**2
    others = F.kl_div(
        F.log_softmax(s / t - 1000.0 * mask, 1), F.softmax(z / t - 1000.0 * mask, 1), reduction="batchmean"
    )
    return target + 8 * others * t**2


def naive_rld(s: Tensor, z: Tensor, y: Tensor, t: float = 4.0) -> Tensor:
    q, p = F.softmax(s, 1).gather(1, y[:, None]), F.softmax(z, 1).amax(1, keepdim=True)
    target = F.kl_div(torch.cat([q, 1 - q], 1).log(), torch.cat([p, 1 - p], 1), reduction="batchmean")
    mask = torch.where(z >= z.gather(1, y[:, None]), 1.0, 0.0)
    others = F.kl_div(
        F.log_softmax(s / t - 1000.0 * mask, 1), F.softmax(z / t - 1000.0 * mask, 1), reduction="batchmean"
    )
    return target + 8 * others * t**2


def naive_loca(s: Tensor, z: Tensor, y: Tensor) -> Tensor:
    p = F.softmax(z / 4, 1)
    of_label, top = p.gather(1, y[:, None]), p.amax(1, keepdim=True)
    scale = 0.95 / (1 - of_label + top)
    calibrated = (p * scale).scatter(1, y[:, None], 1 - scale * (1 - of_label))
    p = torch.where((p.argmax(1) != y)[:, None], calibrated, p)
    return F.kl_div(F.log_softmax(s / 4, 1), p, reduction="batchmean") * 16


def naive_clkd(s: Tensor, z: Tensor, y: Tensor) -> Tensor:
    rows = F.mse_loss(F.normalize(s, dim=1), F.normalize(z, dim=1))
    columns = F.mse_loss(F.normalize(s, dim=0), F.normalize(z, dim=0))
    a, b = s - s.mean(0), z - z.mean(0)
    gap = ((a.T @ a - b.T @ b) / (len(s) - 1)).square().sum()
    return 0.5 * (rows + 2 * columns) + 0.4 * gap / s.shape[1] ** 2


def naive_mlkd(s: Tensor, z: Tensor, y: Tensor) -> Tensor:
    total = s.new_zeros(())
    for t in (4.0, 2.0, 3.0, 5.0, 6.0):
        q, p = F.softmax(s / t, 1), F.softmax(z / t, 1)
        total = total + naive_kd(s, z, y, t) + (p @ p.T - q @ q.T).square().sum() / len(s)
        total = total + (p.T @ p - q.T @ q).square().sum() / s.shape[1]
    return total


def naive_dist(s: Tensor, z: Tensor, y: Tensor) -> Tensor:
    q, p = F.softmax(s / 4, 1), F.softmax(z / 4, 1)

    def pearson(a: Tensor, b: Tensor) -> Tensor:
        return F.cosine_similarity(a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)).mean()

    return 16 * (2 - pearson(q, p) - pearson(q.T, p.T))


def naive_ldrld(s: Tensor, z: Tensor, y: Tensor) -> Tensor:
    top = s.topk(min(7, s.shape[1]), 1).indices
    local: list[Tensor] = []
    for i, j in itertools.combinations(range(top.shape[1]), 2):
        pair = top[:, [i, j]]
        weight = 2 * float(torch.exp(torch.tensor(-0.05 * (i + j + 2)))) / (j - i + 1.5)
        local.append(weight * naive_kd(s.gather(1, pair), z.gather(1, pair), y))
    local.append(naive_kd(s.gather(1, top), z.gather(1, top), y))
    mask = torch.zeros_like(s).scatter(1, top, 1.0)
    rest = F.kl_div(F.log_softmax(s / 4 - 1000 * mask, 1), F.softmax(z / 4 - 1000 * mask, 1), reduction="batchmean")
    return 10.5 * torch.stack(local).mean() + 7 * 16 * rest


def naive_revision(s: Tensor, z: Tensor, y: Tensor) -> Tensor:
    bad = z.argmax(1) != y
    total = s.new_zeros(())
    if (~bad).any():
        total = total + F.cross_entropy(s[~bad], y[~bad]) + 4 * F.mse_loss(s[~bad], z[~bad])
    if bad.any():
        p, label = F.softmax(z[bad], 1), F.one_hot(y[bad], z.shape[1])
        b = 0.8 / (p.amax(1, keepdim=True) - (p * label).sum(1, keepdim=True) + 1)
        total = total + F.mse_loss(F.softmax(s[bad], 1), b * p + (1 - b) * label)
    return total


def naive_rc(s: Tensor, z: Tensor, y: Tensor) -> Tensor:
    own = s.detach() + s.detach().amax(1, keepdim=True) * F.one_hot(y, s.shape[1])
    return naive_kd(s, z, y) + 0.1 * naive_kd(s, own, y)


def naive_wsld(s: Tensor, z: Tensor, y: Tensor) -> Tensor:
    weight = 1 - torch.exp(
        -F.cross_entropy(s.detach(), y, reduction="none") / (F.cross_entropy(z, y, reduction="none") + 1e-7)
    )
    return 2.5 * 4 * (weight * -(F.softmax(z / 2, 1) * F.log_softmax(s / 2, 1)).sum(1)).mean()


def naive_ttm(s: Tensor, z: Tensor, y: Tensor, weighted: bool = False) -> Tensor:
    power = F.softmax(z, 1) ** 0.1
    total = power.sum(1, keepdim=True)
    value = F.kl_div(F.log_softmax(s, 1), power / total, reduction="none").sum(1)
    return (value * total.squeeze(1)).mean() if weighted else value.mean()


def naive_mixture(s: Tensor, z: Tensor, y: Tensor, kind: str = "") -> Tensor:
    p, q = F.softmax(z, 1), F.softmax(s, 1)
    if kind == "reverse_kl":
        return (q * (F.log_softmax(s, 1) - F.log_softmax(z, 1))).sum(1).mean()
    if kind == "skew_kl":
        return (p * (F.log_softmax(z, 1) - (0.1 * p + 0.9 * q).log())).sum(1).mean()
    if kind == "skew_reverse_kl":
        return (q * (F.log_softmax(s, 1) - (0.9 * p + 0.1 * q).log())).sum(1).mean()
    middle = (0.1 * p + 0.9 * q).log()
    return (
        0.9 * (q * (F.log_softmax(s, 1) - middle)).sum(1) + 0.1 * (p * (F.log_softmax(z, 1) - middle)).sum(1)
    ).mean()


def naive_atkd(s: Tensor, z: Tensor, y: Tensor) -> Tensor:
    a, b = z_scores(s), z_scores(z)
    largest = torch.maximum(a.detach().abs().amax(1, keepdim=True), b.abs().amax(1, keepdim=True))
    return naive_kd(a, b, y, 1.3660254 * largest)


def naive_normkd(s: Tensor, z: Tensor, y: Tensor) -> Tensor:
    of_student, of_teacher = (2 * x.std(1, keepdim=True) for x in (s, z))
    value = F.kl_div(F.log_softmax(s / of_student, 1), F.softmax(z / of_teacher, 1), reduction="none").sum(1)
    return (value * of_teacher.squeeze(1) ** 2).mean()


def naive_sld(s: Tensor, z: Tensor, y: Tensor) -> Tensor:
    swapped = naive_swap(z, y)
    return torch.stack([naive_kd(s, swapped, y, float(t)) for t in range(1, 7)]).sum()


NAIVE: dict[str, Loss] = {
    "atkd": naive_atkd,
    "clkd": naive_clkd,
    "dist": naive_dist,
    "dkd": naive_dkd,
    "jsd": naive_mixture,
    "kd": naive_kd,
    "ldrld": naive_ldrld,
    "loca": naive_loca,
    "lskd": lambda s, z, y: naive_kd(z_scores(s), z_scores(z), y, 2.0),
    "mlkd": naive_mlkd,
    "normkd": naive_normkd,
    "rc": naive_rc,
    "reverse_kl": partial(naive_mixture, kind="reverse_kl"),
    "revision": naive_revision,
    "rld": naive_rld,
    "skew_kl": partial(naive_mixture, kind="skew_kl"),
    "skew_reverse_kl": partial(naive_mixture, kind="skew_reverse_kl"),
    "sld": naive_sld,
    "swap": lambda s, z, y: naive_kd(s, naive_swap(z, y), y),
    "ttm": naive_ttm,
    "wsld": naive_wsld,
    "wttm": partial(naive_ttm, weighted=True),
}


def step(loss: Loss, student: Tensor, teacher: Tensor, labels: Tensor) -> None:
    """Forward and backward; the gradient is dropped."""
    student.grad = None
    loss(student, teacher, labels).mean().backward()


def main() -> None:
    """Measure, print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="256x100,256x1000")
    parser.add_argument("--methods", default=",".join(name for name in METHODS if METHODS[name].divergence))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", type=float, default=12.0, help="GB that one formulation may need")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    print(
        f"{'shape':>11} {'method':<16} {'gap':>8} | {'time/KL':>8} {'naive/KL':>9} | {'MB':>8} {'naive MB':>9} {'KL MB':>7}"
    )
    for shape in arguments.shapes.split(","):
        batch, classes = map(int, shape.split("x"))
        random = torch.Generator().manual_seed(0)
        student, teacher = (3 * torch.randn(batch, classes, generator=random) for _ in range(2))
        labels = torch.randint(0, classes, (batch,), generator=random)
        labels = torch.where(torch.rand(batch, generator=random) < 0.9, teacher.argmax(1), labels)
        student.requires_grad_()
        matrix_gb = 5 * classes**2 * 4e-9
        for name in arguments.methods.split(","):
            losses: dict[str, Loss] = {"kl": naive_kd, "ours": get_loss(name)}
            if name not in ("clkd", "mlkd") or matrix_gb < arguments.memory:
                losses["naive"] = NAIVE[name]
            with torch.no_grad():
                values = {key: loss(student, teacher, labels).mean().item() for key, loss in losses.items()}
            gap = abs(values["ours"] - values["naive"]) / abs(values["naive"]) if "naive" in values else float("nan")
            runs = {key: partial(step, loss, student, teacher, labels) for key, loss in losses.items()}
            large = batch * classes > 1e8
            seconds = alternating_seconds(runs, 1 if large else arguments.rounds)
            memory = {key: peak_bytes(run) for key, run in runs.items()}
            row = {"shape": shape, "method": name, "relative_gap": gap}
            row |= {f"{key}_seconds": value for key, value in seconds.items()}
            row |= {f"{key}_bytes": value for key, value in memory.items()}
            rows.append(row)
            naive_time = f"{seconds['naive'] / seconds['kl']:9.2f}" if "naive" in seconds else "        -"
            naive_memory = f"{memory['naive'] / 1e6:9.1f}" if "naive" in memory else "        -"
            print(
                f"{shape:>11} {name:<16} {gap:8.1e} | {seconds['ours'] / seconds['kl']:8.2f} {naive_time} | "
                f"{memory['ours'] / 1e6:8.1f} {naive_memory} {memory['kl'] / 1e6:7.1f}",
                flush=True,
            )
    write_result(arguments.out, rows, rounds=arguments.rounds)


if __name__ == "__main__":
    main()
