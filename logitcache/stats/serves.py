"""Which methods the rows of a cache serve, from its manifest alone. A table in words, because the methods themselves need torch."""

import re
from collections.abc import Mapping
from typing import Any

from logitcache.store import Manifest

__all__ = ["EVERY_CLASS", "FROM_DRAWS", "METHODS", "READ_LABELS", "is_mixed", "methods_served"]

EVERY_CLASS = frozenset(
    {"atkd", "clkd", "dist", "ldrld", "lskd", "mlkd", "normkd", "revision", "ttm", "wttm"}
)  # of a row, with the pieces of their papers
READ_LABELS = frozenset({"dkd", "loca", "rc", "revision", "rld", "sld", "swap", "wsld"})
FROM_DRAWS = frozenset({"kd", "rc"})
METHODS = tuple(
    sorted(EVERY_CLASS | READ_LABELS | FROM_DRAWS | {"ce", "jsd", "reverse_kl", "skew_kl", "skew_reverse_kl", "tad"})
)  # a test compares these with the table of methods


def methods_served(manifest: Manifest) -> tuple[list[str], dict[str, str]]:
    """Return the methods that can train from a cache as their papers have them, and why the others cannot, by name.

    Args:
        manifest: What the cache is.
    """
    refused: dict[str, str] = {}
    for reason, names in _reasons(manifest.encoding, manifest).items():
        refused |= {name: reason for name in sorted(names) if name not in refused}
    return [name for name in METHODS if name not in refused], refused


def _reasons(encoding: Mapping[str, Any], manifest: Manifest) -> dict[str, frozenset[str]]:
    """Return what the rows lack, each with the methods that need it."""
    found = dict[str, frozenset[str]]()
    if encoding["kind"] == "sampled":
        found["draws give its gradient a bias"] = frozenset(METHODS) - FROM_DRAWS - {"ce"}
    elif encoding["kind"] != "full":
        found[f"needs every class; {encoding['k']} of {len(manifest.classes):,} are kept"] = EVERY_CLASS
    if any(is_mixed(view["recipe"]) for view in manifest.views):
        found["reads the label; rows of mixed views have two"] = READ_LABELS
    if any("label" in teacher.get("gives", {}) for teacher in manifest.teachers):
        found["reads the label's probability; the source did not give it"] = READ_LABELS
    return found


def is_mixed(recipe: str) -> bool:
    """Return whether a view mixes two samples into one."""
    return re.search(r"(?:^|\+)(?:mixup|cutmix)\b", recipe) is not None
