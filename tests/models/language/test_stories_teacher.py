"""The teacher and the stories of the text demo are those that were measured."""

import hashlib
import json
from importlib import resources
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from logitcache.models.language import load_language_network, load_tokenizer, tokenizer_facts

pytest.importorskip("transformers")

FOLDER = Path(str(resources.files("logitcache.demo_text")))


@pytest.mark.parametrize(("split", "tokens", "stories"), [("train", 60_024, 169), ("test", 20_346, 61)])
def test_the_stories_are_those_of_the_checksums(split, tokens, stories):
    with np.load(FOLDER / f"{split}.npz") as found:
        arrays = dict(found)
    expected = json.loads((FOLDER / "checksums.json").read_text())[split]
    assert {name: hashlib.sha256(one.tobytes()).hexdigest() for name, one in arrays.items()} == expected
    assert arrays["tokens"].shape == (tokens,)
    assert arrays["documents"].shape == (stories + 1,)
    assert arrays["documents"][-1] == tokens
    assert (arrays["tokens"][arrays["documents"][:-1]] == 1).all()  # each begins with the mark of a beginning
    assert arrays["tokens"].max() < 512


def test_the_teacher_is_that_of_the_readme_and_knows_its_stories():
    weights = (FOLDER / "teacher" / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() in (FOLDER / "README.md").read_text()
    network = load_language_network("hf:stories-mini", 512).module
    assert sum(one.numel() for one in network.parameters()) == 260_032
    with np.load(FOLDER / "test.npz") as found:
        tokens, documents = torch.from_numpy(found["tokens"].astype(np.int64)), found["documents"]
    nats = targets = 0.0
    with torch.inference_mode():
        for first, last in pairwise(documents):
            story = tokens[first:last]
            found = network(story[None])
            scores = found.head(found.states[0, :-1])
            nats += torch.nn.functional.cross_entropy(scores, story[1:], reduction="sum").item()
            targets += len(story) - 1
    assert nats / targets == pytest.approx(1.3334, abs=1e-4)
    assert targets == 20_285


def test_its_tokenizer_reads_and_writes_text():
    tokenizer = load_tokenizer("hf:stories-mini")
    facts = tokenizer_facts(tokenizer)
    assert (facts.vocabulary, facts.bos, facts.eos) == (512, 1, 2)
    text = "Once upon a time, there was a little girl."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
