"""What a run cannot do is said when its training begins, and left out, with its reason, where runs are compared."""

import json
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.journey

QUICK = ["--batch-size", "32", "--set", "net.width=16", "--set", "pool.batches=3"]
FEW = ["--num", "40", "--repeats", "2", "--neighbours", "3", "--json", "-"]


@pytest.fixture
def runs(flowgen):
    """A flow, and a one-step model of it."""
    assert flowgen("train", "moons", "--steps", 10, *QUICK)[0] == 0
    assert flowgen("distill", "runs/moons", "--pairs", 64, "--train-steps", 5)[0] == 0
    return ["runs/moons", "runs/moons-1step"]


def steps_of(out):
    return {each["run"]: [quality["steps"] for quality in each["quality"]] for each in json.loads(out)}


def test_what_does_not_apply_to_a_run_is_left_out(flowgen, runs):
    code, out, err = flowgen("evaluate", *runs, "--steps", "1,4", *FEW)
    assert (code, steps_of(out)) == (0, {"moons": [1, 4], "moons-1step": [1]}), err
    assert "moons-1step is left out at 4 steps: this run has learned to jump in 1 step, not in 4" in err
    code, out, err = flowgen("evaluate", *runs, "--steps", "2,4", *FEW)
    assert (code, steps_of(out)) == (0, {"moons": [2, 4]})
    assert "runs/moons-1step is left out: this run has learned to jump in 1 step, not in 2" in err
    code, out, err = flowgen("evaluate", *runs, "--steps", 1, "--solver", "heun", *FEW)
    assert (code, steps_of(out)) == (0, {"moons": [1]})
    assert "moons-1step is left out: this run has learned to jump" in err


def test_where_nothing_applies_it_is_refused(flowgen, runs):
    code, out, err = flowgen("evaluate", runs[1], "--steps", "2,4", *FEW)
    assert (code, out) == (2, "")
    assert "has learned to jump in 1 step, not in 2" in err
    code, out, err = flowgen("evaluate", *runs, "--steps", "0,1", *FEW)
    assert (code, out, "steps must be at least 1" in err) == (2, "", True)
    code, out, err = flowgen("evaluate", *runs, "--against", "missing.csv", *FEW)
    assert (code, out) == (2, "")
    assert err.count("missing.csv: no such file") == 1


def test_a_broken_run_among_others_is_refused(flowgen, runs):
    weights = Path(runs[1], "model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-9])
    code, out, err = flowgen("evaluate", *runs, "--steps", 1, *FEW)
    assert (code, out) == (2, ""), err
    assert f"{weights}: not a readable safetensors file" in err
    code, out, err = flowgen("evaluate", runs[0], "runs/none", "--steps", 1, *FEW)
    assert (code, out, "runs/none: there is no such folder" in err) == (2, "", True)


@pytest.mark.parametrize("name", ["nosuchfolder", "nosuch/file", "./moons"])
@pytest.mark.parametrize("command", ["train {}", "train moons --source {}", "couplings {}"])
def test_data_that_are_not_there_are_said_to_be_missing(flowgen, command, name):
    code, out, err = flowgen(*command.format(name).split())
    assert (code, out) == (2, "")
    assert f"{name}: there is no such file or folder" in err
    assert "did you mean" not in err


def test_a_name_nearly_right_is_still_told(flowgen):
    assert "mons: there is no such file or folder" in flowgen("train", "mons")[2]
    assert "did you mean moons?" in flowgen("train", "mons")[2]


@pytest.mark.parametrize("command", ["sample", "evaluate", "info", "reflow"])
def test_a_run_that_is_not_there_is_said_to_be_missing(flowgen, command):
    code, out, err = flowgen(command, "runs/none")
    assert (code, out, "there is no such folder" in err) == (2, "", True)


def test_training_says_what_coupled_pairs_rule_out(flowgen):
    rng = np.random.default_rng(0)
    np.savetxt("t.csv", rng.normal(size=(60, 2)), delimiter=",", header="a,b", comments="")
    Path("gaps.csv").write_text("a,b\n0.5,\n")
    code, _, err = flowgen("train", "t.csv", "--steps", 5, *QUICK)
    assert (code, err.count("train it --coupling independent")) == (0, 1)
    assert flowgen("edit", "runs/t", "gaps.csv")[0] == 2
    code, _, err = flowgen("train", "t.csv", "--steps", 5, *QUICK, "--coupling", "independent", "--overwrite")
    assert (code, "--coupling independent" in err) == (0, False)
    assert flowgen("edit", "runs/t", "gaps.csv", "--steps", 2)[0] == 0


@pytest.mark.parametrize("others", [["moons"], ["t.csv", "--source", "t.csv"], ["t.csv", "--path", "vp"]])
def test_what_another_coupling_would_not_allow_is_not_said(flowgen, others):
    np.savetxt("t.csv", np.random.default_rng(0).normal(size=(60, 2)), delimiter=",", header="a,b", comments="")
    code, _, err = flowgen("train", *others, "--steps", 2, *QUICK)
    assert (code, "--coupling independent" in err) == (0, False)
