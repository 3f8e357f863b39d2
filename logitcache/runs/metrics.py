"""The headline metric of a run: its name, unit and direction, without torch."""

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
        name: Key of the metric in the results and in every line of `metrics.jsonl`.
        unit: "share" for values in [0, 1], which are shown in percent; otherwise the name of the unit, e.g. "nats".
        better: "higher" or "lower".
    """

    name: str
    unit: str
    better: str

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            InputError: If `better` is neither, or if a field is not a non-empty string.
        """
        if self.better not in _BETTER or not all(isinstance(text, str) and text for text in (self.name, self.unit)):
            raise InputError(
                f"a metric needs a name, a unit, and better 'higher' or 'lower', not {self.name!r}, {self.unit!r} and {self.better!r}"
            )

    @property
    def label(self) -> str:
        """The name as words: "test accuracy"."""
        return self.name.replace("_", " ")

    @property
    def heading(self) -> str:
        """Heading of a column or axis, e.g. "test accuracy" (in percent) or "test loss (nats)"."""
        return self.label if self.unit == "share" else f"{self.label} ({self.unit})"

    def best(self, values: Iterable[float]) -> float:
        """Return the best value: the largest or the smallest."""
        return max(values) if self.better == "higher" else min(values)

    def gain(self, value: float, baseline: float) -> float:
        """Return the gain of a value over a baseline; positive is better in either direction."""
        return value - baseline if self.better == "higher" else baseline - value

    def cell(self, value: float | None) -> str:
        """Format a value for a column with this heading, e.g. "71.00%" or "1.2345"; "-" for None."""
        if value is None:
            return "-"
        return f"{value:.2%}" if self.unit == "share" else f"{value:.4f}"

    def text(self, value: float) -> str:
        """Format a value with its unit, e.g. "71.00%" or "1.2345 nats"."""
        return self.cell(value) if self.unit == "share" else f"{self.cell(value)} {self.unit}"

    def spread(self, value: float) -> str:
        """Format a deviation or error: in percentage points for a share, e.g. "1.41", otherwise in the unit, e.g. "0.0123"."""
        return f"{100 * value:.2f}" if self.unit == "share" else f"{value:.4f}"

    def difference(self, value: float) -> str:
        """Format a signed difference: in percentage points for a share, e.g. "+6.00", otherwise in the unit, e.g. "+0.0312"."""
        return f"{100 * value:+.2f}" if self.unit == "share" else f"{value:+.4f}"

    def to_json(self) -> dict[str, Any]:
        """Return the metric as recorded in run.json."""
        return asdict(self)


ACCURACY = Metric("test_accuracy", "share", "higher")
LOSS = Metric("test_loss", "nats", "lower")
PERPLEXITY = Metric("perplexity", "per token", "lower")
_METRICS = {metric.name: metric for metric in (ACCURACY, LOSS, PERPLEXITY)}


def find_metric(name: str) -> Metric:
    """Return a metric by the name that a modality's `headline` gives.

    Raises:
        UnknownNameError: If there is no such metric.
    """
    if name not in _METRICS:
        raise unknown_name("metric", name, _METRICS)
    return _METRICS[name]


def read_headline(run: Mapping[str, Any], metrics: Mapping[str, Any]) -> Metric:
    """Return the headline metric of a run.

    Args:
        run: Content of run.json, with `headline` in `results`, or at the top level for an unfinished run.
        metrics: Metrics of the last epoch. An unfinished run without a headline and without `test_accuracy` falls back to `test_loss`
            if it has that.

    Returns:
        The headline metric; `ACCURACY` if the run records none.

    Raises:
        InputError: If the recorded headline is damaged.
    """
    found = (run.get("results") or {}).get("headline") or run.get("headline")
    if found is None:
        unfinished_loss = "results" not in run and ACCURACY.name not in metrics and LOSS.name in metrics
        return LOSS if unfinished_loss else ACCURACY
    try:
        return Metric(**found)
    except TypeError as error:
        raise InputError(f"the headline metric {found!r} of a run cannot be read: {error}") from error
