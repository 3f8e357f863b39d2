"""Optimizers and learning-rate schedules, by timm's names."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from logitcache.errors import InputError, unknown_name

__all__ = ["OPTIMIZERS", "SCHEDULES", "learning_rate", "make_optimizer"]

SCHEDULES = ("cosine", "onecycle", "step")
_CLASSES: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}
OPTIMIZERS = tuple(_CLASSES)


def make_optimizer(model: nn.Module, settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Build the optimizer of `opt`, `lr`, `momentum`, `nesterov`, `weight_decay` and `norm_weight_decay`.

    Raises:
        UnknownNameError: No such optimizer or schedule.
        InputError: A rate or a share that means nothing.
    """
    if settings["opt"] not in OPTIMIZERS:
        raise unknown_name("optimizer", settings["opt"], OPTIMIZERS)
    if settings["sched"] not in SCHEDULES:
        raise unknown_name("schedule", settings["sched"], SCHEDULES)
    apart = settings["norm_weight_decay"]
    for name, good, wanted in (
        ("lr", 0 < settings["lr"] < math.inf, "greater than 0"),
        ("weight_decay", 0 <= settings["weight_decay"] < math.inf, "0 or more"),
        ("norm_weight_decay", apart is None or 0 <= apart < math.inf, "0 or more"),
        ("momentum", 0 <= settings["momentum"] < 1, "from 0 to below 1"),
        ("decay_rate", 0 <= settings["decay_rate"] < math.inf, "0 or more"),
        ("warmup_epochs", 0 <= settings["warmup_epochs"] <= settings["epochs"], "from 0 to the number of epochs"),
        ("decay_milestones", all(one >= 0 for one in settings["decay_milestones"] or ()), "0 or more each"),
        (
            "warmup_epochs",
            settings["sched"] != "onecycle" or settings["warmup_epochs"] == 0,
            "left out: onecycle warms up itself",
        ),
    ):
        if not good:
            raise InputError(f"--{name.replace('_', '-')} must be {wanted}, not {settings[name]}")
    if settings["nesterov"] and not (settings["opt"] == "sgd" and settings["momentum"] > 0):
        raise InputError("--nesterov is a way of SGD with momentum: leave it out, or give --opt sgd and a --momentum")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    flat = [] if apart is None else [parameter for parameter in parameters if parameter.ndim <= 1]
    others = parameters if apart is None else [parameter for parameter in parameters if parameter.ndim > 1]
    groups: list[dict[str, Any]] = [{"params": others, "weight_decay": settings["weight_decay"]}]
    if flat:
        groups.append({"params": flat, "weight_decay": apart})
    more: dict[str, Any] = {"momentum": settings["momentum"]} if settings["opt"] in ("sgd", "rmsprop") else {}
    if settings["opt"] == "sgd":
        more["nesterov"] = settings["nesterov"]
    return _CLASSES[settings["opt"]](groups, lr=settings["lr"], **more)  # type: ignore[call-arg]


def learning_rate(settings: Mapping[str, Any], epoch: int, step: int, steps: int) -> float:
    """Return the rate of one step: a pure function, so that nothing about it has to be saved.

    Args:
        settings: `lr`, `sched`, `epochs`, `warmup_epochs`, `decay_milestones`, `decay_rate`.
        epoch: 0, 1, ...
        step: Of this epoch: 0, 1, ...
        steps: Of an epoch.
    """
    highest, rate = float(settings["lr"]), float(settings["decay_rate"])
    warmup, epochs = int(settings["warmup_epochs"]), int(settings["epochs"])
    if settings["sched"] == "onecycle":
        return _one_cycle(highest, epoch * steps + step, epochs * steps)
    if epoch < warmup:
        return highest * (epoch * steps + step + 1) / (warmup * steps)
    if settings["sched"] == "cosine":
        share = (epoch - warmup + step / steps) / max(epochs - warmup, 1)
        return highest * 0.5 * (1 + math.cos(math.pi * share))
    milestones = settings["decay_milestones"]
    if milestones is None:
        milestones = [epochs * share for share in (0.625, 0.75, 0.875)]  # 150, 180 and 210 of 240, as in the papers
    falls = sum(epoch >= milestone for milestone in milestones)
    return highest * math.pow(rate, falls)


def _one_cycle(highest: float, step: int, steps: int) -> float:
    """Return the rate of a step of the whole training, as torch's OneCycleLR but for the momentum.

    Up from 1/25 over 30 % of it, down to 1/250,000, along cosines (Smith and Topin, 2019).
    """
    place, up = step / max(steps - 1, 1), (0.3 * steps - 1) / max(steps - 1, 1)

    def between(begin: float, end: float, share: float) -> float:
        return end + (begin - end) / 2 * (1 + math.cos(math.pi * share))

    if place <= up:
        return between(highest / 25, highest, place / up)
    return between(highest, highest / 25e4, (place - up) / (1 - up))
