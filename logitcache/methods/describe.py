"""Describe methods in text, from the table, their signatures and their docstrings."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from logitcache.methods.composition import REFINEMENTS, TEMPERATURES, needs_of, parameters_of, serves_draws
from logitcache.methods.expected import Expected, expected_of, variants_of
from logitcache.methods.table import find_method

__all__ = ["Description", "describe", "spell"]


@dataclass(frozen=True, slots=True)
class Description:
    """Description of a method for display.

    Attributes:
        name, summary, paper, source: Same as in the table.
        objective: Cross-entropy and distillation term with their weights.
        pieces: Pieces of the method; empty if it is only a divergence.
        needs: Requirements: what a cache must store, batch coupling, labels and views.
        text: Explanation and equation.
        parameters: Name, default and explanation of each parameter.
        notes: Docstring sections "Returns", "Departures" and "Doubts", as far as present.
        presets: Settings of each preset.
        expected: Measured accuracy and gaps, formatted, by task.
        variants: Same with non-default settings, by settings and then by task.
        warning: Warning about these numbers; empty if there is none.
    """

    name: str
    summary: str
    paper: str
    source: str
    objective: str
    pieces: str
    needs: str
    text: str
    parameters: list[tuple[str, str, str]]
    notes: dict[str, str]
    presets: Mapping[str, Mapping[str, Any]]
    expected: Mapping[str, str]
    variants: Mapping[str, Mapping[str, str]]
    warning: str


def describe(name: str) -> Description:
    """Return the description of a method.

    Raises:
        UnknownNameError: If there is no such method.
        InputError: If a method given as `package.module:name` cannot be imported.
    """
    method = find_method(name)
    explained = method.about or method.divergence
    text, sections = _sections(explained)
    if method.about is not None:
        sections.pop("Returns", None)  # describes the piece, not the method
    known = {**_arguments(explained), **_arguments(method.divergence)}
    if method.temperature is not None:
        known["temperature"] = "A number, several numbers (the loss is summed over them), adaptive or deviation."
    for piece in (REFINEMENTS.get(method.refine or ""), *(TEMPERATURES[one] for one in _words(method.temperature))):
        known = {**_arguments(piece), **known}
    parameters = [(word, spell(default), known.get(word, "")) for word, default in parameters_of(name).items()]
    for word, share in method.begins.items():
        parameters.append((f"{word}_after", spell(share), f"Fraction of the training after which {word} is true."))
    weights = "CE" if method.divergence is None else f"{method.ce_weight:g} · CE + {method.kd_weight:g} · {name}"
    if method.warmup:
        weights += f", the second ramped up over the first {method.warmup:.1%} of the epochs"
    pieces = [f"refine {method.refine}"] if method.refine else []
    pieces += ["standardize"] if method.standardize else []
    pieces += [f"temperature {spell(method.temperature)}"] if method.temperature is not None else []
    if pieces and method.divergence is not None:
        pieces.append(f"divergence {method.divergence.__name__}")
    needs = needs_of(name, method)
    if method.couples_batch:
        needs += "; couples the rows of a batch"
    if serves_draws(name, method):
        needs += "; sampled classes suffice (--encoding sampled) at temperature 1"
    if method.refine is not None or not (method.ignores_labels or method.divergence is None):
        needs += "; one label per row: no mixup or CutMix"
    if method.pairs_views:
        needs += "; one view, or pairs of a weak and a strong view as in its paper"
    measured = expected_of(name)
    return Description(
        name,
        method.summary,
        method.paper,
        method.source,
        weights,
        " ∘ ".join(pieces),
        needs,
        text,
        parameters,
        {word: sections[word] for word in ("Returns", "Departures", "Doubts") if word in sections},
        method.presets,
        {one.task.name: str(one) for one in measured},
        _by_changes(variants_of(name)),
        _warning(name, [one.task.name for one in measured if one.is_below_ce], len(measured)),
    )


def _by_changes(variants: Sequence[Expected]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for one in variants:
        found.setdefault(one.changes, {})[one.task.name] = str(one)
    return found


def _warning(name: str, below: Sequence[str], tasks: int) -> str:
    """Return a warning if a method is less accurate than labels alone on some task."""
    if not below:
        return ""
    where = f"on {' and '.join(below)}" + (", that is on every task measured" if 1 < len(below) == tasks else "")
    return f"with its defaults {name} is less accurate than cross-entropy alone {where}"


def spell(value: Any) -> str:
    """Format a value as the command line accepts it."""
    if isinstance(value, tuple | list):
        return ",".join(map(spell, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _words(temperature: Any) -> list[str]:
    several = temperature if isinstance(temperature, tuple) else (temperature,)
    return [one for one in several if isinstance(one, str)]


def _sections(function: Callable[..., Any] | None) -> tuple[str, dict[str, str]]:
    """Split a docstring into the text before its sections, and the sections by name."""
    parts = re.split(r"^(Args|Returns|Departures|Doubts|Raises):\n", inspect.getdoc(function) or "", flags=re.MULTILINE)
    bodies = {word: inspect.cleandoc(body) for word, body in zip(parts[1::2], parts[2::2], strict=True)}
    return parts[0].strip(), bodies


def _arguments(function: Callable[..., Any] | None) -> dict[str, str]:
    """Return the explanation of each argument from a docstring."""
    _, sections = _sections(function)
    found = re.findall(r"^(\w+): (.*(?:\n .*)*)", sections.get("Args", ""), flags=re.MULTILINE)
    return {word: " ".join(text.split()) for word, text in found}
