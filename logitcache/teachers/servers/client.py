"""Requests to a model server that are tried again while it is busy, slow or restarting, and an error that says what to do when it is not.

Credentials come from the environment alone, and are stored nowhere.
"""

import os
import random
import threading
import time
from collections.abc import Mapping
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from logitcache.errors import CacheIncompleteError, InputError, first_line

__all__ = ["ServerClient", "split_address"]

_CONNECT = 10.0  # seconds for a connection
_PAUSES = (0.25, 30.0)  # seconds before the second attempt, and at most between two
_BUSY = (408, 425, 429, 502, 503, 504)
_FAILURES = 4  # answers of 500 to one request, after which it is the request's fault
_SHOWN = 300  # characters of a server's own message


def split_address(address: str, environment: str) -> tuple[str, str | None]:
    """Return the root of a server's URL, and the model that `?model=NAME` asks for.

    Args:
        address: URL; without a scheme it is http. A path of /v1 is the root.
        environment: Name of the variable that may hold a key, for the message.

    Raises:
        InputError: It is no URL, or holds a password, which would be stored.
    """
    parts = urlsplit(address if "://" in address else f"http://{address}")
    try:
        known = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:  # a port that is no number
        known = False
    if not known:
        raise InputError(f"{address} is no URL of a server; expected one like http://localhost:8000")
    if parts.username or parts.password:
        raise InputError(
            f"the URL of a server is stored in the cache: put the key into {environment} instead of the URL"
        )
    query = dict(one.partition("=")[::2] for one in parts.query.split("&")) if parts.query else {}
    if unknown := [name for name in query if name != "model"]:
        raise InputError(
            f"{address} has no option {unknown[0]!r}; it takes model, as in http://localhost:8000?model=NAME"
        )
    path = parts.path.rstrip("/").removesuffix("/v1")
    return urlunsplit((parts.scheme, parts.netloc, path, "", "")), query.get("model") or None


class ServerClient:
    """Sends requests from any number of threads."""

    def __init__(
        self, url: str, *, environment: str, connections: int, timeout: float, patience: float, answers_by: str
    ) -> None:
        """Open nothing yet.

        Args:
            url: Root of the server.
            environment: Name of the variable that holds a key, if the server wants one.
            connections: Number of connections at once.
            timeout: Seconds to wait for an answer.
            patience: Seconds for which a request is tried again.
            answers_by: Name of the server for messages.

        Raises:
            InputError: The HTTP client is not installed.
        """
        try:
            self._http = import_module("httpx2")
        except ImportError as error:
            raise InputError(f"{answers_by} needs the package httpx2: pip install 'logitcache[servers]'") from error
        key = os.environ.get(environment)
        self._url, self._environment, self._name = url, environment, answers_by
        self._patience, self._closed = patience, threading.Event()
        self._client = self._http.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=self._http.Timeout(timeout, connect=min(_CONNECT, timeout), pool=None),
            limits=self._http.Limits(max_connections=connections, max_keepalive_connections=connections),
        )

    def get(self, path: str, *, optional: bool = False) -> Any:
        """Return the JSON that a path answers with; with `optional`, None where the server does not know the path."""
        return self._send("GET", path, None, "", missing_is_none=optional)

    def post(
        self,
        path: str,
        body: Mapping[str, Any],
        subject: str = "",
        *,
        optional: bool = False,
    ) -> Any:
        """Return the JSON that a path answers with.

        Args:
            path: Below the root.
            body: The JSON to send.
            subject: Subject of the request, for messages.
            optional: Whether to return None where the server does not know the path.

        Raises:
            InputError: The server refuses the request, or fails at it again and again.
            CacheIncompleteError: The server has not answered for as long as there was patience.
        """
        return self._send("POST", path, body, subject, missing_is_none=optional)

    def stop(self) -> None:
        """Try nothing again that fails from now on."""
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
                if response.status_code not in (*_BUSY, 500) or failures >= _FAILURES:
                    raise self._refused(response.status_code, reason, about)
                wait = _retry_after(response)
            except self._http.TransportError as error:
                reason = f"{type(error).__name__}: {first_line(error)}" if str(error) else type(error).__name__
            except ValueError as error:
                if isinstance(error, InputError):
                    raise
                reason = f"its answer is no JSON: {first_line(error)}"
            except RuntimeError:  # the client was closed while others still asked
                if not self._closed.is_set():
                    raise
                raise CacheIncompleteError(f"{self._name} was not asked any more{about}") from None
            elapsed = time.monotonic() - began
            if self._closed.is_set() or elapsed > self._patience:
                raise CacheIncompleteError(
                    f"{self._name} has not answered for {elapsed:.0f} s{about}; last it was {reason}. What was committed is whole: run the "
                    "same command again when the server is up, or give it longer with --server-patience."
                )
            self._closed.wait(min(pause * random.uniform(0.5, 1) if wait is None else wait, _PAUSES[1]))  # noqa: S311
            pause *= 2

    def _refused(self, status: int, reason: str, about: str) -> InputError:
        if status in (401, 403):
            return InputError(
                f"{self._name} refuses the request{about} with {reason}. Put its key into the environment variable {self._environment}."
            )
        if status == 500:
            return InputError(f"{self._name} failed {_FAILURES} times at one request{about}: {reason}")
        return InputError(f"{self._name} refuses the request{about} with {reason}")


def _message(response: Any) -> str:
    """Return what a server says of an error: vLLM and SGLang put it into `error.message` or `message`."""
    try:
        found = response.json()
        inner = found.get("error", found)
        text = inner if isinstance(inner, str) else inner.get("message") or found.get("detail") or response.text
    except (ValueError, AttributeError):
        text = response.text
    return str(text).strip()[:_SHOWN] or response.reason_phrase


def _retry_after(response: Any) -> float | None:
    try:
        return max(float(response.headers["retry-after"]), 0.0)
    except (KeyError, ValueError):
        return None
