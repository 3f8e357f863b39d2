"""Teachers behind servers: the rows of the same model run here, whatever happens to client and server meanwhile."""

import json
import os
import random
import signal
import time

import numpy as np
import pytest
import servers
import texts
import tiny
import torch
from torch.nn import functional as F

import logitcache
from logitcache.dump.plan import plan_dump
from logitcache.encoding import read_encoding
from logitcache.errors import CacheIncompleteError, CacheMismatchError, InputError, UnknownNameError
from logitcache.methods import get_loss
from logitcache.store import open_cache

KINDS = ("vllm", "sglang")
K = 16
# For what both servers have in common: SGLang is asked in the slow tests.
common = pytest.mark.parametrize("served", tiny.usual(KINDS, ["vllm"]), indirect=True)


def documents():
    return texts.stories(10, 40)


def told_to(teacher, path, **changes):
    given = {"top_k": K, "batch_size": 2, "block_rows": 256, "concurrency": 4, "server_patience": 30.0}
    return logitcache.dump_logits(teacher, documents(), path, **(given | changes))


def decoded(cache):
    labels = torch.from_numpy(cache.labels()).long()
    columns = cache.rows(0, cache.teacher, np.arange(len(labels)))
    encoding = read_encoding(cache.manifest.encoding)
    found = encoding.decode({name: torch.from_numpy(one) for name, one in columns.items()}, labels, 512)
    return found, labels


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """What is asked for again is asked for at once."""
    monkeypatch.setattr("logitcache.teachers.servers.client._PAUSES", (0.01, 30.0))


@pytest.fixture(scope="module")
def direct(tmp_path_factory):
    """The same model, run here: every log-probability of every row."""
    path = tmp_path_factory.mktemp("direct") / "c.zarr"
    cache = logitcache.dump_logits(
        "hf:stories-mini", documents(), path, encoding="full", precision="f32", batch_size=2, block_rows=256
    )
    return decoded(cache)[0].log_softmax(1)


@pytest.fixture(scope="module", params=KINDS)
def served(request, tmp_path_factory):
    """A server, and the bytes of a cache that was dumped from it undisturbed."""
    with servers.ModelServer(request.param) as server:
        path = tmp_path_factory.mktemp("served") / "c.zarr"
        told_to(server.teacher, path)
        yield server, path


@pytest.fixture
def server(served):
    """The same server, without what a test asked it for."""
    server = served[0]
    names = ("faults", "max_logprobs", "key", "names", "noise", "delay", "scale")
    before = {name: getattr(server, name) for name in names}
    server.asked.clear()
    yield server
    for name, value in before.items():
        setattr(server, name, value)


def test_rows_over_http_are_those_of_the_same_model_run_here(served, direct):
    """The k largest and the label's to float16, and the mass of the others; ids are sent, and never text."""
    server, path = served
    rows, labels = decoded(open_cache(path))
    assert rows.mass_only
    assert torch.allclose(rows.values, direct.gather(1, rows.ids), rtol=2**-10, atol=2e-3)
    forced = direct.scatter(1, labels[:, None], torch.inf).topk(K + 1).indices.sort(1).values
    assert torch.equal(rows.ids, forced)
    outside = 1 - direct.exp().gather(1, rows.ids).sum(1)
    assert torch.allclose(rows.rest[:, 2].exp(), outside, rtol=5e-3, atol=1e-6)
    student = torch.randn(direct.shape, generator=torch.Generator().manual_seed(0))
    given, exact = (get_loss("kd", temperature=1.0)(student, one, labels).mean() for one in (rows, direct))
    bucket = get_loss("kd", temperature=1.0, tail="bucket")(student, rows, labels).mean()
    assert bucket <= exact * 1.001
    assert abs(given - exact) < 0.02 * exact
    gives = open_cache(path).manifest.teachers[0]["gives"]
    assert gives == {"by": server.kind, "values": "log-probabilities", "temperature": 1.0, "rest": "mass"}
    prompt = {"vllm": "prompt", "sglang": "input_ids"}[server.kind]
    assert all(isinstance(one, int) for body in server.asked for one in body[prompt])


@common
def test_several_documents_are_asked_about_at_once(server, tmp_path):
    server.most, server.delay = 0, 0.05
    told_to(server.teacher, tmp_path / "c.zarr", concurrency=3)
    assert server.most == 3


@common
def test_what_a_network_and_a_busy_server_do_costs_time_and_nothing_else(served, server, tmp_path):
    faults = [500, 429, "drop", "cut", 503, "short", 0.3, 502]
    random.Random(0).shuffle(faults)
    server.faults = faults
    told_to(server.teacher, tmp_path / "c.zarr", request_timeout=10.0)
    assert not server.faults
    assert tiny.bytes_of(tmp_path / "c.zarr") == tiny.bytes_of(served[1])


@common
def test_an_answer_that_is_too_slow_is_asked_for_again(server, tmp_path):
    server.faults = [3.0]
    began = time.monotonic()
    told_to(server.teacher, tmp_path / "c.zarr", request_timeout=0.7)
    assert time.monotonic() - began < 30


def shortened(answer):
    for name in ("input_token_logprobs", "input_top_logprobs"):
        answer.get("meta_info", {name: []})[name].pop() if "meta_info" in answer else None
    if "choices" in answer:
        answer["choices"][0]["prompt_logprobs"].pop()
    return answer


def shifted(answer):
    """One position off: the rows of the next tokens."""
    if "choices" in answer:
        entries = answer["choices"][0]["prompt_logprobs"]
        answer["choices"][0]["prompt_logprobs"] = [None, *entries[2:], entries[1]]
    else:
        entries = answer["meta_info"]["input_top_logprobs"]
        answer["meta_info"]["input_top_logprobs"] = [None, *entries[2:], entries[1]]
    return answer


def other_tokens(answer):
    if "choices" in answer:
        answer["choices"][0]["prompt_token_ids"] = [7, 8, 9]
    else:
        answer["meta_info"]["input_token_logprobs"][2][1] += 1
    return answer


def as_logits(answer):
    """What `--logprobs-mode raw_logits` gives."""
    if "choices" in answer:
        for entry in answer["choices"][0]["prompt_logprobs"][1:]:
            for one in entry.values():
                one["logprob"] += 20
    else:
        for entry in (*answer["meta_info"]["input_top_logprobs"][1:], answer["meta_info"]["input_token_logprobs"][1:]):
            for one in entry:
                one[0] += 20
    return answer


def no_number(answer):
    if "choices" in answer:
        next(iter(answer["choices"][0]["prompt_logprobs"][3].values()))["logprob"] = None
    else:
        answer["meta_info"]["input_top_logprobs"][3][0][0] = None
    return answer


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (shortened, r"document \d+ of 40 tokens, .*has 39 entries for 40 tokens"),
        (shifted, r"document \d+ of 40 tokens, .*(aligned|lacks its id)"),
        (other_tokens, r"is for different tokens"),
        (as_logits, r"above 0: are they logits"),
        (no_number, r"token 3 is None"),
        (lambda answer: {"choices": [], "meta_info": {}}, r"the response (has no|lacks)"),
        (lambda answer: [], r"not a JSON object"),
    ],
)
def test_answers_that_do_not_fit_are_refused_with_their_document(server, tmp_path, wrong, says):
    server.faults = [wrong] * 10
    with pytest.raises(InputError, match=says):
        told_to(server.teacher, tmp_path / "c.zarr")


@common
def test_a_request_that_the_server_cannot_answer_is_not_asked_for_ever(server, tmp_path):
    server.faults = [500] * 40
    with pytest.raises(InputError, match=r"failed 4 times on one request \(document \d.*asked to fail with 500"):
        told_to(server.teacher, tmp_path / "c.zarr")


def test_keys_come_from_the_environment_and_are_stored_nowhere(server, tmp_path, monkeypatch):
    server.key, variable = "s3cret", f"{server.kind.upper()}_API_KEY"
    monkeypatch.setenv(variable, "wrong")
    bare = server.teacher.partition("://")[2]
    with pytest.raises(InputError, match=variable):
        told_to(f"{server.kind}:http://me:s3cret@{bare}", tmp_path / "c.zarr")
    if server.kind == "vllm":
        with pytest.raises(InputError, match=rf"401.*{variable}"):
            told_to(server.teacher, tmp_path / "c.zarr")
    monkeypatch.setenv(variable, "s3cret")
    told_to(server.teacher, tmp_path / "c.zarr")
    assert not any(b"s3cret" in data for data in tiny.bytes_of(tmp_path / "c.zarr").values())


def test_the_server_must_serve_this_model_with_this_tokenizer(server, tmp_path):
    with pytest.raises(UnknownNameError, match=r"unknown model at .*'storys'; did you mean 'stories'"):
        told_to(f"{server.teacher}?model=storys", tmp_path / "c.zarr")
    server.names = ("stories", "others")
    with pytest.raises(InputError, match=r"serves stories, others; name one with .*\?model=NAME"):
        told_to(server.teacher, tmp_path / "c.zarr")
    server.names = ("stories",)
    told_to(server.teacher, tmp_path / "c.zarr", tokenizer="hf:stories-mini")
    texts.wrapped("once upon a time there was a little dog").save_pretrained(tmp_path / "tokenizer")
    with pytest.raises(InputError, match=r"a different tokenizer from hf:.*from token [01] on"):
        told_to(server.teacher, tmp_path / "d.zarr", tokenizer=f"hf:{tmp_path / 'tokenizer'}")


def test_what_a_server_cannot_do_is_refused_before_anything_is_written(server, tmp_path):
    path = tmp_path / "c.zarr"
    if server.kind == "vllm":
        server.max_logprobs = 20
        with pytest.raises(InputError, match=r"`--max-logprobs 21` or more, or dump with `top_k` 19 or less"):
            told_to(server.teacher, path, top_k=20)
        told_to(server.teacher, tmp_path / "d.zarr", top_k=19)
    for changes, says in (
        ({"encoding": "full", "top_k": None}, "leave out `encoding` full"),
        ({"amp": True}, r"`amp` is for a teacher that runs locally"),
        ({"encoding": "sampled", "top_k": None}, "leave out `encoding` sampled"),
        ({"draws": 5}, "`draws` requires `encoding` sampled"),
        ({"views": 2}, "text is not augmented"),
    ):
        with pytest.raises(InputError, match=says):
            told_to(server.teacher, path, **changes)
    with pytest.raises(InputError, match="must be the only one"):
        told_to([server.teacher, "hf:stories-mini"], path)
    with pytest.raises(InputError, match="is a teacher for text"):
        logitcache.dump_logits(server.teacher, "fashion-mnist-mini", path)
    assert not (path / "zarr.json").exists()


@common
def test_methods_that_need_the_shape_of_the_rest_refuse_it(served, tmp_path):
    path, student = served[1], "llama:hidden=16,layers=1,heads=2"
    for changes, says in (
        ({"temperature": 4.0}, r"which is unknown at temperature 4. Use `temperature` 1"),
        ({"method": "dist"}, r"Its teacher provided only these; choose another method"),
        ({"method": "rld", "parameters": {"confidence_temperature": 2.0}}, "at temperature 2"),
        ({"method": "loca", "parameters": {"calibration_temperature": 4.0}}, "at temperature 4"),
        ({"live_teacher": True}, "does not run here"),
    ):
        with pytest.raises((CacheMismatchError, InputError), match=says):
            logitcache.train_student(path, student, out=tmp_path / "run", **changes)
    logitcache.train_student(
        path, student, out=tmp_path / "loca", method="loca", epochs=1
    )  # at 1 where nothing is said
    rows, labels = decoded(open_cache(path))
    with pytest.raises(InputError, match="unknown at temperature 2"):
        get_loss("kd", temperature=2.0)(torch.zeros(len(labels), 512), rows, labels)


@common
def test_a_dump_goes_on_after_kills_of_client_and_server(served, tmp_path):
    """The rows are those of an undisturbed dump; a server on another port, and a little of noise, are the same teacher."""
    kind, path, port = served[0].kind, tmp_path / "c.zarr", None
    small = {"block_rows": 32, "batch_size": 1, "concurrency": 2}
    with servers.ModelServer(kind) as server:
        whole = told_to(server.teacher, tmp_path / "whole.zarr", **small)
        server.delay = 0.05
        child = tiny.in_a_child(lambda: told_to(server.teacher, path, **small))
        while len(list(path.rglob(".logitcache/blocks/*/[0-9]*.json"))) < 3:
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
            time.sleep(0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        port = server.port
    with pytest.raises(CacheIncompleteError, match="did not respond for .*run the same command again"):
        told_to(f"{kind}:127.0.0.1:{port}", path, server_patience=0.2, **small)
    with servers.ModelServer(kind) as server:
        told_to(server.teacher, path, **small)
    ours, theirs = tiny.bytes_of(path), tiny.bytes_of(tmp_path / "whole.zarr")
    rows = [name for name in theirs if name.startswith(("teachers", "labels", "digests", "tokens"))]
    assert len(rows) > 10
    assert all(ours[name] == theirs[name] for name in rows)
    assert whole.manifest.differences(open_cache(path).manifest) == []


@common
def test_another_model_under_the_same_name_does_not_continue_a_dump(server, tmp_path):
    stop = iter([False, False, False, True])
    with pytest.raises(CacheIncompleteError):
        told_to(server.teacher, tmp_path / "c.zarr", block_rows=32, should_stop=lambda: next(stop, True))
    server.scale = 0.5
    with pytest.raises(CacheMismatchError, match="returns other probabilities than when the dump was started"):
        told_to(server.teacher, tmp_path / "c.zarr", block_rows=32)
    server.scale, server.noise = 1.0, 2.0
    with pytest.raises(InputError, match="is not reproducible"):
        told_to(server.teacher, tmp_path / "c.zarr", block_rows=32)
    server.noise = 1e-3
    told_to(server.teacher, tmp_path / "c.zarr", block_rows=32)


@common
def test_verify_asks_the_server_again(served, server):
    path = served[1]
    found = logitcache.verify_cache(path, data=documents(), replay=4, teacher=server.teacher)
    assert found.ok
    assert found.replayed == 4
    assert found.replay_gap < 1e-3
    server.noise = 3.0
    assert (
        "output has changed"
        in logitcache.verify_cache(path, data=documents(), replay=4, teacher=server.teacher).replay_problem
    )
    with pytest.raises(InputError, match="is a server; pass its address"):
        logitcache.verify_cache(path, data=documents(), replay=4, teacher="hf:stories-mini")


@common
def test_a_plan_measures_the_server_first(server, tmp_path):
    server.delay = 0.1
    found = plan_dump(server.teacher, documents(), tmp_path / "c.zarr", top_k=K, batch_size=2, concurrency=2)
    lengths = np.diff(documents().documents)
    assert found.teacher_rows_per_second < 2 * lengths.max() / 0.1
    assert not (tmp_path / "c.zarr").exists()


@common
def test_fidelity_says_what_nobody_can_know(served, direct):
    """At most so many nats: with the model at hand, the divergence is below the bound."""
    found = logitcache.cache_fidelity(served[1], methods=["kd", "rld"], settings=None)
    assert set(found.kl_nats) == {"T=1"}
    rows, _ = decoded(open_cache(served[1]))
    true = F.kl_div(rows.at(1.0).log_softmax(1), direct, log_target=True, reduction="none").sum(1).mean()
    assert 0 < float(true) < found.unknown_nats < 50 * float(true)
    assert json.dumps(found.to_json())
