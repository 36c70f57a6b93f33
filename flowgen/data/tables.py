"""Read tables of numbers from files: N rows, D columns, float64."""

from __future__ import annotations

import json
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from flowgen.core import InputError, note
from flowgen.data.delimited import INDEX, is_null, is_number, read_csv, shown
from flowgen.data.suffixes import suffix

__all__ = ["READERS", "Table", "column_order", "read_table"]


class Table(NamedTuple):
    """The rows of a file, `(N, D)` float64, the names of its columns (empty where it has none), and the classes of its
    rows, `(N,)` int64, where it has them."""

    x: Tensor
    columns: tuple[str, ...]
    labels: Tensor | None = None


class _Asked(NamedTuple):
    """How a table is to be read: see `read_table`."""

    missing: bool
    header: bool | None


Read = tuple[np.ndarray, tuple[str, ...], np.ndarray | None]
"""What a reader gives: values, names of columns, and labels."""


def read_table(path: Path | str, missing: bool = False, header: bool | None = None) -> Table:
    """Read a table of numbers from `.npy`, `.npz` (array `x`, or the only one), `.csv`, `.csv.gz` or `.parquet`.

    A one-dimensional array is one column. Whole numbers in an array `y` beside `x`, one a row, are labels.

    Text may be separated by commas, semicolons, tabs, bars or spaces, with decimals after a point or, but for commas, a
    comma. Its first line is a header where it holds a word, or whole numbers above columns of another kind. What is
    guessed, and an index that is left out, is told by notes.

    Args:
        missing: cells may be NaN or empty, which are NaN then.
        header: whether the first line of text holds names; None to find out.

    Raises:
        InputError: for a missing, empty or unreadable file, an unknown suffix, text columns, a wrong number of
            dimensions, NaN or infinite values.
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
    values, columns, labels = READERS[kind](path, _Asked(missing, header))
    x = _checked(values, columns, path, missing)
    # y may be anything, a target of regression too: then it is none of ours
    if labels is None or labels.dtype.kind not in "iub" or labels.dtype == np.uint64 or labels.shape != (len(x),):
        return Table(x, columns)
    return Table(x, columns, torch.from_numpy(labels.astype(np.int64)))


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


def _npy(path: Path, asked: _Asked) -> Read:
    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False), (), None
    except (ValueError, OSError, EOFError, MemoryError) as error:  # a damaged header may ask for any size
        raise InputError(f"{path}: not a readable .npy array ({error})") from error


def _npz(path: Path, asked: _Asked) -> Read:
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: not a readable .npz archive")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = arrays.files
            if "x" in names or len(names) == 1:
                x = np.asarray(arrays["x" if "x" in names else names[0]])
                return x, (), np.asarray(arrays["y"]) if {"x", "y"} <= set(names) else None
    except (zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, RuntimeError, MemoryError) as error:
        raise InputError(f"{path}: not a readable .npz archive ({error})") from error
    raise InputError(f"{path}: expected an array named x, found {', '.join(names) or 'none'}")


def _csv(path: Path, asked: _Asked) -> Read:
    table, names, decimal = read_csv(path, asked.header, asked.missing)
    return _numbers(table, names, path, decimal), names, None


def _parquet(path: Path, asked: _Asked) -> Read:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a readable .parquet table ({str(error).splitlines()[0]})") from error
    index = [name for name in table.column_names if name in _indices(table.schema)]
    if index and len(index) < table.num_columns:
        note(f"{path}: leaving out what pandas has written as an index: {shown(index)}")
        table = table.drop_columns(index)
    names = tuple(table.column_names)
    return _numbers(table, names, path), names, None


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
            f"{path}: columns that are not numbers: {shown(list(text))}. Drop them or encode them first: in column "
            f"{name}, {found} is not a number"
        )
    return np.stack(columns, axis=1) if columns else np.empty((0, 0))


def _as_numbers(column: Any, decimal: str) -> np.ndarray | str:
    """Return a column as float64, or which of its cells is the first that is no number."""
    import pyarrow

    kinds, kind = pyarrow.types, column.type
    if kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_boolean(kind) or kinds.is_null(kind):
        return column.cast(pyarrow.float64(), safe=False).to_numpy()
    cells = enumerate(map(str, column.to_pylist()), 1)
    text = ((row, cell) for row, cell in cells if not is_number(cell.strip(), decimal) and not is_null(cell.strip()))
    row, cell = next(text, (1, str(column[0])))
    return f"row {row}, {cell!r}"


READERS = {".npy": _npy, ".npz": _npz, ".csv": _csv, ".csv.gz": _csv, ".parquet": _parquet}
"""What reads a table, by suffix."""
