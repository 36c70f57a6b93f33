"""Tables of text and .parquet as people write them: read rightly, with a word of what was guessed, or refused."""

import gzip
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from flowgen.core import InputError, Note
from flowgen.data import read_table
from flowgen.data.writing import write_rows

SMALL = "\n".join(",".join(f"{x:.5f}" for x in row) for row in np.random.default_rng(0).normal(0.02, 0.01, (400, 3)))


@pytest.fixture
def read(tmp_path):
    """read(text): the rows, the names and the notes of a table of that text."""

    def call(text, name="t.csv", **asked):
        content = text.encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.lower().endswith("gz") else content)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            table = read_table(tmp_path / name, **asked)
        assert all(issubclass(each.category, Note) for each in caught)
        return np.round(table.x.numpy(), 9).tolist(), table.columns, " ".join(str(each.message) for each in caught)

    return call


# headers


@pytest.mark.parametrize("names", ["2019,2020,2021", "0,1,2", "3,1,2", '"2019","2020","2021"'])
def test_whole_numbers_above_fractions_are_names(read, names):
    rows, columns, told = read(f"{names}\n{SMALL}")
    assert columns == tuple(names.replace('"', "").split(","))
    assert len(rows) == 400
    assert np.max(rows) < 0.1
    assert "taking the first line as names" in told
    assert "--header no" in told


GUESSED = {
    "years above counts": ("2019,2020\n" + "7,9\n12,3\n" * 10, True),
    "counted names above counts": ("0,1,2,3,4\n" + "7,0,0,3,5\n" * 3, True),
    "wavelengths": ("400.5,401.5,402.5\n" + "0.1,0.2,0.3\n0.4,0.1,0.2\n" * 10, True),
    "with an index": (",0,1\n0,0.5,0.25\n1,0.1,0.4\n2,0.3,0.4\n", True),
    "counts": ("5,7,3\n" + "7,9,1\n12,3,2\n" * 10, False),
    "numbers written short": ("0,1\n0.5,1\n0.25,0\n", False),
    "equal": ("1,1,1\n" + SMALL, False),
    "fractions": (SMALL, False),
    "rising": ("0.1,0.2,0.3\n0.2,0.3,0.4\n0.3,0.4,0.5\n0.4,0.5,0.6\n", False),
    "sequences": ("1,2,3,4,5\n2,3,4,5,6\n7,8,9,10,11\n", False),
}


@pytest.mark.parametrize(("text", "named"), GUESSED.values(), ids=GUESSED)
def test_a_first_line_of_numbers_is_told_by_what_follows(read, text, named):
    rows, columns, _ = read(text)
    assert bool(columns) is named
    assert len(rows) == len(text.strip().splitlines()) - named


@pytest.mark.parametrize("header", [False, True])
def test_header_decides(read, header):
    for text in ("2019,2020,2021\n" + SMALL, SMALL):
        first = text.splitlines()[0].split(",")
        rows, columns, told = read(text, header=header)
        assert columns == (tuple(first) if header else ())
        assert len(rows) == len(text.splitlines()) - header
        assert not told


WORDS = ["", "NA", "N/A", "null", "NULL", "nan", "NaN", "#N/A", "-nan", "n/a", "1.#QNAN", "#NA"]


@pytest.mark.parametrize("word", WORDS)
def test_a_row_with_a_null_word_is_no_header(read, word):
    rows, columns, _ = read(f"0.5,{word}\n-1.0,{word}\n{word},1.5\n", missing=True)
    assert columns == ()
    assert len(rows) == 3
    assert np.isnan(rows).tolist() == [[False, True], [False, True], [True, False]]


# what is no data


INDICES = {
    "pandas": (",a,b\n0,0.5,2\n1,0.25,3\n", ("a", "b")),
    "from 1": (",a,b\n1,0.5,2\n2,0.25,3\n", ("a", "b")),
    "of some rows": (",a,b\n17,0.5,2\n4,0.25,3\n", ("a", "b")),
    "read and written again": ("Unnamed: 0,a,b\n0,0.5,2\n1,0.25,3\n", ("a", "b")),
    "as R writes it": ("a,b\n1,0.5,2\n2,0.25,3\n", ("a", "b")),
}


@pytest.mark.parametrize(("text", "names"), INDICES.values(), ids=INDICES)
def test_an_index_is_left_out_with_a_word(read, text, names):
    rows, columns, told = read(text)
    assert (rows, columns) == ([[0.5, 2], [0.25, 3]], names)
    assert "leaving out the first column" in told


def test_a_first_column_with_a_name_stays(read):
    assert read("id,a\n0,0.5\n1,0.25\n") == ([[0, 0.5], [1, 0.25]], ("id", "a"), "")


@pytest.mark.parametrize("index", [None, "key"])
def test_the_index_of_a_parquet_is_left_out(tmp_path, index):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [0.5, 0.25, 1.0], "b": [1.0, 2.0, 3.0]}, index=[5, 3, 9])
    frame.index.name = index
    frame.to_parquet(tmp_path / "t.parquet")
    with pytest.warns(Note, match=index or "__index_level_0__"):
        table = read_table(tmp_path / "t.parquet")
    assert table.columns == ("a", "b")
    assert table.x.tolist() == frame.to_numpy().tolist()


def test_an_index_level_needs_no_metadata(tmp_path):
    pq.write_table(pa.table({"a": [0.5, 1.5], "__index_level_0__": [1, 0]}), tmp_path / "t.parquet")
    with pytest.warns(Note, match="index"):
        assert read_table(tmp_path / "t.parquet").columns == ("a",)


@pytest.mark.parametrize("text", ["a,b,\n1,2,\n3,4,\n", "a,b\n1,2,\n3,4,\n", "a,b,\n1,2\n3,4\n"])
def test_commas_at_the_ends_of_lines_are_no_column(read, text):
    assert read(text)[:2] == ([[1, 2], [3, 4]], ("a", "b"))
    assert read(text.partition("\n")[2])[:2] == ([[1, 2], [3, 4]], ())


# how text is written


WRITTEN = {
    "semicolons": "a;b\n1.5;2\n3;4\n",
    "decimal commas": "a;b\n1,5;2,0\n3;4\n",
    "tabs": "a\tb\n1.5\t2\n3\t4\n",
    "tabs, decimal commas": "a\tb\n1,5\t2\n3\t4\n",
    "bars": "a|b\n1.5|2\n3|4\n",
    "spaces": "a b\n1.5 2\n3 4\n",
    "columns of spaces": "  a   b \n 1.5   2\n 3.0   4 \n",
    "numpy's header": "# a b\n1.5 2\n3 4\n",
    "units": "a,b\nm,kg\n1.5,2\n3,4\n",
}


@pytest.mark.parametrize("text", WRITTEN.values(), ids=WRITTEN)
def test_text_is_read_as_it_is_written_and_told(read, text):
    rows, columns, told = read(text)
    assert (rows, columns) == ([[1.5, 2], [3, 4]], ("a", "b"))
    assert "taking columns" in told or "m, kg" in told


@pytest.mark.parametrize("text", ["\n\n  \na,b\n1,2\n", "a, b\n1, 2\n", "# a,b\n1,2\n", "a,b\n1,2\n\n\n", "a,b\r1,2\r"])
def test_blank_lines_and_spaces_around_cells_are_nothing(read, text):
    assert read(text) == ([[1, 2]], ("a", "b"), "")


def test_cells_between_spaces_may_be_null(read):
    rows, _, _ = read("a,b\n1, NA \n 2 ,3\n", missing=True)
    assert rows[1] == [2, 3]
    assert np.isnan(rows[0][1])


@pytest.mark.parametrize("name", ["T.CSV", "t.csv.gz", "T.Csv.GZ"])
def test_suffixes_in_capitals_and_packed_text_are_known(read, name):
    assert read("a,b\n1,2\n", name) == ([[1, 2]], ("a", "b"), "")


@pytest.mark.parametrize("name", ["S.CSV", "s.csv.gz", "S.NPY", "S.Npz"])
def test_rows_are_written_by_suffixes_in_capitals_too(tmp_path, name):
    write_rows(tmp_path / name, [torch.eye(3)], (3, 3), ("a", "b", "c"))
    assert torch.equal(read_table(tmp_path / name).x.float(), torch.eye(3))


def test_rows_longer_than_a_mebibyte_are_read(read):
    long = ["0." + "0" * 100_000 + "1", "2." + "5" * 100_000]
    rows, columns, _ = read("\n".join([",".join(f"c{n}" for n in range(12)), *[",".join(long * 6)] * 3]))
    assert len(columns) == 12
    assert rows == [[0, round(23 / 9, 9)] * 6] * 3


REFUSED = {
    "a word": ("age,height\n1,2\n" * 1 + "3,4\n" * 15 + "5,abc\n", "column height, row 17, 'abc' is not a number"),
    "a word in a quoted column": ("a;b\n1,5;x\n2,5;3\n", "column b, row 1, 'x' is not a number"),
    "an empty cell": ("a,b\n" + "1,2\n" * 4 + "1,\n", "row 5, column b is empty"),
    "an infinite cell": ("a,b\n1,2\n-inf,2\n", "row 2, column a is infinite"),
    "a short row": ("a,b\n1,2\n3\n", "got 1 in row 2: '3'"),
    "a long row": ("\na,b\n1,2\n3,4,5\n", "got 3 in row 2: '3,4,5'"),
    "fewer cells than names": ("a,b,c\n1,2\n", r"3 names \(a, b, c\), and row 1 2 cells"),
    "a column without values": ("a,b\n1,\n3,\n", "row 1, column b is empty"),
    "thousands": ("a,b\n1_000,2\n", "'1_000' is not a number"),
}


@pytest.mark.parametrize(("text", "match"), REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_named_by_row_and_column(read, text, match):
    with pytest.raises(InputError, match=match):
        read(text)


def test_a_broken_packed_file_is_refused(tmp_path):
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(SMALL.encode())[:200])
    with pytest.raises(InputError, match="not a readable"):
        read_table(tmp_path / "t.csv.gz")
