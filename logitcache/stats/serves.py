"""Methods that can use the rows of a cache, determined from its manifest. A table of names, because importing the methods needs torch."""

import re
from collections.abc import Mapping
from typing import Any

from logitcache.store import Manifest

__all__ = ["EVERY_CLASS", "FROM_DRAWS", "METHODS", "READ_LABELS", "is_mixed", "methods_served"]

EVERY_CLASS = frozenset(
    {"atkd", "clkd", "dist", "ldrld", "lskd", "mlkd", "normkd", "revision", "ttm", "wttm"}
)  # methods that need every class of a row with the settings of their papers
READ_LABELS = frozenset({"dkd", "loca", "rc", "revision", "rld", "sld", "swap", "wsld"})
FROM_DRAWS = frozenset({"kd", "rc"})
METHODS = tuple(
    sorted(EVERY_CLASS | READ_LABELS | FROM_DRAWS | {"ce", "jsd", "reverse_kl", "skew_kl", "skew_reverse_kl", "tad"})
)  # a test checks that these are the registered methods


def methods_served(manifest: Manifest) -> tuple[list[str], dict[str, str]]:
    """Return the methods that can train from a cache with the settings of their papers, and the reason for each of the others.

    Args:
        manifest: Manifest of the cache.
    """
    refused: dict[str, str] = {}
    for reason, names in _reasons(manifest.encoding, manifest).items():
        refused |= {name: reason for name in sorted(names) if name not in refused}
    return [name for name in METHODS if name not in refused], refused


def _reasons(encoding: Mapping[str, Any], manifest: Manifest) -> dict[str, frozenset[str]]:
    """Return the methods that cannot use the rows, by reason."""
    found = dict[str, frozenset[str]]()
    if encoding["kind"] == "sampled":
        found["its gradient would be biased with draws"] = frozenset(METHODS) - FROM_DRAWS - {"ce"}
    elif encoding["kind"] != "full":
        found[f"needs every class, but {encoding['k']} of {len(manifest.classes):,} are stored"] = EVERY_CLASS
    if any(is_mixed(view["recipe"]) for view in manifest.views):
        found["reads the label, but rows of mixed views have two"] = READ_LABELS
    if any("label" in teacher.get("gives", {}) for teacher in manifest.teachers):
        found["reads the label's probability, which the source did not provide"] = READ_LABELS
    return found


def is_mixed(recipe: str) -> bool:
    """Return whether a recipe mixes two samples into one image."""
    return re.search(r"(?:^|\+)(?:mixup|cutmix)\b", recipe) is not None
