"""Students of text: cached is live, packed contexts are apart, and a step is the mean over all of its tokens."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import texts
import tiny
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import logitcache
from logitcache.errors import StoppedError
from logitcache.methods import METHODS, make_objective
from logitcache.train.replicas import Replicas
from logitcache.train.settings import TrainSettings
from logitcache.train.step import MicroBatch, Stepper

pytest.importorskip("transformers")

STUDENT = "llama:hidden=16,layers=1,heads=2"
UNTIED = f"{STUDENT},tied=false"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """What the teacher that ships says of twenty short stories: full rows, as they are."""
    return dumped(tmp_path_factory.mktemp("stories") / "full.zarr", encoding="full", precision="f32")


def dumped(path, **changes):
    given = {"teacher": "hf:stories-mini", "data": texts.stories(20, 24), "out": path, "block_rows": 128}
    return logitcache.dump_logits(**(given | changes))


def trained(cache, out, **changes):
    given = {"student": STUDENT, "epochs": 2, "batch_size": 4, "sequence_length": 64, "lr": 1e-2}
    return logitcache.train_student(cache, out=out, **(given | changes))


def weights_of(module):
    return torch.cat([value.double().flatten() for value in module.state_dict().values()])


@pytest.mark.parametrize("method", ["kd", "rld", "loca"])
def test_cached_is_live_to_the_bit(cache, tmp_path, method):
    """Packed sequences, two epochs, gradients accumulated over parts of a batch."""
    found = [
        trained(cache, tmp_path / str(live), method=method, grad_accum_steps=2, live_teacher=live)
        for live in (False, True)
    ]
    assert torch.equal(*(weights_of(one.student) for one in found))
    assert [one["loss"] for one in found[0].metrics] == [one["loss"] for one in found[1].metrics]
    assert found[0].results["loss"] < found[0].metrics[0]["loss"]


def test_a_run_that_was_stopped_between_two_steps_ends_with_the_same_weights(cache, tmp_path):
    whole = trained(cache, tmp_path / "whole", method="kd", grad_accum_steps=2)
    steps = []

    def asked():
        return len(steps) == 1

    with pytest.raises(StoppedError, match="step 1 of 2 of epoch 1"):
        trained(cache, tmp_path / "r", method="kd", grad_accum_steps=2, on_progress=steps.append, should_stop=asked)
    resumed = trained(cache, tmp_path / "r", method="kd", grad_accum_steps=2, resume=True)
    assert torch.equal(weights_of(whole.student), weights_of(resumed.student))
    assert [one["loss"] for one in whole.metrics] == [one["loss"] for one in resumed.metrics]


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("student", [STUDENT, UNTIED], ids=["tied", "untied"])
def test_a_step_is_the_mean_over_all_of_its_tokens(cache, tmp_path, student, parts):
    """As transformers' own model gives the loss of each story alone; short and long stories weigh as many tokens as they have."""
    samples, rate = texts.stories(20, 24), 0.5
    plain = {
        "opt": "sgd",
        "momentum": 0.0,
        "weight_decay": 0.0,
        "lr": rate,
        "clip_grad": 1e9,
        "epochs": 1,
        "sched": "step",
    }
    given = {"method": "kd", "temperature": 2.0, "ce_weight": 0.3, "kd_weight": 0.7, "student": student}
    initial = logitcache.data.text.modality.TEXT.network
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = initial(student, 512, None).module
    found = trained(cache, tmp_path / "r", batch_size=8, grad_accum_steps=parts, **plain, **given)
    rows, total, labels = torch.from_numpy(cache.view(0, cache.teacher)["logits"]), 0.0, []
    for story in range(len(samples)):
        tokens = torch.from_numpy(samples.part(story, story + 1).tokens.astype(np.int64))[None]
        logits = model.model(input_ids=tokens).logits[0, :-1]
        teacher = rows[samples.offsets[story] : samples.offsets[story + 1]]
        kd = F.kl_div((logits / 2).log_softmax(1), (teacher / 2).softmax(1), reduction="none").sum() * 4
        total = total + 0.3 * F.cross_entropy(logits, tokens[0, 1:], reduction="sum") + 0.7 * kd
        labels.append(tokens[0, 1:])
    loss = total / len(torch.cat(labels))
    loss.backward()
    assert found.results["loss"] == pytest.approx(loss.item(), rel=1e-5)
    with torch.no_grad():
        for one in model.parameters():
            one.add_(one.grad, alpha=-rate)
    assert (weights_of(found.student) - weights_of(model)).abs().max() < 1e-6


def by_rows(*, kept):
    """Methods for full rows, or for those of which the largest were kept; a row of the table says itself what it needs."""
    return [name for name in METHODS if not kept or not whole_rows_only(name)]


def whole_rows_only(name):
    loss = make_objective(name, {}).loss
    return loss is not None and bool(loss.every_class)


@pytest.mark.parametrize("method", tiny.usual(by_rows(kept=False), ["ce", "dist", "kd", "rld", "sld", "tad"]))
def test_every_method_trains_on_full_rows(cache, tmp_path, method):
    found = trained(cache, tmp_path / "r", method=method, epochs=1)
    assert np.isfinite(found.results["loss"])


@pytest.fixture(scope="module")
def largest(tmp_path_factory):
    return dumped(tmp_path_factory.mktemp("stories") / "largest.zarr", top_k=8)


@pytest.mark.parametrize("method", tiny.usual(by_rows(kept=True), ["ce", "kd", "rc", "rld"]))
def test_methods_that_take_them_train_on_rows_of_the_largest(largest, tmp_path, method):
    found = trained(largest, tmp_path / "r", method=method, epochs=1)
    assert np.isfinite(found.results["loss"])


@pytest.mark.parametrize("method", [name for name in METHODS if name not in by_rows(kept=True)])
def test_others_refuse_them_and_name_the_dump_that_serves(largest, tmp_path, method):
    with pytest.raises(logitcache.LogitCacheError, match="Dump again with `encoding` full"):
        trained(largest, tmp_path / "r", method=method, epochs=1)


def test_mixed_precision_trains(cache, tmp_path):
    exact = trained(cache, tmp_path / "f32", method="kd")
    amp = trained(cache, tmp_path / "amp", method="kd", amp=True)
    assert amp.results["loss"] == pytest.approx(exact.results["loss"], rel=0.01)
    assert amp.results["loss"] != exact.results["loss"]


@pytest.mark.parametrize("student", ["hidden states", "logits"])
def test_a_part_without_rows_changes_nothing(student):
    """Gradients of a step with such a part are those without it."""
    samples = texts.contexts(6)

    def stepped(*, with_blank):
        torch.manual_seed(0)
        model = texts.Student(40) if student == "hidden states" else Answering()
        settings = TrainSettings(lr=0.1)
        stepper = Stepper(model, make_objective("kd", {}), settings, torch.device("cpu"), Replicas(), samples)
        inputs = {
            "input_ids": torch.arange(8)[None],
            "position_ids": torch.arange(8)[None],
            "documents": torch.zeros(1, 8, dtype=torch.int64),
        }
        keep = torch.ones(1, 8, dtype=torch.bool)
        full = MicroBatch(inputs, keep, torch.arange(8), None, torch.randn(8, 40), 8)
        blank = MicroBatch(inputs, ~keep, torch.empty(0, dtype=torch.int64), None, torch.empty(0, 40), 0)
        sums = [stepper.step([[full], *([[blank]] if with_blank else [])], 8, 0.1, 1.0) for _ in range(2)]
        return weights_of(model), torch.stack(sums)

    (with_it, sums), (without, expected) = stepped(with_blank=True), stepped(with_blank=False)
    assert torch.isfinite(with_it).all()
    assert torch.equal(with_it, without)
    assert torch.equal(sums.nan_to_num(), expected.nan_to_num())


class Answering(texts.Student):
    """Returns logits of all tokens."""

    def __init__(self):
        super().__init__(40)

    def forward(self, **inputs):
        found = super().forward(**inputs)
        return found.head(found.states)[..., :40]


JOB = """
import os, pathlib, sys
from types import SimpleNamespace
import texts, torch, logitcache
from logitcache.errors import StoppedError

folder, students = pathlib.Path(sys.argv[1]), sys.argv[2:]
common = {"epochs": 2, "batch_size": 4, "sequence_length": 64, "lr": 1e-2, "method": "kd", "grad_accum_steps": 2}
def train(name, **changes):
    return logitcache.train_student(folder / "full.zarr", out=folder / name, **(common | {"student": students[0]} | changes))

train("tied")
train("untied", student=students[1])
train("live", live_teacher=True)
train("held", holdout=0.3)
train("own", student="texts:wide")
class Answering(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = texts.wide(512)
    def forward(self, **inputs):
        found = self.net(**inputs)
        return SimpleNamespace(logits=found.head(found.states))
train("object", student=Answering())
steps = []
try:
    train("resumed", on_progress=steps.append, should_stop=lambda: len(steps) > 0)
except StoppedError:
    (folder / f"stopped-{os.environ['RANK']}").touch()
train("resumed", resume=True)
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes leave behind."""
    folder = tmp_path_factory.mktemp("two")
    dumped(folder / "full.zarr", encoding="full", precision="f32", threads=1)
    (folder / "job.py").write_text(JOB)
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = os.pathsep.join([str(tiny.HERE), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *start, str(folder / "job.py"), str(folder), STUDENT, UNTIED],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def weights_in(run):
    return torch.cat([one.double().flatten() for one in load_file(run / "student.safetensors").values()])


@pytest.mark.slow
@pytest.mark.parametrize("student", ["tied", "untied"])
def test_two_processes_train_what_one_does(two, tmp_path, student):
    chosen = STUDENT if student == "tied" else UNTIED
    trained(two / "full.zarr", tmp_path / "alone", method="kd", student=chosen, grad_accum_steps=2)
    assert (weights_in(two / student) - weights_in(tmp_path / "alone")).abs().max() < 1e-4
    ours, theirs = (
        [json.loads(line)["loss"] for line in (one / "metrics.jsonl").read_text().splitlines()]
        for one in (two / student, tmp_path / "alone")
    )
    assert ours == pytest.approx(theirs, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("returned", ["own", "object"])
def test_networks_of_ones_own_train_in_two_processes(two, tmp_path, returned):
    """Objects with hidden states and a head, or with logits, which DistributedDataParallel does not look into."""
    trained(two / "full.zarr", tmp_path / "alone", method="kd", student="texts:wide", grad_accum_steps=2)
    assert (weights_in(two / returned) - weights_in(tmp_path / "alone")).abs().max() < 1e-4


@pytest.mark.slow
def test_two_processes_measure_what_one_does(two, tmp_path):
    alone = trained(two / "full.zarr", tmp_path / "alone", method="kd", grad_accum_steps=2, holdout=0.3).results
    both = json.loads((two / "held/run.json").read_text())["results"]
    for name in ("perplexity", "kl_to_teacher", "test_teacher_agreement", "topk_overlap"):
        assert both[name] == pytest.approx(alone[name], rel=1e-3), name


@pytest.mark.slow
def test_cached_is_live_to_the_bit_in_two_processes(two):
    assert torch.equal(weights_in(two / "tied"), weights_in(two / "live"))


@pytest.mark.slow
def test_two_processes_that_were_stopped_end_with_the_same_weights(two):
    assert (two / "stopped-0").exists()
    assert torch.equal(weights_in(two / "tied"), weights_in(two / "resumed"))
