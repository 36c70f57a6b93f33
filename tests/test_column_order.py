"""Tables that belong together have their columns in one order, by name: of sources, references and edits."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from flowgen import evaluation, runs
from flowgen.config import resolve_config
from flowgen.core import InputError, Note
from flowgen.data import read_table
from flowgen.runs import Run
from flowgen.runs.densities import asked_rows

pytestmark = pytest.mark.journey

SMALL = {"net": {"width": 8}, "train": {"steps": 2, "batch_size": 16}, "coupling": "independent"}
HEIGHT, WEIGHT = 170.0, 60.0


def write(path, columns, n=200, seed=0):
    """A table with a height near 170 and a weight near 60, in any order."""
    rng = np.random.default_rng(seed)
    values = {"height": rng.normal(HEIGHT, 5, n), "weight": rng.normal(WEIGHT, 5, n)}
    rows = np.stack([values.get(column, rng.normal(size=n)) for column in columns], axis=1)
    np.savetxt(path, rows, delimiter=",", header=",".join(columns), comments="")
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A folder with a run of height and weight, and tables beside it."""
    folder = tmp_path_factory.mktemp("columns")
    write(folder / "data.csv", ("height", "weight"))
    write(folder / "crossed.csv", ("weight", "height"), seed=1)
    write(folder / "other.csv", ("weight", "age", "shoe"), seed=1)
    rows = read_table(folder / "crossed.csv").x.numpy()
    np.save(folder / "bare.npy", rows[:, ::-1])
    run = Run.create(folder / "run", resolve_config({"data": str(folder / "data.csv"), **SMALL}), "")
    for _ in runs.train(run):
        pass
    return folder


@pytest.fixture(scope="module")
def rows(store):
    """The rows of crossed.csv, height first."""
    return read_table(store / "crossed.csv").x[:, [1, 0]]


def test_a_source_is_reordered_by_name(store, rows):
    config = resolve_config({"data": str(store / "data.csv"), "source": str(store / "crossed.csv"), **SMALL})
    data = config.check()
    source = config.source_distribution((2,), data.scaling, data.columns)
    x = data.scaling.undo(source.sample(2000, torch.Generator().manual_seed(0)))
    assert x.mean(0).tolist() == pytest.approx([HEIGHT, WEIGHT], abs=1.5)


def test_a_reference_is_reordered_by_name(store, rows):
    law = evaluation.load_subject(store / "run", store / "crossed.csv").reference.distribution
    torch.testing.assert_close(law.x.double(), rows, rtol=1e-6, atol=0)


def test_rows_of_a_likelihood_are_reordered_by_name(store, rows):
    asked = asked_rows(runs.load(store / "run"), store / "crossed.csv", None, None, 0)
    torch.testing.assert_close(asked.x.double(), rows, rtol=1e-6, atol=0)


def test_an_edit_keeps_the_order_of_its_file(store, flowgen):
    with open("gaps.csv", "w") as file:
        file.write("weight,height\n60.25,NA\n,170.125\n59.5,169.5\n")
    code, _, err = flowgen("edit", store / "run", "gaps.csv", "--steps", 2, "--out", "filled.csv")
    assert (code, err) == (0, "")
    made = read_table("filled.csv")
    assert made.columns == ("weight", "height")
    assert (made.x[0, 0].item(), made.x[1, 1].item()) == (60.25, 170.125)
    assert made.x[2].tolist() == [59.5, 169.5]
    assert (made.x[:, 0] < 110).all()
    assert (made.x[:, 1] > 110).all()


def refused(store, call):
    with pytest.raises(InputError, match=r"other\.csv .* lacks height and has also age, shoe"):
        call()


def test_other_columns_are_refused_by_name(store):
    run, other = store / "run", store / "other.csv"
    refused(store, lambda: evaluation.load_subject(run, other))
    refused(store, lambda: asked_rows(runs.load(run), other, None, None, 0))
    refused(store, lambda: resolve_config({"data": str(store / "data.csv"), "source": str(other), **SMALL}).check())


def test_an_edit_refuses_other_columns_by_name(store, flowgen):
    code, _, err = flowgen("edit", store / "run", store / "other.csv")
    assert code == 2
    assert "lacks height and has also age, shoe" in err


def test_columns_without_names_are_taken_in_order_with_a_word(store, rows):
    with pytest.warns(Note, match="in order as height, weight"):
        asked = asked_rows(runs.load(store / "run"), store / "bare.npy", None, None, 0)
    torch.testing.assert_close(asked.x.double(), rows, rtol=1e-6, atol=0)
    config = resolve_config({"data": str(store / "data.csv"), "source": str(store / "bare.npy"), **SMALL})
    with pytest.warns(Note, match="in order as height, weight"):
        config.check()


def test_tables_without_names_need_no_word(store):
    config = resolve_config({"data": str(store / "bare.npy"), "source": str(store / "bare.npy"), **SMALL})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config.check()


def test_header_is_kept_with_a_run_and_asked_of_other_files(store, flowgen):
    rng = np.random.default_rng(0)
    np.savetxt("data.csv", rng.normal(size=(60, 3)), delimiter=",", header="0,1,2", comments="")
    tiny = ("--set", "net.width=8", "--steps", 2, "--set", "train.batch_size=16")
    code, _, err = flowgen("train", "data.csv", "--header", "no", *tiny)
    assert (code, "taking" in err) == (0, False)
    assert runs.load(Path("runs/data")).columns == ()
    code, _, err = flowgen("likelihood", "runs/data", "data.csv", "--num", 1, "--json", "like.json")
    assert code == 0
    with open("like.json") as file:
        assert json.load(file)["rows"] == 1
    code, _, err = flowgen("likelihood", "runs/data", "data.csv", "--header", "yes", "--steps", 2)
    assert code == 0
    assert "in order" in err
    assert len(read_table("runs/data/likelihood.csv").x) == 60
    code, _, err = flowgen("train", "data.csv", "--out", "runs/told", *tiny)
    assert code == 0
    assert err.count("taking the first line as names: 0, 1, 2; --header no if it is data") == 1
    assert flowgen("train", "data.csv", "--header", "perhaps", "--out", "runs/no")[0] == 2
