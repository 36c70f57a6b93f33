"""Rows of numbers, written to files as they come."""

from __future__ import annotations

import csv
import gzip
import io
import os
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from torch import Tensor

from flowgen.core import InputError, StrPath
from flowgen.data.labels import Labels, own_labels
from flowgen.data.suffixes import suffix

__all__ = ["WRITERS", "counted", "new_file", "write_array", "write_labels", "write_rows"]


def write_rows(
    path: StrPath | IO[bytes],
    chunks: Iterable[Tensor],
    shape: Sequence[int],
    columns: Sequence[str] = (),
    double: bool = False,
    labels: Labels | None = None,
    label_column: str = "label",
    digits: Sequence[int] | None = None,
) -> None:
    """Write rows as they come to `.npz` (array `x`), `.npy`, `.csv` or `.csv.gz`, without holding them all.

    The file takes its name once it is complete. An open file gets a CSV, and stays open.

    Args:
        chunks: tensors `(n, *shape)`, together of `shape`.
        shape: `(N, *shape)`.
        columns: header of a CSV; x0, x1, ... where empty.
        double: in float64, of which a CSV holds all digits.
        labels: of the rows, by their names in a CSV, and the array `y` of an `.npz`; an `.npy` has no place for them.
        label_column: the name of their column, the last, in a CSV.
        digits: how many each column has in a CSV, of float64; None for all that there are.

    Raises:
        InputError: for another suffix, or if the chunks are not of that shape together, or the labels not as many.
        OSError: if the disk is full or the folder missing.
    """
    if labels is not None and len(labels.numbers) != shape[0]:
        raise InputError(f"expected {shape[0]} labels, got {len(labels.numbers)}")
    layout, arrays = _Layout(shape, columns, double, digits, labels, label_column), counted(chunks, shape)
    if not isinstance(path, str | os.PathLike):
        _write_csv(path, arrays, layout)
        path.flush()
        return
    if (kind := suffix(Path(path))) not in WRITERS:
        raise InputError(f"{path}: unknown suffix; samples are written to {', '.join(WRITERS)} or .png")
    with new_file(path) as file:
        WRITERS[kind](file, arrays, layout)


@contextmanager
def new_file(path: StrPath) -> Iterator[IO[bytes]]:
    """Yield a file to write to, which takes its name once it is complete.

    Raises:
        InputError: if there is no such folder, or it cannot be written to.
        OSError: if the disk is full.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    try:
        handle, name = tempfile.mkstemp(prefix=".building-", dir=path.parent)
    except OSError as error:
        raise InputError(f"cannot write to the folder {path.parent}: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(name, 0o644)
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def counted(chunks: Iterable[Tensor], shape: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield the chunks as arrays, and check that they are as many rows as promised.

    Raises:
        InputError: if they do not add up to `shape`.
    """
    rows = 0
    for chunk in chunks:
        rows += len(chunk)
        if tuple(chunk.shape[1:]) != tuple(shape[1:]):
            raise InputError(f"a chunk of shape {tuple(chunk.shape)} is no part of an array of shape {tuple(shape)}")
        yield chunk.numpy()
    if rows != shape[0]:
        raise InputError(f"expected {shape[0]} rows, got {rows}")


def write_labels(archive: zipfile.ZipFile, name: str, labels: Tensor | np.ndarray, count: int) -> None:
    """Write labels, numbers or text `(count,)`, as an array of an archive.

    Raises:
        InputError: if they are not that many.
    """
    if len(labels) != count:
        raise InputError(f"expected {count} rows, got {len(labels)} labels")
    with archive.open(name, "w") as member:
        np.lib.format.write_array(member, np.asarray(labels), allow_pickle=False)


def write_array(file: IO[bytes], chunks: Iterable[np.ndarray], shape: Sequence[int], kind: str = "<f4") -> None:
    """Write chunks as one `.npy` array of the type `kind`."""
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": tuple(shape)})
    for chunk in chunks:
        file.write(np.ascontiguousarray(chunk, kind).tobytes())


class _Layout(NamedTuple):
    """The columns beside the rows, and the format of the file: see `write_rows`."""

    shape: Sequence[int]
    columns: Sequence[str]
    double: bool
    digits: Sequence[int] | None
    labels: Labels | None
    label_column: str


def _write_npy(file: IO[bytes], chunks: Iterable[np.ndarray], layout: _Layout) -> None:
    write_array(file, chunks, layout.shape, "<f8" if layout.double else "<f4")


def _write_npz(file: IO[bytes], chunks: Iterable[np.ndarray], layout: _Layout) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        with archive.open("x.npy", "w", force_zip64=True) as member:
            _write_npy(member, chunks, layout)
        if layout.labels is not None:
            write_labels(archive, "y.npy", own_labels(*layout.labels), layout.shape[0])


def _write_csv(file: IO[bytes], chunks: Iterable[np.ndarray], layout: _Layout) -> None:
    names = list(layout.columns) or [f"x{index}" for index in range(layout.shape[1])]
    labels = None if layout.labels is None else _csv_cells(layout.labels)
    file.write(_csv_line(names if labels is None else [*names, layout.label_column]))
    # nine digits give a float32 back to the last bit, and str the shortest ones that give a float64 back
    formats = [f"%.{count}g" for count in layout.digits] if layout.digits else "%s" if layout.double else "%.9g"
    for chunk in chunks:
        rows = io.BytesIO()
        np.savetxt(rows, chunk.astype(np.float64), delimiter=",", fmt=formats)
        text = rows.getvalue().replace(b".0,", b",").replace(b".0\n", b"\n")  # whole numbers, as str writes them
        if labels is None:
            file.write(text)
        else:
            file.writelines(row + b"," + next(labels) for row in text.splitlines())


def _csv_line(cells: Sequence[str]) -> bytes:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue().encode()


def _csv_cells(labels: Labels) -> Iterator[bytes]:
    """Yield the name of each label, and the end of its line."""
    names = [_csv_line([name]) for name in labels.classes]
    return (names[number] for number in labels.numbers.tolist())


def _write_packed(file: IO[bytes], chunks: Iterable[np.ndarray], layout: _Layout) -> None:
    with gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) as packed:  # the same bytes for the same rows
        _write_csv(packed, chunks, layout)  # type: ignore[arg-type]


WRITERS = {".npz": _write_npz, ".npy": _write_npy, ".csv": _write_csv, ".csv.gz": _write_packed}
"""What writes rows, by suffix."""
