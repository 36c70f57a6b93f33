"""Tables of numbers from files: N rows, D columns, float64."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flowgen.core import InputError, note
from flowgen.data.delimited import INDEX, read_csv, without_space
from flowgen.data.headers import is_null, is_number, shown
from flowgen.data.labels import Labels, column_of_labels, own_labels, read_labels
from flowgen.data.suffixes import suffix

__all__ = ["READERS", "Table", "column_order", "read_table"]


class Table(NamedTuple):
    """The rows of a file.

    x: `(N, D)` float64.
    columns: the names of its columns; empty where it has none.
    labels: of its rows, `(N,)` int64: whole numbers as they are, or, of names, their places in `classes`; None without.
    classes: the names, in order; empty of whole numbers.
    label_column: the column that holds labels; None where none does.
    no_labels: why there are no labels, in words.
    """

    x: Tensor
    columns: tuple[str, ...]
    labels: Tensor | None = None
    classes: tuple[str, ...] = ()
    label_column: str | None = None
    no_labels: str = ""

    @property
    def numbered(self) -> Labels | None:
        """Return the labels as numbers of classes, in order and without gaps, and the names of all of these."""
        if self.labels is None or self.classes:
            return self.labels if self.labels is None else Labels(self.labels, self.classes)
        return read_labels(self.labels.numpy(), len(self.x), "labels")


class _Asked(NamedTuple):
    """How a table is to be read: see `read_table`."""

    missing: bool
    header: bool | None
    label_column: str | None
    labels_needed: bool

    def column(self, names: Sequence[str], count: int, path: Path) -> int | None:
        """Return which of the columns holds labels."""
        return column_of_labels(names, count, self.label_column, self.labels_needed, str(path))


class _Read(NamedTuple):
    """What a reader gives: values, names of columns, and what holds labels, the column that it was, and why nothing
    does."""

    values: np.ndarray
    columns: tuple[str, ...] = ()
    y: np.ndarray | None = None
    label_column: str | None = None
    no_labels: str = ""


def read_table(
    path: Path | str,
    missing: bool = False,
    header: bool | None = None,
    label_column: str | None = None,
    labels_needed: bool = True,
) -> Table:
    """Read a table of numbers from `.npy`, `.npz` (array `x`, or the only one), `.csv`, `.csv.gz` or `.parquet`.

    A one-dimensional array is one column. Labels, whole numbers or names, are an array `y` beside `x`, or a column.

    Text may be separated by commas, semicolons, tabs, bars or spaces, with decimals after a point or, but for commas, a
    comma. Its first line is a header where it holds a word, or whole numbers above columns of another kind. What is
    guessed, and an index that is left out, is reported by notes.

    Args:
        missing: cells may be NaN or empty, which are NaN then.
        header: whether the first line of text holds names; None to find out.
        label_column: the name of the column of labels, which are no data; without names its number, from 1 on; of an
            `.npz` also another array. `auto` for a column that is named so: label, labels, class, target or y.
        labels_needed: whether there must be such a column.

    Raises:
        InputError: for a missing, empty or unreadable file, an unknown suffix, text columns, a wrong number of
            dimensions, NaN or infinite values; for a column of labels that is not there, or holds none.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if (kind := suffix(path)) not in READERS:
        raise InputError(f"{path}: unknown suffix; tables are {', '.join(READERS)}")
    if not path.is_file():
        raise InputError(f"{path}: not a file")
    if not path.stat().st_size:
        raise InputError(f"{path}: the file is empty")
    read = READERS[kind](path, _Asked(missing, header, label_column, labels_needed))
    x, label = _checked(read.values, read.columns, path, missing), read.label_column
    if read.y is None:
        return Table(x, read.columns, no_labels=read.no_labels)
    try:
        found = read_labels(read.y, len(x), f"{path}: column {label}" if label else f"{path}: y")
    except InputError as error:
        if label:
            raise
        return Table(x, read.columns, no_labels=str(error))  # y may be anything, a target of regression too
    own = own_labels(*found)
    if own.dtype.kind == "i":
        return Table(x, read.columns, torch.from_numpy(own), (), label)
    return Table(x, read.columns, *found, label)


def column_order(columns: tuple[str, ...], count: int, wanted: tuple[str, ...], width: int, name: str) -> list[int]:
    """Return where the columns of one table, in order, are in another: by their names, or, where one of them has none,
    as they come, with a note.

    Args:
        columns: the names in the other, empty without any.
        count: its columns.
        wanted: the names in order, empty without any.
        width: how many columns there are to be.
        name: of the other, for messages.

    Raises:
        InputError: if columns are missing, or there are others.
    """
    if columns and wanted and sorted(columns) != sorted(wanted):
        absent, other = ([c for c in one if c not in two] for one, two in ((wanted, columns), (columns, wanted)))
        parts = [f"{word} {shown(found)}" for word, found in (("lacks", absent), ("has also", other)) if found]
        raise InputError(f"{name} has other columns than {shown(wanted)}: it {' and '.join(parts) or 'repeats some'}")
    if count != width:
        raise InputError(f"{name} has {count} columns, and needs {width}" + f": {shown(wanted)}" * bool(wanted))
    if columns == wanted or not (columns and wanted):
        if columns != wanted:
            note(
                f"{name}: taking columns in order as {shown(wanted or columns)}, since only one of the tables has names"
            )
        return list(range(width))
    if len(set(columns)) < width:
        raise InputError(f"{name} has columns of one name in another order than {shown(wanted)}: give each its own")
    return [columns.index(column) for column in wanted]


def _checked(values: np.ndarray, columns: tuple[str, ...], path: Path, missing: bool) -> Tensor:
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or not values.shape[1]:
        raise InputError(f"{path}: expected rows and columns, found an array of shape {values.shape}")
    if values.dtype.kind not in "fiub":
        raise InputError(f"{path}: expected numbers, found values of type {values.dtype}")
    if not len(values):
        raise InputError(f"{path}: the table has no rows")
    values = values.astype(np.float64)
    sound = np.isfinite(values) | (missing & np.isnan(values))
    if bad := int((~sound.all(1)).sum()):
        row, column = (int(at) for at in np.argwhere(~sound)[0])
        what = "is empty or NaN" if np.isnan(values[row, column]) else "is infinite"
        raise InputError(
            f"{path}: {bad} of {len(values)} rows hold NaN, missing or infinite values: row {row + 1}, "
            f"column {_called(columns, column)} {what}"
        )
    return torch.from_numpy(values)


def _called(columns: tuple[str, ...], at: int) -> str:
    """Return the name of a column, or its number from 1 on."""
    return columns[at] if columns and columns[at] else str(at + 1)


def _npy(path: Path, asked: _Asked) -> _Read:
    try:
        with path.open("rb") as file:
            values = np.lib.format.read_array(file, allow_pickle=False)
    except (ValueError, OSError, EOFError, MemoryError) as error:  # a damaged header may ask for any size
        raise InputError(f"{path}: not a readable .npy array ({error})") from error
    return _split(path, values, asked, f"{path} is an array without labels")


def _npz(path: Path, asked: _Asked) -> _Read:
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: not a readable .npz archive")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names, label = arrays.files, asked.label_column
            if "x" not in names and len(names) > 1:
                raise InputError(f"{path}: expected an array named x, found {', '.join(names)}")
            if not names:
                raise InputError(f"{path}: expected an array named x, found none")
            name = "x" if "x" in names else names[0]
            x = np.asarray(arrays[name])
            if label in names and label != name:
                return _Read(x, (), np.asarray(arrays[label]), label)
            if label in (None, "auto") and "y" in names and name != "y":
                return _Read(x, (), np.asarray(arrays["y"]))
    except InputError:
        raise
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, RuntimeError, MemoryError) as error:
        raise InputError(f"{path}: not a readable .npz archive ({error})") from error
    return _split(path, x, asked, f"{path} has no array y")


def _split(path: Path, values: np.ndarray, asked: _Asked, no_labels: str) -> _Read:
    """Return an array without the column that holds labels, if one of its columns is to."""
    count = values.shape[1] if values.ndim == 2 else 1
    at = None if asked.label_column == "auto" else asked.column((), count, path)
    if at is None:
        return _Read(values, no_labels=no_labels)
    if values.ndim != 2:
        raise InputError(f"{path} has no column beside the labels")
    return _Read(np.delete(values, at, 1), (), values[:, at], str(at + 1))


def _csv(path: Path, asked: _Asked) -> _Read:
    read = read_csv(path, asked.header, asked.missing, lambda names, count: asked.column(names, count, path))
    values = _numbers(read.table, read.names, path, read.decimal)
    y = None if read.taken is None else np.array(read.taken, dtype=np.str_)
    return _Read(values, read.names, y, read.label, _unnamed(path))


def _parquet(path: Path, asked: _Asked) -> _Read:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a readable .parquet table ({str(error).splitlines()[0]})") from error
    names = tuple(table.column_names)
    at = asked.column(names, len(names), path)
    label, y = (None, None) if at is None else (names[at], _cells(table.column(at)))
    if at is not None:
        table = table.remove_column(at)
    index = [name for name in table.column_names if name in _indices(table.schema)]
    if index and len(index) < table.num_columns:
        note(f"{path}: leaving out what pandas has written as an index: {shown(index)}")
        table = table.drop_columns(index)
    names = tuple(table.column_names)
    return _Read(_numbers(table, names, path), names, y, label, _unnamed(path))


def _unnamed(path: Path) -> str:
    return f"{path}: no column of labels is named, --label-column NAME"


def _cells(column: Any) -> np.ndarray:
    """Return a column of labels: numbers, or the text of others, empty where there is none."""
    import pyarrow

    kinds = pyarrow.types
    if kinds.is_integer(column.type) or kinds.is_floating(column.type):
        return column.to_numpy()
    if kinds.is_boolean(column.type):
        return np.array(["" if cell is None else str(cell) for cell in column.to_pylist()], dtype=np.str_)
    return np.array([cell or "" for cell in column.cast(pyarrow.string()).to_pylist()], dtype=np.str_)


def _indices(schema: Any) -> set[str]:
    """Return the names of the columns that pandas has written as an index."""
    levels = {name for name in schema.names if name and INDEX.fullmatch(name)}
    try:
        written = json.loads((schema.metadata or {})[b"pandas"])["index_columns"]
    except (KeyError, ValueError, TypeError):
        return levels
    return levels | {name for name in written if isinstance(name, str)}  # a range is no column


def _numbers(table: Any, names: tuple[str, ...], path: Path, decimal: str = ".") -> np.ndarray:
    """Return the columns of an Arrow table as float64; missing values become NaN."""
    columns, text = list[np.ndarray](), dict[str, str]()
    for at, column in enumerate(table.columns):
        found = _as_numbers(column, decimal)
        if isinstance(found, str):
            text[_called(names, at)] = found
        else:
            columns.append(found)
    if text:
        name, found = next(iter(text.items()))
        raise InputError(
            f"{path}: columns that are not numbers: {shown(list(text))}. Drop them or encode them first, or learn one "
            f"as labels, --label-column {name}: in column {name}, {found} is not a number"
        )
    if not columns:
        raise InputError(f"{path} has no column beside the labels")
    return np.stack(columns, axis=1)


def _as_numbers(column: Any, decimal: str) -> np.ndarray | str:
    """Return a column as float64, or which of its cells is the first that is no number."""
    import pyarrow

    kinds = pyarrow.types
    if kinds.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    column = without_space(column, decimal)
    plain = (kinds.is_integer, kinds.is_floating, kinds.is_decimal, kinds.is_boolean, kinds.is_null)
    if any(is_plain(column.type) for is_plain in plain):
        return column.cast(pyarrow.float64(), safe=False).to_numpy()
    cells = ((row, str(cell)) for row, cell in enumerate(column.to_pylist(), 1) if cell is not None)
    text = ((row, cell) for row, cell in cells if not is_number(cell.strip(), decimal) and not is_null(cell.strip()))
    row, cell = next(text, (1, str(column[0])))
    return f"row {row}, {cell!r}"


READERS = {".npy": _npy, ".npz": _npz, ".csv": _csv, ".csv.gz": _csv, ".parquet": _parquet}
"""What reads a table, by suffix."""
