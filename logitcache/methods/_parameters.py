"""Hyperparameters of methods, read from their signatures and checked against their annotations."""

import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from logitcache.errors import InputError
from logitcache.methods._ops import Interval

__all__ = ["PIECES", "WEIGHTS", "call_text", "check_value", "keywords_of", "qualified_name"]

PIECES = ("refine", "standardize", "temperature", "tail")
WEIGHTS = ("ce_weight", "kd_weight", "warmup")
_RESERVED = {"refine", "standardize", "tail", "preset", "name", *WEIGHTS}


@functools.cache
def keywords_of(function: Callable[..., Any] | None) -> dict[str, tuple[Any, Any]]:
    """Return the default and annotation of each keyword-only parameter of a function."""
    if function is None:
        return {}
    try:
        signature = inspect.signature(function, eval_str=True)
    except NameError:  # names that only a type checker imports
        signature = inspect.signature(function)
    found = {p.name: (p.default, p.annotation) for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY}
    for word, (default, _) in found.items():
        if default is inspect.Parameter.empty:
            raise InputError(f"parameter {word} of {function.__name__} has no default; every hyperparameter needs one")
        if word in _RESERVED:
            raise InputError(
                f"{function.__name__} has a parameter named {word!r}, which is reserved for all methods; rename it"
            )
    return found


def check_value(name: str, word: str, annotation: Any, value: Any) -> Any:
    """Validate a parameter's value against its annotation and return it.

    Args:
        name: Name of the method, for the error message.
        word: Name of the parameter.
        annotation: Annotation of the parameter: a type, optionally with an `Interval`, or a `Literal`.
        value: Value to check.

    Raises:
        InputError: If the value has the wrong type or is out of range.
    """
    interval = next((x for x in getattr(annotation, "__metadata__", ()) if isinstance(x, Interval)), Interval())
    kind = typing.get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise InputError(f"{name}: {word} must be {' or '.join(map(str, choices))}, not {value!r}")
        return value
    if kind is bool:
        if not isinstance(value, bool):
            raise InputError(f"{name}: {word} must be true or false, not {value!r}")
        return value
    numeric = typing.get_args(kind) if typing.get_origin(kind) in (types.UnionType, typing.Union) else (kind,)
    if value is None and types.NoneType in numeric:
        return value
    if kind is str and not isinstance(value, str):
        raise InputError(f"{name}: {word} must be a string, not {value!r}")
    if not {int, float}.intersection(numeric):
        return value  # a custom type; the function itself checks it
    whole = int in numeric and float not in numeric
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    if not good or (whole and value != int(value)):
        raise InputError(f"{name}: {word} must be {'an integer' if whole else 'a finite number'}, not {value!r}")
    if value not in interval:
        raise InputError(f"{name}: {word} must be {interval}, not {value!r}")
    return int(value) if whole else value


def qualified_name(function: Callable[..., Any]) -> str:
    """Return `package.module:name` for a function, or for the class of any other callable; partials include their arguments."""
    if isinstance(function, functools.partial):
        return call_text(qualified_name(function.func), map(_text, function.args), function.keywords)
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def call_text(name: str, positional: Iterable[str], keywords: Mapping[str, Any]) -> str:
    """Format a call, e.g. `get_loss(rld, beta=4)`; equal values always give the same text."""
    words = [*positional, *(f"{word}={_text(value)}" for word, value in sorted(keywords.items()))]
    return f"{name}({', '.join(words)})"


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(float(value)).removesuffix(".0")
    if isinstance(value, tuple | list):
        return "+".join(map(_text, value))
    if callable(value):
        return qualified_name(value)
    return value if isinstance(value, str) else type(value).__name__
