"""Completions of many prompts: in batches of similar length, decoded, and compared with references."""

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
    """A prompt and what a model made of it.

    Attributes:
        prompt: The prompt.
        ids: Tokens of the completion, [M] int64; the last is an end-of-sequence token where `ended`.
        text: The completion without special tokens.
        ended: Whether it ended by itself, before the most tokens.
        rouge_l: ROUGE-L against the references of the prompt, in [0, 1]; None: nobody asked, or there is no reference.
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
        network: The model.
        tokenizer: Its tokenizer, of transformers.
        prompts: The prompts.
        sampling: How tokens are chosen.
        vocabulary: Number of ids that exist.
        batch_size: Prompts at a time.
        score: Compares a completion with references.
        on_batch: Told the number of completions after every batch.

    Returns:
        The completions in the order of `prompts`.

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
    """Return the text of a completion with the space that it may begin with, which most tokenizers drop where a text begins."""
    before, whole = (
        str(tokenizer.decode(ids.tolist(), skip_special_tokens=True))
        for ids in (prompt, np.concatenate([prompt, completion]))
    )
    if whole.startswith(before):
        return whole[len(before) :]
    return str(tokenizer.decode(completion.tolist(), skip_special_tokens=True))


def mean_rouge(completions: Sequence[Completion]) -> float | None:
    """Return the mean ROUGE-L of completions, each of equal weight; None where none was compared."""
    values = [one.rouge_l for one in completions if one.rouge_l is not None]
    return sum(values) / len(values) if values else None
