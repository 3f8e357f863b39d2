"""The choice of how training steps are executed: eagerly, on static tensors, or as a CUDA graph."""

import logging
from dataclasses import dataclass, replace

import torch

from logitcache.data import modality_of
from logitcache.data.optional import has_fixed_shapes, resident_samples
from logitcache.data.protocol import Resident
from logitcache.train.job import Job
from logitcache.train.settings import TrainSettings
from logitcache.train.step import Stepper

__all__ = ["StepPlan", "plan_steps", "with_optimizer"]

_LOG = logging.getLogger(__name__)
_UNSEEN = "not tried on a GPU yet"


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The way in which training steps are executed.

    Attributes:
        static: Whether steps run on static tensors.
        captures: Whether they are captured as a CUDA graph and replayed.
        reason: Reason for this choice, for the log.
        resident: Samples to render on the device; None if the host renders each batch.
    """

    static: bool
    captures: bool
    reason: str
    resident: Resident | None = None

    def log(self, device: torch.device, asked: str) -> None:
        """Log how steps are executed, if there is a GPU or --cuda-graph is on."""
        if device.type == "cuda" or asked == "on":
            how = "replayed as a CUDA graph" if self.captures else "run eagerly"
            _LOG.info("steps are %s: %s", how, self.reason)


def plan_steps(job: Job, settings: TrainSettings) -> StepPlan:
    """Choose how steps are executed. The optimizer is checked later, by `with_optimizer`."""
    if settings.cuda_graph != "on":
        said = f"--cuda-graph {settings.cuda_graph}"
        reason = said if settings.cuda_graph == "off" else f"{said} ({_UNSEEN})"
        return StepPlan(static=False, captures=False, reason=reason)
    if problem := _problem(job, settings):
        return StepPlan(static=False, captures=False, reason=problem)
    views = [view for shown in job.epoch_views for view in shown]
    found, problem = resident_samples(modality_of(job.samples), job.samples, views, job.inputs, job.device)
    where = (
        "images are rendered on the device" if found is not None else f"batches are copied to the device ({problem})"
    )
    if job.device.type != "cuda":
        return StepPlan(True, False, f"the device is {job.device.type}; steps use static tensors, {where}", found)
    return StepPlan(True, True, f"--cuda-graph on ({_UNSEEN}); {where}", found)


def _problem(job: Job, settings: TrainSettings) -> str | None:
    """Return the reason why steps cannot be captured, apart from the optimizer; None if they can."""
    if not has_fixed_shapes(modality_of(job.samples)):
        return f"batches of {modality_of(job.samples).name} vary in shape"
    if settings.live_teacher is not False and job.objective.loss is not None:
        return "the live teacher runs in every step"
    if job.window is not None:
        return "--memory-budget reads rows in windows"
    if settings.gradient_checkpointing:
        return "--gradient-checkpointing saves the random number state in every step"
    return None


def with_optimizer(plan: StepPlan, settings: TrainSettings, stepper: Stepper) -> StepPlan:
    """Return the plan, without capture if the optimizer synchronizes with the host in every step."""
    if not plan.captures or stepper.is_capturable:
        return plan
    reason = "the optimizer synchronizes in every step; create it with capturable=True, or SGD with fused=True"
    if settings.amp and settings.amp_dtype == "float16":
        reason = "with float16 the host decides whether to skip a step, except for --opt sgd, adam and adamw"
    return replace(plan, captures=False, reason=reason)
