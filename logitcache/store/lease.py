"""The lease on a cache in object storage: an object that its holder renews by conditional writes."""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from logitcache.errors import CacheIncompleteError, InputError

__all__ = ["ConditionalStore", "Lease"]

RENEW, LEASE = 5.0, 20.0  # seconds between renewals, and seconds without renewal after which a lease has expired
POLL = 0.5  # seconds between two looks at another's lease


class ConditionalStore(Protocol):
    """Storage with conditional writes; its `str()` is the address shown in messages."""

    def tagged(self, name: str) -> tuple[str | None, bytes]:
        """Return an object's tag and content, or (None, b"") if it does not exist."""

    def put_if(self, name: str, data: bytes, e_tag: str | None) -> str | None:
        """Write an object if it still has this tag (None: if it does not exist). Return its new tag, or None if it was not written."""

    def remove(self, name: str) -> None:
        """Remove an object, if it exists."""


class Lease:
    """Exclusive right to write, held until closed. Another process may take it over if it is not renewed for `LEASE` seconds.

    Clocks of different machines are never compared: a newcomer watches whether the tag changes. The lease of a dead process on the
    same machine expires immediately.
    """

    def __init__(self, bucket: ConditionalStore, name: str) -> None:
        self._bucket, self._name, self._token = bucket, name, uuid.uuid4().hex
        self._lost, self._over, self._count, self._turn = "", threading.Event(), 0, threading.Lock()
        self._tag, self._renewed = self._take(), time.time()
        self._thread = threading.Thread(target=self._keep, name="logitcache-lease", daemon=True)
        self._thread.start()

    def _content(self) -> bytes:
        self._count += 1  # the tag may be a digest of the content, so every renewal must change the content
        holder = {"pid": os.getpid(), "machine": _here(), "token": self._token, "renewed": self._count}
        return json.dumps(holder).encode()

    def _take(self) -> str:
        seen, since = None, time.monotonic()
        while True:
            tag, data = self._bucket.tagged(self._name)
            holder = _holder(data)
            free = tag is None or (
                holder.get("token") == self._token  # our own, from a request whose response was lost
                or _is_dead(holder)
                or (tag == seen and time.monotonic() - since > LEASE)
            )
            if free and (mine := self._bucket.put_if(self._name, self._content(), tag)):
                return mine
            if tag is not None and seen not in (None, tag):
                machine = str(holder.get("machine", "another machine")).partition(" ")[0]
                raise InputError(
                    f"{self._bucket} is being written by process {holder.get('pid', '?')} on {machine}. Wait for it to finish, or stop it."
                )
            if tag != seen:
                seen, since = tag, time.monotonic()
            time.sleep(POLL)

    def _keep(self) -> None:
        while not self._over.wait(RENEW) and not self._lost:
            with contextlib.suppress(CacheIncompleteError):  # network down: try again later; `check` looks at the time
                self._renew()

    def _renew(self) -> None:
        """Renew the lease, or record that it is lost."""
        with self._turn:
            begun = time.time()
            try:
                tag = self._bucket.put_if(self._name, self._content(), self._tag)
                if tag is None:
                    tag, data = self._bucket.tagged(self._name)
                    if _holder(data).get("token") != self._token:
                        self._lost = (
                            f"{self._bucket} was taken over by another process while this one could not be reached"
                        )
                        return
            except InputError as error:
                self._lost = str(error)
                return
            self._tag, self._renewed = str(tag), begun

    def check(self) -> None:
        """Check that the lease is still ours, renewing it if that is overdue (e.g. after the machine was suspended).

        Raises:
            InputError: If another process has taken the lease, or if access was revoked.
            CacheIncompleteError: If the network is down.
        """
        if not self._lost and time.time() - self._renewed > LEASE / 2:
            self._renew()
        if self._lost:
            raise InputError(f"{self._lost}. This process stops; committed blocks are safe.")

    def close(self) -> None:
        """Release the lease."""
        self._over.set()
        self._thread.join()
        with contextlib.suppress(CacheIncompleteError, InputError):
            if not self._lost and _holder(self._bucket.tagged(self._name)[1]).get("token") == self._token:
                self._bucket.remove(self._name)


def _holder(data: bytes) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        found = json.loads(data)
        if isinstance(found, dict):
            return found
    return {}


def _here() -> str:
    """Return an identifier of the machine, its boot and the namespace of process ids."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def _is_dead(holder: Mapping[str, Any]) -> bool:
    """Return whether the holder was a process on this machine that has ended; False if machines cannot be identified."""
    here = _here()
    if " " not in here or holder.get("machine") != here or not isinstance(holder.get("pid"), int):
        return False
    with contextlib.suppress(PermissionError):
        try:
            os.kill(holder["pid"], 0)
        except ProcessLookupError:
            return True
    return False
