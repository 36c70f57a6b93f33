"""`flowgen evaluate`, as a person and a script meet it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.journey

QUICK = ["--batch-size", "32", "--set", "net.width=16", "--set", "pool.batches=3"]
FEW = ["--num", "60", "--repeats", "2", "--steps", "1,3"]


@pytest.fixture
def moons(called, flowgen):
    shutil.copytree(called("train", "moons", "--steps", 30, *QUICK), ".", dirs_exist_ok=True)
    return Path("runs/moons")


def write_table():
    np.savetxt("t.csv", np.random.default_rng(0).normal(size=(200, 3)), delimiter=",", header="a,b,c", comments="")


@pytest.fixture
def table(called, flowgen):
    """A run on a table of three columns, and its file."""
    shutil.copytree(called("train", "t.csv", "--steps", 20, *QUICK, files=write_table), ".", dirs_exist_ok=True)
    return Path("runs/t")


def test_a_run_is_measured_beside_its_floor(flowgen, moons, whole_pictures):
    code, out, _ = flowgen("evaluate", moons, *FEW, "--json", "m.json")
    assert code == 0
    for word in ("W2", "coverage", "true data", "straightness", "KL(data | model)", "new draws of moons", "60 rows"):
        assert word in out
    (figures,) = json.loads(Path("m.json").read_text())
    assert [q["nfe"] for q in figures["quality"]] == [1, 3]
    assert figures["quality"][0]["w2"]["mean"] > figures["floor"]["w2"]["mean"] > 0
    assert Image.open(moons / "plots/quality.png").size[0] > 100


def test_a_script_reads_the_figures_from_the_output(flowgen, moons):
    code, out, _ = flowgen("evaluate", moons, *FEW, "--json", "-", "--out", "c.png", "--solver", "heun")
    assert code == 0
    (figures,) = json.loads(out)
    assert figures["reference"] == "new draws of moons, which training did not see"
    assert [q["nfe"] for q in figures["quality"]] == [2, 6]
    assert Path("c.png").exists()


def test_the_same_seed_gives_the_same_figures(flowgen, moons):
    def figures(*seed):
        (found,) = json.loads(flowgen("evaluate", moons, *FEW, "--json", "-", *seed)[1])
        return [{k: v for k, v in q.items() if k != "seconds_per_1000"} for q in found["quality"]]

    assert figures() == figures()
    assert figures() != figures("--seed", 1)


def test_several_runs_share_a_chart(flowgen, moons):
    assert flowgen("reflow", moons, "--pairs", 64, "--steps", 5)[0] == 0
    Path("runs/notes").mkdir()
    code, out, err = flowgen("evaluate", *sorted(Path("runs").iterdir()), *FEW, "--json", "m.json")
    assert code == 0
    assert [each["run"] for each in json.loads(Path("m.json").read_text())] == ["moons", "moons-reflow1"]
    assert "notes is no trained run: passed over" in err
    assert "chart: quality.png" in out


def test_runs_of_one_name_are_told_apart(flowgen, moons):
    assert flowgen("train", "8gaussians", "--steps", 5, *QUICK, "--out", "other/moons")[0] == 0
    _, out, _ = flowgen("evaluate", moons, "other/moons", moons, *FEW, "--json", "-")
    assert [each["run"] for each in json.loads(out)] == ["runs/moons", "other/moons"]


def test_a_table_is_compared_with_its_held_out_rows(flowgen, table):
    code, out, _ = flowgen("evaluate", table, "--num", 1000, "--repeats", 2, "--steps", 2, "--neighbours", 3)
    assert code == 0
    assert "the 20 held-out rows of t.csv" in out
    assert "two sets of 10 rows" in out
    assert "copies" in out


def test_a_table_is_compared_with_a_file(flowgen, table):
    code, out, _ = flowgen("evaluate", table, "--against", "t.csv", *FEW, "--features", "pca")
    assert code == 0
    assert "the 200 rows of t.csv, 180 of which training saw" in out
    assert "3 principal components, 100.0% of the variance" in out
    assert "Fréchet distance" in out


def test_a_chart_lies_with_the_run_that_was_measured(flowgen, moons):
    moons.rename("runs/$^$ [red]_x")
    Path("notes").mkdir()
    code, out, _ = flowgen("evaluate", "notes", "runs/$^$ [red]_x", *FEW)
    assert code == 0
    assert "$^$ [red]_x" in out
    assert Path("runs/$^$ [red]_x/plots/quality.png").exists()


def test_a_mistyped_run_is_not_passed_over(flowgen, moons):
    code, out, err = flowgen("evaluate", moons, "runs/moosn", *FEW)
    assert (code, out) == (2, "")
    assert "runs/moosn: there is no such folder" in err


def test_a_place_that_cannot_be_written_is_said_before_the_work(flowgen, moons):
    shutil.rmtree(moons / "plots")
    (moons / "plots").write_text("in the way")
    code, out, err = flowgen("evaluate", moons, *FEW)
    assert (code, out) == (2, "")
    assert "cannot make the folder" in err


def test_an_adaptive_solver_takes_one_step_of_its_own(flowgen, moons):
    found = flowgen("evaluate", moons, "--num", 60, "--repeats", 2, "--solver", "bosh3", "--json", "-")[1]
    (quality,) = json.loads(found)[0]["quality"]
    assert quality["steps"] == 1
    assert quality["nfe"] > 3
    assert quality["endpoint_error"]["mean"] < 1e-2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0,1"], "steps must be at least 1"),
        (["--steps", "1,two"], "--steps is a list of whole numbers"),
        (["--steps", "1,,2"], "--steps is a list of whole numbers"),
        (["--num", "0"], "num must be at least 1"),
        (["--num", "5"], "5 neighbours need sets of more rows"),
        (["--repeats", "0"], "repeats must be at least 1"),
        (["--neighbours", "0"], "neighbours must be at least 1"),
        (["--solver", "eular"], "did you mean euler"),
        (["--features", "pcb"], "did you mean pca"),
        (["--guidance", "2"], "guidance needs a model that was trained with labels"),
        (["--features", "classifier"], "no column of labels is named, --label-column NAME"),
        (["--features", "inception", "--weights", "missing.pth"], "Inception looks at images"),
        (["--against", "missing.csv"], "no such file"),
        (["--against", "narrow.csv"], "it lacks b, c"),
        (["--against", "others.csv"], "has other columns than a, b, c: it lacks a, b, c and has also d, e, f"),
        (["--against", "nan.csv"], "1 of 3 rows hold NaN"),
        (["--against", "empty.csv"], "the file is empty"),
        (["--against", "short.csv"], "5 neighbours need sets of more rows"),
        (["--device", "cuda:77"], "cuda:77"),
        (["--out", "chart.pdf"], "--out is a chart"),
        (["--out", "nowhere/chart.png"], "no folder nowhere"),
        (["--json", "nowhere/m.json"], "no folder nowhere"),
        (["--json", "runs"], "runs is a folder"),
        (["runs/other"], "there is no such folder"),
        (["runs"], "is not a run folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(flowgen, table, arguments, message):
    Path("narrow.csv").write_text("a\n1\n2\n3\n")
    Path("others.csv").write_text("d,e,f\n1,2,3\n")
    Path("nan.csv").write_text("a,b,c\n1,2,3\n1,nan,3\n1,2,3\n")
    Path("short.csv").write_text("a,b,c\n1,2,3\n1,5,3\n1,2,3\n")
    Path("empty.csv").write_text("")
    before = {path: path.stat().st_mtime_ns for path in Path(".").rglob("*")}
    runs = [] if arguments[0].startswith("runs") else [table]
    code, out, err = flowgen("evaluate", *runs, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("flowgen: ")
    assert err.count("\n") == 1
    assert {path: path.stat().st_mtime_ns for path in Path(".").rglob("*")} == before
