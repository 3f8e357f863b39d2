"""The page as a file, with the images of what is odd."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logitcache.errors import InputError, LogitCacheError
from logitcache.report.page import comparison_html, report_html, shown_samples
from logitcache.report.pictures import sample_images
from logitcache.report.words import speller_of
from logitcache.runtime.files import write_bytes

if TYPE_CHECKING:
    from logitcache.caches.fidelity import Fidelity
    from logitcache.stats import CacheStats, Comparison
    from logitcache.store import Cache

__all__ = ["refuse_report", "write_comparison", "write_report"]


def refuse_report(modality: str, path: str) -> None:
    """Refuse a page about data that is neither images nor text.

    Args:
        modality: Kind of the data of a cache.
        path: Path of the cache.

    Raises:
        InputError: The cache is of another kind of data.
    """
    if modality not in ("images", "text"):
        raise InputError(
            f"{path} is a cache of {modality}: the page with figures is of caches of images and text only. Leave out --report."
        )


def write_report(
    path: Path,
    stats: "CacheStats",
    cache: "str | Path | Cache",
    *,
    fidelity: "Fidelity | None" = None,
    advice: Sequence[str] = (),
    data: Any = None,
) -> str:
    """Write the page about a cache, with the images of what is odd, where its data can be opened and is what it was.

    Args:
        path: Of the file.
        stats: What was found.
        cache: In which cache; or its path.
        fidelity: What storing does to methods, if it was measured.
        advice: Sentences; code stands between backticks.
        data: The data set, if it is not where the dump found it.

    Returns:
        Why the page has no images, in a sentence; empty where it has all it wants.

    Raises:
        InputError: The cache is of another kind of data.
    """
    refuse_report(stats.manifest.get("modality", "images"), stats.path)
    images, why = dict[int, bytes](), ""
    spell = None if stats.tokens is None else speller_of(stats.manifest)
    try:
        images = {} if spell else sample_images(cache, shown_samples(stats), data)
    except LogitCacheError as error:
        why = f"There are no images here: {error}"
    page = report_html(stats, fidelity, advice, images, without_images=why, spell=spell)
    write_bytes(path, page.encode())
    return why


def write_comparison(
    path: Path, comparison: "Comparison", classes: Sequence[str], manifest: Mapping[str, Any] | None = None
) -> None:
    """Write the page about two caches.

    Args:
        path: Path of the page.
        comparison: What was found.
        classes: Names of the classes.
        manifest: Manifest of one of them, as JSON; needed for text.
    """
    spell = None if comparison.tokens is None or manifest is None else speller_of(manifest)
    write_bytes(path, comparison_html(comparison, classes, spell=spell).encode())
