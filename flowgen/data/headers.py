"""Detection of names in the first line of a text table, and of cells that are numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

from flowgen.core import note

__all__ = ["WHOLE", "is_header", "is_null", "is_number", "null_words", "number", "shown"]

CHANCE = 0.05
"""Of a row of data that happens to hold whole numbers alone: below it such a first line is a header."""
FEW = 10
"""Rows that do not tell how far a first line of the same kind is from them."""
WHOLE, FRACTION = re.compile(r"\d+"), re.compile(r"[+-]?\d*[.,eE]\d*")
NUMBERS = {
    mark: re.compile(
        rf"[+-]?(\d+(\{mark}\d*)?|\{mark}\d+)([eE][+-]?\d+)?|[+-]?(inf|Inf|infinity|Infinity)|(?i:true|false)"
    )
    for mark in ".,"
}
"""Of a decimal point: what numbers look like."""


def is_header(path: Path, cells: list[str], rows: list[list[str]], decimal: str) -> bool:
    """Return whether the first line holds names. Whole numbers may be names: that is a guess, with a note."""
    if not all(is_number(cell, decimal) or is_null(cell) for cell in cells):
        return _is_named(path, cells, rows, decimal)
    names = cells[1:] if cells[0] == "" else cells  # above an index there is nothing
    columns = [[row[at] for row in rows if len(row) > at] for at in range(len(cells) - len(names), len(cells))]
    whole = all(WHOLE.fullmatch(name) for name in names)
    if not names or not rows or len(set(names)) < len(names) or any(map(is_null, names)):
        return False
    fractions = any(_is_fractional(cell) for column in columns for cell in column)
    found = whole and (_is_other_kind(columns, decimal) or _is_count(names, rows))
    enough = len(rows) >= (2 if whole and fractions and len(names) > 1 else FEW)
    if found or (enough and (whole or len(names) > 2) and _is_far(names, columns, decimal)):
        return _told(path, names, True)
    if whole and (fractions or (names[0] in "01" and _counts(names))):
        return _told(path, names, False)
    return False


def _told(path: Path, cells: list[str], named: bool) -> bool:
    """Return whether a first line holds names, and tell this guess."""
    taken, other = ("names", "no if it is data") if named else ("data", "yes if it holds names")
    note(f"{path}: taking the first line as {taken}: {shown(cells)}; --header {other}")
    return named


def _is_named(path: Path, cells: list[str], rows: list[list[str]], decimal: str) -> bool:
    """Return whether a first line that holds a word holds names. Beside numbers, that is a guess, with a note: it is
    data if a word is in its column once more, or if a fraction is above numbers and all words are above words."""
    columns = [[row[at] for row in rows if len(row) > at] for at in range(len(cells))]
    words, numbers = list[tuple[str, list[str]]](), list[tuple[str, list[str]]]()
    for cell, column in zip(cells, columns, strict=True):
        if is_number(cell, decimal):
            numbers.append((cell, column))
        elif not is_null(cell):
            words.append((cell, column))
    if not rows or not numbers or any(_is_text(column, decimal) for _, column in numbers):
        return True
    alike = any(_is_fractional(cell) for cell, _ in numbers) and all(_is_text(column, decimal) for _, column in words)
    return _told(path, cells, not (alike or any(word in column for word, column in words)))


def _is_text(column: list[str], decimal: str) -> bool:
    """Return whether a column holds words, and no number."""
    return not any(is_number(cell, decimal) for cell in column) and not all(map(is_null, column))


def _is_other_kind(columns: list[list[str]], decimal: str) -> bool:
    """Return whether a row of these columns would hardly hold whole numbers alone: one is of words, or they are of
    fractions."""
    chance = 1.0
    for column in columns:
        if _is_text(column, decimal):
            return True
        if any(map(_is_fractional, column)):
            chance *= (sum(bool(WHOLE.fullmatch(cell)) for cell in column) + 1) / (len(column) + 2)  # rule of Laplace
    return chance < CHANCE


def _is_fractional(cell: str) -> bool:
    return bool(FRACTION.match(cell))


def _counts(names: list[str]) -> bool:
    """Return whether each of several whole numbers is one more than the last, as pandas names columns."""
    return len(names) > 2 and all(int(b) == int(a) + 1 for a, b in pairwise(names))


def _is_count(names: list[str], rows: list[list[str]]) -> bool:
    """Return whether names count from 0 or 1, so many that no row of data does by chance, and no row counts."""
    return (
        len(names) > 4
        and names[0] in "01"
        and _counts(names)
        and not any(all(map(WHOLE.fullmatch, r)) and _counts(r) for r in rows)
    )


def _is_far(names: list[str], columns: list[list[str]], decimal: str) -> bool:
    """Return whether each name, read as a number, is farther from its column than the column is wide."""
    for name, column in zip(names, columns, strict=True):
        values = [number(cell, decimal) for cell in column if is_number(cell, decimal)]
        lo, hi = min(values, default=-math.inf), max(values, default=math.inf)
        if not (value := number(name, decimal)) < lo - (hi - lo) and not value > hi + (hi - lo):
            return False
    return True


def is_number(cell: str, decimal: str) -> bool:
    """Return whether a cell, without space around it, is a number."""
    return bool(NUMBERS[decimal].fullmatch(cell))


def is_null(cell: str) -> bool:
    """Return whether a cell is a word that stands for an empty one, of Arrow's."""
    return cell in null_words()


def number(cell: str, decimal: str) -> float:
    """Return the value of a cell that is a number."""
    return {"true": 1.0, "false": 0.0}[cell.lower()] if cell[0] in "tfTF" else float(cell.replace(decimal, "."))


@cache
def null_words() -> frozenset[str]:
    """Return Arrow's words for an empty cell."""
    import pyarrow.csv

    return frozenset(pyarrow.csv.ConvertOptions().null_values)


def shown(names: Sequence[str]) -> str:
    """Return the first names of a list, as a message shows them."""
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
