"""Remove information about the machine from a manifest, for `slice --anonymous` and `export --anonymous`.

Public names are kept: data sets and networks known to logitcache, torchvision or timm. Paths and addresses of data are removed; those of
teachers and tokenizers are reduced to their last part.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePath
from typing import Any

from logitcache.data import NAMED_DATA
from logitcache.data.text.sources import NAMED_TEXT
from logitcache.store import Manifest, average_of

__all__ = ["anonymous"]

_WEIGHTS = re.compile("demo|[A-Z][A-Z0-9_]*")  # of torchvision and timm: DEFAULT, IMAGENET1K_V2
_LIBRARIES = ("torchvision", "timm")


def anonymous(manifest: Manifest) -> Manifest:
    """Return a manifest without paths and addresses.

    `train` and `verify` then need `--data`, unless the cache contains the data, as it does for text. A live teacher and `verify --replay`
    need `--teacher-weights` and, for `verify`, `--teacher`.

    Args:
        manifest: Manifest of the cache.
    """
    data = manifest.data | {"spec": _data(manifest.data["spec"])}
    if "source" in data.get("tokenizer", {}):
        data["tokenizer"] = data["tokenizer"] | {"source": _named(data["tokenizer"]["source"])}
    if "generated" in data:
        data["generated"] = _generated(data["generated"])
    return replace(
        manifest, data=data, teachers=tuple(map(_teacher, manifest.teachers)), derived=_derived(manifest.derived)
    )


def _data(spec: str) -> str:
    """Return the spec of a data set if it is a public name, else an empty string."""
    name, _, split = spec.partition(":")
    return spec if name in (*NAMED_DATA, *NAMED_TEXT) and (split.isalpha() or not split) else ""


def _generated(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return the origin of generated text without paths."""
    taught = origin["taught_by"]
    names = taught and [one | {"name": _named(one["name"])} for one in taught]
    return {**origin, "model": _named(origin["model"]), "taught_by": names}


def _teacher(entry: Mapping[str, Any]) -> dict[str, Any]:
    members, weights = list(map(_teacher, entry["members"])), entry["weights"]
    of_all = average_of(members)["name"] if members else _named(entry["name"])
    return {**entry, "name": of_all, "weights": weights if _WEIGHTS.fullmatch(weights) else "", "members": members}


def _named(name: str) -> str:
    """Return the name of a network or tokenizer, reduced to its last part if it is a path or an address."""
    kind, colon, rest = name.partition(":")
    if not colon:
        return PurePath(name).name or name
    return name if kind in _LIBRARIES else f"{kind}:{PurePath(rest.rstrip('/')).name}"


def _derived(entry: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the record of the caches that this one was derived from, without paths."""
    if entry is None:
        return None
    origins = [
        {**one, "teachers": [_teacher(teacher) for teacher in one["teachers"]], "derived": _derived(one["derived"])}
        for one in entry["from"]
    ]
    return {**entry, "from": origins}
