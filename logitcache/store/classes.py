"""Classes without names, for vocabularies that are too large to write into every manifest."""

from collections.abc import Sequence
from typing import overload

__all__ = ["NumberedClasses", "classes_from_json", "classes_to_json"]


class NumberedClasses(Sequence[str]):
    """A sequence of classes named by their number, in place of a tuple of class names."""

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
    """Return the class names in index order, or the number of classes if they have no names."""
    return len(classes) if isinstance(classes, NumberedClasses) else list(classes)


def classes_from_json(entry: Sequence[str] | int) -> Sequence[str]:
    """Return the classes of an entry written by `classes_to_json`."""
    return NumberedClasses(entry) if isinstance(entry, int) else tuple(entry)
