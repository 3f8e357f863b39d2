"""Classes without names: a vocabulary has too many to write into every manifest."""

from collections.abc import Sequence
from typing import overload

__all__ = ["NumberedClasses", "classes_from_json", "classes_to_json"]


class NumberedClasses(Sequence[str]):
    """So many classes, each named by its number. Behaves like the tuple of names that other data has."""

    def __init__(self, count: int) -> None:
        self._numbers = range(count)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        found = self._numbers[index]
        return str(found) if isinstance(found, int) else tuple(map(str, found))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NumberedClasses) and len(self) == len(other)

    def __hash__(self) -> int:
        return hash((NumberedClasses, len(self)))

    def __repr__(self) -> str:
        return f"NumberedClasses({len(self)})"


def classes_to_json(classes: Sequence[str]) -> list[str] | int:
    """Return the names in index order, or how many classes there are where they have no names."""
    return len(classes) if isinstance(classes, NumberedClasses) else list(classes)


def classes_from_json(entry: Sequence[str] | int) -> Sequence[str]:
    """Read what `classes_to_json` wrote."""
    return NumberedClasses(entry) if isinstance(entry, int) else tuple(entry)
