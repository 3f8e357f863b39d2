"""A model server for tests: the model that ships, answering over HTTP in the shapes of vLLM and of SGLang, with faults on request."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import torch

from logitcache.models.language.load import load_language_network
from logitcache.models.language.tokenizer import load_tokenizer

MODEL, VOCABULARY = "stories", 512


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
            "/v1/models": {
                "object": "list",
                "data": [{"id": name, "object": "model", "max_model_len": 512} for name in self.names],
            },
            "/version": {"version": "0.25.0"} if self.kind == "vllm" else None,
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
            send(request, 200, {"count": len(ids), "max_model_len": 512, "tokens": ids})
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
        wanted = body["prompt_logprobs"] if self.kind == "vllm" else body["top_logprobs_num"]
        if self.kind == "vllm" and wanted > self.max_logprobs:
            message = f"Requested prompt logprobs of {wanted}, which is greater than max allowed: {self.max_logprobs}"
            send(request, 400, {"error": {"message": message, "type": "BadRequestError", "code": 400}})
            return
        if self.kind == "vllm" and body["model"] not in self.names:
            send(request, 404, {"error": {"message": f"The model `{body['model']}` does not exist."}})
            return
        found = self.vllm(body["prompt"], wanted) if self.kind == "vllm" else self.sglang(body["input_ids"], wanted)
        send(request, 200, fault(found) if callable(fault) else found, broken=fault if isinstance(fault, str) else None)

    def logprobs(self, ids):
        """Of each token but the first: of the whole vocabulary, [L - 1, V] float32."""
        with self._lock, torch.no_grad():
            output = self.module(torch.tensor([ids]))
            logits = self.scale * output.head(output.states[0, :-1]).float()[:, :VOCABULARY]
            if self.noise:
                logits = logits + torch.from_numpy(self._random.normal(0, self.noise, logits.shape)).float()
        return logits.log_softmax(-1)

    def vllm(self, ids, wanted):
        """What completions answers: k or k + 1 entries, keyed by the id as text, the token itself among them with its rank."""
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
        return {
            "id": "cmpl-1",
            "object": "text_completion",
            "model": MODEL,
            "choices": [
                {"index": 0, "text": "", "logprobs": None, "prompt_logprobs": entries, "prompt_token_ids": None}
            ],
            "usage": {"prompt_tokens": len(ids), "completion_tokens": 1},
        }

    def sglang(self, ids, wanted):
        """What `/generate` answers: lists of [log-probability, id, text or null], the first without value."""
        own, top = [[None, ids[0], None]], [None]
        for row, one in zip(self.logprobs(ids), ids[1:], strict=True):
            best = row.topk(wanted)
            own.append([float(row[one]), one, None])
            top.append([[v, i, None] for v, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)])
        meta = {"id": "1", "prompt_tokens": len(ids), "input_token_logprobs": own, "input_top_logprobs": top}
        return {"text": "", "meta_info": meta | {"output_token_logprobs": [], "output_top_logprobs": []}}


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
