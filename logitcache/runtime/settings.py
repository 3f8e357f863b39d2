"""Settings as frozen dataclasses: one field holds the name, default, range and help text of an option.

The command line, `inspect.signature`, docstrings and `run.json` are all made from the fields, so they cannot disagree.
Groups of settings are combined by inheritance; a function takes the smallest group it needs.
"""

import dataclasses
import functools
import inspect
import numbers
import operator
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from os import PathLike
from pathlib import Path, PurePath
from types import NoneType
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args

from logitcache.errors import InputError, unknown_name

__all__ = [
    "Form",
    "Option",
    "Settings",
    "option",
    "option_of",
    "options_in",
    "panel_of",
    "show_options",
    "to_command_line",
]

# How a value is written on the command line.
Form = Literal[
    "text",
    "integer",
    "number",
    "flag",  # --amp
    "switch",  # --standardize, --no-standardize
    "numbers",  # 0.5,0.5,0.5
    "integers",  # 150,180,210
    "value",  # a number, true, false, a word, or several separated by commas
    "bytes",  # 8GB
    "span",  # 0:50000
    "rows",  # 256, auto
    "samples",  # bad.txt, or 5,37
    "repeated",  # --log-to csv --log-to wandb
    "one-or-more",  # the same; a single one is not a sequence
    "assignments",  # --set beta=4 --set alpha=1
    "argument",  # positional
    "python",  # not available on the command line
]
_FORMS: dict[frozenset[type], Form] = {
    frozenset({bool}): "flag",
    frozenset({bool, NoneType}): "switch",
    frozenset({int}): "integer",
    frozenset({int, NoneType}): "integer",
    frozenset({float}): "number",
    frozenset({float, NoneType}): "number",
}
_PATHS = ((str, Path), (str, Path, NoneType))  # types of a path, which may be None
_OBJECTS = ("text", "argument", "python")  # forms of options that also take objects, which are stored unchanged
_KEY = "option"
_LINE = 112  # characters of a docstring line
Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True)
class Option:
    """The metadata of a field.

    Attributes:
        help: Description in full sentences with units, for the command line and Python.
        metavar: Placeholder for the value in help.
        shown: Default shown in help if the default is None.
        flag: Name on the command line. Defaults to the name of the field.
        form: Syntax of the value on the command line. Derived from the annotation by default.
        minimum: Smallest value allowed.
        conduct: Whether the setting cannot change the result; such settings are not recorded.
        panel: Title of the panel of `--help` that lists it. Defaults to that of its class.
    """

    help: str
    metavar: str | None = None
    shown: str | None = None
    flag: str | None = None
    form: Form | None = None
    minimum: int | None = None
    conduct: bool = False
    panel: str | None = None


def option(
    default: Any = dataclasses.MISSING,
    *,
    help: str,  # noqa: A002
    metavar: str | None = None,
    shown: str | None = None,
    flag: str | None = None,
    form: Form | None = None,
    minimum: int | None = None,
    conduct: bool = False,
    panel: str | None = None,
) -> Any:
    """Declare a field of a settings class.

    Args:
        default: Default value. A field without one is required.
        help: Description in full sentences with units.
        metavar: Placeholder for the value in help.
        shown: Default shown in help if the default is None.
        flag: Name on the command line.
        form: Syntax of the value on the command line.
        minimum: Smallest value allowed.
        conduct: Whether the setting cannot change the result.
        panel: Title of its panel of `--help`.
    """
    entry = Option(help, metavar, shown, flag, form, minimum, conduct, panel)
    return field(default=default, metadata={_KEY: entry})


def option_of(one: "dataclasses.Field[Any]") -> Option:
    """Return the metadata of a field, with the form derived from its annotation if none is given."""
    found: Option = one.metadata[_KEY]
    if found.form is not None:
        return found
    kinds = frozenset(get_args(one.type) or (one.type,))
    return dataclasses.replace(found, form=_FORMS.get(kinds, "text"))


def options_in(kind: "type[Settings]") -> "list[dataclasses.Field[Any]]":
    """Return the fields of a settings class, group by group in the order of its bases."""
    by_name = {one.name: one for one in fields(kind)}
    ordered = dict.fromkeys(name for group in _groups(kind) for name in vars(group).get("__annotations__", {}))
    return [by_name[name] for name in ordered if name in by_name]


def panel_of(kind: "type[Settings]", one: "dataclasses.Field[Any]") -> str:
    """Return the title of the panel of `--help` that a field of a settings class belongs to."""
    group = next(base for base in kind.__mro__ if one.name in vars(base).get("__annotations__", {}))
    found: str = option_of(one).panel or group.panel  # type: ignore[attr-defined]
    return found


def _groups(kind: type) -> Iterator[type]:
    for base in kind.__bases__:
        if is_dataclass(base):
            yield from _groups(base)
    yield kind


@dataclass(frozen=True, kw_only=True, repr=False)
class Settings:
    """Base class of settings: checks names, types and ranges on construction, and converts to and from JSON.

    Sequences are stored as tuples and mappings as immutable copies, so that a settings object cannot change. It is hashable if its values
    are, which arrays are not.

    Attributes:
        panel: Title of the panel of `--help` that lists the fields of this class.
    """

    panel: ClassVar[str] = "Options"

    def __new__(cls, *_: Any, **given: Any) -> Self:
        """Refuse unknown names with a suggestion, before the dataclass would raise TypeError."""
        known = [one.name for one in fields(cls)]
        for name in given:
            if name not in known:
                raise unknown_name("setting", name, known)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        """Freeze the values and check the range of each.

        Raises:
            InputError: If a value is out of range or of the wrong type.
        """
        for one in fields(self):
            entry = option_of(one)
            if entry.form not in _OBJECTS:
                value = getattr(self, one.name)
                if entry.form == "samples" and hasattr(value, "tolist"):
                    value = value.tolist()  # an array of ids
                object.__setattr__(self, one.name, _frozen(value))
            least = f" of {entry.minimum} or more" if entry.minimum is not None else ""
            match entry.form if one.metadata[_KEY].form is None else None:  # as annotated
                case "flag" | "switch":
                    self.check(one.name, lambda value: isinstance(value, bool), "True or False")
                case "integer":
                    self.check(one.name, _is_integer, f"a whole number{least}")
                case "number":
                    self.check(one.name, _is_number, "a number")
                case "text" if set(get_args(one.type) or (one.type,)) <= {str, NoneType}:
                    self.check(one.name, lambda value: isinstance(value, str | PathLike), "a string")
                case _:
                    pass
            if get_args(one.type) in _PATHS:
                self.check(one.name, lambda value: isinstance(value, str | PathLike), "a path")
            if (wanted := _WANTED.get(entry.form or "")) is not None:
                self.check(one.name, *wanted)
            if entry.minimum is not None:
                self.check(one.name, functools.partial(operator.le, entry.minimum), f"{entry.minimum} or more")

    def check(self, name: str, good: Callable[[Any], bool], wanted: str) -> None:
        """Raise InputError unless a field's value is allowed. None is allowed if it is the default.

        Args:
            name: Name of the field.
            good: Function that returns whether a value is allowed.
            wanted: Allowed values for the message, e.g. "greater than 0".
        """
        value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
        try:
            fine = good(value) if value is not None or default is not None else True
        except TypeError:
            fine = False
        if not fine:
            raise InputError(f"{self.flag(name)} must be {wanted}, not {_shown(value)}")

    def check_name(self, name: str, kind: str, known: Collection[str]) -> None:
        """Raise UnknownNameError unless a field's value is a known name. None is allowed if it is the default.

        Args:
            name: Name of the field.
            kind: Kind of thing for the message, e.g. "schedule".
            known: All known names.
        """
        value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
        if value not in known and (value is not None or default is not None):
            raise unknown_name(kind, str(value), known)

    @classmethod
    def flag(cls, name: str) -> str:
        """Return the name of a field on the command line: `--weight-decay`."""
        return cls.flag_of(cls.__dataclass_fields__[name])

    @staticmethod
    def flag_of(one: "dataclasses.Field[Any]") -> str:
        """Return the name of a field on the command line, as `flag`."""
        return f"--{(one.metadata[_KEY].flag or one.name).replace('_', '-')}"

    @classmethod
    def over(cls, settings: Self | None, options: Mapping[str, Any]) -> Self:
        """Return settings with some fields replaced.

        Args:
            settings: Settings to start from. Defaults to the default of every field.
            options: New values by name.

        Raises:
            UnknownNameError: If there is no such field.
            InputError: If a value is out of range, or if `settings` is of another class.
        """
        if settings is not None and not isinstance(settings, cls):
            raise InputError(f"settings must be a {cls.__name__}, not a {type(settings).__name__}")
        return dataclasses.replace(cls() if settings is None else settings, **options)

    def to_json(self) -> dict[str, Any]:
        """Return all fields as plain objects, sorted by name; other objects are replaced by their name or that of their type."""
        every = sorted(fields(self), key=lambda one: one.name)
        return {one.name: _plain(getattr(self, one.name), objects=option_of(one).form in _OBJECTS) for one in every}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Return the settings written by `to_json`; raise UnknownNameError for unknown names."""
        return cls(**content)

    def record(self) -> dict[str, Any]:
        """Return the fields that affect the result as plain objects, without conduct and with defaults resolved."""
        decides = {one.name for one in fields(self) if not option_of(one).conduct}
        return {name: value for name, value in self.to_json().items() if name in decides}

    def __repr__(self) -> str:
        changed = [one.name for one in options_in(type(self)) if not _is_default(one, getattr(self, one.name))]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in changed)})"


class FrozenMapping(Mapping[str, Any]):
    """An immutable, hashable mapping that equals a dict with the same items."""

    def __init__(self, items: Mapping[str, Any]) -> None:
        self._items = dict(items)

    def __getitem__(self, name: str) -> Any:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return repr(self._items)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _are(good: Callable[[Any], bool], count: int | None = None) -> Callable[[Any], bool]:
    """Return a predicate for tuples of the given length (any length if None) whose items are all `good`."""
    return lambda value: isinstance(value, tuple) and len(value) == (count or len(value)) and all(map(good, value))


_WANTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "numbers": (_are(_is_number), "a sequence of numbers"),
    "integers": (_are(_is_integer), "a sequence of whole numbers"),
    "bytes": (_is_integer, "a number of bytes"),
    "span": (_are(_is_integer, 2), "two whole numbers, as (0, 50000)"),
    "samples": (
        lambda value: isinstance(value, str | PurePath) or _are(_is_integer)(value),
        "the path of a file, or a sequence of sample numbers",
    ),
    "repeated": (_are(lambda one: isinstance(one, str)), "a sequence of names"),
    "assignments": (lambda value: isinstance(value, Mapping), "a mapping of names to values"),
}


def _is_default(one: "dataclasses.Field[Any]", value: Any) -> bool:
    return value is one.default or (type(value) is type(one.default) and bool(value == one.default))


def _shown(value: Any) -> str:
    return repr(value) if isinstance(value, str) else str(value)


def _frozen(value: Any) -> Any:
    """Convert lists, ranges and arrays to tuples, mappings to immutable copies, and numpy scalars to Python numbers."""
    if type(value) in (list, tuple, range):
        return tuple(map(_frozen, value))
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return _frozen(value.tolist())
    if isinstance(value, Mapping):
        return FrozenMapping({name: _frozen(inner) for name, inner in value.items()})
    if value is None or isinstance(value, int | float | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def _plain(value: Any, *, objects: bool = False) -> Any:
    """Convert a value to plain JSON types. With `objects`, a sequence of anything but numbers and strings counts as an object."""
    if (
        objects
        and isinstance(value, list | tuple | Mapping)
        and not all(isinstance(one, int | float | str) for one in value)
    ):
        return _name(value)
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value) if isinstance(value, PurePath) else _name(value)


def _name(value: Any) -> str:
    """Return the qualified name of a function or class, or the name of an object's type."""
    if isinstance(value, functools.partial):
        given = [*map(repr, value.args), *(f"{name}={inner!r}" for name, inner in value.keywords.items())]
        return f"{_name(value.func)}({', '.join(given)})"
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return type(value).__name__


def show_options(*kinds: type[Settings]) -> Callable[[Function], Function]:
    """Decorate a function with `**options`: put the fields into its signature, and `{arguments}` of its docstring.

    Args:
        kinds: Settings classes. A field that has the name of a parameter describes that parameter.
    """
    every = {one.name: one for kind in kinds for one in options_in(kind)}

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        own = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
        more = [
            inspect.Parameter(one.name, inspect.Parameter.KEYWORD_ONLY, default=one.default, annotation=one.type)
            for one in every.values()
            if one.name not in signature.parameters
        ]
        shown = signature.replace(parameters=[*own, *more])
        function.__signature__ = shown  # type: ignore[attr-defined]
        if function.__doc__:  # python -OO drops it
            before, _, after = function.__doc__.partition("{arguments}")
            margin = before.rpartition("\n")[2]
            lines = [_argument(every[name], margin) for name in shown.parameters if name in every]
            function.__doc__ = before + "\n".join(["Args:", *lines]) + after
        return function

    return decorate


def _argument(one: "dataclasses.Field[Any]", margin: str) -> str:
    entry, step = option_of(one), " " * 4
    text = f"{one.name}: {entry.help}" + (f" Defaults to {entry.shown}." if entry.shown else "")
    first, following = margin + step, margin + 2 * step
    return textwrap.fill(text, _LINE, initial_indent=first, subsequent_indent=following, break_on_hyphens=False)


def to_command_line(*several: Settings) -> list[str] | None:
    """Return the non-default options as command-line words, or None if one has no command-line form."""
    words: list[str] = []
    for settings in several:
        for one in options_in(type(settings)):
            value, flag, form = getattr(settings, one.name), settings.flag(one.name), option_of(one).form
            if _is_default(one, value):
                continue
            parts = value if isinstance(value, tuple) else (value,)
            if form == "python" or not all(isinstance(part, bool | int | float | str | PurePath) for part in parts):
                return None
            if isinstance(value, bool):
                words.append(flag if value else f"--no-{flag.removeprefix('--')}")
            elif form == "argument":
                words += map(str, parts)
            elif form in ("repeated", "one-or-more"):
                words += [word for part in parts for word in (flag, str(part))]
            else:
                words += [flag, (":" if form == "span" else ",").join(map(str, parts))]
    return words
