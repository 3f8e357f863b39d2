"""Completions of test prompts during training, and their ROUGE-L."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from logitcache.data import Documents, Ids, kept_of, whole_of
from logitcache.data.text.prompts import Prompt, prompts_of
from logitcache.data.text.reading import find_tokenizer
from logitcache.errors import InputError, StoppedError
from logitcache.generate.completions import complete_all
from logitcache.generate.rouge import rouge_l
from logitcache.models.language import CausalNetwork
from logitcache.models.language.generate import Sampling
from logitcache.train.replicas import Replicas
from logitcache.train.settings import TrainSettings

__all__ = ["Completer", "completer_for"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Completer:
    """Completes test prompts and scores the completions.

    Attributes:
        prompts: Prompts, with their completions in the data as references.
        tokenizer: Transformers tokenizer that made their tokens.
        vocabulary: Size of the vocabulary.
        sampling: Sampling settings.
        batch_size: Number of prompts to complete at a time.
        score: Function that scores a completion against references, in [0, 1].
    """

    prompts: Sequence[Prompt]
    tokenizer: Any
    vocabulary: int
    sampling: Sampling
    batch_size: int
    score: Callable[[str, Sequence[str]], float]

    def measure(self, network: nn.Module, replicas: Replicas, should_stop: Callable[[], bool]) -> dict[str, float]:
        """Return the mean ROUGE-L of the completions. Each process of a training completes its share of the prompts.

        Raises:
            StoppedError: If `should_stop` returned True; it is called only if there is one process.
        """
        assert isinstance(network, CausalNetwork)

        def stop(done: int) -> None:
            if replicas.world == 1 and done < len(self.prompts) and should_stop():
                raise StoppedError("generation was stopped on request")

        made = complete_all(
            network,
            self.tokenizer,
            self.prompts[replicas.rank :: replicas.world],
            self.sampling,
            vocabulary=self.vocabulary,
            batch_size=self.batch_size,
            score=self.score,
            on_batch=stop,
        )
        every = [value for part in replicas.gathered([one.rouge_l for one in made]) for value in part]
        return {"rouge_l": sum(value or 0.0 for value in every) / len(every)}


def completer_for(
    test: Any, held_out: Ids | None, network: nn.Module, settings: TrainSettings, names: Sequence[str]
) -> Completer | None:
    """Return a completer of test prompts, or None if `generate` is not set.

    Args:
        test: Test data, or None.
        held_out: Samples of it to evaluate on; None for all.
        network: Student.
        settings: Settings of the training.
        names: Names of networks that may come with the tokenizer.

    Raises:
        InputError: If there are no prompts with completions, the student cannot generate, or the tokenizer or rouge-score is missing.
    """
    if settings.generate is None:
        return None
    documents = None if test is None else whole_of(test)[0]
    if not isinstance(documents, Documents):
        raise InputError(
            "--generate needs test data of text; pass --test-data with prompts and completions, or --holdout"
        )
    if not isinstance(network, CausalNetwork):
        raise InputError(
            f"--generate is not supported by {type(network).__name__}, only by language models of transformers (hf:, llama:). Leave it out."
        )
    score, tokenizer = rouge_l(), find_tokenizer(documents, names)
    if tokenizer is None:
        raise InputError(
            "--generate needs the tokenizer that made the test tokens, which is not available. Restore it, or leave --generate out."
        )
    ids = kept_of(test) if held_out is None else held_out
    sampling = Sampling(settings.generate_tokens or 256, settings.generate_temperature or 0.0, seed=settings.seed)
    every = [one for one in prompts_of(documents, tokenizer, ids) if one.references]
    most = None if network.positions is None else network.positions - sampling.max_new_tokens
    found = every if most is None else [one for one in every if len(one.ids) <= most]
    if most is not None and found and len(found) < len(every):
        _LOG.info(
            "generation leaves out %s of %s test prompts, because they have more than %s tokens and do not fit into the student's "
            "positions together with %s new ones (--generate-tokens)",
            f"{len(every) - len(found):,}",
            f"{len(every):,}",
            f"{most:,}",
            f"{sampling.max_new_tokens:,}",
        )
    if not found:
        raise InputError(
            "--generate: the test data has no prompts with completions that fit into the student's positions. Pass --test-data with "
            "prompts, or lower --generate-tokens."
        )
    return Completer(found[: settings.generate], tokenizer, documents.vocabulary, sampling, settings.batch_size, score)
