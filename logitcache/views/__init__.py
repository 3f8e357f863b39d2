"""Replayable augmentation: a view's pixels are a pure function of (seed, view, sample)."""

from logitcache.views.recipes import RECIPES, Boxes, View, make_turns, make_views

__all__ = ["RECIPES", "Boxes", "View", "make_turns", "make_views"]
