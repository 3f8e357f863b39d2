"""A cache in object storage. Uploads are whole or absent there by nature; what a folder's lock does, a renewed lease does.

Every file is one PUT, never in parts, so that a killed upload leaves nothing behind. Requests are tried again by obstore.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from logitcache.errors import CacheIncompleteError, InputError, first_line

try:
    import obstore
    from obstore.exceptions import (
        AlreadyExistsError,
        BaseError,
        NotSupportedError,
        PermissionDeniedError,
        PreconditionError,
        UnauthenticatedError,
    )
    from obstore.store import from_url
except ImportError as error:
    raise InputError(
        "reading and writing in object storage needs the package obstore: pip install 'logitcache[s3]'"
    ) from error

if TYPE_CHECKING:
    from obstore.store import ObjectStore

__all__ = ["Bucket"]

_RENEW, _LEASE = 5.0, 20.0  # seconds: how often a lease is renewed, and after how long without that it has lapsed
_KNOWN = ("s3", "gs", "az")


class Bucket:
    """A prefix of a bucket."""

    at_once = 16  # a request waits some 25 ms for its first byte

    def __init__(self, url: str) -> None:
        """Open `s3://bucket/c.zarr`; credentials, region and endpoint come from the environment.

        Raises:
            InputError: Another kind of address, or no credentials.
        """
        parts = urlsplit(url)
        if parts.scheme not in _KNOWN or not parts.netloc or not parts.path.strip("/"):
            raise InputError(f"{url}: expected an address like s3://bucket/c.zarr (s3, gs or az)")
        if parts.username or parts.query or parts.fragment:
            raise InputError(
                f"{parts.scheme}://{parts.hostname}{parts.path}: an address holds no credentials or options; they come from the "
                "environment"
            )
        self.url = url.rstrip("/")
        self._store: ObjectStore = from_url(self.url, **(_amazon() if parts.scheme == "s3" else {}))

    def __str__(self) -> str:
        return self.url

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bucket) and self.url == other.url

    def __hash__(self) -> int:
        return hash(self.url)

    @contextlib.contextmanager
    def _asking(self, name: str) -> Iterator[None]:
        """Turn what a request met into a sentence; an absent file stays a FileNotFoundError."""
        try:
            yield
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise InputError(
                f"{self.url}/{name}: access denied ({first_line(error)}). Check the credentials in the environment "
                "(AWS_ACCESS_KEY_ID, AWS_PROFILE, ...) and what they may do in this bucket."
            ) from error
        except BaseError as error:
            if "NoSuchBucket" in str(error):
                raise _no_bucket(self.url) from error
            raise CacheIncompleteError(
                f"{self.url}/{name} could not be reached ({first_line(error)}). What was committed before is whole; run the same "
                "command again to go on from there."
            ) from error

    def read(self, name: str) -> bytes:
        """Return the content of an object."""
        with self._asking(name):
            return bytes(obstore.get(self._store, name).bytes())

    def size(self, name: str) -> int | None:
        """Return the length of an object in bytes; None where there is none."""
        try:
            with self._asking(name):
                return int(obstore.head(self._store, name)["size"])
        except FileNotFoundError:
            return None

    def sizes(self, below: str = "") -> dict[str, int]:
        """Return every object below a prefix, with its length."""
        with self._asking(below):
            found = [entry for batch in obstore.list(self._store, below or None) for entry in batch]
        return {entry["path"]: int(entry["size"]) for entry in sorted(found, key=lambda entry: entry["path"])}

    def folders(self, below: str) -> list[str]:
        """Return the names of the prefixes below a prefix."""
        with self._asking(below):
            found = obstore.list_with_delimiter(self._store, below or None)["common_prefixes"]
        return sorted(prefix.rstrip("/").rpartition("/")[2] for prefix in found)

    def is_empty(self, below: str = "") -> bool:
        """Say whether nothing is there."""
        with self._asking(below):
            return not any(len(batch) for batch in obstore.list(self._store, below or None, chunk_size=1))

    def write(self, name: str, data: bytes) -> None:
        """Upload in one request."""
        try:
            with self._asking(name):
                obstore.put(self._store, name, data, use_multipart=False)
        except FileNotFoundError as error:
            raise _no_bucket(self.url) from error

    def append(self, name: str, content: Mapping[str, Any]) -> None:
        """Append one JSON object to a log; for the one who holds the cache, since it is read and written anew."""
        before = b""
        with contextlib.suppress(FileNotFoundError):
            before = self.read(name)
        self.write(name, before + json.dumps(content).encode() + b"\n")

    def remove(self, name: str) -> None:
        """Remove an object, if it is there."""
        with contextlib.suppress(FileNotFoundError), self._asking(name):
            obstore.delete(self._store, name)

    def remove_below(self, folder: str) -> None:
        """Remove what is below a prefix."""
        names = list(self.sizes(folder))
        if names:
            with self._asking(folder):
                obstore.delete(self._store, names)

    def hold(self, name: str) -> "_Lease":
        """Take the lease."""
        return _Lease(self, name)

    def beside(self, suffix: str) -> str:
        """Return where another cache could lie: the same name with this before `.zarr`."""
        return f"{self.url.removesuffix('.zarr')}{suffix}.zarr"

    def put_if(self, name: str, data: bytes, e_tag: str | None) -> str | None:
        """Upload if the object still has this tag (None: if there is none); its new tag, or None where it has not.

        Raises:
            InputError: This storage cannot do that.
        """
        try:
            with self._asking(name):
                mode: Any = {"e_tag": e_tag} if e_tag else "create"
                try:
                    return obstore.put(self._store, name, data, mode=mode, use_multipart=False)["e_tag"]
                except (AlreadyExistsError, PreconditionError):
                    return None
                except NotSupportedError as error:
                    raise InputError(
                        f"{self.url}: this storage does not support conditional writes, which keep two dumps apart. Dump to a disk "
                        "and copy the folder."
                    ) from error
        except FileNotFoundError as error:
            if e_tag:  # the lease was there a moment ago: somebody has removed it
                return None
            raise _no_bucket(self.url) from error

    def tagged(self, name: str) -> tuple[str | None, bytes]:
        """Return an object's tag and content; (None, b"") where there is none."""
        try:
            with self._asking(name):
                found = obstore.get(self._store, name)
                return found.meta["e_tag"], bytes(found.bytes())
        except FileNotFoundError:
            return None, b""


def _no_bucket(url: str) -> InputError:
    return InputError(f"{url}: there is no such bucket. Make it first, or check the name.")


def _amazon() -> dict[str, Any]:
    """Let boto3 look for credentials where every tool of Amazon's does, and allow a plain HTTP endpoint where one is named."""
    options: dict[str, Any] = {"client_options": {"allow_http": True, "timeout": timedelta(seconds=60)}}
    if "AWS_ACCESS_KEY_ID" in os.environ or os.environ.get("AWS_SKIP_SIGNATURE", "").lower() == "true":
        return options
    import boto3  # noqa: PLC0415  (slow to import)
    from obstore.auth.boto3 import Boto3CredentialProvider  # noqa: PLC0415

    session = boto3.Session()
    if session.get_credentials() is None:
        raise InputError(
            "no credentials for s3:// were found in the environment, ~/.aws or this machine's role. Set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY or AWS_PROFILE; for a public bucket AWS_SKIP_SIGNATURE=true."
        )
    return options | {"credential_provider": Boto3CredentialProvider(session)}


def _here() -> str:
    """Name the machine, and within it the space in which process numbers mean something."""
    space = ""
    with contextlib.suppress(OSError):
        space = str(Path("/proc/self/ns/pid").readlink())
    return f"{socket.gethostname()} {space}".strip()


class _Lease:
    """An object that its holder renews; whoever finds it not renewed for `_LEASE` seconds may take it over.

    No clocks are compared: a newcomer watches the tag change, or not. A lease of a process of this machine that is dead lapses
    at once.
    """

    def __init__(self, bucket: Bucket, name: str) -> None:
        self._bucket, self._name, self._token = bucket, name, uuid.uuid4().hex
        self._lost, self._over, self._count = False, threading.Event(), 0
        self._tag = self._take()
        self._thread = threading.Thread(target=self._renew, name="logitcache-lease", daemon=True)
        self._thread.start()

    def _content(self) -> bytes:
        self._count += 1  # a tag is a digest of the content: every renewal must change it
        holder = {"pid": os.getpid(), "machine": _here(), "token": self._token, "renewed": self._count}
        return json.dumps(holder).encode()

    def _take(self) -> str:
        seen, since = None, time.monotonic()
        while True:
            tag, data = self._bucket.tagged(self._name)
            holder = _holder(data)
            lapsed = tag is not None and (
                holder.get("token") == self._token  # our own, of a request whose answer was lost
                or _is_dead(holder)
                or (tag == seen and time.monotonic() - since > _LEASE)
            )
            if (tag is None or lapsed) and (mine := self._bucket.put_if(self._name, self._content(), tag)):
                return mine
            if seen not in (None, tag):
                raise InputError(
                    f"{self._bucket} is being written by process {holder.get('pid', '?')} on "
                    f"{str(holder.get('machine', '?')).partition(' ')[0]}. Wait until it is done, or stop it."
                )
            if seen is None:
                seen, since = tag, time.monotonic()
            time.sleep(0.5)

    def _renew(self) -> None:
        while not self._over.wait(_RENEW):
            with contextlib.suppress(
                CacheIncompleteError
            ):  # the network is away: try again, nobody else may be there either
                tag = self._bucket.put_if(self._name, self._content(), self._tag)
                if tag is None:
                    current, data = self._bucket.tagged(self._name)
                    if _holder(data).get("token") != self._token:
                        self._lost = True
                        return
                    tag = current
                self._tag = tag or self._tag

    def check(self) -> None:
        """Do nothing while the lease is ours.

        Raises:
            InputError: Another process has taken it.
        """
        if self._lost:
            raise InputError(
                f"{self._bucket} has been taken over by another process while this one could not be reached. This one stops; "
                "what was committed is whole."
            )

    def close(self) -> None:
        """Give the lease back."""
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


def _is_dead(holder: Mapping[str, Any]) -> bool:
    """Say whether the holder was a process of this machine that is no more."""
    if holder.get("machine") != _here() or not isinstance(holder.get("pid"), int):
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
