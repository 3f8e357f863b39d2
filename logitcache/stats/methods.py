"""Preview the effect of methods on stored rows, without a student and without torch, with the formulas of `logitcache.methods`.

About 65,536 rows at most are used, spread over all views. For top-k rows, LoCa, swap and RLD see what they would see in training, with
the rest filled in at their temperature. ATKD and NormKD refuse such rows, because the student's counterpart is unknown, but the teacher's
temperature follows from the kept logits and the stored mean, deviation and minimum of the rest. In a row whose label is not among the k
largest logits, RLD masks at least these k, and this minimum is counted.
"""

import math

import numpy as np
from numpy.typing import NDArray

from logitcache.stats.records import MethodPreview, Quantiles
from logitcache.stats.rows import Floats, Rows

__all__ = ["PREVIEW_ROWS", "Preview", "Previews", "preview_rows"]

PREVIEW_ROWS = 65_536
_TEMPERATURES = (1.0, 2.0, 4.0)
_RANKS = 50
_ALPHA, _CALIBRATION = 0.95, 4.0  # defaults of LoCa
_FACTOR = (1 + math.sqrt(3)) / 2  # constant of ATKD
_BASE = 2.0  # default base temperature of NormKD
_TINY = 1e-7  # added to deviations

_OF_ROWS = ("wrong", "loca", "swap", "hidden", "atkd", "normkd", "deviation")

Doubles = NDArray[np.float64]
Preview = dict[str, Doubles]  # quantities of each row by name, [B] or [B, ...]


def preview_rows(rows: Rows, *, mixed: bool = False) -> Preview:
    """Compute the effect of methods on each row; quantities that depend on the label are left out for mixed rows, which have two."""
    masses = [_masses(rows, temperature) for temperature in _TEMPERATURES]
    total = masses[0].sum(1)
    own = rows.own.astype(np.float64)
    p_label, p_first = np.exp(own) / total, 1 / total
    lifted = np.exp(_lifted(rows, own))
    hidden = (rows.gaps >= rows.own[:, None]).sum(1)
    deviation, largest = _spread(rows)
    of_label = {
        "wrong": rows.wrong.astype(np.float64),
        # Editing one logit scales all other probabilities by the same factor, so the distance equals the label's gain.
        "loca": lifted / (lifted + total - np.exp(own)) - p_label,
        "swap": p_first - p_label,
        "hidden": hidden.astype(np.float64),
    }
    return ({} if mixed else of_label) | {
        "atkd": np.maximum(_FACTOR * largest / (deviation + _TINY), _FACTOR * _TINY),
        "normkd": _BASE * np.where(deviation <= 0, _TINY, deviation),
        "deviation": deviation,
        "outside": np.stack([mass[:, 1] / mass.sum(1) for mass in masses], 1),
        "by_rank": np.exp(_largest(rows)) / total[:, None],
    }


class Previews:
    """Accumulates previews: a few quantities of each row, and sums."""

    def __init__(self) -> None:
        self._rows: list[Preview] = []
        self._outside, self._by_rank = np.zeros(len(_TEMPERATURES)), np.zeros(0)

    def add(self, found: Preview) -> None:
        """Add the preview of some rows."""
        self._rows.append({name: found[name] for name in _OF_ROWS if name in found})
        self._outside += found["outside"].sum(0)
        self._by_rank = found["by_rank"].sum(0) + (self._by_rank if len(self._by_rank) else 0)

    def summary(self, changed: float) -> MethodPreview:
        """Return the summary.

        Args:
            changed: Fraction of all rows that LoCa and swap edit, those whose top class is not the label.
        """
        every = {
            name: np.concatenate([np.zeros(0), *(part[name] for part in self._rows if name in part)])
            for name in _OF_ROWS
        }
        wrong, hides, rows = every["wrong"] > 0, every["hidden"] > 1, len(every["deviation"])
        outside = (self._outside / max(rows, 1)).tolist()
        return MethodPreview(
            rows=rows,
            labelled=len(wrong),
            loca_changed=changed,
            loca_moved=_mean(every["loca"][wrong]),
            swap_changed=changed,
            swap_moved=_mean(every["swap"][wrong]),
            rld_masked=_mean(hides),
            rld_hidden=_mean(every["hidden"][hides]),
            atkd_temperature=_quantiles(every["atkd"]),
            normkd_temperature=_quantiles(every["normkd"]),
            deviation=_quantiles(every["deviation"]),
            mass_outside={
                f"T={one:g}": share for one, share in zip(_TEMPERATURES, outside, strict=True) if math.isfinite(share)
            },
            mass_by_rank=(self._by_rank / max(rows, 1)).tolist(),
        )


def _quantiles(values: NDArray[np.floating]) -> Quantiles:
    """Return the quantiles of values, [B]; zeros if there are none."""
    if not len(values):
        values = np.zeros(1)
    low, p5, p25, median, p75, p95, high = np.quantile(values, (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)).tolist()
    return Quantiles(low, p5, p25, median, p75, p95, high, float(values.mean()))


def _mean(values: NDArray[np.bool_] | Doubles) -> float:
    return float(values.mean()) if len(values) else 0.0


def _masses(rows: Rows, temperature: float) -> Doubles:
    """Return Σ exp(gap / T) of the kept classes and of the rest, [B, 2]."""
    kept = np.exp(rows.gaps.astype(np.float64) / temperature).sum(1)
    if rows.rest is None:
        return np.stack([kept, np.zeros_like(kept)], 1)
    return np.stack([kept, rows.others * np.exp(rows.level(temperature).astype(np.float64) / temperature)], 1)


def _lifted(rows: Rows, own: Doubles) -> Doubles:
    """Return the label's logit after LoCa, relative to the largest, for wrong rows, [B] (logitcache/methods/loca.py)."""
    rest = _masses(rows, _CALIBRATION).sum(1) - np.exp(
        own / _CALIBRATION
    )  # in a wrong row, the largest logit is part of it
    with np.errstate(divide="ignore", invalid="ignore"):  # the values of correct rows are not used
        rest = np.log(np.maximum(rest, 0)) + math.log1p(-_ALPHA)
        return np.asarray(_CALIBRATION * (np.logaddexp(0, rest) - math.log(_ALPHA)))


def _spread(rows: Rows) -> tuple[Doubles, Doubles]:
    """Return the unbiased standard deviation over all classes and the largest distance of a logit from the row's mean, [B] each."""
    gaps = rows.gaps.astype(np.float64)
    total, lowest = gaps.sum(1), gaps.min(1)
    mean_of_rest = deviation_of_rest = np.zeros(len(gaps))
    if rows.rest is not None and rows.rest.shape[1] == 1:  # only the mass of the rest is known
        unknown = np.full(len(gaps), np.nan)
        return unknown, unknown
    if rows.rest is not None:
        mean_of_rest, deviation_of_rest, _, minimum = rows.rest.astype(np.float64).T
        total, lowest = total + rows.others * mean_of_rest, np.minimum(lowest, minimum)
    mean = total / rows.classes
    square = ((gaps - mean[:, None]) ** 2).sum(1)
    square += rows.others * (deviation_of_rest**2 + (mean_of_rest - mean) ** 2)
    return np.sqrt(square / (rows.classes - 1)), np.maximum(-mean, mean - lowest)


def _largest(rows: Rows) -> Floats:
    """Return the largest logits relative to the first, in descending order, [B, ranks]; at most k for top-k rows."""
    kept = rows.gaps.shape[1] - (rows.ids is not None)
    ranks = min(_RANKS, kept)
    gaps = rows.gaps
    if gaps.shape[1] > 2 * ranks:
        gaps = np.partition(gaps, gaps.shape[1] - ranks, 1)[:, -ranks:]
    found: Floats = np.sort(gaps, 1)[:, ::-1][:, :ranks]
    return found
