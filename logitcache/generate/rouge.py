"""ROUGE-L of completions, as MiniLLM, DistiLLM and the papers that follow them report it."""

from collections.abc import Callable, Sequence
from importlib import import_module

from logitcache.errors import InputError

__all__ = ["rouge_l"]


def rouge_l() -> Callable[[str, Sequence[str]], float]:
    """Return a function of a completion and its references: the largest F-measure of ROUGE-L over the references, in [0, 1].

    Words are compared by their stems, as in MiniLLM's and DistiLLM's rouge_metric.py. Both print percent.

    Raises:
        InputError: The package rouge-score is not installed.
    """
    try:
        scoring = import_module("rouge_score.rouge_scorer")
    except ImportError as error:
        raise InputError("ROUGE-L needs the package rouge-score: pip install 'logitcache[rouge]'") from error
    scorer = scoring.RougeScorer(["rougeL"], use_stemmer=True)

    def score(completion: str, references: Sequence[str]) -> float:
        return max(float(scorer.score(reference, completion)["rougeL"].fmeasure) for reference in references)

    return score
