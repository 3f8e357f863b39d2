"""Data sets by name, and how samples become batches of pixels."""

from logitcache.data.images.rendering import Rendered, Renderer, preprocessing_for, render
from logitcache.data.images.sets import ArrayImages, FolderImages, ImageSet, MappedImages, part_of, whole_of
from logitcache.data.images.sources import NAMED_DATA, held_out_split, load_data

__all__ = [
    "NAMED_DATA",
    "ArrayImages",
    "FolderImages",
    "ImageSet",
    "MappedImages",
    "Rendered",
    "Renderer",
    "held_out_split",
    "load_data",
    "part_of",
    "preprocessing_for",
    "render",
    "whole_of",
]
