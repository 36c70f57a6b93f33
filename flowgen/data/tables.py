"""Read tables of numbers from files: N rows, D columns, float32."""

from __future__ import annotations

import csv
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from flowgen.core import InputError

__all__ = ["READERS", "Table", "read_table"]


class Table(NamedTuple):
    """The rows of a file, `(N, D)` float32, the names of its columns (empty where it has none), and the classes of its
    rows, `(N,)` int64, where it has them."""

    x: Tensor
    columns: tuple[str, ...]
    labels: Tensor | None = None


Read = tuple[np.ndarray, tuple[str, ...], np.ndarray | None]
"""What a reader gives: values, names of columns, and labels."""


def read_table(path: Path | str, missing: bool = False) -> Table:
    """Reads a table of numbers from `.npy`, `.npz` (array `x`, or the only one), `.csv` or `.parquet`.

    A CSV may start with a header; a one-dimensional array is one column. Whole numbers in an array `y` beside `x`, one
    a row, are labels.

    Args:
        missing: cells may be NaN or empty, which are NaN then; the others keep all digits, in float64.

    Raises:
        InputError: for a missing, empty or unreadable file, an unknown suffix, text columns, a wrong number of
            dimensions, NaN or infinite values.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if path.suffix not in READERS:
        raise InputError(f"{path}: unknown suffix; tables are {', '.join(READERS)}")
    if not path.is_file():
        raise InputError(f"{path}: not a file")
    if not path.stat().st_size:
        raise InputError(f"{path}: the file is empty")
    values, columns, labels = READERS[path.suffix](path)
    x = _checked(values, path, missing)
    # y may be anything, a target of regression too: then it is none of ours
    if labels is None or labels.dtype.kind not in "iub" or labels.dtype == np.uint64 or labels.shape != (len(x),):
        return Table(x, columns)
    return Table(x, columns, torch.from_numpy(labels.astype(np.int64)))


def _checked(values: np.ndarray, path: Path, missing: bool) -> Tensor:
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or not values.shape[1]:
        raise InputError(f"{path}: expected rows and columns, found an array of shape {values.shape}")
    if values.dtype.kind not in "fiub":
        raise InputError(f"{path}: expected numbers, found values of type {values.dtype}")
    if not len(values):
        raise InputError(f"{path}: the table has no rows")
    with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite, and is counted below
        single = values.astype(np.float32)
    sound = np.isfinite(single) | (missing & np.isnan(single))
    if bad := int((~sound.all(1)).sum()):
        raise InputError(
            f"{path}: {bad} of {len(values)} rows hold NaN, missing or infinite values, or numbers beyond float32"
        )
    return torch.from_numpy(values.astype(np.float64) if missing else single)


def _npy(path: Path) -> Read:
    try:
        with path.open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False), (), None
    except (ValueError, OSError, EOFError, MemoryError) as error:  # a damaged header may ask for any size
        raise InputError(f"{path}: not a readable .npy array ({error})") from error


def _npz(path: Path) -> Read:
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


def _csv(path: Path) -> Read:
    import pyarrow
    import pyarrow.csv

    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = next(csv.reader(file), [])
        if len(first) == 1 and (other := next((mark for mark in ";\t|" if mark in first[0]), None)):
            raise InputError(f"{path}: columns are separated by {other!r}, and must be by commas")
        header = not all(_is_number(field) for field in first)
        table = pyarrow.csv.read_csv(path, read_options=pyarrow.csv.ReadOptions(autogenerate_column_names=not header))
    except (pyarrow.ArrowInvalid, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a readable .csv table ({str(error).splitlines()[0]})") from error
    return _numbers(table, path), tuple(table.column_names) if header else (), None


def _parquet(path: Path) -> Read:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a readable .parquet table ({str(error).splitlines()[0]})") from error
    return _numbers(table, path), tuple(table.column_names), None


def _numbers(table, path: Path) -> np.ndarray:  # type: ignore[no-untyped-def]  # pyarrow ships no types
    """The columns of an Arrow table as float64; missing values become NaN."""
    import pyarrow

    kinds = pyarrow.types
    text = [
        field.name
        for field in table.schema
        if not (kinds.is_integer(field.type) or kinds.is_floating(field.type) or kinds.is_boolean(field.type))
        and not kinds.is_null(field.type)
    ]
    if text:
        raise InputError(f"{path}: columns that are not numbers: {', '.join(text)}. Drop them or encode them first")
    columns = [column.cast(pyarrow.float64(), safe=False).to_numpy() for column in table.columns]
    return np.stack(columns, axis=1) if columns else np.empty((0, 0))


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return not field.strip()
    return True


READERS = {".npy": _npy, ".npz": _npz, ".csv": _csv, ".parquet": _parquet}
"""What reads a table, by suffix."""
