"""Optimizers and learning-rate schedules, with timm's names."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from logitcache.errors import InputError
from logitcache.train.settings import OPTIMIZERS, SCHEDULES, Optimization, Training

__all__ = ["OPTIMIZERS", "SCHEDULES", "is_capturable", "learning_rate", "make_optimizer", "progress_after", "set_rate"]

_CLASSES: dict[str, Any] = {
    "adam": torch.optim.Adam,
    "adamax": torch.optim.Adamax,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}
# Arguments that make each optimizer take steps without synchronizing with the host. SGD supports this only in its fused form.
_CAPTURABLE: dict[str, Mapping[str, bool]] = {
    **{name: {"capturable": True, "foreach": True} for name in ("adamax", "nadam", "radam", "rmsprop")},
    **{name: {"capturable": True, "fused": True} for name in ("adam", "adamw")},
    "sgd": {"fused": True},
}


def make_optimizer(model: nn.Module, settings: Optimization, *, capturable: bool = False) -> torch.optim.Optimizer:
    """Build the optimizer for the parameters of a model that require gradients.

    A callable receives a list of parameters, or parameter groups if a weight decay is given. Its learning rate is
    ignored, because every step sets the rate of the schedule.

    Args:
        model: Model, on its device.
        settings: Optimizer and hyperparameters.
        capturable: Whether steps must not synchronize with the host. This selects the fused or capturable implementation, whose results
            differ in the last bits. It does not affect a callable (see `is_capturable`).

    Raises:
        InputError: If the callable does not return a torch optimizer.
    """
    decay, norm_decay = settings.resolved_weight_decay, settings.norm_weight_decay
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise InputError("no parameter of the student requires gradients, so there is nothing to train")
    flat = [] if norm_decay is None else [parameter for parameter in parameters if parameter.ndim <= 1]
    others = parameters if norm_decay is None else [parameter for parameter in parameters if parameter.ndim > 1]
    groups: list[dict[str, Any]] = [{"params": others} if decay is None else {"params": others, "weight_decay": decay}]
    if flat:
        groups.append({"params": flat, "weight_decay": norm_decay})
    if not isinstance(settings.opt, str):
        optimizer = settings.opt(groups if len(groups) > 1 or decay is not None else parameters)
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise InputError(f"opt must return a torch optimizer, not a {type(optimizer).__name__}")
        _refuse_unusable(optimizer, parameters)
        return optimizer
    values = {name: getattr(settings, name) for name in OPTIMIZERS[settings.opt]}
    if "momentum" in values:
        values["momentum"] = settings.resolved_momentum
    given = {name: value for name, value in values.items() if value is not None}
    given |= _CAPTURABLE[settings.opt] if capturable else {}
    made: torch.optim.Optimizer = _CLASSES[settings.opt](groups, lr=settings.lr, **given)
    return made


def is_capturable(optimizer: torch.optim.Optimizer, *, scaled: bool = False) -> bool:
    """Return whether an optimizer takes steps without synchronizing with the host.

    Args:
        optimizer: Optimizer.
        scaled: Whether the loss is scaled, so that the optimizer itself must skip steps with infinite gradients.
    """
    if scaled and not getattr(optimizer, "_step_supports_amp_scaling", False):
        return False
    return all(group.get("capturable", group.get("fused")) for group in optimizer.param_groups)


def set_rate(optimizer: torch.optim.Optimizer, rate: float | Tensor) -> None:
    """Set the learning rate of all parameters.

    Args:
        optimizer: Optimizer.
        rate: Learning rate. A 0-dim tensor is not copied, so the caller can update it in place between steps.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate


def _refuse_unusable(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    ours = {id(one) for group in optimizer.param_groups for one in group["params"]}
    if isinstance(optimizer, torch.optim.LBFGS):
        raise InputError(
            "LBFGS evaluates the loss several times per step, which is not supported; use another optimizer"
        )
    if missing := sum(id(one) not in ours for one in parameters):
        raise InputError(
            f"the optimizer that opt returned does not contain {missing} of the student's {len(parameters)} parameters that require "
            "gradients; pass it all parameters that opt receives, or freeze the others with requires_grad_(False)"
        )


def learning_rate(settings: Training, epoch: int, step: int, steps: int) -> float:
    """Return the learning rate of a step. It is stateless, so checkpoints need no scheduler state.

    Args:
        settings: Schedule and peak rate.
        epoch: Index of the epoch, from 0.
        step: Index of the step in this epoch, from 0.
        steps: Number of steps per epoch.
    """
    highest, rate = float(settings.lr), float(settings.decay_rate)
    warmup, epochs = settings.warmup_epochs, settings.epochs
    if settings.sched == "onecycle":
        return _one_cycle(highest, epoch * steps + step, epochs * steps)
    if epoch + step / steps < warmup:
        return highest * (epoch * steps + step + 1) / (warmup * steps)
    if settings.sched == "cosine":
        share = (epoch - warmup + step / steps) / max(epochs - warmup, 1)
        return highest * 0.5 * (1 + math.cos(math.pi * share))
    milestones: Any = settings.decay_milestones
    if milestones is None:
        milestones = [epochs * share for share in (0.625, 0.75, 0.875)]  # 150, 180 and 210 of 240, as in the papers
    falls = sum(epoch >= milestone for milestone in milestones)
    return highest * math.pow(rate, falls)


def progress_after(epoch: int, settings: Training) -> float:
    """Return the fraction of the schedule that is complete after an epoch (from 0), at most 1 if the run is extended."""
    return min((epoch + 1) / settings.epochs, 1.0)


def _one_cycle(highest: float, step: int, steps: int) -> float:
    """Return the learning rate of a step of the whole training, as torch's OneCycleLR without its momentum schedule.

    It rises from 1/25 of the peak over 30 % of the steps and falls to 1/250,000, both along cosines (Smith and Topin, 2019).
    """
    place, up = step / max(steps - 1, 1), (0.3 * steps - 1) / max(steps - 1, 1)

    def between(begin: float, end: float, share: float) -> float:
        return end + (begin - end) / 2 * (1 + math.cos(math.pi * share))

    if place <= up:
        return between(highest / 25, highest, place / up)
    return between(highest, highest / 25e4, (place - up) / (1 - up))
