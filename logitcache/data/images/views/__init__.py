"""Replayable augmentation: the pixels of a view are a pure function of (seed, view, sample)."""

from logitcache.data.images.views.changes import CHANGES
from logitcache.data.images.views.crops import CROPS, Boxes, RecordedBoxes
from logitcache.data.images.views.mixing import MIXES, Mixed, blend
from logitcache.data.images.views.recipes import PRESETS, View, make_views, read_recipe

__all__ = [
    "CHANGES",
    "CROPS",
    "MIXES",
    "PRESETS",
    "Boxes",
    "Mixed",
    "RecordedBoxes",
    "View",
    "blend",
    "make_views",
    "read_recipe",
]
