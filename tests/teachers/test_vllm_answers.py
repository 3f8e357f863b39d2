"""What a real vLLM answered (`vllm_answers.json`): the product reads it, and the imitation in `servers.py` answers in the same way.

The answers are those of vLLM 0.32.0 on a CPU, float32, `--max-logprobs 65 --max-model-len 512`, with the model that ships. Its heads were
padded with zeros from 8 to 32 values, because vLLM's attention on CPUs has no kernel for 8; the function is the same.
"""

import json
from pathlib import Path

import httpx2
import numpy as np
import pytest
import servers
import torch

import logitcache
from logitcache.data.text.documents import Documents
from logitcache.encoding import read_encoding
from logitcache.errors import CacheMismatchError, InputError
from logitcache.imports.import_rows import import_rows
from logitcache.teachers.servers.answers import vllm_answer
from logitcache.teachers.servers.server import Asking, connect

REAL = json.loads((Path(__file__).parent / "vllm_answers.json").read_text(encoding="utf-8"))
TOKENS = REAL["completions"]["request"]["prompt"]


@pytest.fixture(scope="module")
def server():
    with servers.ModelServer("vllm", max_logprobs=65) as one:
        yield one


@pytest.fixture
def client(server):
    one = connect(server.teacher, Asking(concurrency=1, patience=5.0))
    yield one
    one.close()


def shape(value):
    """Names and kinds of values of a JSON object; of lists the first entry that is not null, and of rows any."""
    if isinstance(value, dict):
        if all(name.isdigit() for name in value):
            return {"ID": shape(next(iter(value.values())))}
        return {name: shape(one) for name, one in value.items()}
    if isinstance(value, list):
        return [shape(next((one for one in value if one is not None), None))]
    return type(value).__name__


def test_a_real_answer_has_the_rows_of_the_model_run_here(server):
    """Every log-probability of every row, against the model in float32."""
    ids, logprobs = vllm_answer(REAL["completions"]["response"], TOKENS)
    direct = server.logprobs(TOKENS).double().numpy()
    assert len(ids) == len(TOKENS) - 1
    known = ids >= 0
    assert (known.sum(1) >= REAL["completions"]["request"]["prompt_logprobs"]).all()
    rows = np.broadcast_to(np.arange(len(ids))[:, None], ids.shape)[known]
    assert np.abs(direct[rows, ids[known]] - logprobs[known]).max() < 1e-4


@pytest.mark.parametrize("path", ["/v1/models", "/version", "/tokenize", "completions"])
def test_the_imitation_answers_in_the_shape_of_the_real_one(server, path):
    real = REAL[path]
    url = f"http://127.0.0.1:{server.port}{real.get('path', path)}"
    found = httpx2.post(url, json=real["request"]) if "request" in real else httpx2.get(url)
    assert found.status_code == 200
    assert shape(found.json()) == shape(real["response"])
    if path == "completions":
        ours, theirs = (one["choices"][0]["prompt_logprobs"] for one in (found.json(), real["response"]))
        assert [list(row) for row in ours[1:]] == [list(row) for row in theirs[1:]]  # the same ids in the same order
        assert [[one["rank"] for one in row.values()] for row in ours[1:]] == [
            [one["rank"] for one in row.values()] for row in theirs[1:]
        ]
    if path == "/tokenize":
        assert found.json()["tokens"] == real["response"]["tokens"]


@pytest.mark.parametrize("case", REAL["errors"], ids=lambda case: case["what"])
def test_the_imitation_refuses_what_the_real_one_refuses(server, case):
    request = case["request"] | {"prompt": case["request"]["prompt"] * case["times"]}
    found = httpx2.post(f"http://127.0.0.1:{server.port}/v1/completions", json=request)
    assert (found.status_code, found.json()) == (case["status"], case["response"])


def test_requests_ask_for_the_ids_of_the_prompt_and_compare_them(server, client):
    """The first token has no row, so only the echo tells whether the server read another one."""
    server.asked.clear()
    client.ask(TOKENS, 3, "a document")
    assert server.asked[0]["return_token_ids"] is True
    server.faults = [other_first_token]
    with pytest.raises(InputError, match="for different tokens than those sent"):
        client.ask(TOKENS, 3, "a document")


def other_first_token(answer):
    answer["choices"][0]["prompt_token_ids"][0] += 1
    return answer


def test_a_top_k_above_the_servers_limit_names_the_largest_that_it_allows(client):
    with pytest.raises(
        InputError, match=r"max allowed: 65 .*start the server with `--max-logprobs 66` or more.*64 or less"
    ):
        client.ask(TOKENS, 66, "a document")


def test_documents_longer_than_the_servers_maximum_name_its_option(server, tmp_path):
    long = Documents(np.ones(600, np.int64), np.array([0, 600]), 512)
    with pytest.raises(
        InputError, match=r"600 tokens, but vllm:stories accepts at most 511;.*`--max-model-len 601` or more"
    ):
        logitcache.dump_logits(server.teacher, long, tmp_path / "c.zarr", top_k=8)
    assert not (tmp_path / "c.zarr").exists()


def test_a_server_of_the_other_kind_is_suspected(server, tmp_path):
    """vLLM has no `/generate`: its answer was 404 `{"detail": "Not Found"}`."""
    address = server.teacher.replace("vllm:", "sglang:")
    documents = Documents(np.array(TOKENS), np.array([0, len(TOKENS)]), 512)
    with pytest.raises(InputError, match=r"404: Not Found\. Is it a server of another kind"):
        logitcache.dump_logits(address, documents, tmp_path / "c.zarr", top_k=8)


def test_answers_of_completions_and_of_the_batch_runner_are_imported(server, tmp_path):
    """The batch runner takes chats, not completions; `body` then has the rows and ids beside `choices`."""
    lines = {"completions": [REAL["completions"]["response"]], "run_batch": REAL["run_batch"][:2]}
    for name, some in lines.items():
        source = tmp_path / f"{name}.jsonl"
        source.write_text("".join(json.dumps(line) + "\n" for line in some), encoding="utf-8")
        cache = import_rows("vllm", source, tmp_path / f"{name}.zarr", vocabulary=512, top_k=2)
        bodies = [line.get("response", {"body": line})["body"] for line in some]
        tokens = [body.get("prompt_token_ids") or body["choices"][0]["prompt_token_ids"] for body in bodies]
        rows = decoded(cache)
        direct = torch.cat([server.logprobs(one) for one in tokens])
        assert len(rows.ids) == len(direct)
        assert torch.allclose(rows.values, direct.gather(1, rows.ids), rtol=2**-10, atol=1e-4)


def decoded(cache):
    labels = torch.from_numpy(cache.labels()).long()
    columns = cache.rows(0, cache.teacher, np.arange(len(labels)))
    columns = {name: torch.from_numpy(one) for name, one in columns.items()}
    return read_encoding(cache.manifest.encoding).decode(columns, labels, 512)


@pytest.mark.parametrize(
    "line", [REAL["run_batch"][2], REAL["errors"][-1]["response"]], ids=["run_batch", "completions"]
)
def test_a_failed_request_in_a_file_is_named_with_the_servers_message(tmp_path, line):
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps(one) + "\n" for one in (REAL["run_batch"][0], line)), encoding="utf-8")
    with pytest.raises(
        InputError, match=r"a.jsonl:2 is a failed request: Requested prompt logprobs of 66.*Send it again"
    ):
        import_rows("vllm", source, tmp_path / "c.zarr", vocabulary=512)


@pytest.mark.parametrize("fault", ["drop", 503])
def test_a_server_that_returns_with_another_model_is_refused(server, client, fault):
    """A dump waits for a server that restarts; it may then have other weights under the same name."""
    client.ask(TOKENS, 8, "a document")
    server.faults = [fault]
    client.ask(TOKENS[:4], 8, "another document")
    assert client.client.interruptions == 1
    try:
        server.scale, server.faults = 0.5, [fault]
        with pytest.raises(CacheMismatchError, match="since the server was interrupted: .* No row from after"):
            client.ask(TOKENS[:4], 8, "another document")
        with pytest.raises(CacheMismatchError, match="since the server was interrupted"):
            client.ask(TOKENS[:3], 8, "a document that another thread requested")
    finally:
        server.scale = 1.0
    client.ask(TOKENS[:3], 8, "a document")
