"""Storage of a cache in an object store. Uploads are atomic there, and a renewed lease takes the place of a folder's lock.

Each file is uploaded by a single PUT, never in parts, so that a killed upload leaves nothing behind. obstore retries requests.
"""

import contextlib
import functools
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from logitcache.errors import CacheIncompleteError, InputError, first_line
from logitcache.runtime.files import Pieces
from logitcache.store.lease import Lease

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
    raise InputError("object storage needs the package obstore: pip install 'logitcache[s3]'") from error

if TYPE_CHECKING:
    from obstore.store import ObjectStore

__all__ = ["Bucket"]

_KNOWN = ("s3", "gs", "az")
_TRIES = 10  # attempts per request, within three minutes
_UPLOADS = 3  # concurrent uploads for each of the six blocks that a writer has in flight


class Bucket:
    """A prefix in a bucket, as a `Place`."""

    at_once = 16  # the latency of a request is about 25 ms

    def __init__(self, url: str) -> None:
        """Open an address such as `s3://bucket/c.zarr`, with credentials, region and endpoint from the environment.

        Raises:
            InputError: If the address is invalid or there are no credentials.
        """
        parts = urlsplit(url)  # lower-cases the scheme
        if parts.scheme not in _KNOWN or not parts.netloc or not parts.path.strip("/"):
            raise InputError(f"{url}: expected an address like s3://bucket/c.zarr (s3, gs or az)")
        if parts.username or parts.query or parts.fragment:
            raise InputError(
                f"{parts.scheme}://{parts.hostname}{parts.path}: an address must not contain credentials or options; set them in the "
                "environment"
            )
        prefix = parts.path.removeprefix("/").rstrip("/")
        if prefix.startswith("/") or "//" in prefix:
            raise InputError(f"{url}: an address must not contain two slashes in a row")
        self.url = f"{parts.scheme}://{parts.netloc}/{prefix}"
        quoted = f"{parts.scheme}://{parts.netloc}/{quote(prefix)}"  # otherwise %20 in a name would become a space
        self._store: ObjectStore = from_url(
            quoted,
            retry_config={"max_retries": _TRIES, "retry_timeout": timedelta(minutes=3)},
            **(_amazon() if parts.scheme == "s3" else {}),
        )

    def __str__(self) -> str:
        return self.url

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bucket) and self.url == other.url

    def __hash__(self) -> int:
        return hash(self.url)

    @contextlib.contextmanager
    def _asking(self, name: str) -> Iterator[None]:
        """Translate errors of a request to LogitCacheError, except FileNotFoundError for an absent file."""
        try:
            yield
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise InputError(
                f"{self.url}/{name}: access denied ({first_line(error)}). Check the credentials in the environment "
                "(AWS_ACCESS_KEY_ID, AWS_PROFILE, ...) and their permissions in this bucket."
            ) from error
        except BaseError as error:
            if "NoSuchBucket" in str(error):
                raise _no_bucket(self.url) from error
            raise CacheIncompleteError(
                f"{self.url}/{name} could not be reached ({first_line(error)}). Committed blocks are safe; run the same command again to "
                "resume."
            ) from error

    def read(self, name: str) -> bytes:
        """Return the content of an object."""
        with self._asking(name):
            return bytes(obstore.get(self._store, name).bytes())

    def size(self, name: str) -> int | None:
        """Return the size of an object in bytes, or None if it does not exist."""
        try:
            with self._asking(name):
                return int(obstore.head(self._store, name)["size"])
        except FileNotFoundError:
            return None

    def sizes(self, below: str = "") -> dict[str, int]:
        """Return the size in bytes of every object below a prefix, by name."""
        with self._asking(below):
            found = [entry for batch in obstore.list(self._store, below or None) for entry in batch]
        return {entry["path"]: int(entry["size"]) for entry in sorted(found, key=lambda entry: entry["path"])}

    def folders(self, below: str) -> list[str]:
        """Return the names of the immediate prefixes below a prefix."""
        with self._asking(below):
            found = obstore.list_with_delimiter(self._store, below or None)["common_prefixes"]
        return sorted(prefix.rstrip("/").rpartition("/")[2] for prefix in found)

    def is_empty(self, below: str = "") -> bool:
        """Return whether there are no objects below a prefix."""
        with self._asking(below):
            return not any(len(batch) for batch in obstore.list(self._store, below or None, chunk_size=1))

    def write(self, files: Mapping[str, Pieces], *, synced: bool = True) -> None:
        """Upload each file in one request, several at a time. Uploads are durable."""
        del synced
        with ThreadPoolExecutor(min(len(files), _UPLOADS)) as executor:
            for _ in executor.map(self._upload, files, files.values()):
                pass

    def _upload(self, name: str, pieces: Pieces) -> None:
        try:
            with self._asking(name):
                obstore.put(self._store, name, b"".join(pieces), use_multipart=False)
        except FileNotFoundError as error:
            raise _no_bucket(self.url) from error

    def settle(self, below: str = "") -> None:
        """Do nothing, because uploads are durable."""

    def append(self, name: str, content: Mapping[str, Any]) -> None:
        """Append a JSON object to a log by rewriting it; call it only while holding the cache."""
        before = b""
        with contextlib.suppress(FileNotFoundError):
            before = self.read(name)
        self.write({name: [before, json.dumps(content).encode(), b"\n"]})

    def remove(self, name: str) -> None:
        """Remove an object if it exists."""
        with contextlib.suppress(FileNotFoundError), self._asking(name):
            obstore.delete(self._store, name)

    def remove_below(self, folder: str) -> None:
        """Remove all objects below a prefix."""
        names = list(self.sizes(folder))
        if names:
            with self._asking(folder):
                obstore.delete(self._store, names)

    def hold(self, name: str) -> Lease:
        """Acquire the lease."""
        return Lease(self, name)

    def beside(self, suffix: str) -> str:
        """Return the address of a sibling cache: the same name with a suffix before `.zarr`."""
        return f"{self.url.removesuffix('.zarr')}{suffix}.zarr"

    def put_if(self, name: str, data: bytes, e_tag: str | None) -> str | None:
        """Upload if the object still has this tag (None: does not exist). Return its new tag, or None if it was not written.

        Raises:
            InputError: If the storage does not support conditional writes.
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
                        f"{self.url}: this storage does not support conditional writes, which prevent two dumps from writing the same "
                        "cache. Dump to a disk and copy the folder."
                    ) from error
        except FileNotFoundError as error:
            if e_tag:  # the lease existed a moment ago, so someone has removed it
                return None
            raise _no_bucket(self.url) from error

    def tagged(self, name: str) -> tuple[str | None, bytes]:
        """Return an object's tag and content, or (None, b"") if it does not exist."""
        try:
            with self._asking(name):
                found = obstore.get(self._store, name)
                return found.meta["e_tag"], bytes(found.bytes())
        except FileNotFoundError:
            return None, b""


def _no_bucket(url: str) -> InputError:
    return InputError(f"{url}: there is no such bucket. Create it, or check the name.")


@functools.cache
def _descriptions() -> Any:
    """Return botocore's loader of the descriptions of services. It keeps what it has read, and reading takes longer than the rest."""
    from botocore.loaders import create_loader  # noqa: PLC0415

    return create_loader()


def _amazon() -> dict[str, Any]:
    """Return the options for S3, with credentials, region and endpoint resolved by boto3 as in all AWS tools."""
    import boto3  # noqa: PLC0415  (slow to import)
    import botocore.session  # noqa: PLC0415
    from obstore.auth.boto3 import Boto3CredentialProvider  # noqa: PLC0415

    core = botocore.session.get_session()
    core.register_component("data_loader", _descriptions())
    session = boto3.Session(botocore_session=core)
    found = session.client("s3").meta
    config: dict[str, Any] = {"region": session.region_name or "us-east-1"}
    if ".amazonaws." not in f"{urlsplit(found.endpoint_url).hostname}.":
        config["endpoint"] = found.endpoint_url
    options: dict[str, Any] = {
        "client_options": {"allow_http": True, "timeout": timedelta(seconds=60)},
        "config": config,
    }
    if os.environ.get("AWS_SKIP_SIGNATURE", "").lower() in ("1", "true"):
        return options
    if session.get_credentials() is None:
        raise InputError(
            "no credentials for s3:// were found in the environment, ~/.aws or this machine's role. Set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY or AWS_PROFILE; for a public bucket AWS_SKIP_SIGNATURE=true."
        )
    return options | {"credential_provider": Boto3CredentialProvider(session)}
