"""Samples carry the labels of their data: numbers or names, in every format, in the order that was asked for."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flowgen import runs
from flowgen.config import resolve_config
from flowgen.data import read_images, read_table
from flowgen.runs import Run

pytestmark = pytest.mark.journey

NETS = {"rows": {"name": "mlp", "width": 8, "depth": 1}, "images": {"name": "resmlp", "width": 8, "depth": 1}}


def trained_on(data, folder, kind, **tree):
    small = {"net": NETS[kind], "train": {"steps": 2, "batch_size": 8}, "pool": {"batches": 1, "reuse": 1}}
    run = Run.create(folder, resolve_config({"data": str(data), **small, "labels": True, **tree}), "flowgen train")
    for _ in runs.train(run):
        pass
    return run.folder


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Runs on a table of labels 1, 2, 3, 7, on one with names in a column, on folders 0 to 11, and on named images."""
    root = tmp_path_factory.mktemp("store")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 2)).astype(np.float32)
    np.savez(root / "numbers.npz", x=x, y=np.array([1, 2, 3, 7] * 20, float))
    trained_on(root / "numbers.npz", root / "numbers", "rows")
    with (root / "flowers.csv").open("w") as file:
        file.write("a,species,b\n")
        file.writelines(f"{a},{['cat, grey', 'dog'][i % 2]!r},{b}\n".replace("'", '"') for i, (a, b) in enumerate(x))
    trained_on(root / "flowers.csv", root / "flowers", "rows", table={"label_column": "species"})
    for name in range(12):
        (root / f"dirs/{name}").mkdir(parents=True)
        for index in range(3):
            pixels = rng.integers(0, 256, (4, 4), np.uint8)
            Image.fromarray(pixels).save(root / f"dirs/{name}/{index}.png")
    trained_on(root / "dirs", root / "folders", "images")
    np.savez(root / "named.npz", x=rng.integers(0, 256, (40, 4, 4), np.uint8), y=np.array(["cat", "dog"] * 20))
    trained_on(root / "named.npz", root / "named", "images")
    return root


@pytest.fixture
def sampled(store, flowgen):
    """sampled(run, out, *arguments): the place of what flowgen sample has written."""

    def sample(run, out, *arguments):
        code, _, err = flowgen("sample", store / run, *arguments, "--steps", 1, "--out", out)
        assert code == 0, err
        return Path(out)

    return sample


def labels_of(place):
    """The labels in an archive, a folder or a table."""
    if place.suffix == ".npz":
        with np.load(place, allow_pickle=False) as arrays:
            return arrays[next(name for name in ("y", "arr_1") if name in arrays.files)].tolist()
    with (place / "labels.csv" if place.is_dir() else place).open(newline="") as file:
        rows = list(csv.reader(file))
    return [row[-1] for row in rows[1:]]


ASKED = [
    ("numbers", "s.npz", "--label 7 --num 3", [7, 7, 7]),
    ("numbers", "s.csv", "--label 7 --num 2", ["7", "7"]),
    ("numbers", "s.npz", "--labels 1-7 --per-label 1", [1, 2, 3, 7]),
    ("numbers", "s.npz", "--labels 7,1 --per-label 2", [7, 7, 1, 1]),
    ("flowers", "s.csv", "--labels dog --per-label 2", ["dog", "dog"]),
    ("flowers", "s.csv", "--label 0 --num 1", ["cat, grey"]),
    ("flowers", "s.npz", "--label dog --num 1", ["dog"]),
    ("folders", "s", "--labels 1-3 --per-label 1", ["1", "2", "3"]),
    ("folders", "s.npz", "--labels 9-11 --per-label 1", [9, 10, 11]),
    ("folders", "s.npz", "--label 2 --num 2", [2, 2]),
    ("named", "s", "--label dog --num 2", ["dog", "dog"]),
    ("named", "s.npz", "--labels cat,dog --per-label 1", ["cat", "dog"]),
]


@pytest.mark.parametrize(("run", "out", "asked", "labels"), ASKED)
def test_samples_carry_the_labels_of_their_data(sampled, run, out, asked, labels):
    assert labels_of(sampled(run, out, *asked.split())) == labels


def test_labels_are_drawn_where_none_is_asked_for(sampled):
    assert set(labels_of(sampled("numbers", "s.npz", "--num", 100))) == {1, 2, 3, 7}
    place = sampled("flowers", "s.csv", "--num", 60)
    assert set(labels_of(place)) == {"cat, grey", "dog"}
    assert place.read_text().splitlines()[0] == "a,b,species"


def test_the_label_is_the_condition_of_its_row(sampled, store):
    """A sample with a label is what the run makes of that label."""
    place = sampled("numbers", "s.npz", "--label", 7, "--num", 5)
    trained = runs.load(store / "numbers")
    assert trained.classes == ("1", "2", "3", "7")
    from flowgen import sampling

    solver, grid = runs.sampler(trained.config, trained.model, trained.source, steps=1)
    cond = torch.full((5,), 3)
    made = sampling.sample(trained.model, trained.source, 5, grid, solver, seed=0, cond=cond)
    torch.testing.assert_close(torch.from_numpy(np.load(place)["x"]), made)


def test_samples_are_data_to_train_on_again(sampled):
    """What is written is read with the same classes, as a table and as images."""
    table = read_table(sampled("flowers", "s.csv", "--num", 30), label_column="species")
    assert (table.columns, table.classes) == (("a", "b"), ("cat, grey", "dog"))
    assert read_table(sampled("numbers", "s.npz", "--num", 60)).labels.unique().tolist() == [1, 2, 3, 7]
    assert read_images(sampled("named", "i.npz", "--num", 30)).classes == ("cat", "dog")


def test_an_array_has_no_place_for_labels(store, flowgen):
    code, _, err = flowgen("sample", store / "numbers", "--num", 3, "--steps", 1, "--out", "s.npy")
    assert code == 0
    assert "s.npy has no place for labels" in err


@pytest.mark.parametrize("label", ["0", "4", "cat"])
def test_what_is_no_label_of_the_data_is_refused(store, flowgen, label):
    code, _, err = flowgen("sample", store / "numbers", "--label", label)
    assert code == 2
    assert f"there is no label '{label}': choose one of 1, 2, 3, 7" in err


# the same labels, when the run is read again


def test_other_commands_read_the_column_of_labels(store, flowgen):
    run = store / "flowers"
    code, _, err = flowgen("likelihood", run, store / "flowers.csv", "--num", 4, "--steps", 1)
    assert code == 0, err
    few = ("--num", 4, "--repeats", 1, "--steps", 1, "--neighbours", 2)
    code, _, err = flowgen("evaluate", run, *few, "--against", store / "flowers.csv")
    assert code == 0, err
    trained = runs.load(run)
    rows = runs.asked_rows(trained, store / "flowers.csv", 4, None, 0)
    assert rows.cond.tolist() == [0, 1, 0, 1]
    (store / "bare.csv").write_text("a,b\n0.5,1.0\n1.5,2.0\n")
    assert runs.asked_rows(trained, store / "bare.csv", None, None, 0).cond.tolist() == [2, 2]
    (store / "other.csv").write_text("a,b,species\n0.5,1.0,eel\n")
    code, _, err = flowgen("likelihood", run, store / "other.csv", "--steps", 1)
    assert (code, "labels that this run does not know: eel" in err) == (2, True)


def test_rows_are_filled_in_given_their_own_labels(store, flowgen):
    run = store / "alone"
    tree = {"table": {"label_column": "species"}, "coupling": "independent", "train": {"steps": 30, "batch_size": 8}}
    trained_on(store / "flowers.csv", run, "rows", **tree)
    Path("cells.csv").write_text("b,species,a\n0.5,dog,\n,dog,1\n,dog,-1\n")
    Path("bare.csv").write_text("b,a\n0.5,\n,1\n,-1\n")
    for file, label in (("cells.csv", ()), ("bare.csv", ("--label", "dog"))):
        code, _, err = flowgen("edit", run, file, *label, "--steps", 4, "--out", f"filled-{file}")
        assert code == 0, err
    texts = (Path(f"filled-{file}").read_text().splitlines() for file in ("cells.csv", "bare.csv"))
    own, asked = (list(csv.DictReader(lines)) for lines in texts)
    assert [row.pop("species") for row in own] == ["dog"] * 3
    assert own == asked
    code, _, err = flowgen("edit", run, "cells.csv", "--label", "dog")
    assert (code, "cells.csv has labels of its own" in err) == (2, True)


def test_a_run_with_a_column_of_labels_goes_on(store, flowgen):
    code, _, err = flowgen("train", "--out", store / "flowers", "--resume", "--set", "train.steps=3")
    assert code == 0, err
    assert runs.load(store / "flowers").step == 3


def test_the_option_names_the_column(store, flowgen):
    small = ("--steps", 1, "--batch-size", 8, "--set", "net.width=8", "--set", "net.depth=1", "--set", "pool.batches=1")
    code, _, err = flowgen("train", store / "flowers.csv", "--label-column", "species", *small, "--out", "r")
    assert code == 0, err
    assert runs.load(Path("r")).classes == ("cat, grey", "dog")
    for data, message in (("moons", "moons is no table"), (store / "dirs", "is no table")):
        code, _, err = flowgen("train", data, "--label-column", "species", "--out", "o")
        assert (code, message in err) == (2, True)
