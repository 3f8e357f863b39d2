"""The number that a run is judged by: its name, its unit, and which way is better. Without torch."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from logitcache.errors import InputError, unknown_name

__all__ = ["ACCURACY", "LOSS", "PERPLEXITY", "Metric", "find_metric", "read_headline"]

_BETTER = ("higher", "lower")


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of a run.

    Attributes:
        name: Key of its value in the results and in every line of `metrics.jsonl`.
        unit: "share" for values in [0, 1], which are written as percent; else the unit's name, as "nats".
        better: "higher" or "lower".
    """

    name: str
    unit: str
    better: str

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            InputError: `better` is neither, or a field is not text.
        """
        if self.better not in _BETTER or not all(isinstance(text, str) and text for text in (self.name, self.unit)):
            raise InputError(
                f"a metric has a name, a unit, and better 'higher' or 'lower', not {self.name!r}, {self.unit!r} and {self.better!r}"
            )

    @property
    def label(self) -> str:
        """The name as words: "test accuracy"."""
        return self.name.replace("_", " ")

    @property
    def heading(self) -> str:
        """Head of a column or an axis: "test accuracy", whose values are percent, or "test loss (nats)"."""
        return self.label if self.unit == "share" else f"{self.label} ({self.unit})"

    def best(self, values: Iterable[float]) -> float:
        """Return the best of some values: the largest, or the smallest."""
        return max(values) if self.better == "higher" else min(values)

    def gain(self, value: float, baseline: float) -> float:
        """Return how much better a value is than a baseline: positive is better, whichever the direction."""
        return value - baseline if self.better == "higher" else baseline - value

    def cell(self, value: float | None) -> str:
        """Write a value below its heading: "71.00%", "1.2345"; "-" if there is none."""
        if value is None:
            return "-"
        return f"{value:.2%}" if self.unit == "share" else f"{value:.4f}"

    def text(self, value: float) -> str:
        """Write a value with its unit: "71.00%", "1.2345 nats"."""
        return self.cell(value) if self.unit == "share" else f"{self.cell(value)} {self.unit}"

    def spread(self, value: float) -> str:
        """Write a deviation or an error: percentage points of a share, "1.41"; else in the unit, "0.0123"."""
        return f"{100 * value:.2f}" if self.unit == "share" else f"{value:.4f}"

    def difference(self, value: float) -> str:
        """Write a difference with its sign: percentage points of a share, "+6.00"; else in the unit, "+0.0312"."""
        return f"{100 * value:+.2f}" if self.unit == "share" else f"{value:+.4f}"

    def to_json(self) -> dict[str, Any]:
        """Return the metric as run.json has it."""
        return asdict(self)


ACCURACY = Metric("test_accuracy", "share", "higher")
LOSS = Metric("test_loss", "nats", "lower")
PERPLEXITY = Metric("perplexity", "per token", "lower")
_METRICS = {metric.name: metric for metric in (ACCURACY, LOSS, PERPLEXITY)}


def find_metric(name: str) -> Metric:
    """Return the metric of this name, as a modality's `headline` gives it.

    Raises:
        UnknownNameError: No such metric.
    """
    if name not in _METRICS:
        raise unknown_name("metric", name, _METRICS)
    return _METRICS[name]


def read_headline(run: Mapping[str, Any], metrics: Mapping[str, Any]) -> Metric:
    """Return the headline metric of a run.

    Args:
        run: Content of its run.json: `headline` in `results`, or beside them for a run that is not finished.
        metrics: Its last epoch. An unfinished run that names no headline and has no `test_accuracy` there is judged by
            `test_loss`, if it has that.

    Returns:
        The metric; `ACCURACY` for a run that names none.

    Raises:
        InputError: The headline is damaged.
    """
    found = (run.get("results") or {}).get("headline") or run.get("headline")
    if found is None:
        unfinished_loss = "results" not in run and ACCURACY.name not in metrics and LOSS.name in metrics
        return LOSS if unfinished_loss else ACCURACY
    try:
        return Metric(**found)
    except TypeError as error:
        raise InputError(f"the headline metric {found!r} of a run cannot be read: {error}") from error
