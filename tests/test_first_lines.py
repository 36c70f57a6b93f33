"""First lines of tables that hold words beside numbers, and cells of text that are numbers."""

import warnings
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flowgen.core import InputError
from flowgen.data import read_table

IRIS = "5.1,3.5,setosa\n7.0,3.2,versicolor\n" * 5


@pytest.fixture
def read(tmp_path):
    """read(text): the table of that text, and its notes."""

    def call(text, **asked):
        (tmp_path / "t.csv").write_text(text)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            table = read_table(tmp_path / "t.csv", **asked)
        return table, " ".join(str(each.message) for each in caught)

    return call


@pytest.mark.parametrize(
    ("text", "column"), [(IRIS, "3"), ("5.1,cat\n7,dog\n", "2"), ("39, Own,7\n50, Own,8\n38, State,2\n", "2")]
)
def test_a_row_that_ends_with_a_word_is_no_header(read, text, column):
    table, told = read(text, label_column=column)
    assert table.columns == ()
    assert len(table.x) == text.count("\n")
    assert "taking the first line as data" in told
    assert "--header yes" in told


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("2019,2020,kind\n1.5,1,a\n2.5,2,b\n", "kind"),
        ("id,2019,2020\nA,5,7\nB,6,9\n", "id"),
        ("0,1,2\n1.5,2.5,a\n0.5,2.5,b\n", "2"),
    ],
)
def test_years_beside_a_word_are_names(read, text, column):
    table, told = read(text, label_column=column)
    assert (len(table.x), table.label_column) == (2, column)
    assert "taking the first line as names" in told


def test_commas_below_one_name_a_line_are_decimals(read):
    table, _ = read("species;x\ncat;1,5\ndog;2,5\n", label_column="species")
    assert table.x.tolist() == [[1.5], [2.5]]
    assert table.columns == ("x",)


def test_booleans_and_signs_with_space_are_numbers(read):
    table, _ = read("a,b,c\n1, TRUE,+1.5\ntrue, FALSE,-.5\n")
    assert table.x.tolist() == [[1, 1, 1.5], [1, 0, -0.5]]


def test_a_column_without_a_name_is_asked_by_its_number(read):
    table, _ = read(",x\nr1,1.5\nr2,2\n", label_column="1")
    assert table.classes == ("r1", "r2")


def test_a_table_of_labels_alone_is_refused(read):
    with pytest.raises(InputError, match="no column beside the labels"):
        read("label\ncat\ndog\n", label_column="label")


def test_decimals_and_text_of_a_parquet_are_numbers(tmp_path):
    text = pa.array(["1.5", None], pa.large_string())
    columns = {"a": [Decimal("1.5"), Decimal("2.5")], "b": text, "c": pa.array(["3", "4"]).dictionary_encode()}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    x = read_table(tmp_path / "t.parquet", missing=True).x
    assert x.nan_to_num(-1).tolist() == [[1.5, 1.5, 3], [2.5, -1, 4]]
