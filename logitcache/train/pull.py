"""Record the gradient norm of each term of the objective, and warn about terms that are negligible."""

import logging
from collections.abc import Mapping

from logitcache.errors import name_settings
from logitcache.methods import describe_norms, drowned_terms
from logitcache.runs.directory import RunDirectory

__all__ = ["record_pull"]

_LOG = logging.getLogger(__name__)
_NEGLIGIBLE = "accounts for less than 1 % of the gradient norm on the student's logits in the first batch"


def record_pull(norms: Mapping[str, float], run: RunDirectory) -> None:
    """Record gradient norms as `gradient_norms` in run.json, log them, and warn about each negligible term.

    Args:
        norms: Result of `Objective.gradient_norms` for the first batch. With fewer than two terms nothing is logged or recorded.
        run: Folder of the run.
    """
    if len(norms) < 2:
        return
    run.note({"gradient_norms": dict(norms)})
    _LOG.info("gradient norms on the student's logits in the first batch: %s", describe_norms(norms))
    for name in drowned_terms(norms):
        _LOG.warning("%s", name_settings(_describe_negligible(name)))


def _describe_negligible(name: str) -> str:
    """Return the warning about a negligible term, with a remedy."""
    if name == "ce":
        return f"the labels have almost no effect: cross-entropy {_NEGLIGIBLE}. Increase --ce-weight or decrease --kd-weight."
    if name == "distillation":
        return f"the teacher has almost no effect: the distillation term {_NEGLIGIBLE}. Increase --kd-weight or decrease --ce-weight."
    return f"{name} {_NEGLIGIBLE}, so it has almost no effect."
