"""Hugging Face's servers: used where they can be reached, and not waited for where they cannot."""

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
    """Let Hugging Face's client use what it has downloaded, where its server is out of reach: it would try again for 50 s."""
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
    """Return whether a server answers within a few seconds; one behind a proxy is taken to."""
    parts = urlsplit(address)
    if getproxies().get(parts.scheme):
        return True
    try:
        socket.create_connection((parts.hostname, parts.port or 443), _PATIENCE_S).close()
    except OSError:
        return False
    return True
