"""Data sets, given by name or as an object, and modalities (kinds of data)."""

from logitcache.data.exclusion import excluded_of, kept_of, leave_out
from logitcache.data.images.rendering import Renderer, preprocessing_for, render
from logitcache.data.images.sets import ArrayImages, FolderImages, ImageSet, MappedImages
from logitcache.data.images.sources import NAMED_DATA
from logitcache.data.open import as_samples, find_modality, held_out_split, load_data, modality_of, part_of
from logitcache.data.protocol import (
    Ids,
    Inputs,
    Modality,
    Rendition,
    RowLabels,
    Samples,
    View,
    offsets_of,
    whole_of,
)
from logitcache.data.text.documents import Documents
from logitcache.store import count_rows, rows_of

__all__ = [
    "NAMED_DATA",
    "ArrayImages",
    "Documents",
    "FolderImages",
    "Ids",
    "ImageSet",
    "Inputs",
    "MappedImages",
    "Modality",
    "Renderer",
    "Rendition",
    "RowLabels",
    "Samples",
    "View",
    "as_samples",
    "count_rows",
    "excluded_of",
    "find_modality",
    "held_out_split",
    "kept_of",
    "leave_out",
    "load_data",
    "modality_of",
    "offsets_of",
    "part_of",
    "preprocessing_for",
    "render",
    "rows_of",
    "whole_of",
]
