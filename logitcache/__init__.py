"""logitcache: run the teacher once, train any student from what it said.

The front door is lazy: a name imports its module when it is first used, because torch takes seconds to import.
"""

import importlib
from typing import TYPE_CHECKING, Any

from logitcache.runtime.threads import yield_while_waiting

if TYPE_CHECKING:
    from logitcache.caches.export import export_cache as export_cache
    from logitcache.caches.fidelity import cache_fidelity as cache_fidelity
    from logitcache.caches.merge import merge_caches as merge_caches
    from logitcache.caches.slice import slice_cache as slice_cache
    from logitcache.caches.verify import verify_cache as verify_cache
    from logitcache.data import Samples as Samples
    from logitcache.data import View as View
    from logitcache.dump.dump import dump_logits as dump_logits
    from logitcache.dump.plan import plan_dump as plan_dump
    from logitcache.dump.settings import DumpSettings as DumpSettings
    from logitcache.errors import LogitCacheError as LogitCacheError
    from logitcache.generate.generate import generate_completions as generate_completions
    from logitcache.methods import METHODS as METHODS
    from logitcache.methods import Method as Method
    from logitcache.methods import get_loss as get_loss
    from logitcache.methods import gradient_norms as gradient_norms
    from logitcache.runs.compare import compare_runs as compare_runs
    from logitcache.runs.metrics import Metric as Metric
    from logitcache.runtime.progress import Callbacks as Callbacks
    from logitcache.runtime.progress import Progress as Progress
    from logitcache.stats import cache_info as cache_info
    from logitcache.stats import cache_stats as cache_stats
    from logitcache.stats import compare_caches as compare_caches
    from logitcache.store import Cache as Cache
    from logitcache.store import open_cache as open_cache
    from logitcache.train.datasets import TeacherRows as TeacherRows
    from logitcache.train.datasets import open_dataset as open_dataset
    from logitcache.train.datasets import wrap as wrap
    from logitcache.train.loader import Batch as Batch
    from logitcache.train.loader import Loader as Loader
    from logitcache.train.packed import PackedDataset as PackedDataset
    from logitcache.train.packed import PackedIterableDataset as PackedIterableDataset
    from logitcache.train.packed import collate_packed as collate_packed
    from logitcache.train.settings import TrainSettings as TrainSettings
    from logitcache.train.train import RunResult as RunResult
    from logitcache.train.train import train_student as train_student

    open = open_dataset  # noqa: A001

_HOMES = {
    "Batch": "logitcache.train.loader",
    "Cache": "logitcache.store",
    "Loader": "logitcache.train.loader",
    "Callbacks": "logitcache.runtime.progress",
    "DumpSettings": "logitcache.dump.settings",
    "LogitCacheError": "logitcache.errors",
    "METHODS": "logitcache.methods",
    "Method": "logitcache.methods",
    "Metric": "logitcache.runs.metrics",
    "PackedDataset": "logitcache.train.packed",
    "PackedIterableDataset": "logitcache.train.packed",
    "Progress": "logitcache.runtime.progress",
    "RunResult": "logitcache.train.train",
    "Samples": "logitcache.data",
    "TeacherRows": "logitcache.train.datasets",
    "View": "logitcache.data",
    "TrainSettings": "logitcache.train.settings",
    "cache_fidelity": "logitcache.caches.fidelity",
    "cache_info": "logitcache.stats",
    "cache_stats": "logitcache.stats",
    "collate_packed": "logitcache.train.packed",
    "compare_caches": "logitcache.stats",
    "compare_runs": "logitcache.runs.compare",
    "dump_logits": "logitcache.dump.dump",
    "export_cache": "logitcache.caches.export",
    "generate_completions": "logitcache.generate.generate",
    "get_loss": "logitcache.methods",
    "gradient_norms": "logitcache.methods",
    "import_rows": "logitcache.imports.import_rows",
    "merge_caches": "logitcache.caches.merge",
    "open_cache": "logitcache.store",
    "open_dataset": "logitcache.train.datasets",
    "plan_dump": "logitcache.dump.plan",
    "slice_cache": "logitcache.caches.slice",
    "train_student": "logitcache.train.train",
    "verify_cache": "logitcache.caches.verify",
    "wrap": "logitcache.train.datasets",
}
_ALIASES = {"open": "open_dataset"}

yield_while_waiting()

__all__ = [  # noqa: PLE0604  (the names are those of the table)
    *_HOMES,
    *_ALIASES,
]


def __getattr__(name: str) -> Any:
    name = _ALIASES.get(name, name)
    if name not in _HOMES:
        raise AttributeError(f"module 'logitcache' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
