"""logitcache: run the teacher once, train any student from what it said.

The front door is lazy: a name imports its module when it is first used, because torch takes seconds to import.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from logitcache.compare import compare_runs as compare_runs
    from logitcache.dump import dump_logits as dump_logits
    from logitcache.elsewhere import open as open  # noqa: A004
    from logitcache.elsewhere import wrap as wrap
    from logitcache.errors import LogitCacheError as LogitCacheError
    from logitcache.export import export_cache as export_cache
    from logitcache.fidelity import cache_fidelity as cache_fidelity
    from logitcache.merge import merge_caches as merge_caches
    from logitcache.methods import METHODS as METHODS
    from logitcache.methods import get_loss as get_loss
    from logitcache.plan import plan_dump as plan_dump
    from logitcache.progress import Progress as Progress
    from logitcache.slice import slice_cache as slice_cache
    from logitcache.stats import cache_stats as cache_stats
    from logitcache.stats import compare_caches as compare_caches
    from logitcache.store import Cache as Cache
    from logitcache.store import open_cache as open_cache
    from logitcache.train import train_student as train_student
    from logitcache.verify import verify_cache as verify_cache

_HOMES = {
    "METHODS": "logitcache.methods",
    "Cache": "logitcache.store",
    "LogitCacheError": "logitcache.errors",
    "Progress": "logitcache.progress",
    "cache_fidelity": "logitcache.fidelity",
    "cache_stats": "logitcache.stats",
    "compare_caches": "logitcache.stats",
    "compare_runs": "logitcache.compare",
    "dump_logits": "logitcache.dump",
    "export_cache": "logitcache.export",
    "get_loss": "logitcache.methods",
    "merge_caches": "logitcache.merge",
    "open": "logitcache.elsewhere",
    "open_cache": "logitcache.store",
    "plan_dump": "logitcache.plan",
    "slice_cache": "logitcache.slice",
    "train_student": "logitcache.train",
    "verify_cache": "logitcache.verify",
    "wrap": "logitcache.elsewhere",
}

__all__ = [  # noqa: PLE0604  (the names are those of the table)
    *_HOMES,
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'logitcache' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
