"""A model server for tests: the model that ships, answering over HTTP in the shapes of vLLM and of SGLang, with faults on request."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import torch

from logitcache.models.language.load import load_language_network
from logitcache.models.language.tokenizer import load_tokenizer

MODEL, VOCABULARY, POSITIONS = "stories", 512, 512


class _Quiet(ThreadingHTTPServer):
    """Says nothing of clients that have gone."""

    def handle_error(self, *_):
        pass


class ModelServer:
    """Serves the model on a port of its own, until it is left.

    Attributes:
        faults: What happens to the next requests for log-probabilities, one each: a number of seconds to wait, a status to answer with,
            `drop` (no answer), `cut` (half of the JSON), `short` (half of what its length says), or a function of the answer.
        asked: Bodies of these requests.
        most: Most requests that were being answered at once.
    """

    def __init__(
        self, kind, *, port=0, faults=(), max_logprobs=1024, key=None, names=(MODEL,), noise=0.0, delay=0.0, scale=1.0
    ):
        self.kind, self.faults, self.max_logprobs, self.key, self.names = kind, list(faults), max_logprobs, key, names
        self.scale = scale  # of logits: another model, which repeats itself
        self.asked, self.most, self._now, self.noise, self.delay = [], 0, 0, noise, delay
        self._lock, self._random = threading.Lock(), np.random.default_rng(0)
        self.module = load_language_network("hf:stories-mini", VOCABULARY).module.eval()
        self.tokenizer = load_tokenizer("hf:stories-mini")
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                server.get(self)

            def do_POST(self):
                server.post(self, json.loads(self.rfile.read(int(self.headers["content-length"]))))

        self._http = _Quiet(("127.0.0.1", port), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    @property
    def port(self):
        return self._http.server_address[1]

    @property
    def teacher(self):
        return f"{self.kind}:http://127.0.0.1:{self.port}"

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._http.shutdown()
        self._http.server_close()

    def get(self, request):
        answers = {
            "/v1/models": {"object": "list", "data": [model_card(name) for name in self.names]},
            "/version": {"version": "0.32.0"} if self.kind == "vllm" else None,
            "/server_info": {"version": "0.6.0"} if self.kind == "sglang" else None,
        }
        found = answers.get(request.path)
        send(request, 404 if found is None else 200, found or {"detail": "Not Found"})

    def post(self, request, body):
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            send(request, 401, {"error": "Unauthorized"})
            return
        if request.path == "/tokenize" and self.kind == "vllm":
            ids = self.tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"])["input_ids"]
            send(request, 200, {"count": len(ids), "max_model_len": 512, "tokens": ids, "token_strs": None})
            return
        if (request.path == "/generate") != (self.kind == "sglang"):
            send(request, 404, {"detail": "Not Found"})
            return
        if "text" in body:  # SGLang adds what begins a text
            ids = [1, *self.tokenizer(body["text"], add_special_tokens=False)["input_ids"]]
            send(request, 200, self.sglang(ids, 0))
            return
        with self._lock:
            self.asked.append(body)
            fault = self.faults.pop(0) if self.faults else None
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            self.answer(request, body, fault)
        finally:
            with self._lock:
                self._now -= 1

    def answer(self, request, body, fault):
        time.sleep(self.delay)
        if fault == "drop":
            request.close_connection = True
            return
        if isinstance(fault, int):
            send(request, fault, {"error": {"message": f"asked to fail with {fault}"}}, {"retry-after": "0"})
            return
        if isinstance(fault, float):
            time.sleep(fault)
        if self.kind == "vllm" and (refused := self.refusal(body)):
            send(request, refused["code"], {"error": refused})
            return
        if self.kind == "vllm":
            found = self.vllm(body["prompt"], body["prompt_logprobs"], body.get("return_token_ids", False))
        else:
            found = self.sglang(body["input_ids"], body["top_logprobs_num"])
        send(request, 200, fault(found) if callable(fault) else found, broken=fault if isinstance(fault, str) else None)

    def refusal(self, body):
        """The error with which vLLM refuses a request, in the order of its checks; None for a request that it answers."""
        ids, wanted, code, kind, param = body["prompt"], body["prompt_logprobs"], 400, "BadRequestError", None
        if body["model"] not in self.names:
            message = f"The model `{body['model']}` does not exist. Valid aliases: {', '.join(self.names)}."
            code, kind, param = 404, "NotFoundError", "model"
        elif not ids:
            message = "You must pass at least one prompt"
        elif len(ids) > POSITIONS:
            message = (
                f"This model's maximum context length is {POSITIONS} tokens. However, your prompt contains {len(ids)} input tokens, which "
                "exceeds this limit even without any output tokens. Please reduce the length of the input prompt. "
                f"(parameter=input_tokens, value={len(ids)})"
            )
            param = "input_tokens"
        elif len(ids) == POSITIONS:
            message, param = "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)", "max_tokens"
        elif max(ids) >= VOCABULARY:
            message = f"Token id {max(ids)} is out of vocabulary"
        elif wanted > self.max_logprobs:
            message = (
                f"Requested prompt logprobs of {wanted}, which is greater than max allowed: {self.max_logprobs} "
                f"(parameter=prompt_logprobs, value={wanted})"
            )
            param = "prompt_logprobs"
        else:
            return None
        return {"message": message, "type": kind, "param": param, "code": code}

    def logprobs(self, ids):
        """Of each token but the first: of the whole vocabulary, [L - 1, V] float32."""
        with self._lock, torch.no_grad():
            output = self.module(torch.tensor([ids]))
            logits = self.scale * output.head(output.states[0, :-1]).float()[:, :VOCABULARY]
            if self.noise:
                logits = logits + torch.from_numpy(self._random.normal(0, self.noise, logits.shape)).float()
        return logits.log_softmax(-1)

    def vllm(self, ids, wanted, echo=False):
        """What completions answers: k or k + 1 entries, keyed by the id as text, the token itself first, with its rank."""
        rows, entries = self.logprobs(ids), [None]
        for row, own in zip(rows, ids[1:], strict=True):
            top = row.topk(wanted)
            found = {
                str(one): {"logprob": clipped(value), "rank": rank, "decoded_token": self.tokenizer.decode([one])}
                for rank, (value, one) in enumerate(zip(top.values.tolist(), top.indices.tolist(), strict=True), 1)
            }
            rank = int((row >= row[own]).sum())
            mine = {"logprob": clipped(float(row[own])), "rank": rank, "decoded_token": self.tokenizer.decode([own])}
            entries.append({str(own): mine} | found)
        choice = {"index": 0, "text": "", "logprobs": None, "finish_reason": "length", "stop_reason": None}
        choice |= {
            "token_ids": [1] if echo else None,
            "prompt_logprobs": entries,
            "prompt_token_ids": ids if echo else None,
        }
        usage = {"prompt_tokens": len(ids), "total_tokens": len(ids) + 1, "completion_tokens": 1}
        return {
            "id": "cmpl-1",
            "object": "text_completion",
            "created": 0,
            "model": MODEL,
            "choices": [choice | {"routed_experts": None}],
            "service_tier": None,
            "system_fingerprint": "vllm-0.32.0-942f5abe",
            "usage": usage | {"prompt_tokens_details": None, "completion_tokens_details": None},
        } | dict.fromkeys(("kv_transfer_params", "ec_transfer_params", "metrics"))

    def sglang(self, ids, wanted):
        """What `/generate` answers: lists of [log-probability, id, text or null], the first without value."""
        own, top = [[None, ids[0], None]], [None]
        for row, one in zip(self.logprobs(ids), ids[1:], strict=True):
            best = row.topk(wanted)
            own.append([float(row[one]), one, None])
            top.append([[v, i, None] for v, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)])
        meta = {"id": "1", "prompt_tokens": len(ids), "input_token_logprobs": own, "input_top_logprobs": top}
        return {"text": "", "meta_info": meta | {"output_token_logprobs": [], "output_top_logprobs": []}}


def model_card(name):
    """An entry of /v1/models as vLLM writes it."""
    allowed = ("allow_sampling", "allow_logprobs", "allow_view")
    refused = ("allow_create_engine", "allow_search_indices", "allow_fine_tuning", "is_blocking")
    permission = {"id": "modelperm-1", "object": "model_permission", "created": 0, "organization": "*", "group": None}
    permission |= dict.fromkeys(allowed, True) | dict.fromkeys(refused, False)
    card = {"id": name, "object": "model", "created": 0, "owned_by": "vllm", "root": name, "parent": None}
    return card | {"max_model_len": POSITIONS, "permission": [permission]}


def clipped(logprob):
    """JSON has no infinity: vLLM writes -9999.0."""
    return max(logprob, -9999.0)


def send(request, status, body, headers=(), broken=None):
    data = json.dumps(body).encode()
    sent = data if broken is None else data[: len(data) // 2]
    request.send_response(status)
    request.send_header("content-type", "application/json")
    request.send_header("content-length", str(len(data) if broken == "short" else len(sent)))
    for name, value in dict(headers).items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(sent)
    request.close_connection = broken is not None or request.close_connection
