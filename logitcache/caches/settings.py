"""Settings of the commands that derive caches from caches, without torch so that `--help` stays fast."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from logitcache.runtime.progress import OnProgress, silent
from logitcache.runtime.settings import Settings, option

if TYPE_CHECKING:
    from logitcache.store import Cache

__all__ = ["SliceRequest", "SliceSettings"]


@dataclass(frozen=True, kw_only=True, repr=False)
class SliceSettings(Settings):
    """The part of a cache that a slice keeps."""

    panel = "What to keep"

    views: int | None = option(
        None, metavar="V", minimum=1, shown="all", help="Number of views to keep, from the first on."
    )
    samples: tuple[int, int] | None = option(
        None,
        form="span",
        metavar="A:B",
        shown="all",
        help="Range of samples of the data set to keep, from A to B - 1.",
    )
    top_k: int | None = option(
        None, metavar="K", minimum=1, shown="all there are", help="Number of the largest logits of a row to keep."
    )
    precision: str | None = option(
        None, metavar="f32|f16|u8", shown="as it is", help="Precision of the logits that are kept."
    )
    anonymous: bool = option(
        False,
        panel="Output",
        help="Leave out what a cache says about the machine: paths and addresses, the host's name, command lines. A training then names "
        "its data with --data.",
    )
    teacher: str | None = option(
        None,
        flag="cached-teacher",
        metavar="SLUG",
        shown="all, or the only one",
        help="Teacher to keep, if the cache holds several; `logitcache stats` lists them.",
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class SliceRequest(Settings):
    """Arguments of a single call that are not settings."""

    panel = "Output"

    cache: "str | Path | Cache" = option(form="argument", help="The larger cache.")
    out: str | Path = option(metavar="PATH", help="Path of the new cache.")
    on_progress: OnProgress = option(silent, form="python", help="Function called after every block.")
