"""Terminal output of `logitcache info`."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from logitcache.runtime.wording import (
    bytes_text,
    class_map_words,
    counted,
    kept_words,
    origin_words,
    preprocessing_words,
    samples_words,
    teacher_words,
)

from .render import print_pairs

if TYPE_CHECKING:
    from logitcache.stats import CacheInfo

__all__ = ["print_info", "state_text"]

_AT_ONE = ("sampled", "topk-mass")  # encodings that support only temperature 1
_ARRAYS = 6  # maximum number of arrays whose sizes are listed


def print_info(found: "CacheInfo") -> None:
    """Print the description of a cache, without statistics of its rows."""
    manifest = found.manifest
    print_pairs(
        found.path,
        {
            **_teachers(found),
            "data": f"{manifest['data']['spec'] or 'data set object'}, {samples_words(manifest)}, {counted(len(found.classes), 'class')}",
            "views": _views(manifest["views"]),
            "logits": kept_words(manifest["encoding"]),
            "rows": f"{found.rows:,}"
            + ("" if found.rows == found.rows_there else f", {found.rows_there:,} of them written"),
            "size": f"{bytes_text(found.bytes_total)}, {found.bytes_per_row:.1f} bytes per row ({found.ratio_to_float32:.2f}x raw float32 "
            "logits)",
            "by array": _largest_arrays(found),
            "state": state_text(found),
            "fingerprint": found.fingerprint or "none while unfinished",
            **_origin(found),
            "versions": ", ".join(f"{name} {version}" for name, version in manifest["software"].items())
            + f"; cache format {manifest['format']}",
            "methods": ", ".join(found.serves) + ", at temperature 1" * (manifest["encoding"]["kind"] in _AT_ONE),
            **({"unsupported": _refused(found.refuses)} if found.refuses else {}),
        },
    )


def _teachers(found: "CacheInfo") -> dict[str, str]:
    """Describe the teachers, and the preprocessing and class map if there is only one."""
    teachers = found.manifest["teachers"]
    if len(teachers) == 1:
        mapped = class_map_words(teachers[0]["class_map"], found.classes)
        return {
            "teacher": teacher_words(teachers[0]),
            "preprocessing": preprocessing_words(teachers[0]["preprocessing"], found.preprocessing_from),
            **({"class map": mapped} if mapped else {}),
        }
    return {f"teacher {one['slug']}": teacher_words(one) for one in teachers}


def _views(views: list[dict[str, Any]]) -> str:
    recipes = " + ".join(view["recipe"] for view in views if view["group"] == 0)
    seed = f", seed {views[0]['seed']}" if "seed" in views[0] else ""
    return f"{len({view['group'] for view in views})} x {recipes}{seed}"


def _largest_arrays(found: "CacheInfo") -> str:
    largest = sorted(found.bytes_by_array.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {bytes_text(size)}" for name, size in largest[:_ARRAYS])


def state_text(found: "CacheInfo") -> str:
    """Return whether a cache is finished, and what to do if it is not."""
    there = f"{found.blocks_there:,} of {counted(found.blocks, 'block')} written"
    if not found.finished:
        return f"unfinished, {there}; run the dump command again to resume it"
    return (
        "finished" if found.blocks_there == found.blocks else f"damaged, {there}; run `logitcache verify` for details"
    )


def _origin(found: "CacheInfo") -> dict[str, str]:
    made, manifest = found.made, found.manifest
    begun = made.get("begun", "")
    origin = {
        "created": f"{begun} on {made['host']}" if begun and "host" in made else begun,
        "device": f"{manifest['device']}, {counted(manifest['threads'], 'thread')}, batch size {manifest['batch_size']:,}",
        "command": made.get("command", ""),
        "derived from": origin_words(manifest["derived"]),
    }
    return {word: value for word, value in origin.items() if value}


def _refused(refuses: Mapping[str, str]) -> str:
    by_reason: dict[str, list[str]] = {}
    for name, reason in refuses.items():
        by_reason.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(names)} ({reason})" for reason, names in by_reason.items())
