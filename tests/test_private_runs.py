"""What a run folder says to others: names and hashes, and not where things are, or whose."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest

from flowgen.config.places import recorded, shown

pytestmark = pytest.mark.journey

QUICK = ["--steps", 4, "--batch-size", 16, "--set", "net.width=8", "--set", "pool.batches=2"]
FEW = ["--num", 20, "--repeats", 2, "--neighbours", 2, "--steps", 2]


def holding(folder, *words):
    """The files below a folder that hold one of the words."""
    every = [path for path in Path(folder).rglob("*") if path.is_file()]
    assert every
    return [str(path) for path in every for word in words if word.encode() in path.read_bytes()]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The home folder of a user whose name is telltale, where the work is."""
    home = tmp_path / "telltale"
    (home / "proj/data").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USER", "telltale")
    rng = np.random.default_rng(0)
    np.savez(home / "proj/data/t.npz", x=rng.normal(size=(120, 2)).astype(np.float32), y=np.arange(120) % 2)
    np.savetxt(home / "proj/data/s.csv", rng.normal(size=(120, 2)), delimiter=",")
    return home


def test_nothing_in_a_run_says_where_it_was_made(flowgen, home, monkeypatch):
    monkeypatch.chdir(home / "proj")
    data, run = home / "proj/data/t.npz", home / "proj/runs/t"
    made = [
        ["train", data, "--out", run, *QUICK, "--coupling", "independent"],
        ["reflow", run, "--pairs", 16, "--inverted", 0.5, f"--out={home}/proj/runs/r"],
        ["distill", run, "--pairs", 16],
        ["distill", run, "--method", "shortcut"],
        ["train", data, "--out", home / "proj/runs/s", *QUICK, "--set", f"source={home}/proj/data/s.csv"],
        ["evaluate", run, home / "proj/runs/r", "--against", data, *FEW, "--json", run / "quality.json"],
        ["likelihood", run, data, "--json", run / "likelihood.json"],
        ["train-classifier", run, "--steps", 2, "--json", run / "classifier.json"],
        ["sample", run, "--num", 20, "--out", run / "samples.npz"],
        ["export", run, "--format", "torch-export"],
    ]
    for arguments in made:
        code, _, err = flowgen(*arguments)
        assert code == 0, err
    package = Path(__file__).parent.parent
    assert holding("runs", "telltale", str(home.parent), str(package)) == []
    command = "flowgen train data/t.npz --out runs/t --steps 4"
    assert command in Path("runs/t/README.md").read_text()
    assert "--out=runs/r" in Path("runs/r/README.md").read_text()
    assert "source=data/s.csv" in Path("runs/s/README.md").read_text()
    (figures, _) = json.loads((run / "quality.json").read_text())
    assert figures["data"] == "t.npz"


def test_an_onnx_file_does_not_name_the_files_of_its_maker(flowgen, home, monkeypatch):
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(home)
    assert flowgen("train", "moons", "--out", "m", *QUICK)[0] == 0
    assert flowgen("export", "m")[0] == 0
    assert holding("m", "telltale", str(Path(__file__).parent.parent), "site-packages") == []


def test_a_place_that_names_the_user_is_not_written_down(flowgen, home):
    """The run lies outside of the user's home, and the data within it."""
    code, _, err = flowgen("train", home / "proj/data/t.npz", "--out", "runs/t", *QUICK)
    assert (code, "t.npz is recorded by its name alone" in err) == (0, True)
    assert holding("runs", "telltale") == []
    assert tomllib.loads(Path("runs/t/config.toml").read_text())["data"] == "t.npz"
    few = ["evaluate", "runs/t", *FEW]
    code, out, err = flowgen(*few)
    assert (code, out, "--data PLACE" in err) == (2, "", True)
    assert flowgen(*few, "--data", home / "proj/data/t.npz")[0] == 0
    assert flowgen("train", home / "proj/data/t.npz", "--out", "runs/t", "--resume", "--steps", 6)[0] == 0


def test_places_are_written_relative_to_a_folder(home):
    project = home / "proj"
    cases = {
        project / "data/t.npz": "../../data/t.npz",
        project / "runs/t/t.npz": "t.npz",
        home / "t.npz": "../../../t.npz",
        home.parent / "common/t.npz": "../../../../common/t.npz",
    }
    assert {place: recorded(str(place), project / "runs/t") for place in cases} == cases
    assert recorded(str(project / "data/moons"), home.parent) == "./moons"  # which is no toy
    assert [recorded(name, home) for name in ("moons", "digits", "hub:mnist")] == ["moons", "digits", "hub:mnist"]


def test_what_was_typed_is_left_as_it_is(home, monkeypatch):
    monkeypatch.chdir(home)
    assert [shown(text) for text in ("a/./b", "http://x", "3/4", "../x")] == ["a/./b", "http://x", "3/4", "../x"]
    assert shown(home / "proj/x") == "proj/x"
