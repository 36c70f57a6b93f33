"""Tables from text: which lines and columns are data, and how their numbers are written."""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from flowgen.core import InputError, note
from flowgen.data.headers import WHOLE, is_header, is_null, is_number, number, shown

__all__ = ["INDEX", "read_csv", "without_space"]

DIALECTS = [(",", "."), *((mark, decimal) for mark in ";\t| " for decimal in ".,")]
"""What separates columns, and the decimal point, in the order of preference; a space stands for any white space."""
BLOCK, LARGEST = 2**20, 2**30
"""Bytes that are parsed together: at first, and at most. No row may be longer."""
SAMPLED = 1000
"""Lines that tell how a file is written."""
INDEX = re.compile(r"|Unnamed: [\d.]+|__index_level_\d+__")
"""Names of columns that pandas writes for an index: none at all, what it reads of that, and the one of .parquet."""


class Layout(NamedTuple):
    """How the text of a table is laid out.

    delimiter: between columns.
    decimal: the decimal point.
    names: of the columns; empty without a header.
    first: how many lines come before the first row.
    rows: the cells of the first rows.
    """

    delimiter: str
    decimal: str
    names: tuple[str, ...]
    first: int
    rows: list[list[str]]


class Text(NamedTuple):
    """The content of a text file.

    table: its columns, an Arrow table; those of strings hold cells that are not numbers.
    names: of the columns; empty without a header.
    decimal: what stands for the decimal point.
    taken: the cells of the column that was taken out as text; None without one.
    label: the name of that column, or its number from 1 on.
    """

    table: Any
    names: tuple[str, ...]
    decimal: str
    taken: list[str] | None = None
    label: str | None = None


Take = Callable[[tuple[str, ...], int], int | None]
"""Which of the columns of these names, or of so many without, is to be taken out as text; None for none."""


def read_csv(path: Path, header: bool | None = None, missing: bool = False, take: Take = lambda *_: None) -> Text:
    """Return what a text file holds.

    Args:
        header: whether the first line holds names; None to find out.
        missing: whether cells may be empty, also all of the last column.
        take: a column whose cells are no numbers to be.

    Raises:
        InputError: for a file that is damaged, or no table.
    """
    import pyarrow

    try:
        with _opened(path) as file:
            layout = _layout(path, _first_lines(file), header)
        at = take(layout.names, len(layout.rows[0]))
        table = _parsed(path, layout, at)
    except (pyarrow.ArrowInvalid, UnicodeDecodeError, csv.Error, OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a readable .csv table ({str(error).splitlines()[0].strip()})") from error
    table, names = _left_out(path, layout, table, missing)
    if at is None or str(at) not in table.column_names:
        return Text(table, names, layout.decimal)
    place = table.column_names.index(str(at))
    taken, label = table.column(place).to_pylist(), names[place] if names else str(at + 1)
    return Text(table.remove_column(place), (*names[:place], *names[place + 1 :]), layout.decimal, taken, label)


def _opened(path: Path) -> IO[str]:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _first_lines(file: IO[str]) -> list[str]:
    """Return the first lines: SAMPLED, or fewer where they are long, but at least four."""
    lines, size = list[str](), 0
    for line in file:
        lines.append(line)
        size += len(line)
        if len(lines) == SAMPLED or (size > BLOCK and len(lines) >= 4):
            break
    return lines


# the layout


def _layout(path: Path, lines: list[str], header: bool | None) -> Layout:
    start = next((number for number, line in enumerate(lines) if line.strip()), None)
    if start is None:
        raise InputError(f"{path}: not a readable .csv table (all lines are blank)")
    lines = lines[start:]
    delimiter, decimal = _dialect(lines)
    if (delimiter, decimal) != DIALECTS[0]:
        marks = {"\t": "tabs", " ": "spaces"}.get(delimiter, f"{delimiter!r}")
        commas = ", and decimals written with commas" if decimal == "," else ""
        note(f"{path}: taking columns as separated by {marks}{commas}")
    split = list(_split(lines, delimiter))
    (end, cells), rows, names = split[0], split[1:], tuple[str, ...]()
    if header is None:
        header = is_header(path, cells, [row for _, row in rows], decimal)
    if not header:
        return Layout(delimiter, decimal, (), start, [cells, *(row for _, row in rows)])
    names, first = (cells[0][1:].strip() or cells[0], *cells[1:]) if cells[0][:1] == "#" else tuple(cells), start + end
    if rows and _is_units(rows, decimal):
        note(
            f"{path}: leaving out the line below the names, which holds no number: {shown([*filter(None, rows[0][1])])}"
        )
        first, rows = start + rows[0][0], rows[1:]
    if not rows:
        raise InputError(f"{path}: the table has no rows")
    cells_of = [row for _, row in rows]
    return Layout(delimiter, decimal, _fitted(path, names, cells_of), first, cells_of)


def _dialect(lines: list[str]) -> tuple[str, str]:
    """Return the delimiter and the decimal point with which most cells below the first line are numbers."""
    best, most = DIALECTS[0], 0.0
    for delimiter, decimal in DIALECTS:
        if delimiter not in ", " and delimiter not in lines[0]:
            continue
        try:
            rows = [row for _, row in _split(lines, delimiter)]
        except csv.Error:  # cells that are too long: another delimiter
            continue
        if min(map(len, rows)) < 2 and (delimiter != "," or ("," not in lines[0] and max(map(len, rows)) > 1)):
            continue  # no column beside the first; or commas that are decimal points, below names without one
        cells = [cell for row in rows[1:] or rows for cell in row]
        share = sum(is_number(cell, decimal) or is_null(cell) for cell in cells) / max(len(cells), 1)
        if share > most:
            best, most = (delimiter, decimal), share
        if most == 1:
            break
    return best


def _split(lines: list[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each row that is not blank, and the number of the line where it ends, from 1 on."""
    if delimiter == " ":
        yield from ((number, line.split()) for number, line in enumerate(lines, 1) if line.strip())
        return
    reader = csv.reader(lines, delimiter=delimiter)
    for row in reader:
        if any(cell.strip() for cell in row) or len(row) > 1:
            yield reader.line_num, [cell.strip() for cell in row]


def _is_units(rows: list[tuple[int, list[str]]], decimal: str) -> bool:
    """Return whether a row holds words alone, and the one below it numbers."""
    (_, first), *others = rows
    words = [cell for cell in first if not is_null(cell)]
    numbers = any(is_number(cell, decimal) for cell in first)
    return bool(words and others) and not numbers and any(is_number(cell, decimal) for cell in others[0][1])


def _fitted(path: Path, names: tuple[str, ...], rows: list[list[str]]) -> tuple[str, ...]:
    """Return as many names as there are columns: a comma at the end of rows is a column without one, and so is an index
    before them, as R writes it."""
    width = len(rows[0])
    if len(names) == width + 1 and (not names[-1] or names[0] == "#"):
        return names[1:] if names[-1] else names[:-1]
    if len(names) == width - 1:
        if all(row[-1] == "" for row in rows):
            return (*names, "")
        if all(WHOLE.fullmatch(row[0]) for row in rows):
            return ("", *names)
    if len(names) != width:
        raise InputError(f"{path}: the first line has {len(names)} names ({shown(names)}), and row 1 {width} cells")
    return names


# the columns


def _parsed(path: Path, layout: Layout, text: int | None) -> Any:
    """Return the Arrow table of the rows, its columns named by their numbers; one of them as text."""
    import pyarrow
    import pyarrow.csv

    parse = pyarrow.csv.ParseOptions(delimiter=layout.delimiter)
    kept = {} if text is None else {str(text): pyarrow.string()}
    convert = pyarrow.csv.ConvertOptions(decimal_point=layout.decimal, column_types=kept)
    block = BLOCK
    while True:
        try:
            with _bytes(path, layout.delimiter) as file:
                table = pyarrow.csv.read_csv(file, _reading(layout, block), parse, convert)
                columns = (
                    column if name in kept else without_space(column, layout.decimal)
                    for name, column in zip(table.column_names, table.columns, strict=True)
                )
                return table.from_arrays(list(columns), table.column_names)
        except pyarrow.ArrowInvalid as error:
            if "block size" in str(error) and block < LARGEST:
                block *= 8
            elif "Expected" in str(error):
                raise InputError(f"{path}: {_ragged(path, layout, block)}") from error
            else:
                raise


def without_space(column: Any, decimal: str = ".") -> Any:
    """Return a column of strings as numbers, if they are with the space around them taken off."""
    import pyarrow
    from pyarrow import compute

    if not (pyarrow.types.is_string(column.type) or pyarrow.types.is_large_string(column.type)):
        return column
    cells = compute.utf8_trim_whitespace(column).to_pylist()
    empty = [cell is None or is_null(cell) for cell in cells]
    if not all(null or is_number(cell, decimal) for null, cell in zip(empty, cells, strict=True)):
        return column
    values = [None if null else number(cell, decimal) for null, cell in zip(empty, cells, strict=True)]
    return pyarrow.chunked_array([values], pyarrow.float64())


def _reading(layout: Layout, block: int, threads: bool = True) -> Any:
    import pyarrow.csv

    names = [str(column) for column in range(len(layout.rows[0]))]
    threads = threads and len(names) < 10_000  # of more columns, threads wait for each other
    return pyarrow.csv.ReadOptions(column_names=names, skip_rows=layout.first, block_size=block, use_threads=threads)


def _ragged(path: Path, layout: Layout, block: int) -> str:
    """Return which is the first row that has more or fewer cells than the first."""
    import pyarrow.csv

    found = list[Any]()

    def keep(row: Any) -> str:
        found.append(row)
        return "skip"

    parse = pyarrow.csv.ParseOptions(delimiter=layout.delimiter, invalid_row_handler=keep)
    with _bytes(path, layout.delimiter) as file:
        pyarrow.csv.read_csv(file, _reading(layout, block, threads=False), parse)  # on one thread rows are numbered
    row, width = found[0], len(layout.rows[0])
    text = f"{row.text[:40]!r}"
    return f"Expected {width} columns, got {row.actual_columns} in row {row.number - layout.first}: {text}"


def _bytes(path: Path, delimiter: str) -> Any:
    """Return the bytes of a file for Arrow, which knows no white space of any width: it becomes single spaces."""
    import pyarrow

    packed = path.suffix.lower() == ".gz"
    if delimiter != " ":
        return pyarrow.input_stream(str(path), compression="gzip" if packed else None)
    content = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
    return io.BytesIO(b"\n".join(b" ".join(line.split()) for line in content.splitlines()))


def _left_out(path: Path, layout: Layout, table: Any, missing: bool) -> tuple[Any, tuple[str, ...]]:
    """Return the table without what is no data: an empty column that commas at the ends of lines make, and an index."""
    names, last = layout.names, table.column(table.num_columns - 1)
    unnamed = names[-1] == "" if names else not missing
    if table.num_columns > 1 and unnamed and last.null_count == len(last) and all(r[-1] == "" for r in layout.rows):
        note(f"{path}: leaving out the last column, which is empty: each line ends with {layout.delimiter!r}")
        table, names = table.remove_column(table.num_columns - 1), names[:-1]
    if table.num_columns > 1 and names and INDEX.fullmatch(names[0]) and _is_integer(table.column(0)):
        note(f"{path}: leaving out the first column, which is an index: it has no name, and whole numbers")
        table, names = table.remove_column(0), names[1:]
    return table, names


def _is_integer(column: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_integer(column.type)) and not column.null_count
