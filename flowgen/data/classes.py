"""The names of classes: their order, and how text selects them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from flowgen.core import InputError

__all__ = ["find", "number_of", "ordered", "several"]

NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)")
WHOLE = re.compile(r"[+-]?[0-9]+")


def number_of(name: str) -> int | float | None:
    """Return the number that a name is, like 7, 007 or 2.5; None of other names.

    >>> number_of("007"), number_of("2.50"), number_of("cat"), number_of("1e5")
    (7, 2.5, None, None)
    """
    if WHOLE.fullmatch(name):
        return int(name)
    return float(name) if NUMBER.fullmatch(name) else None


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct names: by value where all are numbers, and else by name.

    >>> ordered(["10", "9", "2", "9"]), ordered(["10", "9", "b"])
    (('2', '9', '10'), ('10', '9', 'b'))
    """
    distinct = set(names)
    values = {name: number_of(name) for name in distinct}
    if any(value is None for value in values.values()):
        return tuple(sorted(distinct))
    return tuple(sorted(distinct, key=lambda name: (values[name], name)))


def find(text: str, classes: Sequence[str]) -> int:
    """Return the index of the class that a text names: by its name, by its value where it is a number, or, where no
    name is a number, by its index.

    >>> find("7", ["1", "2", "7"]), find("2.0", ["1", "2", "7"]), find("1", ["cat", "dog"])
    (2, 1, 1)

    Raises:
        InputError: if there is no such class.
    """
    text = text.strip()
    if text in classes:
        return list(classes).index(text)
    value, values = number_of(text), [number_of(name) for name in classes]
    if value is not None and values.count(value) == 1:
        return values.index(value)
    if text.isdecimal() and int(text) < len(classes) and _unnumbered(classes):
        return int(text)
    raise InputError(f"there is no label {text!r}: choose {_choice(classes)}")


def _choice(classes: Sequence[str]) -> str:
    """Return the classes to choose from, in words."""
    shown = ", ".join(classes[:10]) + (", ..." if len(classes) > 10 else "")
    if _unnumbered(classes):
        return f"0 to {len(classes) - 1}, or a name: {shown}"
    start, values = number_of(classes[0]), [number_of(name) for name in classes]
    gapless = start is not None and values == [start + index for index in range(len(classes))]
    return f"{classes[0]} to {classes[-1]}" if gapless else f"one of {shown}"


def several(text: str, classes: Sequence[str]) -> list[int]:
    """Return the indices of the classes of a list like 0-9, 0,3,5 or cat,dog, in its order; a range runs by value over
    names that are numbers, and includes both ends.

    >>> several("1-3", ["0", "1", "2", "3", "10", "11"]), several("dog,cat", ["cat", "dog"])
    ([1, 2, 3], [1, 0])

    Raises:
        InputError: if there is no such class.
    """
    found: list[int] = []
    for part in (part.strip() for part in text.split(",")):
        found += _between(part, classes) if "-" in part[1:] and part not in classes else [find(part, classes)]
    return found


def _between(part: str, classes: Sequence[str]) -> list[int]:
    """Return the classes of a range."""
    first, last = _ends(part, classes)
    lo, hi = number_of(classes[first]), number_of(classes[last])
    if lo is None or hi is None:
        found = list(range(first, last + 1))
    else:
        values = ((index, number_of(name)) for index, name in enumerate(classes))
        found = [index for index, value in values if value is not None and lo <= value <= hi]
    if not found:
        raise InputError(f"--labels {part}: the first label comes after the last")
    return found


def _ends(part: str, classes: Sequence[str]) -> tuple[int, int]:
    """Return the classes on both sides of a dash; their names may hold dashes too."""
    refused = InputError()
    for dash in (place for place, mark in enumerate(part) if mark == "-" and place):
        try:
            return find(part[:dash], classes), find(part[dash + 1 :], classes)
        except InputError as error:
            refused = error
    raise refused


def _unnumbered(classes: Sequence[str]) -> bool:
    """Return whether no name is a number, so that a number can only be an index."""
    return all(number_of(name) is None for name in classes)
