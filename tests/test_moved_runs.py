"""Runs whose data, source or parents have moved: found again, or where a place is given, if the hash agrees."""

import os
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest

from flowgen import checkpoints, runs
from flowgen.config import resolve_config
from flowgen.core import InputError
from flowgen.runs import Run, reflow_config

pytestmark = pytest.mark.journey

SMALL = {"net": {"width": 8, "depth": 2}, "train": {"steps": 4, "batch_size": 16}, "pool": {"batches": 2}}
FEW = ["--num", 20, "--repeats", 2, "--steps", 2, "--neighbours", 2]
COMMANDS = {
    "evaluate": ["evaluate", "RUN", *FEW],
    "likelihood": ["likelihood", "RUN", "--steps", 2],
    "train-classifier": ["train-classifier", "RUN", "--steps", 2],
    "reflow": ["reflow", "RUN", "--pairs", 8, "--inverted", 0.5, "--steps", 2, "--out", "new"],
    "distill": ["distill", "RUN", "--method", "shortcut", "--train-steps", 2, "--out", "new"],
    "train": ["train", "--out", "RUN", "--resume", "--steps", 6],
}
"""Those that read the data of a run."""


def finish(run):
    for _ in runs.train(run):
        pass
    return run


def tree_of(folder):
    return tomllib.loads((Path(folder) / "config.toml").read_text())


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A project: data/t.npz and runs/t, runs/r, which is a reflow of it, and runs/s, whose source is data/s.csv."""
    folder, rng = tmp_path_factory.mktemp("built") / "proj", np.random.default_rng(0)
    (folder / "data").mkdir(parents=True)
    x = rng.normal(size=(120, 2)).astype(np.float32)
    np.savez(folder / "data/t.npz", x=x, y=np.arange(120) % 2)
    np.savetxt(folder / "data/s.csv", x - 3, delimiter=",")
    tree = {"data": str(folder / "data/t.npz"), **SMALL}
    first = finish(Run.create(folder / "runs/t", resolve_config({**tree, "coupling": "independent"}), "train"))
    second = Run.create(folder / "runs/r", reflow_config(first.folder, {"reflow.pairs": 16}), "reflow")
    for _ in runs.make_pairs(second):
        pass
    finish(second)
    finish(Run.create(folder / "runs/s", resolve_config({**tree, "source": str(folder / "data/s.csv")}), "train"))
    return folder


@pytest.fixture
def project(built, tmp_path):
    """A copy of it, which has moved in that, and the original is not there."""
    away = built.with_name("away")
    shutil.copytree(built, tmp_path / "proj2")
    built.rename(away)
    yield tmp_path / "proj2"
    away.rename(built)


def command(name, run, *more):
    return [run if word == "RUN" else word for word in COMMANDS[name]] + [*more]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_project_may_move_as_a_whole(flowgen, project, name):
    code, _, err = flowgen(*command(name, project / "runs/t"))
    assert code == 0, err


def test_what_learned_from_a_run_moves_with_it(flowgen, project, monkeypatch):
    assert tree_of(project / "runs/r")["reflow"]["parent"] == "../t"
    assert flowgen("train", "--out", project / "runs/r", "--resume", "--steps", 6)[0] == 0
    monkeypatch.chdir(project / "runs/r")
    assert flowgen("evaluate", ".", *FEW)[0] == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_moved_data_are_named(flowgen, project, name):
    place = (project / "data/t.npz").rename(project / "moved.npz")
    code, out, err = flowgen(*command(name, project / "runs/t"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "data/t.npz" in err
    assert "--data PLACE" in err
    before = tree_of(project / "runs/t")
    code, _, err = flowgen(*command(name, project / "runs/t", "--data", place))
    assert code == 0, err
    after = tree_of(project / "runs/t")
    assert (before["data"], after["data"]) == (
        "../../data/t.npz",
        "../../moved.npz" if name == "train" else before["data"],
    )
    if Path("new").exists():
        assert tree_of("new")["data"] == "../proj2/moved.npz"
        assert flowgen("evaluate", "new", *FEW[:4], "--neighbours", 2)[0] == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_other_data_of_that_name_are_refused(flowgen, project, name):
    Path("t.npz").write_bytes((project / "data/t.npz").read_bytes())
    with np.load("t.npz") as before:
        np.savez(project / "data/t.npz", x=before["x"] + 1, y=before["y"])
    for more in ([], ["--data", project / "data/t.npz"]):
        code, out, err = flowgen(*command(name, project / "runs/t", *more))
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"{project / 'data/t.npz'} has changed since the run began" in err
    assert flowgen(*command(name, project / "runs/t", "--data", "t.npz"))[0] == 0


def test_of_two_places_the_one_of_the_hash_is_taken(flowgen, project, monkeypatch):
    tree = (project / "runs/t/config.toml").read_text()
    (project / "runs/t/config.toml").write_text(tree.replace("../../data/t.npz", "t.npz"))
    monkeypatch.chdir(project)
    (project / "data/t.npz").rename(project / "t.npz")
    np.save(project / "runs/t/t.npz", np.zeros(3))
    assert flowgen("evaluate", "runs/t", *FEW)[0] == 0


def test_a_place_that_cannot_be_is_refused(flowgen, project):
    for more, message in {
        ("--data", "none.npz"): "--data none.npz: there is no such file or folder",
        ("--data", "moons"): "--data moons: there is no such file or folder",
        ("--source", project / "data/s.csv"): "this run is of gaussian, which has no place",
    }.items():
        code, out, err = flowgen("evaluate", project / "runs/t", *FEW, *more)
        assert (code, out) == (2, "")
        assert message in err
    assert flowgen("train", "moons", "--out", "m", "--steps", 2, "--batch-size", 16)[0] == 0
    assert "this run is of moons, which has no place" in flowgen("evaluate", "m", "--data", project / "data/t.npz")[2]
    code, _, err = flowgen("train", project / "data/t.npz", "--out", "m", "--resume")
    assert (code, "--resume cannot change data from moons to" in err) == (2, True)


def test_a_moved_source_is_named(flowgen, project):
    place, run = (project / "data/s.csv").rename(project / "moved.csv"), project / "runs/s"
    assert flowgen("info", run)[0] == 0
    for arguments in (["sample", run, "--num", 20], ["evaluate", run, *FEW], ["train", "--out", run, "--resume"]):
        code, out, err = flowgen(*arguments)
        assert (code, out, "--source PLACE" in err) == (2, "", True)
        np.savetxt(project / "other.csv", np.ones((30, 2)), delimiter=",")
        code, _, err = flowgen(*arguments, "--source", project / "other.csv")
        assert (code, "other.csv has changed since the run began, or is not its source" in err) == (2, True)
        code, _, err = flowgen(*arguments, "--source", place)
        assert code == 0, err
    assert flowgen("sample", run, "--num", 20)[0] == 0  # --resume has written it down


def test_a_moved_parent_is_named(flowgen, project):
    place, run = (project / "runs/t").rename(project / "first"), project / "runs/r"
    more = ["train", "--out", run, "--resume", "--steps", 6]
    code, out, err = flowgen(*more)
    assert (code, out, "--parent PLACE" in err) == (2, "", True)
    assert f"--parent {run}: {run} learns from a run of other weights" in flowgen(*more, "--parent", run)[2]
    assert flowgen("sample", run, "--num", 20)[0] == 0
    assert flowgen(*more, "--parent", place)[0] == 0
    assert tree_of(run)["reflow"]["parent"] == "../../first"
    code, _, err = flowgen("reflow", place, "--out", run, "--resume")
    assert code == 0, err


def test_a_parent_is_found_beside_what_learned_from_it(flowgen, project):
    assert flowgen("reflow", project / "runs/t", "--pairs", 8, "--steps", 2, "--out", "a-b")[0] == 0
    shutil.copytree("a-b", project / "runs/a-b")
    text = (project / "runs/a-b/config.toml").read_text()
    assert 'parent = "../proj2/runs/t"' in text
    assert Path(Run.open(project / "runs/a-b").config.reflow.parent) == project / "runs/t"
    assert flowgen("train", "--out", project / "runs/a-b", "--resume")[0] == 2  # its data are elsewhere
    code, _, err = flowgen("train", "--out", project / "runs/a-b", "--resume", "--data", project / "data/t.npz")
    assert code == 0, err


def test_the_settings_of_a_run_find_its_data(flowgen, project):
    assert flowgen("train", "--config", project / "runs/s/config.toml", "--out", "again", "--steps", 2)[0] == 0
    assert [tree_of("again")[key] for key in ("data", "source")] == ["../proj2/data/t.npz", "../proj2/data/s.csv"]


def test_links_are_kept_as_they_are(flowgen, project, tmp_path, trained):
    (tmp_path / "disk").mkdir()
    (project / "runs").rename(tmp_path / "disk/runs")
    os.symlink(tmp_path / "disk/runs", project / "runs")
    run = trained(project / "data/t.npz", project / "runs/new", steps=2)
    assert tree_of(run.folder)["data"] == "../../data/t.npz"
    assert flowgen("evaluate", project / "runs/new", *FEW)[0] == 0


def test_python_takes_places_too(project):
    place, run = (project / "data/t.npz").rename(project / "moved.npz"), project / "runs/t"
    trained = runs.load(run, places=runs.Places(str(place)))
    assert trained.config.load_data().hash == checkpoints.file_hash(place)
    with pytest.raises(InputError, match="--data PLACE"):
        runs.load(run).config.load_data()
