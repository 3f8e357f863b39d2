"""Optimizers and learning-rate schedules, by timm's names."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from logitcache.errors import InputError, unknown_name

__all__ = ["OPTIMIZERS", "SCHEDULES", "learning_rate", "make_optimizer"]

OPTIMIZERS = ("adamw", "sgd")
SCHEDULES = ("cosine", "step")


def make_optimizer(model: nn.Module, settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Build the optimizer of `opt`, `lr`, `momentum` and `weight_decay`.

    Raises:
        UnknownNameError: No such optimizer or schedule.
        InputError: A rate or a share that means nothing.
    """
    if settings["opt"] not in OPTIMIZERS:
        raise unknown_name("optimizer", settings["opt"], OPTIMIZERS)
    if settings["sched"] not in SCHEDULES:
        raise unknown_name("schedule", settings["sched"], SCHEDULES)
    for name, good, wanted in (
        ("lr", 0 < settings["lr"] < math.inf, "greater than 0"),
        ("weight_decay", 0 <= settings["weight_decay"] < math.inf, "0 or more"),
        ("momentum", 0 <= settings["momentum"] < 1, "from 0 to below 1"),
        ("decay_rate", 0 <= settings["decay_rate"] < math.inf, "0 or more"),
        ("warmup_epochs", settings["warmup_epochs"] >= 0, "0 or more"),
    ):
        if not good:
            raise InputError(f"--{name.replace('_', '-')} must be {wanted}, not {settings[name]}")
    parameters = list(model.parameters())
    if settings["opt"] == "adamw":
        return torch.optim.AdamW(parameters, lr=settings["lr"], weight_decay=settings["weight_decay"])
    return torch.optim.SGD(
        parameters, lr=settings["lr"], momentum=settings["momentum"], weight_decay=settings["weight_decay"]
    )


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
