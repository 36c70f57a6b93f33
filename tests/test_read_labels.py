"""Labels that were asked for are learned, or refused with the reason, of every type and shape and kind of data."""

import numpy as np
import pytest
import torch
from PIL import Image

from flowgen import InputError, runs
from flowgen.config import resolve_config
from flowgen.core import Note
from flowgen.data import read_images, read_table
from flowgen.data.labels import own_labels, read_labels
from flowgen.runs import Run

pytestmark = pytest.mark.journey

ROWS = 6
MEANT = {
    "int8": (np.array([7, 1, 1, 2, 3, 7], np.int8), "1 2 3 7"),
    "uint64": (np.array([7, 1, 1, 2, 3, 7], np.uint64), "1 2 3 7"),
    "negative": (np.array([-1, 10, 2, -1, 10, 2]), "-1 2 10"),
    "booleans": (np.array([True, False] * 3), "0 1"),
    "whole floats": (np.array([1.0, 2.0, 10.0] * 2), "1 2 10"),
    "float32": (np.array([1, 2, 10] * 2, np.float32), "1 2 10"),
    "column": (np.array([[1], [2], [7]] * 2), "1 2 7"),
    "names": (np.array(["dog", "cat", "eel"] * 2), "cat dog eel"),
    "bytes": (np.array([b"dog", b"cat", b"eel"] * 2), "cat dog eel"),
    "numbers as text": (np.array(["10", "9", "1.0", "1"] + ["9"] * 2), "1 9 10"),
    "codes": (np.array(["010", "09", "1", "1", "1", "1"]), "1 09 010"),
    "NA among names": (np.array(["NA", "EU", "AS"] * 2), "AS EU NA"),
}
REFUSED = {
    "fractions": (np.linspace(0, 1, ROWS), "is 0.2 in row 2, and labels are whole numbers or names"),
    "NaN": (np.array([1, 2, np.nan, 1, 2, 3]), "is nan in row 3"),
    "huge": (np.array([1, 2, 3, 4, 5, 2**63], np.uint64), "has the label 9223372036854775808"),
    "short": (np.arange(ROWS - 1), r"has the shape \(5,\), and labels are one a row, of 6 rows"),
    "wide": (np.arange(2 * ROWS).reshape(ROWS, 2), r"has the shape \(6, 2\), and labels are one a row, or one-hot"),
    "complex": (np.ones(ROWS, complex), "is of type complex128"),
    "empty": (np.array(["a", "", "b"] * 2), "is empty in row 2"),
    "missing": (np.array(["1", "2", "NA"] * 2), "is NA in row 3"),
}


@pytest.mark.parametrize("kind", MEANT)
def test_labels_of_any_type_are_read_by_value(kind):
    y, names = MEANT[kind]
    found = read_labels(y, ROWS, "y")
    assert found.classes == tuple(names.split())
    own = own_labels(*found)
    if own.dtype.kind == "U":
        assert own.tolist() == [x.decode() if isinstance(x, bytes) else x for x in y.tolist()]
    else:
        assert own.dtype == np.int64
        assert own.tolist() == [int(float(x)) for x in y.ravel().tolist()]


@pytest.mark.parametrize("kind", REFUSED)
def test_labels_that_are_none_are_refused(kind):
    y, message = REFUSED[kind]
    with pytest.raises(InputError, match=message):
        read_labels(y, ROWS, "y")


def test_one_hot_rows_are_a_guess():
    with pytest.warns(Note, match="taking one-hot rows as labels 0 to 3"):
        assert read_labels(np.eye(4)[[3, 0, 1]], 3, "y").numbers.tolist() == [2, 0, 1]


SHAPES = {"table": (ROWS, 2), "images": (ROWS, 4, 4)}


@pytest.fixture(params=SHAPES)
def archive(request, tmp_path, normal):
    """archive(y): the place of an .npz of a table, or of images, with these labels."""

    def write(y):
        np.savez(tmp_path / "d.npz", x=normal("x", *SHAPES[request.param]).float().numpy(), **({} if y is None else y))
        return str(tmp_path / "d.npz")

    return write


@pytest.mark.parametrize("kind", MEANT)
def test_what_is_meant_as_labels_is_learned(archive, kind):
    if kind == "negative":
        pytest.skip("labels of images are from 0 on")
    y, names = MEANT[kind]
    data = resolve_config({"data": archive({"y": y}), "labels": True, "split": {"held_out": 0}}).load_data()
    assert data.classes == tuple(names.split())
    assert data.distribution.labels.tolist() == read_labels(y, ROWS, "y").numbers.tolist()


@pytest.mark.parametrize("kind", [kind for kind in REFUSED if kind not in ("short", "huge")])
def test_what_is_unusable_is_refused_where_asked(archive, kind):
    y, message = REFUSED[kind]
    place = archive({"y": y})
    with pytest.raises(InputError, match=f"labels = true.*{message}"):
        resolve_config({"data": place, "labels": True}).load_data()
    assert resolve_config({"data": place, "labels": False}).load_data().classes == ()


def test_without_labels_asking_for_them_is_refused(archive):
    with pytest.raises(InputError, match="labels = true, and there are none"):
        resolve_config({"data": archive(None), "labels": True}).load_data()
    with pytest.raises(InputError, match="labels = true, and there are none: moons has no labels"):
        resolve_config({"data": "moons", "labels": True}).load_data()


def test_images_without_labels_are_trained_with_a_word(tmp_path):
    (tmp_path / "loose").mkdir()
    for index in range(12):
        Image.fromarray(np.full((4, 4), 20 * index, np.uint8)).save(tmp_path / f"loose/{index}.png")
    net = {"net": {"name": "resmlp", "width": 4, "depth": 1}}
    config = resolve_config({"data": str(tmp_path / "loose"), **net})
    with pytest.warns(Note, match="training without labels: .*loose: the images have no labels"):
        run = Run.create(tmp_path / "run", config, "flowgen train")
    assert Run.open(run.folder).config.labels is False
    with pytest.raises(InputError, match="labels = true, and there are none"):
        Run.create(
            tmp_path / "other", resolve_config({"data": str(tmp_path / "loose"), "labels": True}), "flowgen train"
        )


def test_labels_that_are_not_used_are_told(tmp_path, normal, trained):
    np.savez(tmp_path / "t.npz", x=normal("x", 40, 2).float().numpy(), y=np.arange(40) % 3)
    with pytest.warns(Note, match="its labels, of 3 classes, are not used; --set labels=true learns them"):
        trained(tmp_path / "t.npz", tmp_path / "run", steps=1)


def test_a_column_that_may_be_labels_is_told(tmp_path, normal, trained):
    text = "\n".join(f"{a},{i % 3}" for i, a in enumerate(normal("x", 40).tolist()))
    (tmp_path / "t.csv").write_text(f"a,Label\n{text}\n")
    with pytest.warns(Note, match="the column Label is learned as numbers; --label-column Label learns labels"):
        run = trained(tmp_path / "t.csv", tmp_path / "run", steps=1)
    assert runs.load(run.folder).columns == ("a", "Label")


# a column


SPECIES = ["setosa", "virginica", "versicolor"]


@pytest.fixture(params=[".csv", ".parquet"])
def flowers(request, tmp_path, normal):
    """flowers(names, y, ...): a table of two columns of numbers and others."""
    import pyarrow
    import pyarrow.csv
    import pyarrow.parquet

    def write(file="f", rows=30, **others):
        x = normal("x", rows, 2).numpy()
        table = pyarrow.table({"a": x[:, 0], **{key: pyarrow.array(y) for key, y in others.items()}, "b": x[:, 1]})
        path = tmp_path / f"{file}{request.param}"
        (pyarrow.csv.write_csv if request.param == ".csv" else pyarrow.parquet.write_table)(table, path)
        return str(path)

    return write


@pytest.mark.parametrize("y", [SPECIES, [1, 7, 3], [1.0, 7.0, 3.0], [True, False, True]], ids=str)
def test_a_column_of_labels_is_no_data(flowers, y):
    place = flowers(species=y * 10)
    config = resolve_config({"data": place, "table": {"label_column": "species"}, "split": {"held_out": 0}})
    assert (config.labels, config.split.stratify) == (True, True)
    data = config.load_data()
    assert (data.columns, data.distribution.shape) == (("a", "b"), (2,))
    names = [str(int(label)) if isinstance(label, float) else str(label).lower() for label in y]
    assert [data.classes[label].lower() for label in data.distribution.labels.tolist()] == names * 10


@pytest.mark.parametrize("name", ["label", "Labels", "class", "target"])
def test_the_column_of_labels_is_guessed_by_its_name(flowers, name):
    place = flowers(**{name: SPECIES * 10})
    with pytest.warns(Note, match=f"taking the column {name} as labels"):
        data = resolve_config({"data": place, "labels": True}).load_data()
    assert (data.columns, len(data.classes)) == (("a", "b"), 3)


@pytest.mark.parametrize(
    ("others", "settings", "message"),
    [
        ({"species": SPECIES * 10}, {"labels": True}, "name the column of labels, --label-column NAME"),
        ({"label": [1] * 30, "class": [2] * 30}, {"labels": True}, "it could be label or class"),
        ({"label": [0.5] * 30}, {"labels": True}, "column label is 0.5 in row 1"),
        ({"label": [1, None] * 15}, {"labels": True}, "column label is .* in row 2"),
        ({"s": [1] * 30}, {"table": {"label_column": "species"}}, "has no column species"),
        ({"species": SPECIES * 10}, {}, "--label-column species"),
    ],
)
def test_columns_that_hold_no_labels_are_refused(flowers, others, settings, message):
    with pytest.raises(InputError, match=message):
        resolve_config({"data": flowers(**others), **settings}).load_data()


def test_the_column_that_was_guessed_is_kept(flowers, tmp_path, trained):
    with pytest.warns(Note, match="taking the column label"):
        run = trained(flowers(label=SPECIES * 10), tmp_path / "run", steps=1, labels=True)
    assert Run.open(run.folder).config.table.label_column == "label"
    assert runs.load(run.folder).columns == ("a", "b")
    assert Run.open(run.folder).config.load_data().classes == tuple(sorted(SPECIES))


@pytest.mark.parametrize("data", ["moons", "digits"])
def test_a_column_of_what_is_no_table_is_refused(data):
    with pytest.raises(InputError, match=f"{data} is no table: leave out the column of labels"):
        resolve_config({"data": data, "table": {"label_column": "species"}}).load_data()


def test_library_reads_the_names_of_labels(tmp_path, normal):
    x = normal("x", ROWS, 4, 4).float().numpy()
    np.savez(tmp_path / "i.npz", x=x, y=MEANT["names"][0])
    np.savez(tmp_path / "t.npz", x=x[:, 0], y=MEANT["names"][0])
    for found in (read_images(tmp_path / "i.npz"), read_table(tmp_path / "t.npz")):
        assert found.classes == ("cat", "dog", "eel")
        assert torch.equal(found.labels, torch.tensor([1, 0, 2] * 2))
    np.savez(tmp_path / "n.npz", x=x[:, 0], y=MEANT["uint64"][0])
    assert read_table(tmp_path / "n.npz").labels.tolist() == [7, 1, 1, 2, 3, 7]
