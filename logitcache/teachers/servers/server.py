"""The model behind a server: which it is, how long a prompt may be, and what it says of a document's tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from logitcache.errors import InputError, unknown_name
from logitcache.teachers.given import KnownRows
from logitcache.teachers.servers.answers import sglang_answer, vllm_answer
from logitcache.teachers.servers.client import ServerClient, split_address

__all__ = ["SERVERS", "Asking", "Server", "connect", "is_server"]

SERVERS = {"vllm": "VLLM_API_KEY", "sglang": "SGLANG_API_KEY"}  # kind to the variable that holds a key


@dataclass(frozen=True, slots=True)
class Asking:
    """How a server is asked.

    Attributes:
        concurrency: Requests at once.
        timeout: Seconds to wait for an answer.
        patience: Seconds for which a request is tried again.
    """

    concurrency: int = 16
    timeout: float = 600.0
    patience: float = 1800.0


@dataclass(frozen=True, slots=True)
class Server:
    """A model behind a server.

    Attributes:
        kind: `vllm` or `sglang`.
        url: Root of the server.
        model: Name under which the server serves it.
        version: Version of the server, or "" where it does not say.
        positions: Most tokens of a document, or None where it is not known.
        asking: Settings of the requests.
        client: Sends the requests.
    """

    kind: str
    url: str
    model: str
    version: str
    positions: int | None
    asking: Asking
    client: ServerClient = field(repr=False)

    @property
    def name(self) -> str:
        """Name of the teacher: of the model, wherever it is served."""
        return f"{self.kind}:{self.model}"

    @property
    def weights(self) -> str:
        """Where it was served."""
        return self.url

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What its documents must be like: `positions`, as far as it is known."""
        return {} if self.positions is None else {"positions": self.positions}

    def ask(self, tokens: Sequence[int], largest: int, subject: str) -> KnownRows:
        """Return what the model says of each token but the first: its largest log-probabilities, and the token's own.

        Args:
            tokens: Ids, [L].
            largest: Number of log-probabilities.
            subject: Subject of the request, for messages.

        Raises:
            InputError: The server refuses them, or answers for something else.
            CacheIncompleteError: It does not answer.
        """
        sent = list(tokens)
        if self.kind == "vllm":
            body: dict[str, Any] = {
                "model": self.model,
                "prompt": sent,
                "prompt_logprobs": largest,
                "max_tokens": 1,
                "temperature": 0.0,
                "add_special_tokens": False,
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
            if "max allowed" in str(error):  # of --max-logprobs
                raise InputError(
                    f"{error}. A row needs one more than --top-k: start the server with `--max-logprobs {largest}` or more, or dump with "
                    "a smaller --top-k (19 where the server allows 20)."
                ) from error
            raise
        if not isinstance(found, dict):
            raise InputError(f"{self.name} answers with no object ({subject})")
        try:
            return read(found, sent)
        except InputError as error:
            raise InputError(f"{self.name} ({subject}): {error}") from error

    def tokenize(self, text: str) -> list[int] | None:
        """Return the ids that the server's own tokenizer makes of a text, perhaps with a token at its beginning; None: it does not say."""
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
        """Try no request again that fails from now on."""
        self.client.stop()

    def close(self) -> None:
        """End all requests."""
        self.client.close()


def is_server(spec: Any) -> bool:
    """Return whether a teacher is named as one behind a server."""
    return isinstance(spec, str) and spec.partition(":")[0] in SERVERS and ":" in spec


def connect(spec: str, asking: Asking) -> Server:
    """Ask a server which model it serves.

    Args:
        spec: `vllm:URL` or `sglang:URL`, where it serves several models with `?model=NAME`.
        asking: Settings of the requests.

    Raises:
        UnknownNameError: It does not serve this model.
        InputError: It serves several and none is named, is no such server, or refuses.
        CacheIncompleteError: It does not answer.
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
    # One position is for the token that is generated, and thrown away.
    return Server(kind, url, model, version, int(length) - 1 if length else None, asking, client)


def _model(client: ServerClient, spec: str, where: str, wanted: str | None) -> tuple[str, Any]:
    """Return the name of the model that a server serves, or of the one that is wanted, and the most tokens it takes."""
    try:
        models = {one["id"]: one for one in client.get("/v1/models")["data"]}
    except (KeyError, TypeError) as error:
        kind = where.partition(":")[0]
        raise InputError(f"{where} does not answer as {kind} does: /v1/models lists no models") from error
    roots = [name for name, one in models.items() if not one.get("parent")]  # adapters have one
    if wanted is not None and wanted not in models:
        raise unknown_name(f"model at {where}", wanted, models)
    if wanted is None and len(roots) != 1:
        raise InputError(f"{where} serves {', '.join(models) or 'no model'}: name one with {spec}?model=NAME")
    model = wanted or roots[0]
    return model, models[model].get("max_model_len")


def _version(client: ServerClient, kind: str) -> str:
    if kind == "vllm":
        found = client.get("/version", optional=True)
    else:
        found = client.get("/server_info", optional=True) or client.get("/get_server_info", optional=True)
    return str(found.get("version", "")) if isinstance(found, dict) else ""
