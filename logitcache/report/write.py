"""Write reports to files, with the images of unusual samples."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logitcache.errors import InputError, LogitCacheError
from logitcache.report.page import comparison_html, report_html, samples_with_images
from logitcache.report.pictures import sample_images
from logitcache.report.words import speller_of
from logitcache.runtime.files import write_bytes

if TYPE_CHECKING:
    from logitcache.caches.fidelity import Fidelity
    from logitcache.stats import CacheStats, Comparison
    from logitcache.store import Cache

__all__ = ["refuse_report", "write_comparison", "write_report"]


def refuse_report(modality: str, path: str) -> None:
    """Raise InputError unless the data is images or text.

    Args:
        modality: Modality of the cache.
        path: Path of the cache, for the message.

    Raises:
        InputError: The modality is not supported.
    """
    if modality not in ("images", "text"):
        raise InputError(
            f"{path} is a cache of {modality}, but reports are only available for images and text; leave out --report."
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
    """Write the report about a cache, with images of unusual samples if the data can be opened and has not changed.

    Args:
        path: Path of the report.
        stats: Statistics of the cache.
        cache: Cache, or its path.
        fidelity: Effect of the encoding on methods, if it was measured.
        advice: Sentences, with code in backticks.
        data: Data set, if it is not where it was at the dump.

    Returns:
        Sentence that explains why the report has no images; empty if it has all of them.

    Raises:
        InputError: The data is neither images nor text.
    """
    refuse_report(stats.manifest.get("modality", "images"), stats.path)
    images, why = dict[int, bytes](), ""
    spell = None if stats.tokens is None else speller_of(stats.manifest)
    try:
        images = {} if spell else sample_images(cache, samples_with_images(stats), data)
    except LogitCacheError as error:
        why = f"There are no images here: {error}"
    page = report_html(stats, fidelity, advice, images, without_images=why, spell=spell)
    write_bytes(path, page.encode())
    return why


def write_comparison(
    path: Path, comparison: "Comparison", classes: Sequence[str], manifest: Mapping[str, Any] | None = None
) -> None:
    """Write the report about two caches.

    Args:
        path: Path of the report.
        comparison: Comparison of the caches.
        classes: Names of the classes, in index order.
        manifest: Manifest of one of the caches, as JSON; required for text.
    """
    spell = None if comparison.tokens is None or manifest is None else speller_of(manifest)
    write_bytes(path, comparison_html(comparison, classes, spell=spell).encode())
