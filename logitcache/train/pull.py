"""Say and record how strongly each term of an objective pulls on the student, so that one that drowns is seen at once."""

import logging
from collections.abc import Mapping

from logitcache.errors import name_settings
from logitcache.methods import describe_norms, drowned_terms
from logitcache.runs.directory import RunDirectory

__all__ = ["record_pull"]

_LOG = logging.getLogger(__name__)
_LITTLE = "makes less than 1 % of the pull on the student's logits in the first batch"


def record_pull(norms: Mapping[str, float], run: RunDirectory) -> None:
    """Record norms of gradients as `gradient_norms` in run.json, log them in one line, and warn of each term that hardly counts.

    Args:
        norms: What `Objective.gradient_norms` returned for the first batch. Fewer than two have no balance: nothing is said.
        run: The run.
    """
    if len(norms) < 2:
        return
    run.note({"gradient_norms": dict(norms)})
    _LOG.info("pull on the student's logits in the first batch: %s", describe_norms(norms))
    for name in drowned_terms(norms):
        _LOG.warning("%s", name_settings(_drowned(name)))


def _drowned(name: str) -> str:
    """Say what it means that a term hardly counts, and what changes it."""
    if name == "ce":
        return f"the labels hardly count: cross-entropy {_LITTLE}. A larger --ce-weight or a smaller --kd-weight changes that."
    if name == "distillation":
        return f"the teacher hardly counts: the distillation term {_LITTLE}. A larger --kd-weight or a smaller --ce-weight changes that."
    return f"{name} {_LITTLE}, so it hardly counts."
