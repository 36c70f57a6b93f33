"""Labels as files have them: whole numbers or names, one a row; read as numbers of classes, and written back."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flowgen.core import InputError, note
from flowgen.data.classes import number_of, ordered

__all__ = ["COLUMNS", "Labels", "column_of_labels", "own_labels", "read_labels"]

COLUMNS = ("label", "labels", "class", "target", "y")
"""Columns of tables that hold labels, where labels are asked for and no column is named."""
LARGEST = 2**63 - 1
NULLS = {"", "NA", "N/A", "#N/A", "#NA", "n/a", "NaN", "nan", "NULL", "null", "None"}
"""Words for no label, among numbers; among names all but the empty one are names."""
WHOLE, PADDED = re.compile(r"[+-]?[0-9]+"), re.compile(r"[+-]?0[0-9]+")
NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


class Labels(NamedTuple):
    """The classes of rows: the number of each, `(N,)` int64 in [0, K), and the K names, in order."""

    numbers: Tensor
    classes: tuple[str, ...]


def read_labels(y: np.ndarray, rows: int, place: str) -> Labels:
    """Return the labels of rows: whole numbers of any type, booleans as 0 and 1, or text, `(N,)` or `(N, 1)`; or
    one-hot rows `(N, K)`, which is a guess, with a note. Numbers are read by value, also from text, unless they begin
    with a 0.

    Args:
        rows: how many there are.
        place: what holds them, for messages.

    Raises:
        InputError: for other shapes and types, and for a label that is missing or no whole number.
    """
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim == 2 and len(y) == rows and y.shape[1] > 1:
        y = _hot(y, place)
    if y.shape != (rows,):
        raise InputError(f"{place} has the shape {y.shape}, and labels are one a row, of {rows} rows")
    if y.dtype.kind == "S":
        y = np.char.decode(y, "utf-8", "replace")
    if y.dtype.kind == "U":
        y = _by_value(np.char.strip(y), place)
    if y.dtype.kind == "f":
        y = _whole(y, place)
    if y.dtype.kind not in "iubU":
        raise InputError(f"{place} is of type {y.dtype}, and labels are whole numbers or names")
    if y.dtype.kind == "u" and y.max(initial=0) > LARGEST:
        raise InputError(f"{place} has the label {y.max()}, above 2^63 - 1")
    names, numbers = np.unique(y if y.dtype.kind == "U" else y.astype(np.int64), return_inverse=True)
    texts = list(map(str, names.tolist()))
    classes = ordered(texts)
    to = torch.tensor([classes.index(name) for name in texts])
    return Labels(to[torch.from_numpy(numbers.reshape(-1))], classes)


def column_of_labels(names: Sequence[str], count: int, asked: str | None, needed: bool, place: str) -> int | None:
    """Return which column of a table holds labels: that of a name, or, where it has no name, of a number from 1 on.

    Args:
        names: of the columns, empty where they have none.
        count: how many there are.
        asked: the name; `auto` for one of COLUMNS, which is a guess, with a note; None for no column.
        needed: whether there must be one; without, None is returned where there is none.
        place: what holds them, for messages.

    Raises:
        InputError: if there is no such column, or several.
    """
    if asked is None:
        return None
    found = [at for at, name in enumerate(names) if name == asked]
    if not found and asked == "auto":
        found = [at for at, name in enumerate(names) if name.strip().lower() in COLUMNS]
        if len(found) != 1:
            which = (
                f"it could be {' or '.join(names[at] for at in found)}" if found else f"none is {', '.join(COLUMNS)}"
            )
            raise InputError(f"{place}: name the column of labels, --label-column NAME: {which}")
        note(f"{place}: taking the column {names[found[0]]} as labels; --label-column names another")
    if not found and asked.isdecimal() and 1 <= int(asked) <= count and not (names and names[int(asked) - 1]):
        found = [int(asked) - 1]
    if len(found) > 1:
        raise InputError(f"{place} has {len(found)} columns named {asked}: which of them holds labels?")
    if needed and not found:
        shown = [name or str(at) for at, name in enumerate(names[:10], 1)]
        there = ", ".join(shown) + (", ..." if len(names) > 10 else "") if names else f"1 to {count}"
        raise InputError(f"{place} has no column {asked}, where labels are looked for; choose from {there}")
    return found[0] if found else None


def own_labels(numbers: Tensor, classes: Sequence[str]) -> np.ndarray:
    """Return labels as the data have them, `(N,)`: whole numbers as int64, other numbers as float64, names as text.

    Args:
        numbers: of the classes, `(N,)` int64.
    """
    values = [number_of(name) for name in classes]
    if all(value is not None and str(value) == name for name, value in zip(classes, values, strict=True)):
        small = all(isinstance(value, int) and abs(value) <= LARGEST for value in values)
        return np.array(values, np.int64 if small else np.float64)[numbers.numpy()]
    return np.array(classes, dtype=np.str_)[numbers.numpy()]


def _hot(y: np.ndarray, place: str) -> np.ndarray:
    """Return which column of each row is 1, where all others are 0."""
    hot = y.dtype.kind in "iubf" and bool(((y == 0) | (y == 1)).all() and ((y == 1).sum(1) == 1).all())
    if not hot:
        raise InputError(f"{place} has the shape {y.shape}, and labels are one a row, or one-hot")
    note(f"{place}: taking one-hot rows as labels 0 to {y.shape[1] - 1}")
    return y.argmax(1)


def _by_value(y: np.ndarray, place: str) -> np.ndarray:
    """Return text as numbers, if all of it is; a number that begins with a 0 is a name."""
    texts, row = np.unique(y, return_inverse=True)
    distinct = texts.tolist()
    numbers = {text for text in distinct if NUMBER.fullmatch(text)}
    rest = set(distinct) - numbers
    for text in rest & ({""} if rest - NULLS or not numbers else NULLS):
        where = f"row {int((y == text).argmax()) + 1}"
        raise InputError(f"{place} is {text or 'empty'} in {where}, and each row has a label")
    if rest or any(PADDED.fullmatch(text) for text in distinct):
        return y
    return np.array([int(text) if WHOLE.fullmatch(text) else float(text) for text in distinct])[row.reshape(-1)]


def _whole(y: np.ndarray, place: str) -> np.ndarray:
    bad = ~(np.isfinite(y) & (y == np.floor(y)) & (np.abs(y) < 2.0**63))
    if bad.any():
        row = int(bad.argmax())
        raise InputError(f"{place} is {y[row]:g} in row {row + 1}, and labels are whole numbers or names")
    return y.astype(np.int64)
