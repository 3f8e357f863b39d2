"""Complete prompts with a causal language model: greedily or by sampling, in batches, with transformers' key-value cache.

The random number of a token depends only on the seed, the id of the prompt and the position in the completion, so it does not depend on
batches, their order or the number of processes. Padding can change the last bits of logits, and so, rarely, a sampled token.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcache.errors import InputError, explain_foreign_errors
from logitcache.models.language.causal import CausalNetwork
from logitcache.models.language.packages import import_language_package
from logitcache.models.modes import evaluating
from logitcache.runtime.philox import uniforms, words

__all__ = ["Sampling", "choose_tokens", "complete", "end_tokens"]


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling parameters.

    Attributes:
        max_new_tokens: Maximum number of tokens of a completion.
        temperature: Temperature of the logits; 0 selects the most likely token (greedy decoding).
        top_p: Probability mass of the most likely tokens to sample from (nucleus sampling); 1 samples from all tokens.
        seed: Random seed.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


def end_tokens(network: CausalNetwork, tokenizer: Any) -> list[int]:
    """Return the ids that end a completion: the end-of-sequence ids of the tokenizer and of the model's generation configuration.

    Args:
        network: Language model.
        tokenizer: Transformers tokenizer, or None.
    """
    own = getattr(network.model.generation_config, "eos_token_id", None)
    every = [*(own if isinstance(own, list | tuple) else [own]), getattr(tokenizer, "eos_token_id", None)]
    return sorted({int(one) for one in every if one is not None})


@torch.no_grad()
def complete(
    network: CausalNetwork,
    prompts: Sequence[NDArray[np.int64]],
    numbers: NDArray[np.int64],
    sampling: Sampling,
    ends: Sequence[int],
    vocabulary: int | None = None,
) -> list[NDArray[np.int64]]:
    """Complete a batch of prompts.

    Args:
        network: Language model; it runs in evaluation mode on its own device.
        prompts: Token ids of each prompt, [L], at least one.
        numbers: Ids of the prompts, [B], which determine their random numbers.
        sampling: Sampling parameters.
        ends: Ids that end a completion.
        vocabulary: Size of the vocabulary; further columns of the head are never selected. None allows all columns.

    Returns:
        Token ids of each completion, [M] int64. The last id is in `ends` if the completion ended before `max_new_tokens`.

    Raises:
        InputError: If a prompt and its completion exceed the model's positions, or the model cannot generate.
    """
    longest, width = max(map(len, prompts)), network.columns if vocabulary is None else vocabulary
    if network.positions is not None and longest + sampling.max_new_tokens > network.positions:
        raise InputError(
            f"a prompt of {longest:,} tokens and --max-new-tokens {sampling.max_new_tokens:,} are more than the {network.positions:,} "
            f"positions of {type(network.model).__name__}: lower --max-new-tokens, or leave long prompts out with --max-prompt-tokens"
        )
    device = network.model.get_input_embeddings().weight.device
    ids = np.zeros((len(prompts), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # padded on the left, so that all completions start in the same column
        ids[row, longest - len(prompt) :], mask[row, longest - len(prompt) :] = prompt, 1

    def choose(input_ids: Tensor, scores: Tensor) -> Tensor:
        chosen = choose_tokens(scores[:, :width], sampling, numbers, input_ids.shape[1] - longest)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)

    with (
        evaluating(network),
        explain_foreign_errors(f"{type(network.model).__name__} cannot generate"),
        _generating_with(network.model, sampling.max_new_tokens, ends),
    ):
        found = network.model.generate(
            input_ids=torch.from_numpy(ids).to(device),
            attention_mask=torch.from_numpy(mask).to(device),
            logits_processor=[choose],
        )
    return [_until_end(row, ends) for row in found[:, longest:].cpu().numpy()]


def choose_tokens(logits: Tensor, sampling: Sampling, numbers: NDArray[np.int64], place: int) -> Tensor:
    """Return the next token of each prompt, [B] int64.

    Args:
        logits: Logits of the next token, [B, V].
        sampling: Sampling parameters.
        numbers: Ids of the prompts, [B].
        place: Number of tokens in the completion so far.
    """
    if sampling.temperature == 0:
        return logits.argmax(1)
    probabilities, order = (logits.double() / sampling.temperature).softmax(1).sort(dim=1, descending=True, stable=True)
    cumulated = probabilities.cumsum(1)  # [B, V]
    kept = cumulated - probabilities < sampling.top_p  # the smallest set of most likely tokens with this probability
    total = (probabilities * kept).sum(1)
    random = uniforms(words(sampling.seed, 0, numbers, place)[:, 0])
    drawn = torch.from_numpy(random).to(logits.device) * total
    rank = (cumulated <= drawn[:, None]).sum(1)
    found: Tensor = order.gather(1, torch.minimum(rank, kept.sum(1) - 1)[:, None])[:, 0]
    return found


@contextmanager
def _generating_with(model: Any, most: int, ends: Sequence[int]) -> Iterator[None]:
    """Replace the generation configuration of a model in this block, because its own may contain penalties or other decoding rules."""
    transformers, own = import_language_package("transformers", "generation"), model.generation_config
    model.generation_config = transformers.GenerationConfig(
        max_new_tokens=most, do_sample=False, eos_token_id=list(ends) or None, pad_token_id=min(ends, default=0)
    )
    try:
        yield
    finally:
        model.generation_config = own


def _until_end(tokens: NDArray[np.int64], ends: Sequence[int]) -> NDArray[np.int64]:
    """Return the tokens up to and including the first one in `ends`."""
    at = np.flatnonzero(np.isin(tokens, np.asarray(ends, np.int64)))
    return tokens[: at[0] + 1] if len(at) else tokens
