"""ROUGE-L of completions, as reported by MiniLLM, DistiLLM and later papers."""

from collections.abc import Callable, Sequence
from importlib import import_module

from logitcache.errors import InputError

__all__ = ["rouge_l"]


def rouge_l() -> Callable[[str, Sequence[str]], float]:
    """Return a function that computes the largest ROUGE-L F-measure of a completion over its references, in [0, 1].

    Words are stemmed, as in the rouge_metric.py of MiniLLM and DistiLLM, which print percentages.

    Raises:
        InputError: The package rouge-score is not installed.
    """
    try:
        scoring = import_module("rouge_score.rouge_scorer")
    except ImportError as error:
        raise InputError(
            "ROUGE-L requires the package rouge-score; install it with pip install 'logitcache[rouge]'"
        ) from error
    scorer = scoring.RougeScorer(["rougeL"], use_stemmer=True)

    def score(completion: str, references: Sequence[str]) -> float:
        return max(float(scorer.score(reference, completion)["rougeL"].fmeasure) for reference in references)

    return score
