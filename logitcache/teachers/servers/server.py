"""A teacher on a server: identify the model, and request the log-probabilities of a document's tokens."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from logitcache.errors import InputError, unknown_name
from logitcache.teachers.given import KnownRows
from logitcache.teachers.servers.answers import sglang_answer, vllm_answer
from logitcache.teachers.servers.client import ServerClient, split_address
from logitcache.teachers.servers.witness import Witness

__all__ = ["SERVERS", "Asking", "Server", "connect", "is_server"]

_ALLOWED = re.compile(r"max allowed: (\d+)")  # --max-logprobs, in vLLM's error message
SERVERS = {"vllm": "VLLM_API_KEY", "sglang": "SGLANG_API_KEY"}  # kind to environment variable for the API key


@dataclass(frozen=True, slots=True)
class Asking:
    """Settings of the requests to a server.

    Attributes:
        concurrency: Number of concurrent requests.
        timeout: Response timeout in seconds.
        patience: Time in seconds for which a request is retried.
    """

    concurrency: int = 16
    timeout: float = 600.0
    patience: float = 1800.0


@dataclass(frozen=True, slots=True)
class Server:
    """A model on a server.

    Attributes:
        kind: `vllm` or `sglang`.
        url: Root URL of the server.
        model: Name of the model on the server.
        version: Version of the server; "" if it is unknown.
        positions: Maximum number of tokens of a document; None if it is unknown.
        asking: Settings of the requests.
        client: HTTP client.
        witness: Check that a restarted server has the same model.
    """

    kind: str
    url: str
    model: str
    version: str
    positions: int | None
    asking: Asking
    client: ServerClient = field(repr=False)
    witness: Witness = field(default_factory=Witness, repr=False)

    @property
    def name(self) -> str:
        """Name of the teacher, which is independent of the URL."""
        return f"{self.kind}:{self.model}"

    @property
    def weights(self) -> str:
        """URL of the server."""
        return self.url

    @property
    def preprocessing(self) -> dict[str, Any]:
        """Requirements for documents: `positions`, if it is known."""
        return {} if self.positions is None else {"positions": self.positions}

    def ask(self, tokens: Sequence[int], largest: int, subject: str) -> KnownRows:
        """Return the largest log-probabilities for each token except the first, and that of the token itself.

        Args:
            tokens: Token ids of the document, [L].
            largest: Number of log-probabilities per token.
            subject: Subject of the request, for messages.

        Raises:
            InputError: The server rejects the request, or its response does not match the tokens.
            CacheMismatchError: If the server was interrupted and returns other probabilities since then.
            CacheIncompleteError: The server does not respond.
        """
        sent = list(tokens)
        found = self._request(sent, largest, subject)
        self.witness.check(self.name, self.client.interruptions, found, lambda: self._request(sent, largest, subject))
        return found

    def _request(self, sent: list[int], largest: int, subject: str) -> KnownRows:
        if self.kind == "vllm":
            body: dict[str, Any] = {
                "model": self.model,
                "prompt": sent,
                "prompt_logprobs": largest,
                "max_tokens": 1,
                "temperature": 0.0,
                "add_special_tokens": False,
                "return_token_ids": True,
            }
            read, path = vllm_answer, "/v1/completions"
        else:
            body = {
                "input_ids": sent,
                "return_logprob": True,
                "logprob_start_len": 0,
                "top_logprobs_num": largest,
                "sampling_params": {"max_new_tokens": 0, "temperature": 0.0},
            }
            read, path = sglang_answer, "/generate"
        try:
            found = self.client.post(path, body, subject)
        except InputError as error:
            if allowed := _ALLOWED.search(str(error)):
                raise InputError(
                    f"{error}. A row needs one more than --top-k; start the server with `--max-logprobs {largest}` or more, or dump with "
                    f"--top-k {int(allowed[1]) - 1} or less."
                ) from error
            raise
        if not isinstance(found, dict):
            raise InputError(f"the response of {self.name} is not a JSON object ({subject})")
        try:
            return read(found, sent)
        except InputError as error:
            raise InputError(f"{self.name} ({subject}): {error}") from error

    def tokenize(self, text: str) -> list[int] | None:
        """Return the token ids of a text by the server's tokenizer, possibly with a BOS token; None if the server cannot tokenize."""
        if self.kind == "vllm":
            body = {"model": self.model, "prompt": text, "add_special_tokens": False}
            found = self.client.post("/tokenize", body, "its tokenizer", optional=True)
            return None if found is None else [int(one) for one in found["tokens"]]
        body = {
            "text": text,
            "return_logprob": True,
            "logprob_start_len": 0,
            "sampling_params": {"max_new_tokens": 0, "temperature": 0.0},
        }
        found = self.client.post("/generate", body, "its tokenizer")
        return [int(one[1]) for one in found["meta_info"]["input_token_logprobs"]]

    def stop(self) -> None:
        """Stop retrying failed requests."""
        self.client.stop()

    def close(self) -> None:
        """Close all connections."""
        self.client.close()


def is_server(spec: Any) -> bool:
    """Return whether a teacher is specified as one on a server."""
    return isinstance(spec, str) and spec.partition(":")[0] in SERVERS and ":" in spec


def connect(spec: str, asking: Asking) -> Server:
    """Connect to a server and look up its model.

    Args:
        spec: `vllm:URL` or `sglang:URL`, with `?model=NAME` if the server has several models.
        asking: Settings of the requests.

    Raises:
        UnknownNameError: The server does not have the model.
        InputError: The server has several models and none is named, is of another kind, or rejects the request.
        CacheIncompleteError: The server does not respond.
    """
    kind, _, address = spec.partition(":")
    url, wanted = split_address(address, SERVERS[kind])
    client = ServerClient(
        url,
        environment=SERVERS[kind],
        connections=asking.concurrency + 1,
        timeout=asking.timeout,
        patience=asking.patience,
        answers_by=f"{kind}:{url}",
    )
    try:
        model, length = _model(client, spec, f"{kind}:{url}", wanted)
        version = _version(client, kind)
    except BaseException:
        client.close()
        raise
    # One position is used by the generated token, which is discarded.
    return Server(kind, url, model, version, int(length) - 1 if length else None, asking, client)


def _model(client: ServerClient, spec: str, where: str, wanted: str | None) -> tuple[str, Any]:
    """Return the name of the server's model, or of the one that is wanted, and its maximum number of tokens."""
    try:
        models = {one["id"]: one for one in client.get("/v1/models")["data"]}
    except (KeyError, TypeError) as error:
        kind = where.partition(":")[0]
        raise InputError(f"{where} is not a {kind} server: /v1/models lists no models") from error
    roots = [name for name, one in models.items() if not one.get("parent")]  # adapters have a parent
    if wanted is not None and wanted not in models:
        raise unknown_name(f"model at {where}", wanted, models)
    if wanted is None and len(roots) != 1:
        raise InputError(f"{where} serves {', '.join(models) or 'no model'}; name one with {spec}?model=NAME")
    model = wanted or roots[0]
    return model, models[model].get("max_model_len")


def _version(client: ServerClient, kind: str) -> str:
    if kind == "vllm":
        found = client.get("/version", optional=True)
    else:
        found = client.get("/server_info", optional=True) or client.get("/get_server_info", optional=True)
    return str(found.get("version", "")) if isinstance(found, dict) else ""
