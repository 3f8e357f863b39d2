"""Statistics of a cache: contents, teacher quality, effect of each method, likely label errors and duplicates. Does not need torch."""

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
