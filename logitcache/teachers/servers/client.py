"""HTTP client for model servers that retries requests while the server is busy, slow or restarting.

API keys are read from the environment and never stored.
"""

import os
import random
import threading
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from logitcache.errors import CacheIncompleteError, InputError, first_line
from logitcache.runtime.plugins import import_extra
from logitcache.teachers.servers.answers import error_message

__all__ = ["ServerClient", "split_address"]

_CONNECT = 10.0  # connection timeout in seconds
_PAUSES = (0.25, 30.0)  # initial and maximum pause between attempts in seconds
_BUSY = (408, 425, 429, 502, 503, 504)
_FAILURES = 4  # responses with status 500 to one request before giving up
_SHOWN = 300  # maximum length of a server's message


def split_address(address: str, environment: str) -> tuple[str, str | None]:
    """Return the root URL of a server, and the model name from `?model=NAME`.

    Args:
        address: URL, with http as the default scheme. A path of /v1 is removed.
        environment: Name of the environment variable for the API key, for the message.

    Raises:
        InputError: The address is not a URL, or contains a password, which would be stored.
    """
    parts = urlsplit(address if "://" in address else f"http://{address}")
    try:
        known = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:  # invalid port
        known = False
    if not known:
        raise InputError(f"{address} is not the URL of a server; expected e.g. http://localhost:8000")
    if parts.username or parts.password:
        raise InputError(
            f"the URL of a server is stored in the cache and must not contain a password; put the key into {environment} instead"
        )
    query = dict(one.partition("=")[::2] for one in parts.query.split("&")) if parts.query else {}
    if unknown := [name for name in query if name != "model"]:
        raise InputError(
            f"{address} has an unknown parameter {unknown[0]!r}; expected model, e.g. http://localhost:8000?model=NAME"
        )
    path = parts.path.rstrip("/").removesuffix("/v1")
    return urlunsplit((parts.scheme, parts.netloc, path, "", "")), query.get("model") or None


class ServerClient:
    """Thread-safe client of a server.

    Attributes:
        interruptions: Number of attempts that failed in a way that a restarting server causes: no connection, a connection that was
            closed, or a status of 500 or more.
    """

    def __init__(
        self, url: str, *, environment: str, connections: int, timeout: float, patience: float, answers_by: str
    ) -> None:
        """Create the client, without connecting.

        Args:
            url: Root URL of the server.
            environment: Name of the environment variable for the API key, which may be unset.
            connections: Maximum number of connections.
            timeout: Response timeout in seconds.
            patience: Time in seconds for which a request is retried.
            answers_by: Name of the server, for messages.

        Raises:
            InputError: The HTTP client is not installed.
        """
        self._http = import_extra("httpx2", answers_by, "servers")
        key = os.environ.get(environment)
        self._url, self._environment, self._name = url, environment, answers_by
        self._patience, self._closed = patience, threading.Event()
        self.interruptions = 0
        self._client = self._http.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=self._http.Timeout(timeout, connect=min(_CONNECT, timeout), pool=None),
            limits=self._http.Limits(max_connections=connections, max_keepalive_connections=connections),
        )

    def get(self, path: str, *, optional: bool = False) -> Any:
        """Return the JSON response of a path, or None if `optional` and the server does not have the path."""
        return self._send("GET", path, None, "", missing_is_none=optional)

    def post(
        self,
        path: str,
        body: Mapping[str, Any],
        subject: str = "",
        *,
        optional: bool = False,
    ) -> Any:
        """Return the JSON response of a path to a request.

        Args:
            path: Path relative to the root URL.
            body: JSON object to send.
            subject: Subject of the request, for messages.
            optional: Whether to return None if the server does not have the path.

        Raises:
            InputError: The server rejects the request, or fails on it repeatedly.
            CacheIncompleteError: The server does not respond within `patience` seconds.
        """
        return self._send("POST", path, body, subject, missing_is_none=optional)

    def stop(self) -> None:
        """Stop retrying failed requests."""
        self._closed.set()

    def close(self) -> None:
        """Close all connections."""
        self.stop()
        self._client.close()

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, subject: str, *, missing_is_none: bool
    ) -> Any:
        began, pause, failures = time.monotonic(), _PAUSES[0], 0
        about = f" ({subject})" if subject else ""
        while True:
            wait = None
            try:
                response = self._client.request(method, path, json=body)
                if response.is_success:
                    return response.json()
                if response.status_code == 404 and missing_is_none:
                    return None
                reason = f"{response.status_code}: {_message(response)}"
                failures += response.status_code == 500
                self.interruptions += response.status_code >= 500
                if response.status_code not in (*_BUSY, 500) or failures >= _FAILURES:
                    raise self._refused(response.status_code, reason, about)
                wait = _retry_after(response)
            except self._http.TransportError as error:
                self.interruptions += not isinstance(error, self._http.ReadTimeout)
                reason = f"{type(error).__name__}: {first_line(error)}" if str(error) else type(error).__name__
            except ValueError as error:
                if isinstance(error, InputError):
                    raise
                reason = f"the response is not JSON: {first_line(error)}"
            except RuntimeError:  # the client was closed during requests of other threads
                if not self._closed.is_set():
                    raise
                raise CacheIncompleteError(f"request to {self._name} was cancelled{about}") from None
            elapsed = time.monotonic() - began
            if self._closed.is_set() or elapsed > self._patience:
                raise CacheIncompleteError(
                    f"{self._name} did not respond for {elapsed:.0f} s{about}; last error: {reason}. Committed data is intact; run the "
                    "same command again when the server is up, or increase --server-patience."
                )
            self._closed.wait(min(pause * random.uniform(0.5, 1) if wait is None else wait, _PAUSES[1]))  # noqa: S311
            pause *= 2

    def _refused(self, status: int, reason: str, about: str) -> InputError:
        if status in (401, 403):
            return InputError(
                f"{self._name} rejected the request{about}: {reason}. Set the environment variable {self._environment} to its API key."
            )
        if status == 500:
            return InputError(f"{self._name} failed {_FAILURES} times on one request{about}: {reason}")
        advice = ". Is it a server of another kind (vllm: or sglang:)?" if reason == "404: Not Found" else ""
        return InputError(f"{self._name} rejected the request{about}: {reason}{advice}")


def _message(response: Any) -> str:
    try:
        text = error_message(response.json())
    except ValueError:
        text = None
    return (text or response.text.strip())[:_SHOWN] or response.reason_phrase


def _retry_after(response: Any) -> float | None:
    try:
        return max(float(response.headers["retry-after"]), 0.0)
    except (KeyError, ValueError):
        return None
