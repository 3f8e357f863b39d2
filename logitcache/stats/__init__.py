"""What is in a cache, in numbers: what it is, how good its teacher is, what methods will do with it, what is odd. Without torch."""

from logitcache.stats.comparison import compare_caches
from logitcache.stats.describe import cache_stats
from logitcache.stats.info import cache_info
from logitcache.stats.interval import wilson_interval
from logitcache.stats.records import (
    Bin,
    CacheInfo,
    CacheStats,
    Comparison,
    Confusion,
    DifferingToken,
    Duplicate,
    Health,
    MethodPreview,
    OddDocument,
    OddSample,
    PairedBin,
    PositionBin,
    ProbeLoss,
    Quantiles,
    Side,
    SurprisingToken,
    TokenComparison,
    TokenStats,
    ViewStats,
)

__all__ = [
    "Bin",
    "CacheInfo",
    "CacheStats",
    "Comparison",
    "Confusion",
    "DifferingToken",
    "Duplicate",
    "Health",
    "MethodPreview",
    "OddDocument",
    "OddSample",
    "PairedBin",
    "PositionBin",
    "ProbeLoss",
    "Quantiles",
    "Side",
    "SurprisingToken",
    "TokenComparison",
    "TokenStats",
    "ViewStats",
    "cache_info",
    "cache_stats",
    "compare_caches",
    "wilson_interval",
]
