"""Complete many prompts in batches of similar length, decode the completions and compare them with references."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from logitcache.data.text.prompts import Prompt
from logitcache.models.language.causal import CausalNetwork
from logitcache.models.language.generate import Sampling, complete, end_tokens

__all__ = ["Completion", "complete_all", "mean_rouge"]


@dataclass(frozen=True, slots=True, eq=False)
class Completion:
    """A prompt and its completion.

    Attributes:
        prompt: Prompt.
        ids: Tokens of the completion, [M] int64; the last one is an end-of-sequence token if `ended`.
        text: Text of the completion without special tokens.
        ended: Whether the model ended it with an end-of-sequence token.
        rouge_l: ROUGE-L against the references of the prompt, in [0, 1]; None if it was not requested or there are no references.
    """

    prompt: Prompt
    ids: NDArray[np.int64]
    text: str
    ended: bool
    rouge_l: float | None = None


def complete_all(
    network: CausalNetwork,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    vocabulary: int,
    batch_size: int,
    score: Callable[[str, Sequence[str]], float] | None = None,
    on_batch: Callable[[int], None] = lambda _: None,
) -> list[Completion]:
    """Complete prompts, the longest first.

    Args:
        network: Language model.
        tokenizer: Tokenizer of the model, from transformers.
        prompts: Prompts to complete.
        sampling: Sampling parameters.
        vocabulary: Size of the vocabulary.
        batch_size: Number of prompts per batch.
        score: Function that compares a completion with references.
        on_batch: Called with the number of completions after every batch.

    Returns:
        Completions in the order of `prompts`.

    Raises:
        InputError: A prompt is too long for the model.
    """
    ends = end_tokens(network, tokenizer)
    order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place].ids))
    found: dict[int, Completion] = {}
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        numbers = np.array([prompts[place].number for place in places])
        made = complete(network, [prompts[place].ids for place in places], numbers, sampling, ends, vocabulary)
        for place, ids in zip(places, made, strict=True):
            prompt, text = prompts[place], _text_after(tokenizer, prompts[place].ids, ids)
            value = score(text, prompt.references) if score is not None and prompt.references else None
            found[place] = Completion(prompt, ids, text, bool(len(ids)) and int(ids[-1]) in ends, value)
        on_batch(len(found))
    return [found[place] for place in range(len(prompts))]


def _text_after(tokenizer: Any, prompt: NDArray[np.int64], completion: NDArray[np.int64]) -> str:
    """Return the text of a completion with its leading space, which most tokenizers drop at the start of a text."""
    before, whole = (
        str(tokenizer.decode(ids.tolist(), skip_special_tokens=True))
        for ids in (prompt, np.concatenate([prompt, completion]))
    )
    if whole.startswith(before):
        return whole[len(before) :]
    return str(tokenizer.decode(completion.tolist(), skip_special_tokens=True))


def mean_rouge(completions: Sequence[Completion]) -> float | None:
    """Return the mean ROUGE-L over the completions that have one; None if none has."""
    values = [one.rouge_l for one in completions if one.rouge_l is not None]
    return sum(values) / len(values) if values else None
