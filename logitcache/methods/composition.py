"""Compose a loss from its pieces: refine ∘ scale ∘ temperature ∘ divergence.

loss(student, teacher, y) = Σ_T  divergence( scale(student), scale(refine(teacher, y)), y, temperature=T )
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from logitcache.errors import InputError, UnknownNameError, unknown_name
from logitcache.methods._ops import Positive
from logitcache.methods._parameters import PIECES, WEIGHTS, call_text, check_value, keywords_of
from logitcache.methods.atkd import adaptive
from logitcache.methods.distillation import Distillation
from logitcache.methods.loca import loca
from logitcache.methods.method import Method, MethodLike, TemperatureChoice
from logitcache.methods.normkd import by_deviation
from logitcache.methods.sld import swap
from logitcache.methods.table import find_method, given_loss, method_name

__all__ = [
    "REFINEMENTS",
    "TEMPERATURES",
    "Parameter",
    "compose",
    "get_loss",
    "needs_of",
    "parameters_of",
    "preset_of",
    "refuse_extra_settings",
    "serves_draws",
]

REFINEMENTS: dict[str, Callable[..., Tensor]] = {"loca": loca, "swap": swap}
TEMPERATURES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"adaptive": adaptive, "deviation": by_deviation}


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a composed loss: the piece that takes it, its name there, its default and its annotation."""

    piece: str
    name: str
    default: Any
    annotation: Any


def get_loss(
    name: MethodLike,
    *,
    preset: str | None = None,
    refine: str | None = None,
    standardize: bool | None = None,
    temperature: TemperatureChoice | None = None,
    tail: str | None = None,
    **parameters: Any,
) -> Distillation:
    """Return the distillation loss of a method.

    Args:
        name: Key of `METHODS`, `package.module:function`, or a method object (see `find_method`).
        preset: Name of one of the method's presets, as listed by `logitcache methods NAME`.
        refine: Label-aware edit of the teacher's logits: "loca", "swap" or "none". Defaults to the method's.
        standardize: Whether to z-score both sets of logits first (LSKD's plug-in). Defaults to the method's.
        temperature: A number, several numbers (the loss is summed over them), "adaptive" (ATKD) or "deviation" (NormKD). Defaults
            to the method's.
        tail: Treatment of the classes that a top-k cache dropped: "uniform" (the default) spreads their probability evenly, "bucket"
            merges them into one class.
        **parameters: Hyperparameters of the method and its pieces, as listed by `logitcache methods NAME`.

    Returns:
        `loss(student, teacher, labels)` with [B, C], [B, C], [B] -> [B], or 0-dim if the method couples the batch.

    Raises:
        UnknownNameError: If there is no such method, piece, preset or parameter.
        InputError: If a value is out of range, or if the pieces cannot be combined.
    """
    given = {"refine": refine, "standardize": standardize, "temperature": temperature, "tail": tail}
    pieces = {word: value for word, value in given.items() if value is not None}
    loss = given_loss(name)
    if loss is not None:
        refuse_extra_settings(name, {**pieces, **parameters}, preset)
        return loss
    chosen = {word: value for word, value in preset_of(name, preset).items() if word not in WEIGHTS}
    return compose(method_name(name), find_method(name), merge_settings(chosen, {**pieces, **parameters}))


def refuse_extra_settings(method: MethodLike, settings: Mapping[str, Any], preset: str | None) -> None:
    """Refuse pieces, parameters or a preset for a loss that is already composed.

    Raises:
        InputError: If any are given.
    """
    words = [*(() if preset is None else ("preset",)), *settings]
    if words:
        raise InputError(
            f"{method_name(method)} is already a complete loss and takes no {', '.join(words)}; pass them to get_loss, or to the "
            "function itself"
        )


def preset_of(method: MethodLike, preset: str | None) -> Mapping[str, Any]:
    """Return the settings of a preset; empty if `preset` is None."""
    name, presets = method_name(method), find_method(method).presets
    if preset is None:
        return {}
    if not presets:
        raise UnknownNameError(f"{name} has no presets")
    if not isinstance(preset, str) or preset not in presets:
        raise unknown_name(f"preset of {name}", str(preset), presets)
    return presets[preset]


def merge_settings(preset: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Override a preset's settings with the given ones; `base` replaces the preset's temperature."""
    kept = {word: value for word, value in preset.items() if not (word == "temperature" and "base" in given)}
    return {**kept, **given}


def parameters_of(
    name: MethodLike, *, refine: str | None = None, temperature: TemperatureChoice | None = None
) -> dict[str, Any]:
    """Return the parameters of a method with these pieces, and their defaults.

    Raises:
        UnknownNameError: If there is no such method or piece.
    """
    method = find_method(name)
    if method.divergence is None or given_loss(name) is not None:
        return {}
    pieces = _Pieces.of(method_name(name), method, {"refine": refine, "temperature": temperature})
    found = {word: parameter.default for word, parameter in pieces.parameters().items()}
    return ({"temperature": pieces.temperature} if pieces.temperature is not None else {}) | found


def serves_draws(name: str, method: Method) -> bool:
    """Return whether a method can be trained from sampled classes, at temperature 1 and with its default pieces."""
    return method.divergence is not None and _Pieces.of(name, method, {"temperature": 1.0}).why_not_drawn() is None


def needs_of(name: str, method: Method) -> str:
    """Return what a cache must store for a method with its default pieces: "labels", "top-k" or "every class"."""
    if method.divergence is None:
        return method.needs
    return "every class" if _Pieces.of(name, method, {}).why_every_class() else method.needs


def compose(name: str, method: Method, settings: Mapping[str, Any]) -> Distillation:
    """Build the loss of a method with the given pieces and parameters (see `get_loss`)."""
    if method.divergence is None:
        raise InputError(f"{name} has no distillation term")
    pieces = _Pieces.of(name, method, settings)
    pieces.check_combination()
    words = {word: value for word, value in settings.items() if word not in PIECES}
    bound = pieces.bind(words)
    refinement = functools.partial(REFINEMENTS[pieces.refine], **bound["refine"]) if pieces.refine else None
    temperatures = tuple(
        functools.partial(TEMPERATURES[one], **bound[one]) if isinstance(one, str) else one
        for one in pieces.temperatures()
    )
    divergence = functools.partial(method.divergence, **bound["divergence"])
    whole = Distillation(
        divergence,
        refinement,
        pieces.standardize,
        temperatures,
        method.couples_batch,
        method.acts_on,
        pieces.refine is not None or not method.ignores_labels,
        bucket=settings.get("tail") == "bucket",
        every_class=pieces.why_every_class(),
        unranked=method.unranked,
        condensed=functools.partial(method.condensed, **bound["divergence"]) if method.condensed else None,
        of_sequence=_bind_of_sequence(method, pieces, bound["divergence"]),
        drawn=functools.partial(method.drawn, **bound["divergence"]) if method.drawn else None,
        not_drawn=pieces.why_not_drawn(),
        assumed=method.assumed,
        name=call_text("get_loss", [name], settings),
    )
    return replace(whole, parts={part: _single_term(whole, turned_off) for part, turned_off in method.parts.items()})


def _bind_of_sequence(method: Method, pieces: "_Pieces", bound: Mapping[str, Any]) -> Callable[..., Tensor] | None:
    """Bind the parameters of a method's `of_sequence`; such a method has a single temperature."""
    if method.of_sequence is None:
        return None
    (temperature,) = pieces.temperatures()
    return functools.partial(method.of_sequence, **bound, temperature=temperature)


def _single_term(whole: Distillation, turned_off: Mapping[str, Any]) -> Distillation:
    """Return one term of a loss, by turning the others off."""
    return replace(
        whole,
        divergence=functools.partial(whole.divergence, **turned_off),
        unranked={**whole.unranked, **turned_off} if whole.unranked else {},
        condensed=functools.partial(whole.condensed, **turned_off) if whole.condensed else None,
        drawn=functools.partial(whole.drawn, **turned_off) if whole.drawn else None,
    )


@dataclass(frozen=True, slots=True)
class _Pieces:
    """The pieces of a composed loss, before parameters are bound."""

    name: str
    method: Method
    refine: str | None
    standardize: bool
    temperature: TemperatureChoice | None
    base: float | None  # number given as the temperature of a method that uses "deviation"
    requested: Mapping[str, Any]  # settings given by the user

    @classmethod
    def of(cls, name: str, method: Method, settings: Mapping[str, Any]) -> "_Pieces":
        refine = method.refine if settings.get("refine") is None else settings["refine"]
        if refine is not None and refine not in ["none", *REFINEMENTS]:
            raise unknown_name("refinement", str(refine), ["none", *REFINEMENTS])
        refine = None if refine == "none" else refine
        given = method.temperature if settings.get("temperature") is None else settings["temperature"]
        temperature: Any = None if given is None else _checked_temperature(name, given)
        base: float | None = None
        if method.temperature == "deviation" and not any(isinstance(one, str) for one in _as_tuple(temperature)):
            if len(_as_tuple(temperature)) != 1:
                raise InputError(
                    f"{name}: the temperature multiplies the deviation of each row, so it must be one number, not {temperature}"
                )
            base, temperature = _as_tuple(temperature)[0], "deviation"
        if temperature is None:
            temperature = keywords_of(method.divergence).get("temperature", (None, None))[0]
        scaled = settings.get("standardize")
        if scaled is not None and not isinstance(scaled, bool):
            raise InputError(f"{name}: standardize must be true or false, not {scaled!r}")
        by_row = "adaptive" in _as_tuple(temperature)
        return cls(
            name,
            method,
            refine,
            by_row or method.standardize if scaled is None else scaled,
            temperature,
            base,
            settings,
        )

    def temperatures(self) -> tuple[Any, ...]:
        return _as_tuple(self.temperature)

    def parameters(self) -> dict[str, Parameter]:
        """Return every parameter by name; a plug-in's parameter is prefixed with its name if the divergence has one of that name."""
        found = {
            word: Parameter("divergence", word, default, annotation)
            for word, (default, annotation) in keywords_of(self.method.divergence).items()
            if word != "temperature"
        }
        plugged: list[tuple[str, str, Callable[..., Any]]] = []
        if self.refine:
            plugged.append(("refine", self.refine, REFINEMENTS[self.refine]))
        plugged += [(one, one, TEMPERATURES[one]) for one in self.temperatures() if isinstance(one, str)]
        for piece, name, function in plugged:
            for word, (default, annotation) in keywords_of(function).items():
                key = f"{name}_{word}" if word in found else word
                found[key] = Parameter(piece, word, self._default(word, default), annotation)
        return found

    def _default(self, word: str, default: Any) -> Any:
        """Return a plug-in's default, which may depend on the other pieces."""
        if word == "calibration_temperature":
            numbers = (
                () if self.standardize else self.temperatures()
            )  # a temperature of z-scores is not one of raw logits
            return numbers[0] if len(numbers) == 1 and not isinstance(numbers[0], str) else None
        return self.base if word == "base" and self.base is not None else default

    def bind(self, words: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Check every value and assign it to its piece."""
        known, good = self.parameters(), dict[str, Any]()
        for word, value in words.items():
            if word not in known:
                tempered = ["temperature"] if self.temperature is not None else []
                raise UnknownNameError(
                    f"unknown parameter {word!r} of {self.name}; expected {', '.join([*tempered, *known]) or 'none'}"
                )
            good[word] = check_value(self.name, word, known[word].annotation, value)
        if self.base is not None and "base" in words:
            raise InputError(
                f"{self.name}: temperature {self.base:g} and base {words['base']:g} set the same parameter; pass only one"
            )
        bound: dict[str, dict[str, Any]] = {"divergence": {}, "refine": {}, **{name: {} for name in TEMPERATURES}}
        for word, parameter in known.items():
            value = good.get(word, parameter.default)
            if value is None and parameter.piece == "refine":
                raise InputError(
                    f"{self.name}: loca needs a single temperature of raw logits to compute probabilities, and this "
                    f"method has none; set {word} (usually 1 or 4)"
                )
            bound[parameter.piece][parameter.name] = value
        return bound

    def why_every_class(self) -> str | None:
        """Return why the loss cannot be computed from top-k rows, or None if it can."""
        if self.method.assumed:
            return (
                f"{self.name} is a plain function, which is assumed to need every logit of a row (wrap it in a logitcache.methods.Method "
                'with needs="top-k" if it does not)'
            )
        if self.method.needs == "every class":
            return f"{self.name} needs every logit of a row"
        if self.standardize:
            return "z-scoring needs every logit of a row"
        if any(isinstance(one, str) for one in self.temperatures()):
            return f"a per-row temperature ({', '.join(map(str, self.temperatures()))}) needs every logit of a row"
        return None

    def why_not_drawn(self) -> str | None:
        """Return why the loss cannot be computed from sampled classes, or None if it can."""
        if self.method.assumed:
            return f"{self.name} is a plain function, which is assumed not to be linear in the teacher's probabilities"
        if self.method.drawn is None:
            return (
                f"{self.name} is not linear in the teacher's probabilities, so sampled classes would bias its gradient"
            )
        if self.refine:
            return f"{self.refine} edits the teacher's probabilities, but classes were sampled from the unedited ones"
        if self.standardize:
            return "z-scoring needs every logit of a row"
        if self.temperatures() != (1.0,):
            return f"classes were sampled at temperature 1, not {format_temperature(self.temperature)}"
        return None

    def check_combination(self) -> None:
        """Refuse combinations of pieces that make no sense, with the reason."""
        asked = {piece for piece in ("refine", "standardize") if self.requested.get(piece) not in (None, False, "none")}
        asked |= {one for one in self.temperatures() if isinstance(one, str)}
        if "adaptive" in asked:
            asked.add("standardize")  # implied by "adaptive"
        if len(self.temperatures()) > 1:
            asked.add("several")
        for piece, reason in self.method.refuses.items():
            if piece in asked:
                raise InputError(f"{self.name} takes no {_PIECE_TITLES.get(piece, piece)}: {reason}")
        if self.requested.get("temperature") is not None and "temperature" not in keywords_of(self.method.divergence):
            raise InputError(
                f"unknown parameter 'temperature' of {self.name}; expected {', '.join(self.parameters()) or 'none'}"
            )
        if self.requested.get("tail") not in (None, "uniform", "bucket"):
            raise unknown_name("tail", str(self.requested["tail"]), ["uniform", "bucket"])
        if self.requested.get("tail") == "bucket" and not self.method.takes_bucket:
            raise InputError(
                f"{self.name} does not support tail 'bucket': it needs the logit of each class; use tail 'uniform'"
            )
        if "adaptive" in self.temperatures() and not self.standardize:
            raise InputError(
                f"{self.name}: an adaptive temperature needs z-scored logits; do not turn standardization off"
            )
        if "deviation" in self.temperatures() and self.standardize:
            raise InputError(
                f"{self.name}: z-scored logits all have deviation 1, so temperature 'deviation' has no effect; drop one of the two"
            )


_PIECE_TITLES = {
    "several": "sum over temperatures",
    "refine": "refinement",
    "standardize": "standardization",
    "deviation": "temperature by deviation",
}


def format_temperature(temperature: Any) -> str:
    """Format a choice of temperatures as the command line accepts it."""
    return ",".join(f"{one:g}" if isinstance(one, float) else str(one) for one in _as_tuple(temperature))


def _as_tuple(temperature: Any) -> tuple[Any, ...]:
    if temperature is None:
        return ()
    return tuple(temperature) if isinstance(temperature, tuple | list) else (temperature,)


def _checked_temperature(name: str, temperature: Any) -> TemperatureChoice:
    for one in _as_tuple(temperature):
        if isinstance(one, str):
            if one not in TEMPERATURES:
                raise unknown_name("temperature", one, [*TEMPERATURES, "a number", "several numbers"])
        else:
            check_value(name, "temperature", Positive, one)
    if temperature in ((), []):
        raise InputError(f"{name}: temperature must be at least one number")
    several: TemperatureChoice = tuple(temperature) if isinstance(temperature, list) else temperature
    return several
