"""Offline mode for Hugging Face's hub if its servers cannot be reached."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

__all__ = ["without_waiting"]

_PATIENCE_S = 3.0


@contextmanager
def without_waiting() -> Iterator[None]:
    """Make Hugging Face's client use its local cache if the server is unreachable, instead of retrying for 50 s."""
    try:
        constants: Any = import_module("huggingface_hub.constants")
    except ImportError:
        yield
        return
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _in_reach(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _in_reach(address: str) -> bool:
    """Return whether a server responds within a few seconds; assumed to be true behind a proxy."""
    parts = urlsplit(address)
    if getproxies().get(parts.scheme):
        return True
    try:
        socket.create_connection((parts.hostname, parts.port or 443), _PATIENCE_S).close()
    except OSError:
        return False
    return True
