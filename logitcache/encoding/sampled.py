"""Classes sampled from the teacher's distribution with replacement: a few dozen ids per row, and an unbiased gradient.

    ids ~ q = softmax(z / t), N times,    target of class c = (number of samples of c) / N · p_c / q_c,    p = softmax(z)

The expectation of the target is p for any t, so everything linear in the targets is unbiased, such as the gradient of KL(p || softmax(s)),
which is softmax(s) - p. At t = 1 the ratio is 1. Anshumann et al.: Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs. ACL
2025, arXiv 2503.16870. The random numbers are an argument, a pure function of seed, view and row (`logitcache.store.row_uniforms`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from logitcache.encoding.columns import Column
from logitcache.encoding.rows import PartialRows
from logitcache.errors import InputError

__all__ = ["DrawnRows", "SampledEncoding"]

_LEAST, _MOST = 0.5, 4.0  # range of the proposal temperature in which float16 can hold the ratios
_LOWEST = -65504.0  # float16
_MANY = 65_535


@dataclass(frozen=True, slots=True)
class DrawnRows(PartialRows):
    """Decoded sampled rows.

    Losses whose gradient is linear in the teacher's probabilities accept them in place of logits; all others refuse them. They cannot be
    completed, because nothing is known about classes that were not sampled.

    Attributes:
        ids: Sampled classes, ascending and with repetitions, [B, N] int64.
        targets: Contribution of each sample to the target of its class, [B, N] float32; 1 / N if the proposal temperature is 1.
        first: Class with the teacher's largest logit, [B] int64.
        log_prob_first: Log probability of `first`, [B] float32.
        log_prob_label: Log probability of the label, [B] float32.
        entropy: Entropy of the teacher's distribution in nats, [B] float32.
        classes: Number of classes C.
    """

    ids: Tensor
    targets: Tensor
    first: Tensor
    log_prob_first: Tensor
    log_prob_label: Tensor
    entropy: Tensor
    classes: int

    def __repr__(self) -> str:
        return self.in_one_line(self.targets, draws=self.ids.shape[-1])

    @property
    def unranked(self) -> None:
        """Always None: the label's log probability is known, whatever its rank."""
        return

    def why_not_logits(self) -> str:
        """Return why these rows are not logits, for an error message."""
        return (
            f"these rows hold {self.ids.shape[-1]} classes sampled from a distribution over {self.classes:,}. Pass them to a logitcache "
            "loss as they are; they cannot be completed to logits."
        )


@dataclass(frozen=True, slots=True)
class SampledEncoding:
    """Encoding that stores samples from a row's distribution, and four facts about the row that are exact up to rounding.

    Attributes:
        draws: Number of samples N per row.
        seed: Seed of the random numbers.
        proposal_temperature: Temperature t of the distribution to sample from. Above 1, rare classes are sampled more often and weigh
            less.
    """

    draws: int
    seed: int = 0
    proposal_temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.draws <= _MANY:
            raise InputError(f"the number of samples must be from 1 to {_MANY:,}, not {self.draws}")
        if not _LEAST <= self.proposal_temperature <= _MOST:
            raise InputError(
                f"the proposal temperature must be from {_LEAST:g} to {_MOST:g}, not {self.proposal_temperature:g}"
            )

    @property
    def dtype(self) -> str:
        """Precision of the facts, and of the ratios p / q if the proposal temperature is not 1."""
        return "f16"

    def columns(self, classes: int) -> dict[str, Column]:
        """Return the columns that are stored for each row."""
        ids = "|u1" if classes <= 1 << 8 else "<u2" if classes <= 1 << 16 else "<u4"
        # Row-major, so that repeated ids of a row are adjacent: a tenth smaller than column-major.
        found = {
            "draws": Column((self.draws,), ids, ("draw",), compression=9, by_column=False),
            "first": Column((), ids, (), compression=9),
            "facts": Column((3,), "<f2", ("statistic",), compression=1),
        }
        if self.proposal_temperature != 1:
            found["ratios"] = Column((self.draws,), "<f2", ("draw",), compression=9, by_column=False)
        return found

    def encode(self, logits: Tensor, labels: Tensor, uniforms: Tensor) -> dict[str, Tensor]:
        """Encode logits as columns.

        Args:
            logits: Teacher logits, [B, C] float32.
            labels: True class of each row, [B] int64.
            uniforms: Random numbers in (0, 1), ascending in each row, [B, N] float64.
        """
        total = logits.logsumexp(1, keepdim=True)
        top, first = logits.max(1, keepdim=True)
        weights = (
            logits - top if self.proposal_temperature == 1 else (logits - top) / self.proposal_temperature
        ).exp_()
        below = weights.cumsum(1, dtype=torch.float64)  # upper end of each class's interval
        ids = torch.searchsorted(below, uniforms.to(below.device) * below[:, -1:], right=True)
        ids.clamp_(max=logits.shape[1] - 1)  # if logits are NaN, which `dump` refuses
        log_probs = torch.cat([top, logits.gather(1, labels[:, None])], 1) - total
        # The entropy: Σ p (log Σ e^z - z)
        weights = torch.sub(logits, total, out=weights)
        entropy = -(weights.exp() * weights.clamp_min_(_LOWEST)).sum(1, keepdim=True)
        columns = {
            "draws": torch.diff(ids, dim=1, prepend=torch.zeros_like(ids[:, :1])),
            "first": first.squeeze(1),
            "facts": torch.cat([log_probs, entropy], 1).clamp_min(_LOWEST).half(),
        }
        if self.proposal_temperature != 1:
            drawn = logits.gather(1, ids) - top
            log_q = drawn / self.proposal_temperature - below[:, -1:].log().float()
            columns["ratios"] = (drawn + log_probs[:, :1] - log_q).exp().half()
        return columns

    def top_classes(self, columns: Mapping[str, Tensor]) -> Tensor:
        """Return the class with the largest logit of each row, [B] int64."""
        return columns["first"].long()

    def decode(self, columns: Mapping[str, Tensor], labels: Tensor, classes: int) -> DrawnRows:
        """Decode columns to rows, on the columns' device."""
        del labels
        ids = columns["draws"].long().cumsum(1)
        ratios = columns["ratios"].float() if "ratios" in columns else torch.ones(ids.shape, device=ids.device)
        of_first, of_label, entropy = columns["facts"].float().unbind(1)
        first = columns["first"].long()
        return DrawnRows(ids, ratios / self.draws, first, of_first, of_label, entropy, classes)

    def check(self, columns: Mapping[str, NDArray[Any]], classes: int) -> str | None:
        """Return a problem with a fully written view (a class that does not exist), or None."""
        steps, first = columns["draws"], columns["first"]
        if len(steps) and max(int(steps.sum(1, dtype=np.int64).max()), int(first.max())) >= classes:
            return f"a row lists classes beyond {classes - 1}"
        return None

    def to_json(self) -> dict[str, Any]:
        """Return the manifest entry."""
        return {
            "kind": "sampled",
            "dtype": self.dtype,
            "draws": self.draws,
            "seed": self.seed,
            "proposal_temperature": self.proposal_temperature,
        }
