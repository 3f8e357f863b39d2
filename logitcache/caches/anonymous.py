"""A manifest without what it says about the machine that made the cache: `slice --anonymous` and `export --anonymous`.

Names that everybody can use stay: those of data sets and networks that logitcache, torchvision or timm know. Of whatever was typed as a
path or an address, the data goes altogether, and of a teacher or a tokenizer the last part of the path stays.
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

    A training from such a cache, and `verify`, must be told where the data is (`--data`), unless the cache carries it, as of text; a live
    teacher and a replay likewise (`--teacher-weights`, `--teacher`).

    Args:
        manifest: The manifest.
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
    """Return the name of a data set, if it is one that is named; else nothing."""
    name, _, split = spec.partition(":")
    return spec if name in (*NAMED_DATA, *NAMED_TEXT) and (split.isalpha() or not split) else ""


def _generated(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return which model wrote the text, and whom it learned from."""
    taught = origin["taught_by"]
    names = taught and [one | {"name": _named(one["name"])} for one in taught]
    return {**origin, "model": _named(origin["model"]), "taught_by": names}


def _teacher(entry: Mapping[str, Any]) -> dict[str, Any]:
    members, weights = list(map(_teacher, entry["members"])), entry["weights"]
    of_all = average_of(members)["name"] if members else _named(entry["name"])
    return {**entry, "name": of_all, "weights": weights if _WEIGHTS.fullmatch(weights) else "", "members": members}


def _named(name: str) -> str:
    """Return the name of a network or a tokenizer; of a path or an address only the last part."""
    kind, colon, rest = name.partition(":")
    if not colon:
        return PurePath(name).name or name
    return name if kind in _LIBRARIES else f"{kind}:{PurePath(rest.rstrip('/')).name}"


def _derived(entry: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return what a cache was made from, without the same things."""
    if entry is None:
        return None
    origins = [
        {**one, "teachers": [_teacher(teacher) for teacher in one["teachers"]], "derived": _derived(one["derived"])}
        for one in entry["from"]
    ]
    return {**entry, "from": origins}
