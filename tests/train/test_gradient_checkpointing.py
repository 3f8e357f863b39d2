"""Activations that are computed anew in the backward pass: the same gradients, and less that is kept."""

import json

import pytest
import texts
import tiny
import torch
from torch import nn

import logitcache
from logitcache.errors import InputError
from logitcache.models import checkpointing_gradients

pytest.importorskip("transformers")

STUDENT = "llama:hidden=16,layers=2,heads=2"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    out = tmp_path_factory.mktemp("stories") / "c.zarr"
    return logitcache.dump_logits(teacher="hf:stories-mini", data=texts.stories(12, 24), out=out, top_k=16)


def trained(cache, out, **changes):
    given = {"student": STUDENT, "method": "kd", "epochs": 2, "batch_size": 4, "sequence_length": 64, "lr": 1e-2}
    return logitcache.train_student(cache, out=out, **(given | changes))


def watched(monkeypatch):
    """Count how often a feed-forward layer runs."""
    from transformers.models.llama.modeling_llama import LlamaMLP

    runs, forward = [], LlamaMLP.forward

    def counting(self, *given):
        runs.append(torch.is_grad_enabled() and self.training)
        return forward(self, *given)

    monkeypatch.setattr(LlamaMLP, "forward", counting)
    return runs


@pytest.mark.parametrize("more", [{}, {"grad_accum_steps": 2, "amp": True}], ids=["whole", "parts"])
def test_weights_are_the_same_to_the_bit(cache, tmp_path, monkeypatch, more):
    runs, found, counts = watched(monkeypatch), [], []
    for name in ("kept", "anew"):
        runs.clear()
        found.append(trained(cache, tmp_path / name, gradient_checkpointing=name == "anew", **more))
        counts.append(sum(runs))
    ours, theirs = (one.student.state_dict() for one in found)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert [one["loss"] for one in found[0].metrics] == [one["loss"] for one in found[1].metrics]
    assert counts[1] >= 1.5 * counts[0]  # of each step the layers run once more
    assert not any(getattr(part, "gradient_checkpointing", False) for part in found[1].student.modules())
    recorded = [json.loads((tmp_path / name / "run.json").read_text())["settings"] for name in ("kept", "anew")]
    assert [one["gradient_checkpointing"] for one in recorded] == [False, True]


def test_less_is_kept_for_the_backward_pass(cache):
    from logitcache.models.language import load_language_network

    network = load_language_network("llama:hidden=32,layers=4,heads=4", 512).module.train()
    ids = torch.arange(64)[None]

    def kept():
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda one: sizes.append(one.numel()) or one, lambda one: one):
            network(ids)
        return sum(sizes)

    plain = kept()
    with checkpointing_gradients(network, "it"):
        assert kept() < 0.2 * plain
    assert kept() == plain


class Switched(nn.Module):
    """A network of one's own that has the method."""

    def __init__(self, classes):
        super().__init__()
        self.net, self.switched = tiny.still(classes), []

    def forward(self, x):
        return self.net(x)

    def checkpoint_gradients(self, *, enabled=True):
        self.switched.append(enabled)


class Timms(Switched):
    """One that has it by the name that timm gives it, and refuses."""

    checkpoint_gradients = None

    def set_grad_checkpointing(self, enable=True):
        assert not enable, "gradient checkpointing not supported"


def on_images(images, out, student):
    given = {"method": "ce", "data": images, "epochs": 1, "out": out}
    return logitcache.train_student(None, student, gradient_checkpointing=True, **given)


def test_networks_of_images_are_refused_unless_they_have_the_method(images, tmp_path):
    with pytest.raises(InputError, match="is not supported by tiny:still; leave it out"):
        on_images(images, tmp_path / "a", "tiny:still")
    with pytest.raises(InputError, match="fails for Timms: .*gradient checkpointing not supported. Leave it out"):
        on_images(images, tmp_path / "b", Timms(5))
    assert not list(tmp_path.iterdir())
    network = Switched(5)
    on_images(images, tmp_path / "c", network)
    assert network.switched == [True, False]
